"""From spectrograms in dB to pictures in [0, 1]: silence cut, level, representation, channels, size."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

try:
    from .filters_maxmvit import cosine_filters, delta_filters
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from filters_maxmvit import cosine_filters, delta_filters

DELTA_WIDTH = 9  # frames, librosa's default
# The change that reaches the ends of a picture, as a share of its range: per frame, and per frame and frame. Of
# RAVDESS' CQT 0.4 % goes beyond either, of its Mel spectrogram 0.02 % beyond the first.
DELTA_REACH = (1 / 12, 1 / 24)
SETTINGS: dict[str, Any] = {  # name -> type
    "sampling_rate": int, "mel_n_fft": int, "n_mels": int, "level": str, "top_db": float,
    "full_scale_db": Sequence[float], "mel_representation": str, "n_mfcc": int, "channels": str,
    "image_shape": Sequence[int], "image_mean": Sequence[float], "image_std": Sequence[float],
}  # fmt: skip


def picture_settings(extractor: Any) -> dict[str, Any]:
    """What of a [`MaxMViTFeatureExtractor`] its Mel pictures hang on, beside the power that they are drawn of."""
    mean, std = extractor.normalization("mel")
    return {name: getattr(extractor, name) for name in SETTINGS} | {"image_mean": mean, "image_std": std}


def drawn(db: torch.Tensor, settings: Mapping[str, Any], is_mel: bool = True) -> torch.Tensor:
    """
    The picture of a spectrogram, as an extractor of these settings draws it; gradients pass.

    Args:
        db (`torch.Tensor` of shape `(bins, T)`): float32, in dB.
        settings (`Mapping`): From `picture_settings`.
        is_mel (`bool`): Whether `mel_representation` is heeded.

    Returns:
        `torch.Tensor` of shape `(1, 1, height, width)`, or `(1, 3, height, width)` with deltas, in [0, 1].
    """
    full_scale = settings["level"] == "full_scale"
    ends = db.new_tensor(settings["full_scale_db"]) if full_scale else clip_range(db, settings["top_db"])
    picture = between(db, *ends)
    if is_mel and settings["mel_representation"] == "mfcc":
        picture = mfcc(picture, settings["n_mfcc"])
    picture = with_deltas(picture) if settings["channels"] == "deltas" else picture[None]
    return resize(picture, settings["image_shape"])


def normalized(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """`(B, 1 or 3, H, W)`, any float type -> `(B, 3, H, W)` float32: less `mean`, divided by `std`."""
    shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return (images.float() - shift) / scale


def loud_frames(rms: torch.Tensor, trim_db: float) -> tuple[int, int]:
    """The first frame that is less than `trim_db` below the loudest, and the one behind the last: those from which
    `librosa.effects.trim` keeps a clip to which it does. There always is one.

    Args:
        rms (`torch.Tensor` of shape `(T,)`): levels in dB.
        trim_db (`float`): positive.
    """
    loud = (rms - rms.max() > -trim_db).nonzero()[:, 0]
    first, last = loud[[0, -1]].tolist()
    return first, last + 1


def clip_range(db: torch.Tensor, top_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest level of a spectrogram, at most `top_db` below the highest, and the highest."""
    high = db.amax()  # aminmax passes no gradient
    return torch.maximum(db.amin(), high - top_db), high


def between(db: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """A spectrogram as a picture: 0 is `low` or less, 1 is `high` or more. Where the two are equal, all is 0."""
    return (db - low).div_(torch.where(high > low, high - low, 1)).clamp_(0, 1)


def mfcc(picture: torch.Tensor, n_mfcc: int) -> torch.Tensor:
    """Cepstrum of a log-Mel picture, again as a picture: `librosa.feature.mfcc(S=picture, n_mfcc=n_mfcc)`, divided by
    the root of the number of Mel bands, plus 0.5 in all rows but the first.

    The DCT is the orthonormal DCT-II. So row 0 is the mean of the picture's column, and no other row comes further
    from 0.5 than sqrt(2) / pi = 0.45: nothing has to be cut off to lie in [0, 1].

    Args:
        picture (`torch.Tensor` of shape `(n_mels, T)`): in [0, 1].

    Returns:
        `torch.Tensor` of shape `(n_mfcc, T)`, in [0, 1].
    """
    transform = _dct(len(picture), n_mfcc, picture.device)
    cepstrum = (transform @ picture.to(transform.dtype)).to(picture.dtype)
    cepstrum[1:] += 0.5
    return cepstrum.clamp_(0, 1)


def with_deltas(picture: torch.Tensor) -> torch.Tensor:
    """A picture, its rate of change, and the change of that, each in [0, 1].

    The changes are those of `librosa.feature.delta(picture, width=9, order=1 or 2, mode="interp")`: slope and
    curvature of the line and the parabola that fit 9 frames best (Savitzky and Golay, 1964); the four frames at each
    end have those of the first and the last 9. A picture of fewer frames is continued by its last one. 0.5 stands for
    no change, 0 and 1 for a fall and a rise by 1/12 of the picture's range per frame (by 1/24 per frame and frame in
    the third channel) or more.

    Args:
        picture (`torch.Tensor` of shape `(bins, T)`).

    Returns:
        `torch.Tensor` of shape `(3, bins, T)`.
    """
    frames = picture.shape[-1]
    longer = F.pad(picture, (0, max(0, DELTA_WIDTH - frames)), mode="replicate")
    inner, channels = longer.shape[-1] - DELTA_WIDTH + 1, [picture]
    for weights in _delta_weights():
        change = torch.full_like(longer[:, :inner], 0.5)
        for offset, weight in weights:
            change.add_(longer[:, offset : offset + inner], alpha=weight)
        change = F.pad(change.clamp_(0, 1), (DELTA_WIDTH // 2, DELTA_WIDTH // 2), mode="replicate")
        channels.append(change[:, :frames])
    return torch.stack(channels)


def resize(picture: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`(channels, bins, T)` -> `(1, channels, height, width)`, bilinear without antialiasing."""
    # Channels as a batch: torch takes five times as long for an image of three channels as for three images.
    return F.interpolate(picture[:, None], size=tuple(size), mode="bilinear").transpose(0, 1)


@lru_cache(maxsize=1)
def _delta_weights() -> list[list[tuple[int, float]]]:
    """For the first and the second change, what each frame of nine counts (the middle one counts nothing in the
    first): fitted once, since the fit takes as long as all that is done with it for a clip."""
    return [
        [(offset, float(weight) / (2 * reach)) for offset, weight in enumerate(fit) if abs(weight) > 1e-12]
        for fit, reach in zip(delta_filters(DELTA_WIDTH), DELTA_REACH, strict=True)
    ]


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept may be needed by a gradient later
def _dct(n_mels: int, n_mfcc: int, device: torch.device) -> torch.Tensor:
    """`(n_mfcc, n_mels)`, divided by sqrt(n_mels). In float64: on a GPU a float32 product may be computed in TF32."""
    return torch.from_numpy(cosine_filters(n_mels, n_mfcc) / n_mels**0.5).to(device)
