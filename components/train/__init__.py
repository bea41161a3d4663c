"""Step 5: train a challenger."""
