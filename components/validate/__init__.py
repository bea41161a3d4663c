"""Step 2: is this window fit to be looked at?"""
