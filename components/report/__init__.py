"""Step 9, the exit task: tell how the run ended, whatever happened."""
