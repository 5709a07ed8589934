"""Builds configurations, feature extractors and models from options, and loads checkpoints and pipelines."""

import copy
import difflib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, is_model
from transformers.utils import logging

from configuration_maxmvit import MaxMViTConfig, shortened
from feature_extraction_maxmvit import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MaxMViTFeatureExtractor,
    checked_settings,
    image_settings,
    read_processor,
)
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.utils import DataError, UsageError

if TYPE_CHECKING:  # the options import scikit-learn and datasets, which inference does not need
    from ser.arguments import ModelArguments

PROVENANCE = (
    "_name_or_path",
    "auto_map",
    "transformers_version",
    "speech_encoder",
)  # settings that do not affect scores
DRAWN = "drawn at random"
SHIPPED = "weights/ravdess"
ROOTS = (Path(__file__).resolve().parents[1], Path(__file__).resolve().parent)  # of a clone, of an installation
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
LAST_LAYER = re.compile(r"classifier\.((images|speech)\.)?(out_proj\.(weight|bias)|queries)")  # one row a class
NEW_CLASS_STD = 0.02
MODEL_FIELDS = tuple(MaxMViTConfig.__annotations__)
EXTRACTOR_FIELDS = [name for name in inspect.signature(MaxMViTFeatureExtractor).parameters if name != "kwargs"]


def make_config(model_args: "ModelArguments") -> MaxMViTConfig:
    """
    Returns the configuration of the model: that of the options, or that of the checkpoint to start from.

    Raises:
        DataError: An option contradicts the checkpoint.
    """
    chosen = {name: getattr(model_args, name) for name in MODEL_FIELDS if hasattr(model_args, name)}
    chosen |= {name: None for name in ("cqt_backbone", "mel_backbone") if str(chosen[name]).lower() == "none"}
    if (sides := chosen.pop("image_size")) is not None:
        chosen["image_size"] = sides[0] if len(sides) == 1 else sides
    start = model_args.model_name_or_path
    if not start:
        if chosen["filter_bank"] == "learnable":
            image_args = copy.copy(model_args)
            image_args.speech_encoder = None  # its configuration must be read first, below
            chosen["filter_bank_config"] = image_settings(make_feature_extractor(image_args))
        config = MaxMViTConfig(**chosen)
        if config.speech_encoder and os.path.isdir(config.speech_encoder):  # a checkpoint holds no local paths
            config.speech_encoder = Path(config.speech_encoder).resolve().name
        return config
    config = load_config(start)
    config.temperature, config.familiarity = 1.0, False  # they were fitted to the weights before training
    others = [
        name for name, value in chosen.items() if value not in (getattr(MaxMViTConfig, name), getattr(config, name))
    ]
    if others:
        raise DataError(
            f"--model_name_or_path {start} defines the whole model, with another {' and '.join(others)}: leave "
            f"out {', '.join(f'--{name}' for name in others)}."
        )
    if config.filter_bank == "learnable":
        given = image_settings(make_feature_extractor(model_args))
        kept = checked_settings(config.filter_bank_config or {})
        if others := [name for name, value in kept.items() if given[name] != value]:
            raise DataError(
                f"--feature_extractor_kwargs: the model of {start} computes its Mel images itself, with the settings "
                f"of its training, and cannot use another {' and '.join(others)}: leave it out."
            )
    return config


def name_classes(
    config: MaxMViTConfig, label_names: Sequence[str], dimensions: Mapping[str, Sequence[float]] | None = None
) -> MaxMViTConfig:
    """Returns a copy of the configuration with these classes and dimensions (name -> ends of its scale)."""
    config = _with_labels(config, [*label_names, *(dimensions or ())])
    if dimensions or config.dimensions:
        config.problem_type = None if label_names else "regression"
    config.dimensions = {name: [*ends] for name, ends in dimensions.items()} if dimensions else None
    return config


def _with_labels(config: MaxMViTConfig, label_names: Sequence[str]) -> MaxMViTConfig:
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in enumerate(label_names)}
    return config


