"""The feature extractor of MaxMViT-MLP: waveform -> constant-Q and Mel images.

| step | operation |
|---|---|
| pad | a clip under 4,096 samples is zero-padded at its end to 4,097 |
| CQT | magnitude, from C1, 84 bins, 12 per octave, hop 512, in dB below the clip's maximum, floored at -80 dB |
| Mel | power, 4,096-point Hann STFT, hop 256, 128 Slaney mels, in dB below the clip's maximum, floored at -80 dB |
| image | min-max to [0, 1], bilinear resize without antialiasing to 244 x 244; row 0 is the lowest frequency |

Parameters of [`MaxMViTFeatureExtractor`] change these steps.

Two back ends compute the spectrograms: `"librosa"` implements this table literally, as the reference; `"torch"` (the
default) is several times faster, follows the CQT's definition about a hundred times more closely, and runs on any
device. This file is part of every checkpoint and does not need the repository.
"""

import ctypes
import difflib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin, get_type_hints

import numpy as np
import soxr  # comes with librosa
import torch
import torch.nn.functional as F
from transformers import (
    AutoFeatureExtractor,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TransformersKwargs, logging

try:
    from .configuration_maxmvit import EXTRACTOR_CHOICES, check_types, shortened
    from .spectrograms_maxmvit import (
        C1,
        as_waveforms,
        cosine_filters,
        delta_filters,
        segment,
        spectrograms_of,
        stream_blocks,
        wavelets,
    )
except ImportError:
    if "." in __name__:  # in a package: the error comes from within the sibling module
        raise
    from configuration_maxmvit import EXTRACTOR_CHOICES, check_types, shortened
    from spectrograms_maxmvit import (
        C1,
        as_waveforms,
        cosine_filters,
        delta_filters,
        segment,
        spectrograms_of,
        stream_blocks,
        wavelets,
    )


# ---- Parameters ----

T = TypeVar("T")
# Type of a parameter that shapes the images of given spectrograms. All other parameters shape the spectrograms; the
# cache of spectrograms depends on those only. The signature of [`MaxMViTFeatureExtractor`] is the only place that says
# which is which.
OfImage = Annotated[T, "image"]


# ---- Parameter checks ----
# Unknown keywords and invalid values are refused; the error names the closest or the valid ones.

# Keywords that transformers saves with every feature extractor, and those that it passes to every call.
SAVED_KEYWORDS = (
    "feature_size", "padding_value", "padding_side", "return_attention_mask", "feature_extractor_type",
    "processor_class", "auto_map", "custom_pipelines", "transformers_version",
)  # fmt: skip
PADDING_KEYWORDS = ("padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask")
TRANSFORMERS_KEYWORDS = frozenset(
    TransformersKwargs.__annotations__
)  # keywords that transformers passes to every model


def parameters_of(function: Callable) -> list[str]:
    """Returns the names of the parameters of a function or class, without `self` and `kwargs`."""
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
    """Raises `TypeError` for a name that resembles a parameter. Other names are ignored, since they may belong to
    another function."""
    for name in given:
        if close := difflib.get_close_matches(name, parameters_of(function), n=1, cutoff=0.8):
            raise TypeError(f"{function.__qualname__} has no parameter {name!r}; did you mean {close[0]!r}?")


def check_extractor(extractor: Any) -> None:
    """Raises `ValueError` for invalid or incompatible parameters of a [`MaxMViTFeatureExtractor`]."""
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


# ---- Threads ----
# Limits a call to one CPU thread, by OpenMP's and MKL's settings of the calling thread.


class one_thread(ContextDecorator):
    """Limits torch to one CPU thread, as a context manager or decorator.

    A clip takes hundreds of steps of microseconds each. Several threads would have to synchronise after each step,
    which on a busy machine takes longer than the computation; several processes use the cores better.

    `torch.set_num_threads` also sets the default of all new threads of the process, so overlapping calls would leave
    that default at one. The two settings below it are local to the calling thread: OpenMP's `nthreads-var` (an
    internal control variable of the current task) and MKL's local number of threads. They are restored in the same
    thread. Where torch has no OpenMP (Windows), nothing is changed.

    Unlike a function decorated by `contextlib.contextmanager`, a decorated method contains no generator, so `datasets`
    can hash the feature extractor.
    """

    def _recreate_cm(self) -> "one_thread":
        return one_thread()  # each call stores its own settings, since calls may overlap

    def __enter__(self) -> None:
        set_openmp, set_mkl = _setters()
        # Also initialises torch's settings of this thread, which would otherwise happen later and override the rest.
        self._threads = torch.get_num_threads()
        set_openmp(1)
        self._mkl_threads = set_mkl(1)

    def __exit__(self, *_: object) -> None:
        set_openmp, set_mkl = _setters()
        set_mkl(self._mkl_threads)
        set_openmp(self._threads)


@lru_cache(maxsize=1)
def _setters() -> tuple[Callable[[int], object], Callable[[int], int]]:
    """Returns `omp_set_num_threads` and `MKL_Set_Num_Threads_Local` (which returns the previous value) of the
    libraries that torch is linked to, or functions that do nothing."""
    library = ctypes.CDLL(torch._C.__file__)
    openmp = getattr(library, "omp_set_num_threads", None)
    mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)
    return openmp or _nothing_to_set, mkl or _nothing_to_set


