"""What a frozen speech encoder makes of whole clips, once for each: the time means of its layers, kept on disk."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import speech_maxmvit
from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.arguments import SERTrainingArguments
from ser.files import whole
from ser.models import weights_digest
from ser.spectrogram_cache import extractor_key

logger = logging.get_logger(__name__)
FOLDER = "maxmvit_speech"
AT_ONCE = 8  # clips in one forward


def suffices(config: MaxMViTConfig, args: SERTrainingArguments) -> bool:
    """Whether layer means of whole clips are all that a training needs of the speech encoder: it is never trained, its
    frames are pooled by their mean, and every clip is seen whole and as it is."""
    is_frozen = args.freeze_speech_encoder or args.freeze_backbones and args.unfreeze_epoch is None
    is_varied = args.training_window is not None or args.gain_db or args.waveform_copies
    return "speech" in config.branch_names and is_frozen and config.speech_pooling == "mean" and not is_varied


def layer_means_of(
    clips: datasets.Dataset,
    model: MaxMViTForAudioClassification,
    feature_extractor: Any,
    cache_dir: str | os.PathLike | None,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    Args:
        clips (`Dataset`): From `extract_features`.
        model: With a speech encoder.
        feature_extractor: Of the clips.
        cache_dir: They lie in its sub-folder `maxmvit_speech`; defaults to the cache folder of `datasets`.
        device: Where the encoder runs.

    Returns:
        `dict[str, torch.Tensor]`: By a clip's `content`, float16 `(layers + 1, width)`, what
        [`SpeechEncoder.layer_means`] gives of it.
    """
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(model, feature_extractor)}.safetensors"
    rows = {content: row for row, content in enumerate(clips["content"])}
    with FileLock(path.with_suffix(".lock")):
        kept = load_file(path) if path.exists() else {}
        if missing := sorted(set(rows) - set(kept)):
            logger.info(f"The speech encoder hears {len(missing)} clips, once and for all")
            kept |= _heard(clips.select([rows[content] for content in missing]), model, feature_extractor, device)
            with whole(path) as unfinished:
                save_file(kept, unfinished)
    return {content: kept[content] for content in rows}


@torch.no_grad()
def _heard(
    clips: datasets.Dataset, model: MaxMViTForAudioClassification, feature_extractor: Any, device: torch.device
) -> dict[str, torch.Tensor]:
    branch = model.branches()["speech"]
    found: dict[str, torch.Tensor] = {}
    was_training, place = branch.training, next(branch.parameters()).device
    branch.eval().to(device)
    for first in range(0, len(clips), AT_ONCE):
        rows = [clips[row] for row in range(first, min(first + AT_ONCE, len(clips)))]
        given = feature_extractor.heard([row["spectrograms"][0] for row in rows])
        means = branch.layer_means(given["input_values"].to(device), given["attention_mask"].to(device))
        found |= {row["content"]: mean for row, mean in zip(rows, means.half().cpu(), strict=True)}
    branch.train(was_training).to(place)
    return {content: mean.clone() for content, mean in found.items()}  # safetensors takes no views


def _key(model: MaxMViTForAudioClassification, feature_extractor: Any) -> str:
    """Name for all that shapes layer means, besides the audio: the encoder, what it is given, and how it is run."""
    settings = [
        weights_digest(model.pretrained_parts()["speech"].state_dict()),
        model.config.speech_encoder_config,
        feature_extractor.speech_processor,
        [feature_extractor.trim_db, feature_extractor.trim_margin],
        extractor_key(feature_extractor),
    ]
    digest = hashlib.sha1(json.dumps(settings, sort_keys=True).encode(), usedforsecurity=False)
    digest.update(Path(speech_maxmvit.__file__).read_bytes())
    return digest.hexdigest()