def make_feature_extractor(model_args: "ModelArguments") -> MaxMViTFeatureExtractor:
    """Returns the extractor of the checkpoint to start from, or a new one, with the changes that the options set."""
    changes: Any = model_args.feature_extractor_kwargs or {}  # parsed into a dict
    if unknown := set(changes) - set(EXTRACTOR_FIELDS):
        raise ValueError(f"--feature_extractor_kwargs: the extractor has no parameter {', '.join(sorted(unknown))}.")
    for name, flag in (("speech_processor", "speech_encoder"), ("filter_bank", "filter_bank")):
        if name in changes:
            raise ValueError(f"--feature_extractor_kwargs: {name} is set by --{flag}; leave it out.")
    if model_args.model_name_or_path:
        try:
            return load_feature_extractor(model_args.model_name_or_path, **changes)
        except TypeError as error:
            raise ValueError(f"--feature_extractor_kwargs {json.dumps(changes)} does not work: {error}") from error
    if model_args.filter_bank != "fixed":
        changes = {**changes, "filter_bank": model_args.filter_bank}
    if model_args.speech_encoder:
        changes = {**changes, "speech_processor": read_processor(model_args.speech_encoder)}
    try:
        return MaxMViTFeatureExtractor(**{**_pretrained_normalization(model_args), **changes})
    except (TypeError, ValueError) as error:  # a value of the wrong type, or an invalid one
        given = json.dumps(model_args.feature_extractor_kwargs)
        raise ValueError(f"--feature_extractor_kwargs {given} does not work: {error}") from error


def _pretrained_normalization(model_args: "ModelArguments") -> dict[str, dict[str, list[float]]]:
    """Returns the `image_mean` and `image_std` of the pretraining of the backbones. A backbone without pretrained
    weights, or one of the paper's, has ImageNet's mean and standard deviation; if both have, the result is empty."""
    found = {}
    for branch in ("cqt", "mel"):
        name = str(getattr(model_args, f"{branch}_backbone"))
        is_the_papers = name.split(".")[0] == getattr(MaxMViTConfig, f"{branch}_backbone")
        if is_the_papers or not model_args.imagenet_weights or not is_model(name):
            found[branch] = (list(IMAGENET_MEAN), list(IMAGENET_STD))
        else:
            pretrained = get_pretrained_cfg(name)
            found[branch] = (list(pretrained.mean), list(pretrained.std))
    if all(values == (list(IMAGENET_MEAN), list(IMAGENET_STD)) for values in found.values()):
        return {}
    names = {"image_mean": 0, "image_std": 1}
    return {name: {branch: values[index] for branch, values in found.items()} for name, index in names.items()}


def make_model(config: MaxMViTConfig, model_args: "ModelArguments") -> MaxMViTForAudioClassification:
    """Builds a model from a checkpoint, from pretrained weights of the backbones and of the speech encoder, or from
    scratch. The last layer of a checkpoint keeps the classes that the configuration has too."""
    if model_args.model_name_or_path:
        model = load_model(model_args.model_name_or_path, config)
        model.base_model.set_feature_statistics(None)  # they were fitted to the weights before training
        return model
    model = MaxMViTForAudioClassification(config)
    if model_args.imagenet_weights:
        model.maxmvit.load_imagenet_weights(model_args.cqt_weights, model_args.mel_weights)
    if config.speech_encoder:
        model.maxmvit.load_speech_weights(model_args.speech_encoder)
    return model


def load_config(checkpoint: str | os.PathLike) -> MaxMViTConfig:
    """
    Returns the configuration of a checkpoint.

    Raises:
        DataError: There is no checkpoint of this name, or its config.json cannot be used.
    """
    _check_place(checkpoint)
    with _quietly(), _named(checkpoint):
        return MaxMViTConfig.from_pretrained(checkpoint)


def _check_place(checkpoint: str | os.PathLike) -> None:
    """Raises `DataError` unless a name is a folder with a config.json or can be a name on the Hugging Face Hub, to
    which transformers would otherwise send several requests."""
    name, path = os.fspath(checkpoint), Path(checkpoint)
    if (path / "config.json").is_file():
        return
    if path.is_dir():
        within = sorted(str(found.parent) for found in path.glob("*/config.json"))
        hint = f"did you mean {within[-1]}?" if within else "name a folder that training or save_pretrained wrote."
        raise DataError(f"{name} holds no config.json, so it is not a checkpoint: {hint}")
    if path.exists():
        raise DataError(f"{name} is a file: name the folder of a checkpoint.")
    if HUB_NAME.fullmatch(name):
        is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        if is_cached or not path.parent.is_dir():
            return
    there = [str(folder) for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), there, n=1)
    hint = f"did you mean {close[0]}?" if close else "name an existing folder, or OWNER/NAME on the Hub."
    raise DataError(f"there is no folder {name}: {hint}")