def _nothing_to_set(threads: int) -> int:
    return threads


# ---- Images ----
# From spectrograms in dB to images in [0, 1]: trimming, level, representation, channels, size.

DELTA_WIDTH = 9  # frames, librosa's default
# The first and second differences that map to 0 and 1, as fractions of an image's range per frame and per frame
# squared. 0.4 % of RAVDESS' CQT values exceed either, and 0.02 % of its Mel values exceed the first.
DELTA_REACH = (1 / 12, 1 / 24)


def image_settings(extractor: Any) -> dict[str, Any]:
    """Returns the parameters of a [`MaxMViTFeatureExtractor`] that shape its Mel images, given the power
    spectrogram."""
    mean, std = extractor.normalization("mel")
    return {name: getattr(extractor, name) for name in IMAGE_SETTINGS} | {"image_mean": mean, "image_std": std}


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns the image settings in the `filter_bank_config` of a model, with defaults for those that were added later.

    Raises:
        ValueError: A setting is unknown or missing, or has the wrong type.
    """
    if not FIRST_SETTINGS <= {*settings} <= {*IMAGE_SETTINGS}:
        raise ValueError(
            "filter_bank='learnable' needs a filter_bank_config with the extractor's image settings: pass "
            "image_settings(extractor) of feature_extraction_maxmvit.py."
        )
    try:
        check_types(settings, IMAGE_SETTINGS)
    except ValueError as error:
        raise ValueError(f"filter_bank_config: {error}") from error
    defaults = inspect.signature(MaxMViTFeatureExtractor).parameters
    return {name: settings[name] if name in settings else defaults[name].default for name in IMAGE_SETTINGS}


def render_image(db: torch.Tensor, settings: Mapping[str, Any], is_mel: bool = True) -> torch.Tensor:
    """
    Renders the image of a spectrogram, as an extractor with these settings does. Differentiable.

    Args:
        db (`torch.Tensor` of shape `(bins, T)`): float32, in dB.
        settings (`Mapping`): From `image_settings`.
        is_mel (`bool`): Whether this is a Mel spectrogram, to which `mel_representation` applies.

    Returns:
        `torch.Tensor` of shape `(1, 1, height, width)`, or `(1, 3, height, width)` with deltas, in [0, 1].
    """
    full_scale = settings["level"] == "full_scale"
    ends = db.new_tensor(settings["full_scale_db"]) if full_scale else clip_range(db, settings["top_db"])
    image = between(db, *ends)
    if is_mel and settings["mel_representation"] == "mfcc":
        image = mfcc(image, settings["n_mfcc"])
    image = with_deltas(image) if settings["channels"] == "deltas" else image[None]
    return resize(image, settings["image_shape"])


def normalized(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Subtracts `mean` and divides by `std`: `(B, 1 or 3, H, W)`, any float type -> `(B, 3, H, W)` float32."""
    shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return (images.float() - shift) / scale


def loud_frames(rms: torch.Tensor, trim_db: float) -> tuple[int, int]:
    """Returns the first frame that is less than `trim_db` below the loudest one, and the index after the last such
    frame: the bounds that `librosa.effects.trim` keeps. At least one frame is kept.

    Args:
        rms (`torch.Tensor` of shape `(T,)`): levels in dB.
        trim_db (`float`): positive.
    """
    loud = (rms - rms.max() > -trim_db).nonzero()[:, 0]
    first, last = loud[[0, -1]].tolist()
    return first, last + 1


