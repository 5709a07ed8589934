"""From arguments to a configuration, a feature extractor and a model; from a checkpoint to a pipeline."""

import hashlib
import inspect
import json
from typing import Any

import torch
from transformers.utils import logging

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.arguments import ModelArguments
from ser.corpora.table import Corpus
from ser.errors import UsageError

PROVENANCE = ("_name_or_path", "auto_map", "transformers_version")  # settings that no score depends on
EXTRACTOR_FIELDS = [name for name in inspect.signature(MaxMViTFeatureExtractor).parameters if name != "kwargs"]


def make_config(corpus: Corpus, model_args: ModelArguments) -> MaxMViTConfig:
    """What the model is: as the flags say, or as the checkpoint to start from was; with this corpus's classes."""
    labels = {
        "id2label": dict(enumerate(corpus.label_names)),
        "label2id": {name: index for index, name in enumerate(corpus.label_names)},
    }
    if model_args.model_name_or_path:
        return MaxMViTConfig.from_pretrained(model_args.model_name_or_path, **labels)
    return MaxMViTConfig(
        cqt_backbone=model_args.cqt_backbone,
        mel_backbone=model_args.mel_backbone,
        cqt_backbone_kwargs=model_args.cqt_backbone_kwargs,
        mel_backbone_kwargs=model_args.mel_backbone_kwargs,
        image_size=model_args.image_size,
        hidden_size=model_args.hidden_size,
        hidden_dropout=model_args.hidden_dropout,
        **labels,
    )


def make_feature_extractor(model_args: ModelArguments) -> MaxMViTFeatureExtractor:
    """The extractor of the checkpoint to start from, or a new one, with the changes that the flags ask for."""
    changes = model_args.feature_extractor_kwargs or {}
    if unknown := set(changes) - set(EXTRACTOR_FIELDS):
        raise ValueError(f"--feature_extractor_kwargs: the extractor has no parameter {', '.join(sorted(unknown))}.")
    if model_args.model_name_or_path:
        return MaxMViTFeatureExtractor.from_pretrained(model_args.model_name_or_path, **changes)
    return MaxMViTFeatureExtractor(**changes)


def make_model(
    config: MaxMViTConfig, model_args: ModelArguments, resuming: bool = False
) -> MaxMViTForAudioClassification:
    """From a checkpoint (with a new last layer if its classes are others), from ImageNet weights, or from scratch."""
    start = None if resuming else model_args.model_name_or_path
    if start:
        model = MaxMViTForAudioClassification.from_pretrained(start, config=config, ignore_mismatched_sizes=True)
        if MaxMViTConfig.from_pretrained(start).id2label != config.id2label:
            torch.nn.init.normal_(model.classifier.out_proj.weight, std=0.02)
            torch.nn.init.zeros_(model.classifier.out_proj.bias)
        return model
    model = MaxMViTForAudioClassification(config)
    if model_args.imagenet_weights and not resuming and not model_args.model_name_or_path:
        model.maxmvit.load_imagenet_weights(model_args.cqt_weights, model_args.mel_weights)
    return model


def load_pipeline(model: str, device: str | None = None, **parameters: Any) -> MaxMViTAudioClassificationPipeline:
    """The pipeline of a checkpoint, with this repository's code rather than the checkpoint's copy of it."""
    logging.disable_progress_bar()
    try:
        return MaxMViTAudioClassificationPipeline(
            model=MaxMViTForAudioClassification.from_pretrained(model),
            feature_extractor=MaxMViTFeatureExtractor.from_pretrained(model),
            task="audio-classification",
            device=None if device is None else torch.device(device),
            **parameters,
        )
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a device that is not there
        raise UsageError(f"cannot use {model!r}: {error}") from error


def checkpoint_digest(classify: MaxMViTAudioClassificationPipeline) -> str:
    """A hash of all that a checkpoint's scores depend on: both configurations and the weights, wherever they lie."""
    digest = hashlib.sha256()
    for part in (classify.model.config, classify.feature_extractor):
        settings = {name: value for name, value in part.to_dict().items() if name not in PROVENANCE}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weights in classify.model.state_dict().items():
        digest.update(name.encode())
        digest.update(weights.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
