"""The smallest MaxMViT that is still whole: what the tests build, train, save and load."""

import numpy as np
import torch

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification

IMAGE_SIZE = 64


def tiny_config(num_labels: int = 4, **kwargs) -> MaxMViTConfig:
    """A configuration of under one million parameters that sees images of 64 x 64."""
    defaults = {
        "cqt_backbone_kwargs": {
            "embed_dim": [32] * 4, "depths": [1] * 4, "stem_width": 16, "head_hidden_size": 32,
        },
        "mel_backbone_kwargs": {"depths": [1] * 4, "embed_dim": 8, "num_heads": 1},
        "image_size": IMAGE_SIZE,
        "hidden_size": 32,
    }  # fmt: skip
    return MaxMViTConfig(num_labels=num_labels, **{**defaults, **kwargs})


def tiny_model(num_labels: int = 4, seed: int = 0, **kwargs) -> MaxMViTForAudioClassification:
    torch.manual_seed(seed)
    return MaxMViTForAudioClassification(tiny_config(num_labels, **kwargs)).eval()


def tiny_feature_extractor(**kwargs) -> MaxMViTFeatureExtractor:
    return MaxMViTFeatureExtractor(**{"image_size": IMAGE_SIZE, **kwargs})


def tiny_images(batch_size: int = 2, channels: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, channels, IMAGE_SIZE, IMAGE_SIZE)
    return {name: torch.randn(shape, generator=generator) for name in ("cqt_values", "mel_values")}


def voice(seconds: float = 1.0, f0: float = 120.0, sampling_rate: int = 44_100, seed: int = 0) -> np.ndarray:
    """Something voiced: twenty harmonics of `f0`, fading with frequency, under a slow envelope and a little noise."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    harmonics = np.arange(1, 21)[:, None]
    tone = (np.sin(2 * np.pi * f0 * harmonics * time) / harmonics).sum(axis=0)
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 3.0 * time)
    noise = np.random.default_rng(seed).normal(scale=0.01, size=time.shape)
    return (0.1 * envelope * tone + noise).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)
