"""The training package of MaxMViT-MLP: data, training, evaluation, inference, export and the commands."""
