"""What trained nets say: features, evaluation, classification."""
