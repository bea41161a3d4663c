"""The steps of the retraining pipeline: one folder a step, `core` for what they share."""
