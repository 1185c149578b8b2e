"""What a run says of itself: JSON lines in its own folder first, then W&B, MLflow and others by name."""
