"""From corpora to batches: corpora, protocols, spectrograms and their cache, augmentation."""
