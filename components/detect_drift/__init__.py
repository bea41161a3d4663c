"""Step 3: how does the window differ from what the champion knows, and is it broken?"""
