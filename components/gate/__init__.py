"""Step 7: promote only if nothing regressed."""
