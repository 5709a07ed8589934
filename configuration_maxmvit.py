"""The configuration of MaxMViT-MLP: backbones, speech encoder, fusion and head."""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError  # comes with transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.versions import require_version

# ---- Parameters of the feature extractor ----

EXTRACTOR_CHOICES = {
    "level": ("clip", "full_scale"),
    "mel_representation": ("log-mel", "mfcc"),
    "channels": ("repeat", "deltas"),
    "filter_bank": ("fixed", "learnable"),
    "backend": ("torch", "librosa"),
}


def check_types(values: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Raises `ValueError` for the first value that does not match the annotation of its name. Integers of any library
    count as `int` and as `float`, an array counts as a sequence, and numbers must be finite."""
    for name, value in values.items():
        if name in annotations and not _is_of_type(value, annotations[name]):
            raise ValueError(
                f"{name}={shortened(value)} does not work: it must be {_type_in_words(annotations[name])}."
            )


def shortened(value: Any, limit: int = 80) -> str:
    """Returns the `repr` of a value for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _is_of_type(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is_of_type(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin in (list, tuple, Sequence):
        is_sequence = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
        return is_sequence and all(_is_of_type(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        items = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(_is_of_type(part, each) for pair in items for part, each in zip(pair, arguments, strict=True))
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return not isinstance(kind, type) or isinstance(value, kind)  # annotations that are strings are not checked


def _type_in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_in_words, arguments)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (list, tuple, Sequence):
        plural = {int: "whole numbers", float: "numbers", str: "strings"}
        return f"a list of {plural.get(arguments[0], 'values')}"
    if origin in (dict, Mapping):
        return "a dictionary"
    known = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}
    return known.get(kind, "None" if kind is types.NoneType else f"a {kind.__name__}")


# ---- Configurations of speech encoders ----

FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "whisper")
POOLINGS = ("attention", "mean", "statistics", "attentive_statistics")
LAYER_CHOICES = ("weighted_sum", "concat")
# Fields of an encoder's configuration that do not describe the encoder, or describe only its checkpoint.
NOT_KEPT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "transformers_version"}
# All layers are summed, so none may be dropped, and an adapter would follow the last one.
FIXED_VALUES = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "add_adapter": False}


def read_encoder_config(name: str | os.PathLike) -> dict[str, Any]:
    """
    Returns the configuration of a speech encoder, reduced to what is needed to rebuild the encoder offline.

    Args:
        name: A name on the Hugging Face Hub, or a folder that `save_pretrained` wrote.

    Raises:
        OSError: The configuration can be neither downloaded nor found.
        ValueError: The encoder does not belong to a supported family.
    """
    option = f"speech_encoder={os.fspath(name)!r}"
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"{option} could not be loaded ({error}). Either run where the Hugging Face Hub can be reached (or "
            "its cache holds it), or name a local folder."
        ) from error
    kept = {key: value for key, value in config.to_dict().items() if key not in NOT_KEPT}
    kept |= {key: value for key, value in FIXED_VALUES.items() if key in kept}
    check_encoder_config(kept, option)
    return json.loads(json.dumps(kept))  # as a checkpoint stores it: tuples become lists


def check_encoder_config(config: Mapping[str, Any], name: str) -> None:
    """Raises `ValueError`, with a message that begins with `name`, if the family is not supported or its configuration
    class rejects a value."""
    if config.get("model_type") not in FAMILIES:
        raise ValueError(
            f"{name} is a model of type {config.get('model_type')!r}, which is not supported: choose one of "
            f"{', '.join(FAMILIES)}."
        )
    try:
        AutoConfig.for_model(**config)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise ValueError(f"{name} has a speech_encoder_config that does not work: {reason}") from error


# ---- Configuration ----

