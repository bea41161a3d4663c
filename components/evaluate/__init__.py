"""Step 6: champion and challenger on the same held-out rows."""
