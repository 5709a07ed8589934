"""Tiny but complete models, feature extractors and speech encoders, and inputs for them."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor, image_settings
from modeling_maxmvit import MaxMViTForAudioClassification

IMAGE_SIZE = 64
CONVNETS = {f"{name}_backbone": "convnet" for name in ("cqt", "mel")}
CONVNETS |= {f"{name}_backbone_kwargs": {"channels": [8, 16]} for name in ("cqt", "mel")}
# The first and a later stage of MaxViT, and the first three of MViTv2, which pool keys by 4, by 2 and not at all.
FEW_STAGES = {
    "cqt_backbone_kwargs": {"embed_dim": [32] * 2, "depths": [1] * 2, "stem_width": 16, "head_hidden_size": 32},
    "mel_backbone_kwargs": {"depths": [1] * 3, "embed_dim": 8, "num_heads": 1},
}


def tiny_config(num_labels: int = 4, **kwargs) -> MaxMViTConfig:
    """Returns the configuration of a model with fewer than one million parameters, for images of 64 x 64."""
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


def convnet_model(num_labels: int = 4, seed: int = 0, **kwargs) -> MaxMViTForAudioClassification:
    """Returns a model of convolutional branches for tests in which the backbones do not matter: it loads ten times as
    fast as [`tiny_model`]."""
    return tiny_model(num_labels, seed, **{**CONVNETS, **kwargs})


def tiny_feature_extractor(**kwargs) -> MaxMViTFeatureExtractor:
    return MaxMViTFeatureExtractor(**{"image_size": IMAGE_SIZE, **kwargs})


def tiny_learnable(**changes) -> tuple[MaxMViTConfig, MaxMViTFeatureExtractor]:
    """Returns the configuration of a model with learnable Mel filters and small backbones, and its extractor."""
    sizes = {"mel_n_fft": 512, "n_mels": 24, "image_size": 32, "filter_bank": "learnable"}
    extractor = MaxMViTFeatureExtractor(**{**sizes, **changes})
    drawn = {"filter_bank": "learnable", "filter_bank_config": image_settings(extractor), "image_size": 32}
    return tiny_config(**CONVNETS, **drawn), extractor


def tiny_speech_encoder(folder: Path, family: str = "wavlm", **changes) -> str:
    """Saves a speech encoder of 6,000 weights and its feature extractor in the Hub's format; returns the folder."""
    if family == "whisper":
        sizes = {f"{part}_{size}": n for part in ("encoder", "decoder")
                 for size, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = WhisperConfig(
            d_model=16, num_mel_bins=8, max_source_positions=50, vocab_size=40, **sizes, **tokens, **changes
        )
        model, extractor = WhisperForConditionalGeneration(config), WhisperFeatureExtractor(8, chunk_length=1)
    else:
        sizes = {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 8), "conv_stride": (8, 8, 5), "mask_time_length": 2,
            "num_conv_pos_embeddings": 2 if family == "data2vec-audio" else 8, "num_conv_pos_embedding_groups": 2,
        }  # fmt: skip
        if family == "wavlm":
            sizes |= {"num_buckets": 16, "max_bucket_distance": 32}
        if family == "data2vec-audio":
            sizes["conv_pos_kernel_size"] = 3
        model = AutoModel.from_config(AutoConfig.for_model(family, **{**sizes, **changes}))
        extractor = Wav2Vec2FeatureExtractor(do_normalize=family != "wavlm", return_attention_mask=True)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


def tiny_images(batch_size: int = 2, channels: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, channels, IMAGE_SIZE, IMAGE_SIZE)
    return {name: torch.randn(shape, generator=generator) for name in ("cqt_values", "mel_values")}


def voice(seconds: float = 1.0, f0: float = 120.0, sampling_rate: int = 44_100, seed: int = 0) -> np.ndarray:
    """Returns a voice-like sound: twenty harmonics of `f0`, weaker with frequency, a slow envelope and faint noise."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    harmonics = np.arange(1, 21)[:, None]
    tone = (np.sin(2 * np.pi * f0 * harmonics * time) / harmonics).sum(axis=0)
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 3.0 * time)
    noise = np.random.default_rng(seed).normal(scale=0.01, size=time.shape)
    return (0.1 * envelope * tone + noise).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def save_tiny(folder: Path, model=None) -> Path:
    (model or convnet_model()).save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return folder
