"""New data arrives: exactly one run."""
