"""A training run: the Trainer, its checkpoints, optimizer, losses and settings."""