require_version(
    "transformers>=5.4",
    "Older versions skip the checks of this configuration: pip install -U 'transformers>=5.4'",
)
OWN_BACKBONES = ("convnet",)
FUSION_NAMES = ("concat", "gated", "attention", "bilinear", "late")
HEAD_NAMES = ("mlp", "linear", "decoder")
SHORTEST_S, LONGEST_S = 0.01, 600.0  # limits of max_clip_s and window_s, as for the pipeline's windows
AUTO_MAP = {
    "AutoConfig": "configuration_maxmvit.MaxMViTConfig",
    "AutoFeatureExtractor": "feature_extraction_maxmvit.MaxMViTFeatureExtractor",
    "AutoModel": "modeling_maxmvit.MaxMViTModel",
    "AutoModelForAudioClassification": "modeling_maxmvit.MaxMViTForAudioClassification",
}
CUSTOM_PIPELINES = {
    "audio-classification": {
        "impl": "pipeline_maxmvit.MaxMViTAudioClassificationPipeline",
        "pt": ["AutoModelForAudioClassification"],
        "type": "audio",
    }
}


@dataclasses.dataclass(frozen=True)
class Branch:
    """
    A branch of the model: an image backbone or the speech encoder.

    Args:
        field (`str`): Field of the configuration that names the backbone, and attribute of the model that holds it.
        inputs (`tuple[str, ...]`): Arguments of `forward` that the branch takes.
    """

    field: str
    inputs: tuple[str, ...]


# All branches, in the order of their features.
BRANCHES = {
    "cqt": Branch("cqt_backbone", ("cqt_values",)),
    "mel": Branch("mel_backbone", ("mel_values",)),
    "speech": Branch("speech_encoder", ("input_values", "attention_mask")),
}
POWER_INPUTS = ("power_values", "power_lengths")  # inputs of the Mel branch with learnable filters


def import_timm() -> Any:
    """
    Imports timm lazily (it loads every architecture).

    Raises:
        ImportError: timm is missing or too old.
    """
    require_version(
        "timm>=1.0.23",
        "Older versions cannot rebuild the buffers of a MaxViT, and every score would be NaN: pip install -U "
        "'timm>=1.0.23'",
    )
    try:  # transformers requires every import that stands outside a try block when it loads a checkpoint
        import timm
        import timm.models.mvitv2
    except ImportError as error:
        raise ImportError(f"timm is installed, but cannot be imported: {error}") from error
    return timm


