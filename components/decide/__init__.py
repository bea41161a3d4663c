"""Step 4: skip, quarantine, fine-tune or retrain, and why."""
