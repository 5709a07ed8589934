"""Keywords that nothing would heed, and values that cannot work: refused, with what was meant or would do."""

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
from transformers.utils import TransformersKwargs

# What transformers saves with every feature extractor, and what it passes to one that is called.
SAVED_KEYWORDS = (
    "feature_size", "padding_value", "padding_side", "return_attention_mask", "feature_extractor_type",
    "processor_class", "auto_map", "custom_pipelines", "transformers_version",
)  # fmt: skip
PADDING_KEYWORDS = ("padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask")
TRANSFORMERS_KEYWORDS = frozenset(TransformersKwargs.__annotations__)  # what it passes to every model
EXTRACTOR_CHOICES = {
    "level": ("clip", "full_scale"),
    "mel_representation": ("log-mel", "mfcc"),
    "channels": ("repeat", "deltas"),
    "filter_bank": ("fixed", "learnable"),
    "backend": ("torch", "librosa"),
}


def parameters_of(function: Callable) -> list[str]:
    """Names of the parameters of a function or class, without what collects the rest."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]


def refuse_unknown(given: Iterable[str], known: Sequence[str], function: Callable) -> None:
    """Raises `TypeError` for the first name that is not among the known ones."""
    for name in given:
        if name not in known:
            parameters = parameters_of(function)
            close = difflib.get_close_matches(name, parameters, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(parameters)}"
            raise TypeError(f"{function.__qualname__} has no parameter {name!r}; {hint}")


def refuse_mistyped(given: Iterable[str], function: Callable) -> None:
    """Raises `TypeError` for a name that looks like a mistyped parameter; others may be meant for somebody else."""
    for name in given:
        if close := difflib.get_close_matches(name, parameters_of(function), n=1, cutoff=0.8):
            raise TypeError(f"{function.__qualname__} has no parameter {name!r}; did you mean {close[0]!r}?")


def check_call(given: Mapping[str, Any]) -> None:
    """Raises `TypeError` for a keyword of the model's call that transformers does not know, `ValueError` for attention
    maps."""
    for name, value in given.items():
        if name not in TRANSFORMERS_KEYWORDS:
            raise TypeError(f"MaxMViT takes no argument {name!r}.")
        if name == "output_attentions" and value:
            raise ValueError("MaxMViT returns no attention maps: output_attentions=True cannot be had.")


def check_types(values: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Raises `ValueError` for the first value that is not of the type by which its name is annotated: a whole number
    is an `int` of any library and a `float` too, a sequence may be an array, and numbers are finite."""
    for name, value in values.items():
        if name in annotations and not _is_of_type(value, annotations[name]):
            raise ValueError(
                f"{name}={shortened(value)} does not work: it has to be {_type_in_words(annotations[name])}."
            )


def shortened(value: Any, limit: int = 80) -> str:
    """A value as it stands in an error: its `repr`, or the beginning of it."""
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
    return not isinstance(kind, type) or isinstance(value, kind)  # what is annotated by a text alone is not checked


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


def check_extractor(extractor: Any) -> None:
    """Raises `ValueError` for parameters of [`MaxMViTFeatureExtractor`] that cannot work together."""
    for name, choices in EXTRACTOR_CHOICES.items():
        if getattr(extractor, name) not in choices:
            given = shortened(getattr(extractor, name))
            raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {given}")
    for name in (
        "sampling_rate", "min_length", "cqt_fmin", "cqt_n_bins", "cqt_bins_per_octave", "cqt_hop_length",
        "mel_n_fft", "mel_hop_length", "n_mels", "top_db", "n_mfcc",
    ):  # fmt: skip
        if not getattr(extractor, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(extractor, name)!r}")
    if extractor.trim_db is not None and not extractor.trim_db > 0:
        raise ValueError(f"trim_db must be positive, or None for no trimming, got {extractor.trim_db!r}")
    if not extractor.trim_margin >= 0:
        raise ValueError(f"trim_margin must be 0 seconds or more, got {extractor.trim_margin!r}")
    full_scale_db, size = extractor.full_scale_db, extractor.image_shape
    if len(full_scale_db) != 2 or not full_scale_db[0] < full_scale_db[1]:
        raise ValueError(f"full_scale_db must be a level in dB and a higher one, got {full_scale_db!r}")
    if extractor.n_mfcc > extractor.n_mels and extractor.mel_representation == "mfcc":
        raise ValueError(
            f"n_mfcc={extractor.n_mfcc} is more than the n_mels={extractor.n_mels} that it is computed from"
        )
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"image_size must be a positive number or (height, width), got {extractor.image_size!r}")
    if extractor.mel_n_fft % 2:
        raise ValueError(f"mel_n_fft must be even, got {extractor.mel_n_fft}")
    for values in (extractor.image_mean, extractor.image_std):
        if isinstance(values, dict) and {*values} != {"cqt", "mel"}:
            raise ValueError(f"image_mean and image_std by branch must name cqt and mel, got {', '.join(values)}")
    for branch in ("cqt", "mel"):
        mean, std = extractor.normalization(branch)
        if len(mean) != len(std):
            raise ValueError("image_mean and image_std must have one value per channel each")