class MaxMViTConfig(PretrainedConfig):
    r"""
    Configuration of a [`MaxMViTModel`] or [`MaxMViTForAudioClassification`]. The defaults are the model of the paper
    "MaxMViT-MLP: Multiaxis and Multiscale Vision Transformers Fusion Network for Speech Emotion Recognition"
    (IEEE Access 12, 2024).

    Args:
        cqt_backbone (`str`, defaults to `"maxvit_base_tf_224"`):
            Name of the timm model for the constant-Q image. A pretrained tag may follow
            (`"maxvit_base_tf_224.in1k"`); it selects the weights that [`MaxMViTModel.load_imagenet_weights`] loads.
            `None` for a model without this branch; `"convnet"` for the `ConvNet` of `modeling_maxmvit.py`.
        mel_backbone (`str`, defaults to `"mvitv2_base"`):
            Name of the timm model for the Mel image, or `None`.
        cqt_backbone_kwargs (`dict`, *optional*):
            Passed to `timm.create_model`, e.g. `{"drop_path_rate": 0.2}`, or
            `{"embed_dim": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "stem_width": 16, "head_hidden_size": 32}`.
        mel_backbone_kwargs (`dict`, *optional*):
            The same for the Mel branch. In either branch, an MViTv2 takes fields of timm's `MultiScaleVitCfg`
            (`depths`, `embed_dim`, `num_heads`, ...), which override those of the named variant; the rest is
            passed to the model.
        filter_bank (`str`, defaults to `"fixed"`):
            `"fixed"`: the feature extractor computes the Mel image. `"learnable"`: the model computes it, with
            filters that are initialised to the extractor's; see `modeling_maxmvit.py`. The extractor must have the
            same setting.
        filter_bank_config (`dict`, *optional*):
            For `filter_bank="learnable"`: the extractor's image settings, from
            `feature_extraction_maxmvit.image_settings`.
        speech_encoder (`str`, *optional*):
            Name or folder of a transformers checkpoint (wav2vec 2.0, HuBERT, WavLM, data2vec-audio, or the encoder of
            Whisper) that processes the waveform as a third branch; see `modeling_maxmvit.py`. Its weights are
            initialised at random; [`MaxMViTModel.load_speech_weights`] loads the pretrained ones.
        speech_encoder_config (`dict`, *optional*):
            Configuration of the encoder. If not given, it is read from `speech_encoder`; checkpoints of this model
            contain it.
        speech_pooling (`str`, defaults to `"attention"`):
            How the frames of the speech encoder are pooled over time: `"attention"`, initialised to the mean;
            `"mean"`; `"statistics"`, mean and standard deviation; or `"attentive_statistics"`.
        speech_layers (`str`, defaults to `"weighted_sum"`):
            How the layers of the speech encoder are combined: `"weighted_sum"`, or `"concat"`.
        image_size (`int` or `Sequence[int]`, defaults to 224):
            Height and width of the images for both backbones, or one number for both. Images of another size are
            resized. MaxViT and MViTv2 need multiples of 32, and MViTv2 square images; for a long time axis, use two
            MaxViTs or convolutional backbones.
        fusion (`str`, defaults to `"concat"`):
            How the branches' features are fused: `"concat"`, as in the paper; `"gated"`, a learned gate for each
            feature of each branch; `"attention"`, the branches' last feature maps attend to each other; `"bilinear"`,
            products of features of different branches; `"late"`, the weighted mean of the logits of two classifiers,
            one on the images and a linear one on the speech encoder, each trained with its own loss. See the classes
            in `modeling_maxmvit.py` for formulas and references.
        speech_share (`float`, defaults to 0.5):
            Weight of the speech encoder's classifier in the logits of `fusion="late"`, from 0 to 1.
        fusion_size (`int`, defaults to 256):
            Width to which `"attention"` and `"bilinear"` project the branches.
        head (`str`, defaults to `"mlp"`):
            `"mlp"`, the paper's; `"linear"`, a linear classifier; or `"decoder"`: one learned query for each class
            attends to the feature maps of all branches.
        head_layers (`int`, defaults to 1):
            Hidden layers of the MLP, or layers of the decoder.
        hidden_size (`int`, defaults to 512):
            Width of the hidden layers of the head.
        hidden_dropout (`float`, defaults to 0.2):
            Dropout probability in the head.
        feature_dropout (`float`, defaults to 0.0):
            Dropout probability of the fused features, before the head.
        temperature (`float`, defaults to 1.0):
            Divisor of the logits before the pipeline's softmax, for calibrated probabilities (Guo et al. 2017,
            https://arxiv.org/abs/1706.04599); values above 1 lower the highest probability. `save_pretrained` of a
            classifier folds it into the last layer and saves 1; only checkpoints of earlier versions contain another
            number.
        max_clip_s (`float`, defaults to 6.0):
            Length in seconds of the longest clip that the model was trained on; training sets it. For a longer
            recording the pipeline returns the mean over windows.
        window_s (`float`, defaults to 3.0):
            Length in seconds of those windows, at most `max_clip_s`: `--training_window`, or 3 s; with
            `--closed_form_classifier`, which is fitted on whole clips, their median length.
        feature_statistics (`bool`, defaults to `False`):
            Whether the model keeps the mean and standard deviation of the pooled features of its training clips
            (`model.base_model.feature_statistics`), from which speaker profiles are computed. Training fits them at
            its end and sets this field.
        familiarity (`bool`, defaults to False):
            Whether the classifier keeps the distribution of its training clips' features, from which it computes how
            similar a clip is to them (`Familiarity` in `modeling_maxmvit.py`); training sets it.
        dimensions (`dict[str, list[float]]`, *optional*):
            Dimensions that the model estimates, such as `{"arousal": [1, 5], "valence": [1, 5]}`: the name of each,
            and the ends of the scale on which its training data were rated, which are 0 and 1 in the output. They are
            the last labels of `id2label`; the labels before them, if any, are classes.
        kwargs:
            The fields common to all of transformers, such as `num_labels`, `id2label` and `label2id`.

    Raises:
        ValueError: A field has the wrong type, timm has no such model, the model has no branch, or a size or
            probability is out of range.
        OSError: The configuration of `speech_encoder` is needed and cannot be read.

    Example:

    ```python
    >>> config = MaxMViTConfig(num_labels=8, cqt_backbone="maxvit_tiny_tf_224", mel_backbone="mvitv2_tiny")
    >>> model = MaxMViTForAudioClassification(config)
    ```
    """

    model_type = "maxmvit"
    keys_to_ignore_at_inference = ["hidden_states", "familiarity"]

    cqt_backbone: str | None = "maxvit_base_tf_224"
    mel_backbone: str | None = "mvitv2_base"
    cqt_backbone_kwargs: dict[str, Any] | None = None
    mel_backbone_kwargs: dict[str, Any] | None = None
    filter_bank: str = "fixed"
    filter_bank_config: dict[str, Any] | None = None
    speech_encoder: str | os.PathLike | None = None
    speech_encoder_config: dict[str, Any] | None = None
    speech_pooling: str = "attention"
    speech_layers: str = "weighted_sum"
    image_size: int | list[int] | tuple[int, ...] = 224
    fusion: str = "concat"
    speech_share: float = 0.5
    fusion_size: int = 256
    head: str = "mlp"
    head_layers: int = 1
    hidden_size: int = 512
    hidden_dropout: float = 0.2
    feature_dropout: float = 0.0
    temperature: float = 1.0
    max_clip_s: float = 6.0
    window_s: float = 3.0
    feature_statistics: bool = False
    familiarity: bool = False
    dimensions: dict[str, list[float]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """
        Sets a field, when the configuration is built and later.

        Raises:
            ValueError: The value does not have the field's type, or the labels are not distinct names for 0, 1, ...
        """
        if name == "id2label" and isinstance(value, Mapping):
            value = _checked_labels(value)
        kind: Any = type(self)
        check_types({name: value}, _field_types(kind))
        if name == "dtype" and isinstance(value, str) and not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(
                f"dtype={shortened(value)} does not work: it must be a dtype of torch, such as 'float32'."
            )
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs):
        self.cqt_backbone_kwargs = dict(self.cqt_backbone_kwargs or {})
        self.mel_backbone_kwargs = dict(self.mel_backbone_kwargs or {})
        super().__post_init__(**kwargs)
        for branch in self.image_names:
            _check_backbone_name(f"{branch}_backbone", getattr(self, f"{branch}_backbone"))
        self._complete_speech_encoder()
        self._check_filter_bank()
        if not self.branch_names:
            fields = [branch.field for branch in BRANCHES.values()]
            raise ValueError(f"{', '.join(fields[:-1])} and {fields[-1]} are all None: a model needs at least one.")
        if not isinstance(self.image_size, int):
            self.image_size = list(self.image_size)
        self._check_image_size()
        choices = {
            "fusion": FUSION_NAMES,
            "head": HEAD_NAMES,
            "speech_pooling": POOLINGS,
            "speech_layers": LAYER_CHOICES,
        }
        for field, known in choices.items():
            if (given := getattr(self, field)) not in known:
                raise ValueError(f"{field}={shortened(given)} does not work: choose one of {', '.join(known)}.")
        if self.fusion != "concat" and len(self.branch_names) < 2:
            raise ValueError(f"fusion={self.fusion!r} does not work: a model with one branch has nothing to fuse.")
        if self.fusion == "late" and not (self.image_names and "speech" in self.branch_names):
            raise ValueError("fusion='late' does not work: it needs an image backbone and a speech encoder.")
        if not 0 <= self.speech_share <= 1:
            raise ValueError(f"speech_share={self.speech_share} does not work: it must be from 0 to 1.")
        for field in ("fusion_size", "head_layers", "hidden_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} does not work: it must be at least 1.")
        for field in ("hidden_dropout", "feature_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} does not work: it must be at least 0 and below 1.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} does not work: it must be above 0.")
        self._check_lengths()
        self._check_dimensions()

    @property
    def branch_names(self) -> list[str]:
        """Names of the model's branches, in the order of `BRANCHES`."""
        return [name for name, branch in BRANCHES.items() if getattr(self, branch.field) is not None]

    @property
    def image_names(self) -> list[str]:
        """Names of the image branches: `"cqt"`, `"mel"`, both or none."""
        return [name for name in self.branch_names if name != "speech"]

    def inputs_of(self, branch: str) -> tuple[str, ...]:
        """Returns the arguments of `forward` that a branch takes."""
        return POWER_INPUTS if branch == "mel" and self.filter_bank == "learnable" else BRANCHES[branch].inputs

    @property
    def num_classes(self) -> int:
        """Number of labels that are classes. The other outputs are values: dimensions, or any regression target."""
        if self.dimensions:
            return self.num_labels - len(self.dimensions)
        return 0 if self.problem_type == "regression" else self.num_labels

    @property
    def uses_tokens(self) -> bool:
        """Whether the fusion or the head uses the last feature maps in addition to the pooled features."""
        return self.fusion == "attention" or self.head == "decoder"

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of `image_size`."""
        height, width = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        return height, width

    def _complete_speech_encoder(self) -> None:
        if self.speech_encoder is None:
            if self.speech_encoder_config is not None:
                raise ValueError("speech_encoder_config was given without speech_encoder: name the encoder too.")
            return
        self.speech_encoder = os.fspath(self.speech_encoder)
        if self.speech_encoder_config is None:
            self.speech_encoder_config = read_encoder_config(self.speech_encoder)
        check_encoder_config(self.speech_encoder_config, f"speech_encoder={self.speech_encoder!r}")

    def _check_filter_bank(self) -> None:
        if self.filter_bank not in (known := EXTRACTOR_CHOICES["filter_bank"]):
            raise ValueError(f"filter_bank={self.filter_bank!r} does not work: choose one of {', '.join(known)}.")
        given = self.filter_bank_config
        if self.filter_bank == "fixed":
            if given is not None:
                raise ValueError("filter_bank_config is for filter_bank='learnable', but filter_bank is 'fixed'.")
            return
        if self.mel_backbone is None:
            raise ValueError("filter_bank='learnable' does not work without a mel_backbone.")
        if given is None:  # the model checks its content
            raise ValueError(
                "filter_bank='learnable' needs a filter_bank_config with the extractor's image settings: pass "
                "image_settings(extractor) of feature_extraction_maxmvit.py."
            )

    def _check_lengths(self) -> None:
        for field in ("max_clip_s", "window_s"):
            value = getattr(self, field)
            if not SHORTEST_S <= value <= LONGEST_S:
                raise ValueError(
                    f"{field}={value!r} does not work: it is a number of seconds from {SHORTEST_S:g} to {LONGEST_S:g}."
                )
        if self.window_s > self.max_clip_s:
            raise ValueError(
                f"window_s={self.window_s} does not work: windows are at most as long as the longest training clip, "
                f"max_clip_s={self.max_clip_s}. Lower the first or raise the second."
            )

    def _check_dimensions(self) -> None:
        names, labels = list(self.dimensions or {}), list(self.id2label.values())
        for name, ends in (self.dimensions or {}).items():
            if len(ends) != 2 or not ends[0] < ends[1]:
                raise ValueError(
                    f"dimensions={shortened(self.dimensions)} does not work: {name!r} needs the two ends of its "
                    "scale, the lower one first, such as [1, 5]."
                )
        # Not in their order, since transformers sorts the keys of a configuration when it saves it.
        if names and ({*labels[-len(names) :]} != {*names} or len(labels) == len(names) + 1):
            raise ValueError(
                f"dimensions={shortened(names)} does not work with id2label={shortened(labels)}: dimensions are the "
                "last labels, after two or more classes or none."
            )
        if names and (self.problem_type == "regression") != (len(labels) == len(names)):
            raise ValueError(
                f"problem_type={self.problem_type!r} does not work with dimensions={shortened(names)}: it is "
                "'regression' without classes, and None with classes."
            )

    def _check_image_size(self) -> None:
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        if len(sides) != 2:
            raise ValueError(f"image_size={self.image_size} does not work: it must be one number, or (height, width).")
        if min(sides) <= 0:
            raise ValueError(f"image_size={self.image_size} does not work: it must be positive, such as 224.")
        for branch in self.image_names:
            name = getattr(self, f"{branch}_backbone")
            if name in OWN_BACKBONES:
                continue
            family, models = name.split(".")[0], import_timm().models
            is_mvitv2 = family in models.mvitv2.model_cfgs
            if not is_mvitv2 and not models.is_model_in_modules(family, ["maxxvit"]):
                continue
            for side in sides:
                if side % 32:
                    below = max(side // 32 * 32, 32)
                    raise ValueError(
                        f"image_size={self.image_size} does not work: {branch}_backbone={name!r} halves the image "
                        f"five times, so its size must be a multiple of 32, such as {below} or {below + 32}."
                    )
            if is_mvitv2 and self.image_shape[0] != self.image_shape[1]:
                raise ValueError(
                    f"{branch}_backbone={name!r} takes square images only, such as image_size={max(sides)}. For "
                    f"image_size={self.image_size} name a MaxViT, such as {branch}_backbone='maxvit_tiny_tf_224'."
                )

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        content = super()._dict_from_json_file(json_file)
        if not isinstance(content, dict):  # transformers' own error would not name the file
            raise ValueError(f"{os.fspath(json_file)!r} does not contain a configuration, which is a JSON object.")
        return content

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Overrides [`~transformers.PreTrainedConfig.get_config_dict`] to refuse checkpoints of another model type, for
        which transformers only warns and fills missing fields with defaults.

        Raises:
            ValueError: The configuration belongs to another model.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict and config_dict.get("model_type") != cls.model_type:
            raise ValueError(
                f"{os.fspath(pretrained_model_name_or_path)!r} holds a model of type "
                f"{config_dict.get('model_type')!r}, not {cls.model_type!r}. Name a checkpoint of MaxMViT, or load "
                "this one with its own class."
            )
        return config_dict, kwargs

    def reshaped_mvitv2(self, branch: str) -> tuple[Any, dict[str, Any]] | None:
        """
        Returns the architecture of an MViTv2 whose depths or widths differ from those of its variant, which
        `timm.create_model` does not accept and `MultiScaleVit` does.

        Args:
            branch (`str`): `"cqt"` or `"mel"`.

        Returns:
            The architecture (timm's `MultiScaleVitCfg`) and the remaining keyword arguments; `None` if the branch's
            backbone is not an MViTv2 or its kwargs do not change the architecture.
        """
        name = str(getattr(self, f"{branch}_backbone"))
        if name in OWN_BACKBONES:
            return None
        mvitv2 = import_timm().models.mvitv2
        variant = mvitv2.model_cfgs.get(name.split(".")[0])
        kwargs = getattr(self, f"{branch}_backbone_kwargs")
        fields = {field.name for field in dataclasses.fields(mvitv2.MultiScaleVitCfg)}
        changes = {name: value for name, value in kwargs.items() if name in fields}
        if variant is None or not changes:
            return None
        rest = {name: value for name, value in kwargs.items() if name not in fields}
        # timm derived the variant's stride_kv from its other fields; with None it is derived again.
        return dataclasses.replace(variant, **{"stride_kv": None, **changes}), rest


@cache
def _field_types(kind: type) -> dict[str, Any]:
    """Returns field -> type. Annotations of transformers are strings; those that need more than torch and typing are
    left out."""
    types: dict[str, Any] = {"num_labels": int}
    for field in dataclasses.fields(kind):
        holder = type("Holder", (), {"__annotations__": {field.name: field.type}})
        with suppress(NameError):
            types |= get_type_hints(holder, vars(typing), {"torch": torch})
    return types


def _checked_labels(id2label: Mapping[Any, Any]) -> dict[int, str]:
    """Returns the label names by index, in order. Indices may be strings, as in JSON."""
    try:
        labels = {int(index): label for index, label in id2label.items()}
    except (TypeError, ValueError):
        labels = {}
    names = list(labels.values())
    is_named = all(isinstance(name, str) and name for name in names) and len({*names}) == len(names)
    if not (labels and is_named and sorted(labels) == list(range(len(id2label)))):
        raise ValueError(
            f"id2label={shortened(dict(id2label), 200)} does not work: it must map 0, 1, ... to distinct names, "
            "such as {0: 'angry', 1: 'sad'}."
        )
    return dict(sorted(labels.items()))


def _check_backbone_name(field: str, name: str) -> None:
    if name in OWN_BACKBONES:
        return
    timm = import_timm()
    if not (isinstance(name, str) and timm.is_model(name)):
        close = difflib.get_close_matches(str(name), timm.list_models(), n=3, cutoff=0.4)
        hint = f" Similar names are {', '.join(close)}." if close else ""
        raise ValueError(f"{field}={shortened(name)}: timm {timm.__version__} has no such model.{hint}")


MaxMViTConfig.register_for_auto_class()


__all__ = ["MaxMViTConfig"]
