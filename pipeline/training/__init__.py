"""Fine-tuning: initial weights, checks before training, the training and its checkpoints."""
