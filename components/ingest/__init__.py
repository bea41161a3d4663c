"""Step 1: raw images become an immutable window."""