def load_model(checkpoint: str | os.PathLike, config: MaxMViTConfig | None = None) -> MaxMViTForAudioClassification:
    """
    Loads the model of a checkpoint, and checks that every weight is as it was saved.

    Args:
        checkpoint: A folder, or a name on the Hugging Face Hub.
        config (`MaxMViTConfig`, *optional*): Used instead of the checkpoint's own. Classes that
            the checkpoint has too keep their weights in the last layer, the others start at random.

    Raises:
        DataError: The checkpoint belongs to another model, or cannot be found or read; or a weight is missing, has
            the wrong shape, does not belong to the model, or is not finite.
    """
    own = load_config(checkpoint)
    config = own if config is None else config
    with _quietly(), _named(checkpoint):
        model, info = MaxMViTForAudioClassification.from_pretrained(
            checkpoint,
            config=_with_labels(config, [own.id2label[index] for index in range(own.num_labels)]),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    if any(".lora_A." in name for name in info["unexpected_keys"]):
        raise DataError(
            f"{checkpoint} holds adapters of a speech encoder that are not merged, as during a run with --lora_rank: "
            "name the folder of the finished run."
        )
    if missing := sorted(info["missing_keys"]):
        raise DataError(_incomplete(checkpoint, model, missing))
    mismatched = sorted(name for name, *_ in info["mismatched_keys"])
    if mismatched or info["unexpected_keys"]:
        name = (mismatched or sorted(info["unexpected_keys"]))[0]
        raise DataError(
            f"{checkpoint} holds weights of another model than its config.json describes, such as {name}: put a "
            "config.json and the weights that belong to it into one folder, or name another checkpoint."
        )
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"{checkpoint} holds weights that are not finite, such as {name}: name another checkpoint."
            )
    if own.id2label != config.id2label:
        _set_classes(model, own, config)
    return model


@torch.no_grad()
def _set_classes(model: MaxMViTForAudioClassification, own: MaxMViTConfig, config: MaxMViTConfig) -> None:
    """Gives the last layers the classes of `config`. Classes that the checkpoint has too keep their weights; the
    others start with the mean over all of its classes, plus a small random part."""
    rows_of = {label: row for row, label in own.id2label.items()}
    for name, parameter in list(model.named_parameters()):
        if LAST_LAYER.fullmatch(name):
            rows = parameter.mean(0).repeat(config.num_labels, *[1] * (parameter.dim() - 1))
            if parameter.dim() > 1:
                rows += torch.empty_like(rows).normal_(std=NEW_CLASS_STD)
            for label, row in config.label2id.items():
                if label in rows_of:
                    rows[row] = parameter[rows_of[label]]
            layer, _, leaf = name.rpartition(".")
            module = model.get_submodule(layer)
            setattr(module, leaf, torch.nn.Parameter(rows))
            if isinstance(module, torch.nn.Linear):
                module.out_features = config.num_labels
    model.config = model.maxmvit.config = config
    model.num_labels = config.num_labels


