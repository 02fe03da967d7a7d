"""Inference with trained nets: features, evaluation, classification."""
