"""Caches embeddings of a frozen speech encoder on disk: mean and standard deviation over time of its layers."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import modeling_maxmvit
from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.arguments import TrainingOptions
from ser.data.features import Versions
from ser.data.spectrogram_cache import extractor_key
from ser.files import atomic_write
from ser.models import weights_digest

logger = logging.get_logger(__name__)
FOLDER = "maxmvit_speech"
POOLED = ("mean", "statistics")  # poolings for which layer statistics are enough
BATCH_SIZE = 8
SAVE_EVERY = 2000  # clips, so that an interrupted run loses little
MAX_HALF = 65_504.0


def can_cache_embeddings(config: MaxMViTConfig, args: TrainingOptions) -> bool:
    """Returns whether training needs only the layer statistics of whole clips: the encoder is never trained, its
    frames are pooled without attention, and clips are neither cut nor amplified at random (or only for the images, if
    the classifier of the encoder is fitted in closed form, on whole clips)."""
    is_frozen = args.freeze_speech_encoder or args.freeze_backbones and args.unfreeze_epoch is None
    is_varied = (args.training_window is not None or args.gain_db) and not args.closed_form_classifier
    return "speech" in config.branch_names and is_frozen and config.speech_pooling in POOLED and not is_varied


def layer_statistics_of(
    tables: Sequence[datasets.Dataset],
    model: MaxMViTForAudioClassification,
    feature_extractor: Any,
    cache_dir: str | os.PathLike | None,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    Returns the layer statistics of clips and of their altered copies, and computes those that are not cached yet.

    Args:
        tables (`Sequence[Dataset]`): Tables from `extract_features`.
        model: A model with a speech encoder.
        feature_extractor: The feature extractor of the clips.
        cache_dir: Folder whose sub-folder `maxmvit_speech` holds the cache; defaults to the cache folder of
            `datasets`.
        device: Device on which the encoder runs.

    Returns:
        `dict[str, torch.Tensor]`: Digest of a version's waveform ([`Versions.contents`]) -> float16
        `(layers + 1, 2, width)` from [`SpeechEncoder.layer_statistics`].
    """
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(model, feature_extractor)}.safetensors"
    versions = {
        content: (row_versions, number)
        for table in tables
        for row_versions in table["spectrograms"]
        for number, content in enumerate(row_versions.contents)
    }
    with FileLock(path.with_suffix(".lock")):
        kept = load_file(path) if path.exists() else {}
        missing = sorted(set(versions) - set(kept))
        for first in range(0, len(missing), SAVE_EVERY):
            logger.info(f"Running the speech encoder on {len(missing) - first} clips and altered copies")
            part = {content: versions[content] for content in missing[first : first + SAVE_EVERY]}
            kept |= _computed(part, model, feature_extractor, device)
            with atomic_write(path) as unfinished:
                save_file(kept, unfinished)
    return {content: kept[content] for content in versions}


@torch.no_grad()
def _computed(
    versions: Mapping[str, tuple[Versions, int]],
    model: MaxMViTForAudioClassification,
    feature_extractor: Any,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    branch = model.branches()["speech"]
    found: dict[str, torch.Tensor] = {}
    was_training, place = branch.training, next(branch.parameters()).device
    branch.eval().to(device)
    contents = list(versions)
    for first in range(0, len(contents), BATCH_SIZE):
        batch = contents[first : first + BATCH_SIZE]
        clips = [row_versions[number] for row_versions, number in map(versions.__getitem__, batch)]
        given = feature_extractor.waveform_inputs(clips)
        statistics = branch.layer_statistics(given["input_values"].to(device), given["attention_mask"].to(device))
        # float16 ends at 65,504, which single channels of some encoders' hidden states exceed.
        halved = statistics.clamp(-MAX_HALF, MAX_HALF).half().cpu()
        found |= {content: values.clone() for content, values in zip(batch, halved, strict=True)}
    branch.train(was_training).to(place)
    return found


def _key(model: MaxMViTForAudioClassification, feature_extractor: Any) -> str:
    """Returns a digest of everything except the audio that affects layer statistics: encoder, inputs and code."""
    settings = [
        weights_digest(model.pretrained_parts()["speech"].state_dict()),
        model.config.speech_encoder_config,
        feature_extractor.speech_processor,
        [feature_extractor.trim_db, feature_extractor.trim_margin],
        extractor_key(feature_extractor),
    ]
    digest = hashlib.sha1(json.dumps(settings, sort_keys=True).encode(), usedforsecurity=False)
    digest.update(Path(modeling_maxmvit.__file__).read_bytes())
    return digest.hexdigest()
