"""Step 8: write down how the run ended; a promotion is one create-only record."""