def _incomplete(checkpoint: str | os.PathLike, model: MaxMViTForAudioClassification, missing: list[str]) -> str:
    head = {f"classifier.{name}" for name in model.classifier.state_dict()}
    if head <= {*missing, *(name for name in head if name.endswith("num_batches_tracked"))}:
        return (
            f"{checkpoint} holds no classification head, so it cannot classify: name a checkpoint of "
            "MaxMViTForAudioClassification, as training writes it, rather than one of its backbones alone."
        )
    return (
        f"{checkpoint} lacks {len(missing)} weight(s) of its model, such as {missing[0]}: copy all of it again, or "
        "name another checkpoint."
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses transformers' report on loading: what it lists is either intended, or raises an error here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _named(checkpoint: str | os.PathLike) -> Iterator[None]:
    """Turns an error of a library into a `DataError` that names the checkpoint."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"cannot use {os.fspath(checkpoint)!r}: {' '.join(str(error).split())}") from error


def load_feature_extractor(checkpoint: str | os.PathLike, **changes: Any) -> MaxMViTFeatureExtractor:
    """
    Returns the feature extractor of a checkpoint.

    Raises:
        DataError: The feature extractor belongs to another model, or there is none.
    """
    _check_place(checkpoint)
    with _named(checkpoint):
        settings, _ = MaxMViTFeatureExtractor.get_feature_extractor_dict(checkpoint)
        own = MaxMViTFeatureExtractor.__name__
        if isinstance(settings, dict) and (kind := settings.get("feature_extractor_type", own)) != own:
            raise DataError(
                f"it holds a {shortened(kind)} as feature_extractor_type, not a {own}: name a checkpoint of MaxMViT."
            )
        extractor = MaxMViTFeatureExtractor.from_pretrained(checkpoint)
    return MaxMViTFeatureExtractor.from_pretrained(checkpoint, **changes) if changes else extractor


def shipped_weights() -> str:
    """
    Returns the folder of the checkpoint that comes with the code.

    Raises:
        UsageError: This copy of the code has none.
    """
    for root in ROOTS:
        if (root / SHIPPED / "config.json").is_file():
            return str(root / SHIPPED)
    raise UsageError(
        f"no model is named, and this copy of the code lacks {SHIPPED}: name a checkpoint folder, or its name "
        "on the Hugging Face Hub (predict_ser.py --model MODEL, app.py MODEL). `python run_ser.py configs/demo.yaml` "
        "trains one in a minute or two, out/demo."
    )


def load_pipeline(
    model: str | None, device: str | None = None, **parameters: Any
) -> MaxMViTAudioClassificationPipeline:
    """
    Loads the pipeline of a checkpoint, with this repository's code rather than the checkpoint's copy of it.

    Args:
        model: A folder, or a name on the Hugging Face Hub; by default the checkpoint that comes with the code.
        device: Such as "cpu" or "cuda:1"; by default the first accelerator, or the CPU.
        parameters: Parameters of the pipeline.

    Raises:
        UsageError: The checkpoint or the device cannot be used, or no checkpoint is named and none came with the code.
    """
    place = None if device is None else usable_device(device)
    model = model or shipped_weights()
    logging.disable_progress_bar()
    try:
        return MaxMViTAudioClassificationPipeline(
            model=load_model(model),
            feature_extractor=load_feature_extractor(model),
            task="audio-classification",
            device=place,
            **parameters,
        )
    except DataError as error:
        raise UsageError(str(error)) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot use {model!r}: {error}") from error


def usable_device(name: str) -> torch.device:
    """
    Returns the device with a name such as "cpu" or "cuda:1".

    Raises:
        UsageError: torch does not know the device, this machine lacks it, or it cannot compute ("meta").
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"the device {name!r} cannot be used; name another, such as cpu: {reason}") from error
    return device


def checkpoint_digest(classify: MaxMViTAudioClassificationPipeline) -> str:
    """Returns a hash of everything that a checkpoint's scores depend on: both configurations and the weights."""
    digest = hashlib.sha256()
    for part in (classify.model.config, classify.feature_extractor):
        settings = {name: value for name, value in part.to_dict().items() if name not in PROVENANCE}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    _add_weights(digest, classify.model.state_dict())
    return digest.hexdigest()


def starting_weights(model: MaxMViTForAudioClassification, model_args: "ModelArguments") -> str:
    """
    Returns a hash of the weights that [`make_model`] loaded from files, the same on every machine. Random weights are
    left out, since their last bits depend on the processor; the seed identifies them.
    """
    loaded = model.state_dict()
    start = model_args.model_name_or_path
    if not start:
        if not model_args.imagenet_weights and not model_args.speech_encoder:
            return DRAWN
        speech = model.maxmvit.speech_encoder.encoder if model_args.speech_encoder else None
        loaded = model.maxmvit.state_dict() if speech is None or model_args.imagenet_weights else speech.state_dict()
    elif MaxMViTConfig.from_pretrained(start).id2label != model.config.id2label:
        loaded = {name: tensor for name, tensor in loaded.items() if not LAST_LAYER.fullmatch(name)}
    return weights_digest(loaded)


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns a hash of tensors and their names."""
    digest = hashlib.sha256()
    _add_weights(digest, weights)
    return f"sha256-{digest.hexdigest()}"


def _add_weights(digest: "hashlib._Hash", weights: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
