"""A Mel filter bank that is trained: the model draws the Mel picture itself, of the power of every frequency.

As in Sainath et al. (2013, "Learning filter banks within a deep neural network framework"), filters begin as those of
the Mel scale and stay positive, as exponentials of what is learnt.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

try:
    from .filters_maxmvit import mel_filters
    from .images_maxmvit import drawn, normalized
    from .spectrograms_maxmvit import MIN_POWER
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from filters_maxmvit import mel_filters
    from images_maxmvit import drawn, normalized
    from spectrograms_maxmvit import MIN_POWER

FLOOR_DB = 10 * math.log10(MIN_POWER)
LEAST = 1e-30  # of a power relative to a clip's loudest: more than float32 has left of what is below the floor


def power_inputs(powers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Args:
        powers: `(bins, frames)` each, in dB.

    Returns:
        `power_values`, float32 `(B, bins, longest)`, filled with zeros at the end, and `power_lengths`, int64 `(B,)`:
        how many frames of each are its own.
    """
    lengths = torch.tensor([power.shape[-1] for power in powers], device=powers[0].device)
    padded = [F.pad(power.float(), (0, int(lengths.max()) - power.shape[-1])) for power in powers]
    return {"power_values": torch.stack(padded), "power_lengths": lengths}


class MelFilterBank(nn.Module):
    """
    Power spectrograms -> Mel pictures, as [`MaxMViTFeatureExtractor`] draws and normalises them: the same ones, until
    training changes the filters.

    A filter is a triangle of `filters_maxmvit.mel_filters`, each of its weights times the exponential of a parameter
    of its own, `log_gains`, 0 to begin with. So no filter gets negative or leaves its band, a step changes a small
    weight by the same share as a large one, and weight decay draws the filters to where they began. (Of weights that
    are trained as they are, one step of Adam would let every filter hear all frequencies.)

    Args:
        settings (`Mapping`): From `images_maxmvit.picture_settings`.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        self.settings = dict(settings)
        self._shape = settings["sampling_rate"], settings["mel_n_fft"], settings["n_mels"]
        self.log_gains = nn.Parameter(torch.zeros(int((mel_filters(*self._shape) > 0).sum())))

    def filters(self) -> torch.Tensor:
        """The filters as they stand: `(n_mels, mel_n_fft // 2 + 1)`, float32."""
        begin, places = _slaney(*self._shape, self.log_gains.device)
        return begin.masked_scatter(places, begin[places] * self.log_gains.float().exp())

    def forward(self, power_values: torch.Tensor | None, power_lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            power_values (`torch.Tensor` of shape `(B, mel_n_fft // 2 + 1, frames)`): In dB, from [`power_inputs`].
            power_lengths (`torch.Tensor` of shape `(B,)`, *optional*): Frames of each clip; without them, all are.

        Returns:
            `(B, 3, height, width)`, float32 in any autocast.

        Raises:
            ValueError: They are missing, or of another shape.
        """
        if power_values is None:
            raise ValueError(
                "power_values is missing: this model has filters that are fed with it. The feature extractor gives it "
                "if its filter_bank is 'learnable'."
            )
        bins, longest = self.settings["mel_n_fft"] // 2 + 1, power_values.shape[-1]
        lengths = [longest] * len(power_values) if power_lengths is None else power_lengths.tolist()
        fits = power_values.ndim == 3 and power_values.shape[1] == bins and len(lengths) == len(power_values)
        if not fits or not all(0 < length <= longest for length in lengths):
            raise ValueError(
                f"power_values has shape {tuple(power_values.shape)}, power_lengths are {lengths}: ({bins} bins, "
                "frames) of each clip are needed, as the feature extractor of this model returns them."
            )
        with torch.autocast(power_values.device.type, enabled=False):
            filters = self.filters()
            clips = [db[:, :length].float() for db, length in zip(power_values, lengths, strict=True)]
            images = torch.cat([drawn(_mels(filters, db), self.settings) for db in clips])
            return normalized(images, self.settings["image_mean"], self.settings["image_std"])


def _mels(filters: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """`(n_mels, bins)` and `(bins, T)` in dB -> `(n_mels, T)` in dB, floored at -100 dB as `mel` of the extractor."""
    loudest = power.amax()  # whose power is 1, lest it overflow float32
    mels = (filters @ 10 ** ((power - loudest) / 10)).clamp(min=LEAST).log10()
    return (10 * mels + loudest).clamp(min=FLOOR_DB)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # as they are kept for who trains, too
def _slaney(sampling_rate: int, n_fft: int, n_mels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The filters to begin with, and where they are above 0. No buffers, which a model in bfloat16 would round."""
    bank = torch.from_numpy(mel_filters(sampling_rate, n_fft, n_mels)).to(device)
    return bank, bank > 0


__all__ = ["MelFilterBank", "power_inputs"]