def clip_range(db: torch.Tensor, top_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the lowest level of a spectrogram, at most `top_db` below the highest, and the highest."""
    high = db.amax()  # aminmax passes no gradient
    return torch.maximum(db.amin(), high - top_db), high


def between(db: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Scales a spectrogram to [0, 1]: `low` or less is 0, `high` or more is 1; all is 0 if they are equal."""
    return (db - low).div_(torch.where(high > low, high - low, 1)).clamp_(0, 1)


def mfcc(image: torch.Tensor, n_mfcc: int) -> torch.Tensor:
    """Computes the cepstrum of a log-Mel image as an image: `librosa.feature.mfcc(S=image, n_mfcc=n_mfcc)`, divided by
    the square root of the number of Mel bands, plus 0.5 in all rows but the first.

    The DCT is the orthonormal DCT-II. So row 0 is the mean of the image's column, and all other rows lie within
    sqrt(2) / pi = 0.45 of 0.5: nothing is clipped to lie in [0, 1].

    Args:
        image (`torch.Tensor` of shape `(n_mels, T)`): in [0, 1].

    Returns:
        `torch.Tensor` of shape `(n_mfcc, T)`, in [0, 1].
    """
    transform = _dct(len(image), n_mfcc, image.device)
    cepstrum = (transform @ image.to(transform.dtype)).to(image.dtype)
    cepstrum[1:] += 0.5
    return cepstrum.clamp_(0, 1)


def with_deltas(image: torch.Tensor) -> torch.Tensor:
    """Stacks an image with its first and second differences over time, each in [0, 1].

    The differences are those of `librosa.feature.delta(image, width=9, order=1 or 2, mode="interp")`: slope and
    curvature of the line and the parabola that fit 9 frames best (Savitzky and Golay, 1964); the four frames at each
    end have those of the first and the last 9. An image of fewer frames is padded with its last frame. 0.5 stands for
    no change, 0 and 1 for a fall and a rise by 1/12 of the image's range per frame (by 1/24 per frame squared in the
    third channel) or more.

    Args:
        image (`torch.Tensor` of shape `(bins, T)`).

    Returns:
        `torch.Tensor` of shape `(3, bins, T)`.
    """
    frames = image.shape[-1]
    longer = F.pad(image, (0, max(0, DELTA_WIDTH - frames)), mode="replicate")
    inner, channels = longer.shape[-1] - DELTA_WIDTH + 1, [image]
    for weights in _delta_weights():
        change = torch.full_like(longer[:, :inner], 0.5)
        for offset, weight in weights:
            change.add_(longer[:, offset : offset + inner], alpha=weight)
        change = F.pad(change.clamp_(0, 1), (DELTA_WIDTH // 2, DELTA_WIDTH // 2), mode="replicate")
        channels.append(change[:, :frames])
    return torch.stack(channels)


def resize(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resizes bilinearly without antialiasing: `(channels, bins, T)` -> `(1, channels, height, width)`."""
    # Channels form the batch: torch takes five times as long for one image of three channels as for three images.
    return F.interpolate(images[:, None], size=tuple(size), mode="bilinear").transpose(0, 1)


@lru_cache(maxsize=1)
def _delta_weights() -> list[list[tuple[int, float]]]:
    """Returns (offset, weight) of the nine frames, without weights of 0, for the first and the second difference. The
    result is cached, since the fit takes as long as applying it to a clip."""
    return [
        [(offset, float(weight) / (2 * reach)) for offset, weight in enumerate(fit) if abs(weight) > 1e-12]
        for fit, reach in zip(delta_filters(DELTA_WIDTH), DELTA_REACH, strict=True)
    ]


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached tensor may be used with gradients later
def _dct(n_mels: int, n_mfcc: int, device: torch.device) -> torch.Tensor:
    """Returns the DCT `(n_mfcc, n_mels)`, divided by sqrt(n_mels), in float64: a GPU may compute float32 products in
    TF32."""
    return torch.from_numpy(cosine_filters(n_mels, n_mfcc) / n_mels**0.5).to(device)


# ---- Inputs of learnable Mel filters ----


def power_inputs(powers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Pads power spectrograms to one length.

    Args:
        powers: `(bins, frames)` each, in dB.

    Returns:
        `power_values`, float32 `(B, bins, longest)`, padded with zeros at the end, and `power_lengths`, int64 `(B,)`:
        the number of frames of each clip without padding.
    """
    lengths = torch.tensor([power.shape[-1] for power in powers], device=powers[0].device)
    padded = [F.pad(power.float(), (0, int(lengths.max()) - power.shape[-1])) for power in powers]
    return {"power_values": torch.stack(padded), "power_lengths": lengths}


# ---- Inputs of a speech encoder ----

WAVEFORM = "speech"  # key, among the spectrograms of a clip, of its waveform at the encoder's rate
SHORTEST = 4000  # samples at 16 kHz, longer than the encoders' time masks in training
EXTRACTORS = {cls.__name__: cls for cls in (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor)}


def read_processor(name: str | os.PathLike) -> dict[str, Any]:
    """
    Returns the settings of a speech encoder's feature extractor, such as its sampling rate and whether waveforms are
    normalised to zero mean and unit variance.

    Raises:
        OSError: There is no `preprocessor_config.json`.
        ValueError: The feature extractor belongs to another kind of model.
    """
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"speech_encoder={os.fspath(name)!r} has no feature extractor that could be loaded ({error}). Its "
            "folder needs the preprocessor_config.json that the checkpoint was published with."
        ) from error
    settings = {key: value for key, value in extractor.to_dict().items() if key not in ("auto_map", "processor_class")}
    make_processor(settings)
    return settings


def make_processor(settings: Mapping[str, Any]) -> Any:
    """
    Builds the feature extractor of a speech encoder from settings of [`read_processor`].

    Raises:
        ValueError: The type of the feature extractor is not supported, or a setting has the wrong type or is not
            positive.
    """
    kind = settings.get("feature_extractor_type")
    if not isinstance(kind, str) or kind not in EXTRACTORS:
        raise ValueError(
            f"speech_processor: feature_extractor_type={shortened(kind)} does not work: it must be one of "
            f"{', '.join(EXTRACTORS)}."
        )
    parameters = inspect.signature(EXTRACTORS[kind]).parameters.values()
    types = {each.name: type(each.default) for each in parameters if each.default is not each.empty}
    try:
        check_types(settings, types)
    except ValueError as error:
        raise ValueError(f"speech_processor: {error}") from error
    for name, value in settings.items():
        if types.get(name) is int and not value > 0:
            raise ValueError(f"speech_processor: {name}={value} does not work: it must be positive.")
    return _made_processor(json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=4)
def _made_processor(settings: str) -> Any:
    given = json.loads(settings)
    return EXTRACTORS[given["feature_extractor_type"]](**given)


def resampled(waveform: torch.Tensor, sampling_rate: int, processor: Any) -> torch.Tensor:
    """Resamples `(T,)` from `sampling_rate` to the rate of a feature extractor: float32, on the CPU."""
    samples = waveform.cpu().numpy()
    return torch.from_numpy(soxr.resample(samples, sampling_rate, processor.sampling_rate, quality="HQ"))


def speech_inputs(waveforms: Sequence[torch.Tensor], processor: Any) -> dict[str, torch.Tensor]:
    """
    Prepares waveforms for a speech encoder: applies the checkpoint's own feature extractor to each, then pads them
    with zeros to the longest.

    Args:
        waveforms: `(T,)` each, at the processor's rate; those under 4,000 samples are padded to that length.
        processor: From [`make_processor`].

    Returns:
        `input_values`, float32: `(B, T)` samples or, for Whisper, `(B, bands, frames)` log-Mel frames, 100 per second,
        for the clip's length instead of 30 s; a clip of more than 30 s is processed in pieces of 30 s.
        `attention_mask`, int64 `(B, T or frames)`: 1 for the clip, 0 for padding.
    """
    prepare = _log_mel if isinstance(processor, WhisperFeatureExtractor) else _samples
    values = [prepare(_at_least(waveform.float().cpu(), SHORTEST).numpy(), processor) for waveform in waveforms]
    lengths = torch.tensor([value.shape[-1] for value in values])
    longest = int(lengths.max())
    mask = torch.arange(longest)[None] < lengths[:, None]
    padded = torch.stack([F.pad(value, (0, longest - value.shape[-1])) for value in values])
    return {"input_values": padded, "attention_mask": mask.long()}


def _at_least(samples: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(samples, (0, max(0, length - len(samples))))


def _samples(samples: np.ndarray, processor: Any) -> torch.Tensor:
    return torch.as_tensor(processor(samples, sampling_rate=processor.sampling_rate)["input_values"][0])


def _log_mel(samples: np.ndarray, processor: WhisperFeatureExtractor) -> torch.Tensor:
    frames = []
    for start in range(0, len(samples), processor.n_samples):
        piece = _at_least(torch.from_numpy(samples[start : start + processor.n_samples]), SHORTEST).numpy()
        given = processor(piece, sampling_rate=processor.sampling_rate, padding=False)
        frames.append(torch.as_tensor(given["input_features"][0]))
    return torch.cat(frames, dim=-1)


# ---- Feature extractor ----

logger = logging.get_logger(__name__)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class MaxMViTFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Converts mono waveforms to the CQT and Mel images of MaxMViT-MLP.

    There are three steps: `spectrograms` of waveforms, which are worth caching; `images` of spectrograms, in [0, 1],
    which are cheap to render; and `normalize`, which returns three ImageNet-normalised channels. Calling the extractor
    runs all three, `extract` the first two. A clip's images do not depend on the rest of the batch. On a CPU one
    thread is used, whatever torch is set to.

    Clips of any length are accepted and never cropped: the image of an hour is as wide as that of a second. Spectra
    are computed in pieces, so an hour at 44.1 kHz (0.6 GB as float32) needs about 2 GB beyond the waveform.

    Args:
        sampling_rate (`int`, defaults to 44100): Hz, of every waveform given.
        min_length (`int`, defaults to 4096): shorter clips are zero-padded at their end to `min_length + 1` samples.
        cqt_fmin (`float`, defaults to 32.70319566257483): frequency of the lowest bin in Hz (C1).
        cqt_n_bins (`int`, defaults to 84): number of CQT bins.
        cqt_bins_per_octave (`int`, defaults to 12): CQT bins per octave.
        cqt_hop_length (`int`, defaults to 512): samples between CQT frames.
        mel_n_fft (`int`, defaults to 4096): length of the Mel STFT's Hann window, in samples.
        mel_hop_length (`int`, defaults to 256): samples between Mel frames.
        n_mels (`int`, defaults to 128): number of Mel bands (Slaney scale and norm, 0 Hz to half the sampling rate).
        trim_db (`float`, *optional*): leading and trailing frames are cut where their level (root mean square of
            2,048 samples) is this many dB or more below the clip's loudest, as `librosa.effects.trim(top_db=trim_db)`
            does. Frames are cut, not samples: the new first and last frames still cover up to half a window of what
            was cut.
        trim_margin (`float`, defaults to 0.05): seconds kept on each side of the speech that `trim_db` finds.
        level (`str`, defaults to `"clip"`): what 1 stands for in an image. `"clip"`: the clip's own maximum.
            `"full_scale"`: the same level in every clip, so that the image keeps the loudness.
        top_db (`float`, defaults to 80.0): for `level="clip"`, the dynamic range kept below the maximum, in dB.
        full_scale_db (`Sequence[float]`, defaults to (-60.0, 40.0)): for `level="full_scale"`, what 0 and 1 stand for
            in dB, in the units of `spectrograms`. The loudest Mel value of a RAVDESS clip lies between -10 and 44 (in
            1 % of the clips over 39), the loudest CQT value between -25 and 23.
        mel_representation (`str`, defaults to `"log-mel"`): `"log-mel"`, or `"mfcc"` for its cepstrum; see
            `feature_extraction_maxmvit.mfcc`.
        n_mfcc (`int`, defaults to 40): rows of the cepstrum, at most `n_mels`.
        channels (`str`, defaults to `"repeat"`): `"repeat"`: one image, repeated three times by `normalize`.
            `"deltas"`: the image and its first and second differences over time; see
            `feature_extraction_maxmvit.with_deltas`.
        image_size (`int` or `Sequence[int]`, defaults to 244): height and width of the images, or one number for both.
        image_mean (`Sequence[float]` or `dict`, defaults to ImageNet's): subtracted per channel by `normalize`; for
            backbones that were pretrained with different values, a `dict` with the keys `"cqt"` and `"mel"`.
        image_std (`Sequence[float]` or `dict`, defaults to ImageNet's): the divisor per channel of `normalize`.
        filter_bank (`str`, defaults to `"fixed"`): `"learnable"` for a model with learnable Mel filters: the extractor
            also returns the power of every frequency; see `modeling_maxmvit.py`.
        backend (`str`, defaults to `"torch"`): `"torch"`, or `"librosa"` for the literal reference (CPU only inside).
        speech_processor (`dict`, *optional*): for a model with a speech encoder, the settings of that checkpoint's own
            feature extractor, from `feature_extraction_maxmvit.read_processor`. Its waveforms are trimmed like
            the images.

    Raises:
        ValueError: A parameter has the wrong type or value, or parameters are incompatible.
    """

    model_input_names = [
        "cqt_values", "mel_values", "input_values", "attention_mask", "power_values", "power_lengths",
    ]  # fmt: skip

    def __init__(
        self,
        sampling_rate: int = 44100,
        min_length: int = 4096,
        cqt_fmin: float = C1,
        cqt_n_bins: int = 84,
        cqt_bins_per_octave: int = 12,
        cqt_hop_length: int = 512,
        mel_n_fft: int = 4096,
        mel_hop_length: int = 256,
        n_mels: int = 128,
        trim_db: OfImage[float | None] = None,
        trim_margin: OfImage[float] = 0.05,
        level: OfImage[str] = "clip",
        top_db: OfImage[float] = 80.0,
        full_scale_db: OfImage[Sequence[float]] = (-60.0, 40.0),
        mel_representation: OfImage[str] = "log-mel",
        n_mfcc: OfImage[int] = 40,
        channels: OfImage[str] = "repeat",
        image_size: OfImage[int | Sequence[int]] = 244,
        image_mean: OfImage[Sequence[float] | Mapping[str, Sequence[float]]] = IMAGENET_MEAN,
        image_std: OfImage[Sequence[float] | Mapping[str, Sequence[float]]] = IMAGENET_STD,
        filter_bank: str = "fixed",
        backend: str = "torch",
        speech_processor: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        given = dict(locals())
        check_types(given, PARAMETER_TYPES)
        refuse_unknown(kwargs, SAVED_KEYWORDS, type(self))
        kwargs = {"feature_size": 1, "padding_value": 0.0, "return_attention_mask": False} | kwargs
        super().__init__(sampling_rate=sampling_rate, **kwargs)
        for name in parameters_of(MaxMViTFeatureExtractor):
            setattr(self, name, given[name])
        self.full_scale_db = list(full_scale_db)
        self.image_size = image_size if isinstance(image_size, int) else list(image_size)
        self.image_mean = _by_branch(image_mean)
        self.image_std = _by_branch(image_std)
        check_extractor(self)
        wavelets(*self.cqt_parameters)  # refuses bins above half the sampling rate
        if speech_processor is not None:
            make_processor(speech_processor)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the parameters

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Overrides [`~transformers.FeatureExtractionMixin.from_dict`], which drops given parameters that are missing
        in the settings of an older checkpoint. Keywords for other functions are accepted, as in transformers.

        Raises:
            TypeError: A keyword looks like a mistyped parameter.
            ValueError: The settings are not a dictionary, or a parameter has the wrong type.
        """
        if not isinstance(feature_extractor_dict, dict):
            raise ValueError(
                "preprocessor_config.json does not hold the settings of a feature extractor, which are a JSON object."
            )
        given = {name: kwargs.pop(name) for name in parameters_of(cls) if name in kwargs}
        refuse_mistyped(kwargs, cls)
        return super().from_dict({**feature_extractor_dict, **given}, **kwargs)

    @property
    def cqt_parameters(self) -> tuple:
        """Parameters of the CQT, as `spectrograms_maxmvit.cqt_magnitude` takes them."""
        return self.sampling_rate, self.cqt_fmin, self.cqt_n_bins, self.cqt_bins_per_octave, self.cqt_hop_length

    @property
    def mel_parameters(self) -> tuple:
        """Parameters of the Mel spectrogram, as `spectrograms_maxmvit.mel_power` takes them."""
        return self.sampling_rate, self.mel_n_fft, self.mel_hop_length, self.n_mels

    @property
    def hops(self) -> dict[str, int | Fraction]:
        """Hop length in samples of each of the `spectrograms`."""
        hops: dict[str, int | Fraction] = {"cqt": self.cqt_hop_length}
        hops |= dict.fromkeys(("mel", "rms", "power"), self.mel_hop_length)
        if self.speech_processor is not None:
            hops[WAVEFORM] = Fraction(self.sampling_rate, make_processor(self.speech_processor).sampling_rate)
        return hops

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> BatchFeature:
        """Computes the normalised images of waveforms, and the inputs of a speech encoder and of learnable filters.

        Args:
            raw_speech: one mono waveform or a list of them, of any lengths: numpy arrays, torch tensors or lists of
                floats. A two-dimensional array is a batch of waveforms.
            sampling_rate (`int`, *optional*): of `raw_speech`, in Hz; checked against the extractor's.
            return_tensors (`str`, *optional*): `"pt"` for torch tensors, `"np"` or None for numpy arrays.
            device (`str`, defaults to `"cpu"`): where the torch back end computes and, with `"pt"`, leaves the result.
            kwargs: `padding` and similar keywords, which pipelines pass to every extractor; they have no effect.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32, each `(B, 3, height, width)`, and what
            `waveform_inputs` returns.

        Raises:
            ValueError: The sampling rate differs, or an item is empty, not one-dimensional, or holds NaN or infinity.
            TypeError: Another keyword is given.
        """
        refuse_unknown(kwargs, PADDING_KEYWORDS, type(self).__call__)
        if sampling_rate is None:
            logger.warning_once(
                f"Pass `sampling_rate` to {type(self).__name__}: without it, audio at another rate than "
                f"{self.sampling_rate} Hz goes unnoticed."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"This feature extractor works at {self.sampling_rate} Hz, the audio is at {sampling_rate} Hz: "
                f"resample it first, e.g. librosa.resample(y, orig_sr={sampling_rate}, target_sr={self.sampling_rate})"
            )
        clips = self.spectrograms(raw_speech, device=device)
        values: dict[str, Any] = {name: self.normalize(image, name.removesuffix("_values"))
                                  for name, image in self.images(clips).items()}  # fmt: skip
        values |= {name: value.to(device) for name, value in self.waveform_inputs(clips).items()}
        if return_tensors != "pt":
            values = {name: value.cpu().numpy() for name, value in values.items()}
        return BatchFeature(values, tensor_type=return_tensors)

    def extract(self, waveforms: Any, device: str | torch.device = "cpu") -> BatchFeature:
        """Computes `spectrograms` of waveforms, and `images` of these."""
        return self.images(self.spectrograms(waveforms, device=device))

    @torch.no_grad()
    @one_thread()
    def spectrograms(self, waveforms: Any, device: str | torch.device = "cpu") -> list[dict[str, torch.Tensor]]:
        """Computes spectrograms, at their native time resolution; they can be cached to render `images` from.

        Args:
            waveforms: as `raw_speech` of `__call__`, at `self.sampling_rate`.
            device (`str`, defaults to `"cpu"`): where the torch back end computes and leaves the spectrograms.

        Returns:
            `list[dict[str, torch.Tensor]]`, one per clip of T samples, each with three float32 tensors in dB re an
            amplitude of 1, floored at -100 dB:

            - `cqt`, `(cqt_n_bins, 1 + T // cqt_hop_length)`: magnitude of the constant-Q transform;
            - `mel`, `(n_mels, 1 + T // mel_hop_length)`: power of the Mel spectrogram;
            - `rms`, `(1 + T // mel_hop_length,)`: level of the waveform around each Mel frame, the root mean square
              of 2,048 samples as in `librosa.feature.rms` and `librosa.effects.trim`;
            - `power`, `(mel_n_fft // 2 + 1, 1 + T // mel_hop_length)`, for `filter_bank="learnable"`: the input of
              the Mel filters, floored at -160 dB;
            - `speech`, `(samples,)`, with a `speech_processor`: the waveform at its rate, not in dB.

        Raises:
            ValueError: an item is empty, not one-dimensional, or holds NaN or infinity; the message says which.
        """
        device = torch.device(device)
        waveforms = as_waveforms(waveforms, self.min_length)
        # Under a training loop's autocast the filter bank would be applied in bfloat16.
        with torch.autocast(device.type, enabled=False):
            cqt, mel, learnable = self.cqt_parameters, self.mel_parameters, self.filter_bank == "learnable"
            clips = spectrograms_of(waveforms, cqt, mel, self.backend, device, learnable)
        if self.speech_processor is not None:
            for clip, waveform in zip(clips, waveforms, strict=True):
                clip[WAVEFORM] = resampled(waveform, self.sampling_rate, make_processor(self.speech_processor))
        return clips

    def stream(
        self, pieces: Iterable[np.ndarray], device: str | torch.device = "cpu", block_s: float = 16.0
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Computes spectrograms of a recording of any length block by block, in the memory of one block. Concatenated
        along time, the blocks equal `spectrograms` of the whole: the same frames, from the same samples around them
        (the CQT to 0.005 dB down to 60 dB below the maximum).

        Args:
            pieces (`Iterable[np.ndarray]`): consecutive pieces of the recording, of any lengths.
            device (`str`, defaults to `"cpu"`): as in `spectrograms`.
            block_s (`float`, defaults to 16.0): seconds per block; each block takes the computation of 1.2 s more.

        Raises:
            ValueError: the recording is empty, or holds NaN or infinity.
        """
        return stream_blocks(self, pieces, device, block_s)

    def cut(self, spectrogram: Mapping[str, torch.Tensor], start: float, end: float) -> dict[str, torch.Tensor]:
        """Returns the segment from `start` to `end`: views of as many frames as a waveform of this length has, from
        the one nearest to `start`, up to the end of the clip; at least one frame.

        The result differs from `spectrograms` of the same segment of the waveform: the first and last frames here
        cover parts of the recording before and after the segment, and there zeros (half a wavelet on each side, 0.6 s
        at C1). Further inside, and if `start` is a whole number of hops, the two differ by less than 0.005 dB down to
        60 dB below the maximum (windows of 3 and 10 s of RAVDESS speech). Over whole windows of 3 s, pixels differ by
        0.0017 (CQT) and 0.0004 (Mel) on average; if the frames are offset by up to half a hop, by 0.014 and 0.0025.

        Args:
            spectrogram: one clip, from `spectrograms`.
            start (`float`): in seconds.
            end (`float`): in seconds.

        Raises:
            ValueError: `end` is not after `start`, or `start` is not within the clip.
        """
        return segment(spectrogram, start, end, self.sampling_rate, self.hops)

    def speech_bounds(self, spectrogram: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        """Returns start and end in seconds of the part of a clip that `images` renders: all but what `trim_db`
        cuts."""
        rms = spectrogram["rms"]
        frames = (0, len(rms)) if self.trim_db is None else loud_frames(rms, self.trim_db)
        first, end = (frame * self.mel_hop_length / self.sampling_rate for frame in frames)
        return max(0.0, first - self.trim_margin), end + self.trim_margin

    def trim(self, spectrogram: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns a clip cut to `speech_bounds`; the whole clip without `trim_db`."""
        return dict(spectrogram) if self.trim_db is None else self.cut(spectrogram, *self.speech_bounds(spectrogram))

    @torch.no_grad()
    @one_thread()
    def images(
        self, spectrograms: Sequence[Mapping[str, torch.Tensor]], branches: Sequence[str] = ("cqt", "mel")
    ) -> BatchFeature:
        """Renders images of spectrograms in [0, 1], before normalisation: trims, scales, converts and resizes them.

        Args:
            spectrograms: clips from `spectrograms` or `cut`, any float type, on any device; not modified.
            branches (`Sequence[str]`, defaults to both): the images to render, of `"cqt"` and `"mel"`.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32 tensors `(B, 1, height, width)`, of three
            channels with `channels="deltas"`.

        Raises:
            ValueError: The list is empty.
        """
        if not len(spectrograms):
            raise ValueError("no spectrogram given: the list is empty")
        with torch.autocast(spectrograms[0]["mel"].device.type, enabled=False):
            clips = [self.trim({name: db.float() for name, db in clip.items()}) for clip in spectrograms]
            settings = image_settings(self)
            images = {
                name: torch.cat([render_image(clip[name], settings, name == "mel") for clip in clips])
                for name in branches
            }
        return BatchFeature({f"{name}_values": values for name, values in images.items()})

    @one_thread()
    def waveform_inputs(self, spectrograms: Sequence[Mapping[str, torch.Tensor]]) -> BatchFeature:
        """Returns the model's inputs other than images, trimmed like `images`, for clips from `spectrograms` or `cut`:
        with a `speech_processor` those of `feature_extraction_maxmvit.speech_inputs`, on the CPU; and `powers`."""
        inputs = self.powers(spectrograms)
        if self.speech_processor is not None:
            waveforms = [self.trim(clip)[WAVEFORM] for clip in spectrograms]
            inputs.update(speech_inputs(waveforms, make_processor(self.speech_processor)))
        return inputs

    def powers(self, spectrograms: Sequence[Mapping[str, torch.Tensor]]) -> BatchFeature:
        """Returns the inputs of learnable filters, from `feature_extraction_maxmvit.power_inputs`, trimmed like
        `images`; nothing with fixed filters."""
        learnable = self.filter_bank == "learnable"
        return BatchFeature(power_inputs([self.trim(clip)["power"] for clip in spectrograms]) if learnable else None)

    @property
    def image_shape(self) -> list[int]:
        """Height and width of `image_size`."""
        return [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size

    def normalization(self, branch: str) -> tuple[list[float], list[float]]:
        """Returns `image_mean` and `image_std` of a branch, `"cqt"` or `"mel"`."""
        mean, std = (each[branch] if isinstance(each, dict) else each for each in (self.image_mean, self.image_std))
        return mean, std

    def normalize(self, images: torch.Tensor, branch: str = "cqt") -> torch.Tensor:
        """Normalises images of a branch, `(B, 1 or 3, H, W)` in [0, 1], any float type: `(B, 3, H, W)` float32."""
        return normalized(images, *self.normalization(branch))


def _by_branch(values: Sequence[float] | Mapping[str, Sequence[float]]) -> list[float] | dict[str, list[float]]:
    if isinstance(values, Mapping):
        return {branch: list(own) for branch, own in values.items()}
    return list(values)


PARAMETER_TYPES = get_type_hints(MaxMViTFeatureExtractor.__init__)
IMAGE_PARAMETERS = tuple(
    name
    for name, kind in get_type_hints(MaxMViTFeatureExtractor.__init__, include_extras=True).items()
    if get_origin(kind) is Annotated
)
# Parameters that shape a Mel image, given the power spectrogram of a trimmed clip -> type. Learnable filters keep all.
IMAGE_SETTINGS = {
    name: PARAMETER_TYPES[name]
    for name in ("sampling_rate", "mel_n_fft", "n_mels", *IMAGE_PARAMETERS)
    if name not in ("trim_db", "trim_margin", "image_size")
} | {"image_shape": Sequence[int], "image_mean": Sequence[float], "image_std": Sequence[float]}
# Settings in every checkpoint with learnable filters. The others were added later; a missing one has its default.
FIRST_SETTINGS = {
    "sampling_rate", "mel_n_fft", "n_mels", "level", "top_db", "full_scale_db", "mel_representation", "n_mfcc",
    "channels", "image_shape", "image_mean", "image_std",
}  # fmt: skip


MaxMViTFeatureExtractor.register_for_auto_class()


__all__ = ["MaxMViTFeatureExtractor"]
