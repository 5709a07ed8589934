"""Implements the feature extractor as one module of plain operators, which an ONNX file can contain.

It uses convolutions, matrix products, squares, logarithms and columns selected by computed indices, but no FFT,
complex numbers or loops. Its output is that of [`MaxMViTFeatureExtractor`] with the backend `"torch"`.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WhisperFeatureExtractor

from feature_extraction_maxmvit import (
    DELTA_REACH,
    DELTA_WIDTH,
    SHORTEST,
    WAVEFORM,
    MaxMViTFeatureExtractor,
    image_settings,
    make_processor,
    resampled,
)
from ser.utils import DataError
from spectrograms_maxmvit import (
    MIN_POWER,
    RMS_LENGTH,
    cosine_filters,
    delta_filters,
    mel_filters,
    wavelet_responses,
    wavelets,
)

MAX_RESAMPLING_WEIGHTS = 2**22  # exceeded by rates with a small common divisor
MIN_WEIGHT = 1e-8  # smaller weights of the resampling filter are left out; the largest is about 0.3


class FrontEnd(nn.Module):
    """
    Computes the inputs of the model from waveforms of one length: normalised images, and inputs of a speech encoder.

    Args:
        extractor (`MaxMViTFeatureExtractor`): Extractor with the same output. All of its options are supported.
        branches (`Iterable[str]`): Branches to compute inputs for, of `"cqt"`, `"mel"` and `"speech"`, as in
            `model.branches()`.

    Raises:
        DataError: The sampling rates of the extractor and of the speech encoder are not in a simple enough ratio.
    """

    def __init__(self, extractor: MaxMViTFeatureExtractor, branches: Iterable[str] = ("cqt", "mel")):
        super().__init__()
        self.sampling_rate, self.min_length = extractor.sampling_rate, extractor.min_length
        self.trim = None if extractor.trim_db is None else Trim(extractor, extractor.trim_db)
        wanted = list(branches)
        spectrograms = {name: kind for name, kind in (("cqt", ConstantQ), ("mel", Mel)) if name in wanted}
        self.spectrograms = nn.ModuleDict({name: kind(extractor) for name, kind in spectrograms.items()})
        self.images = nn.ModuleDict({name: Image(extractor, name) for name in spectrograms})
        self.speech = Speech(extractor) if "speech" in wanted else None

    def forward(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Computes the inputs of the model.

        Args:
            waveform (`torch.Tensor` of shape `(B, samples)`): float32, mono, at the extractor's rate, finite, between
                -1e9 and 1e9. At least `min_length` samples if the export is for any length. One clip for a speech
                encoder.

        Returns:
            The inputs of the branches: `cqt_values` and `mel_values`, float32 `(B, 3, height, width)`; `input_values`
            and `attention_mask` from [`Speech`]. Also `shown`, float32 `(B, 2)`: start and end, in seconds, of the
            part of the clip that they are computed from.
        """
        samples = waveform.shape[-1]
        if samples < self.min_length:
            waveform = F.pad(waveform, (0, self.min_length + 1 - samples))
        bounds = None if self.trim is None else self.trim(waveform)
        inputs = {
            f"{name}_values": self.images[name](spectrogram(waveform), bounds)
            for name, spectrogram in self.spectrograms.items()
        }
        if self.speech is not None:
            inputs |= self.speech(waveform, bounds)
        length = torch.full(waveform.shape[:1], samples).double() / self.sampling_rate
        start, end = (torch.zeros_like(length), length) if bounds is None else bounds
        return inputs | {"shown": torch.stack([start, torch.minimum(end, length)], dim=1).float()}


class ConstantQ(nn.Module):
    """Computes the CQT of `spectrograms_maxmvit.cqt_magnitude` in dB, `(B, samples)` -> `(B, cqt_n_bins, frames)`, by
    one convolution per octave over the waveform arranged in rows of `cqt_hop_length` samples."""

    def __init__(self, extractor: MaxMViTFeatureExtractor):
        super().__init__()
        self.hop_length = extractor.cqt_hop_length
        _, lengths, self.decimation = wavelets(*extractor.cqt_parameters)
        per_octave = extractor.cqt_bins_per_octave
        octaves = [lengths[first : first + per_octave] for first in range(0, len(lengths), per_octave)]
        # Rows on either side of a frame that the wavelets of each octave reach.
        self.margins = [math.ceil((octave.max() / 2 + 1) / self.hop_length) for octave in octaves]
        self.margin = max(self.margins)
        for number, kernels in enumerate(_wavelet_kernels(extractor, self.margins), start=1):
            self.register_buffer(f"octave{number}", kernels)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        steps = (waveform.shape[-1] + self.decimation - 1) // self.hop_length  # frames - 1
        rows = _as_rows(waveform, self.hop_length, self.margin, steps + 2 * self.margin)
        power = []
        for number, margin in enumerate(self.margins, start=1):
            aside = self.margin - margin
            reach = rows[:, :, aside : steps + 2 * self.margin - aside]
            parts = F.conv1d(reach, self.get_buffer(f"octave{number}"))
            power.append(_power(parts))
        return _decibels(torch.cat(power, dim=1))


class Mel(nn.Module):
    """
    Computes the Mel spectrogram of `spectrograms_maxmvit.mel_power` in dB, `(B, samples)` -> `(B, n_mels, frames)`.

    The Fourier transform of N = width * height points takes two stages (Cooley and Tukey, 1965). With
    n = width n1 + n2 and k = k1 + height k2,

        X[k] = sum_n2 exp(-2 pi i n2 k2 / width) sum_n1 y[n] w[n] exp(-2 pi i (n1 k1 / height + n2 k1 / N)).

    The inner sum, with the window w and the twiddle factors in its weights, is a convolution over the waveform
    arranged in rows of `width` samples, separately for each column; the outer sum is one matrix for all k1. As y is
    real, X[N - k] is the conjugate of X[k], so that the k1 up to height / 2 suffice.
    """

    inner: torch.Tensor
    outer: torch.Tensor
    bank: torch.Tensor

    def __init__(self, extractor: MaxMViTFeatureExtractor):
        super().__init__()
        self.n_fft, self.hop_length = extractor.mel_n_fft, extractor.mel_hop_length
        common = math.gcd(self.n_fft, self.hop_length)
        self.width = max(n for n in range(1, math.isqrt(self.n_fft) + 1) if common % n == 0)
        height = self.n_fft // self.width
        n1, n2, k2 = np.arange(height), np.arange(self.width), np.arange(self.width)
        k1 = np.arange(height // 2 + 1)
        window = torch.hann_window(self.n_fft, dtype=torch.float64).numpy().reshape(height, self.width)
        turns = n1 * k1[:, None] / height + (n2[:, None] * k1 / self.n_fft)[..., None]  # (n2, k1, n1)
        inner = window.T[:, None] * np.exp(-2j * np.pi * turns)
        inner = np.stack([inner.real, inner.imag], axis=1).reshape(-1, 1, height)
        outer = np.exp(-2j * np.pi * k2[:, None] * n2 / self.width)
        # Rows: real parts for all k2, then imaginary parts. Columns: real and imaginary part of each n2's inner sum.
        outer = np.stack([np.stack([outer.real, -outer.imag], axis=-1), np.stack([outer.imag, outer.real], axis=-1)])
        bank = mel_filters(extractor.sampling_rate, self.n_fft, extractor.n_mels)
        k = (k1 + height * k2[:, None]).ravel()
        k, at = np.unique(np.minimum(k, self.n_fft - k), return_index=True)  # one of each conjugate pair
        weights = np.zeros((len(bank), len(k2) * len(k1)))
        weights[:, at] = bank[:, k]
        outer = outer.reshape(2 * self.width, -1, 1, 1)
        for name, values in {"inner": inner, "outer": outer, "bank": weights}.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        rows_to_a_hop, rows_of_a_frame = self.hop_length // self.width, self.n_fft // self.width
        steps = waveform.shape[-1] // self.hop_length  # frames - 1
        padded = F.pad(waveform, (self.n_fft // 2, 0))
        rows = _as_rows(padded, self.width, 0, steps * rows_to_a_hop + rows_of_a_frame)
        parts = F.conv1d(rows, self.inner, stride=rows_to_a_hop, groups=self.width)
        parts = parts.unflatten(1, (2 * self.width, -1))  # (n2 and part, k1), frames
        spectrum = F.conv2d(parts, self.outer)  # one matrix for all k1 and frames
        return _decibels(self.bank @ _power(spectrum).flatten(1, 2))


class Trim(nn.Module):
    """Computes start and end, in seconds, of the part of a clip that images show, as [`MaxMViTFeatureExtractor.trim`]
    does: `(B, samples)` -> two float64 `(B,)`. With float64, as in the extractor, halves are rounded to the same
    frame."""

    def __init__(self, extractor: MaxMViTFeatureExtractor, trim_db: float):
        super().__init__()
        self.trim_db, self.margin = float(trim_db), extractor.trim_margin
        self.sampling_rate, self.hop_length = extractor.sampling_rate, extractor.mel_hop_length

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        block = math.gcd(RMS_LENGTH, self.hop_length)
        steps = waveform.shape[-1] // self.hop_length
        padded = F.pad(waveform, (RMS_LENGTH // 2, 0))
        rows = _as_rows(padded, block, 0, (steps * self.hop_length + RMS_LENGTH) // block)
        sums = rows.square().sum(1, keepdim=True)
        level = _decibels(F.avg_pool1d(sums, RMS_LENGTH // block, self.hop_length // block).squeeze(1) / block)
        loud = level - level.amax(1, keepdim=True) > -self.trim_db
        frame = torch.arange(steps + 1)
        first = torch.where(loud, frame, steps).amin(1) * self.hop_length
        end = (torch.where(loud, frame, 0).amax(1) + 1) * self.hop_length
        start = (first.double() / self.sampling_rate - self.margin).clamp(min=0)
        return start, end.double() / self.sampling_rate + self.margin


class Image(nn.Module):
    """Renders a spectrogram in dB, `(B, bins, frames)`, as a normalised image, `(B, 3, height, width)`: trims, scales,
    transforms and resizes it like `feature_extraction_maxmvit.py`."""

    deltas: torch.Tensor
    resize: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    cepstrum: torch.Tensor
    middle: torch.Tensor

    def __init__(self, extractor: MaxMViTFeatureExtractor, name: str):
        super().__init__()
        self.sampling_rate = extractor.sampling_rate
        self.hop_length = {"cqt": extractor.cqt_hop_length, "mel": extractor.mel_hop_length}[name]
        self.settings = settings = image_settings(extractor)
        self.full_scale_db = settings["full_scale_db"] if settings["level"] == "full_scale" else None
        self.top_db = settings["top_db"]
        height, self.width = settings["image_shape"]
        bins = {"cqt": extractor.cqt_n_bins, "mel": extractor.n_mels}[name]
        self.has_deltas = settings["channels"] == "deltas"
        is_cepstrum = name == "mel" and settings["mel_representation"] == "mfcc"
        rows = settings["n_mfcc"] if is_cepstrum else bins
        mean, std = extractor.normalization(name)
        shape = (len(mean), 1, 1)
        constants = {
            "deltas": delta_filters(DELTA_WIDTH).T / (2 * np.array(DELTA_REACH)),
            "resize": F.interpolate(torch.eye(rows)[None, None], size=(height, rows), mode="bilinear")[0, 0].numpy(),
            "mean": np.reshape(mean, shape),
            "std": np.reshape(std, shape),
        }
        if is_cepstrum:
            constants["cepstrum"] = cosine_filters(bins, rows) / bins**0.5
            constants["middle"] = np.where(np.arange(rows) > 0, 0.5, 0.0)[:, None]
        self.is_cepstrum = is_cepstrum
        for constant, values in constants.items():
            self.register_buffer(constant, torch.from_numpy(values.astype(np.float32)))

    def forward(self, db: torch.Tensor, bounds: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        begin, frames = self._shown(db.shape[-1], bounds)
        values = self._scaled(db, begin, frames)
        if self.is_cepstrum:
            values = (self.cepstrum @ values + self.middle).clamp(0, 1)
        # Bilinear without antialiasing, as in torch: position of each pixel's centre among those of the frames.
        ratio = frames.float() / self.width
        place = ((torch.arange(self.width) + 0.5) * ratio[:, None] - 0.5).clamp(min=0)
        left = torch.minimum(place.long(), frames[:, None] - 1)
        right = torch.minimum(left + 1, frames[:, None] - 1)
        share = (place - left).clamp(0, 1)[:, None, None]
        columns = self._channels(values, torch.cat([left, right], dim=1), begin, frames)
        at_left, at_right = columns.split(self.width, dim=-1)
        image = self.resize @ (at_left * (1 - share) + at_right * share)
        return (image - self.mean) / self.std

    def _shown(
        self, count: int, bounds: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the first frame and the number of frames that are shown, `(B,)` or `(1,)`; see
        [`MaxMViTFeatureExtractor.cut`]."""
        if bounds is None:
            return torch.zeros(1, dtype=torch.long), torch.full((1,), count)
        start, end = bounds
        begin = (start * self.sampling_rate / self.hop_length).round().long().clamp(max=count - 1)
        samples = ((end - start) * self.sampling_rate).round().long()
        return begin, torch.minimum(1 + samples // self.hop_length, count - begin)

    def _scaled(self, db: torch.Tensor, begin: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Scales levels to [0, 1] like `feature_extraction_maxmvit.between`."""
        if self.full_scale_db is not None:
            quietest, loudest = self.full_scale_db
            return ((db - quietest) / (loudest - quietest)).clamp(0, 1)
        frame = torch.arange(db.shape[-1])
        is_shown = ((frame >= begin[:, None]) & (frame < (begin + frames)[:, None]))[:, None]
        high = torch.where(is_shown, db, -torch.inf).amax((1, 2), keepdim=True)
        low = torch.where(is_shown, db, torch.inf).amin((1, 2), keepdim=True)
        low = torch.where(low > high - self.top_db, low, high - self.top_db)
        return ((db - low) / torch.where(high > low, high - low, 1.0)).clamp(0, 1)

    def _channels(
        self, values: torch.Tensor, frame: torch.Tensor, begin: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """Returns the columns `frame`, `(B, n)`, counted from `begin`, and their changes: `(B, 1 or 3, rows, n)`."""
        static = _columns(values, begin[:, None] + frame)
        if not self.has_deltas:
            return static[:, None]
        window = torch.minimum((frame - DELTA_WIDTH // 2).clamp(min=0), (frames[:, None] - DELTA_WIDTH).clamp(min=0))
        window = torch.minimum(window[..., None] + torch.arange(DELTA_WIDTH), frames[:, None, None] - 1)
        windows = _columns(values, begin[:, None] + window.flatten(1)).unflatten(-1, (-1, DELTA_WIDTH))
        changes = (windows @ self.deltas + 0.5).clamp(0, 1)
        return torch.cat([static[:, None], changes.permute(0, 3, 1, 2)], dim=1)


class Speech(nn.Module):
    """
    Prepares the inputs of a speech encoder like `feature_extraction_maxmvit.speech_inputs`: the spoken part of the
    clip at the encoder's rate, as samples or, for Whisper, as log-Mel frames.

    Args:
        extractor (`MaxMViTFeatureExtractor`): Extractor with a `speech_processor`.
    """

    def __init__(self, extractor: MaxMViTFeatureExtractor):
        super().__init__()
        processor = make_processor(extractor.speech_processor or {})
        self.sampling_rate, self.hop = extractor.sampling_rate, extractor.hops[WAVEFORM]
        self.resample = Resample(extractor.sampling_rate, processor)
        self.log_mel = LogMel(processor) if isinstance(processor, WhisperFeatureExtractor) else None
        self.has_unit_variance = self.log_mel is None and processor.do_normalize

    def forward(
        self, waveform: torch.Tensor, bounds: tuple[torch.Tensor, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """
        Computes the inputs of the speech encoder.

        Args:
            waveform (`torch.Tensor` of shape `(1, samples)`): At the extractor's rate.
            bounds (`tuple[torch.Tensor, torch.Tensor]`, *optional*): From [`Trim`].

        Returns:
            `input_values`, float32, and `attention_mask`, int64, 1 for the clip and 0 for padding: `(1, T)` samples
            or, for Whisper, `(1, pieces, bands, frames)` and `(1, pieces, frames)`, in pieces of at most 30 s.
        """
        speech = self.resample(waveform)[0]
        begin, count = self._shown(speech.shape[0], bounds)
        if self.log_mel is not None:
            return self.log_mel(speech, begin, count)
        length = size_of(count.clamp(min=SHORTEST), SHORTEST)
        place = torch.arange(length)
        values = _taken(speech, begin + place, place < count)
        if self.has_unit_variance:
            values = (values - values.mean()) / (values.var(correction=0) + 1e-7).sqrt()
        return {"input_values": values[None], "attention_mask": torch.ones_like(place)[None]}

    def _shown(
        self, samples: int, bounds: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the first sample and the length of the spoken part; see `spectrograms_maxmvit.segment`."""
        if bounds is None:
            return torch.zeros((), dtype=torch.long), torch.full((), samples)
        start, end = (seconds[0] for seconds in bounds)
        begin = (start * self.sampling_rate / float(self.hop)).round().long().clamp(max=samples - 1)
        length = ((end - start) * self.sampling_rate).round().long()
        count = 1 + length * self.hop.denominator // self.hop.numerator
        return begin, torch.minimum(count, samples - begin)


class Resample(nn.Module):
    """
    Resamples `(1, samples)` to the rate of a processor. The result differs from that of
    `feature_extraction_maxmvit.resampled` by at most 1e-6 of the loudest sample, except in its first four samples.

    soxr's filter is linear and periodic, with a period that follows from the ratio of the rates, such as 441 samples
    at 44,100 Hz for 160 at 16,000 Hz. So it is a convolution, whose weights are soxr's responses to single impulses.
    """

    kernels: torch.Tensor

    def __init__(self, sampling_rate: int, processor: Any):
        super().__init__()
        common = math.gcd(sampling_rate, processor.sampling_rate)
        self.up, self.down = processor.sampling_rate // common, sampling_rate // common
        if self.up == self.down:
            return
        reach = math.ceil(1024 * max(1, self.down / self.up))  # samples, more than the filter has on either side
        blocks = math.ceil(reach / self.down)
        if self.up * (2 * blocks + 1) * self.down > MAX_RESAMPLING_WEIGHTS:
            raise DataError(
                f"sampling_rate={sampling_rate} cannot be exported beside a speech encoder of "
                f"{processor.sampling_rate} Hz: the ratio of the rates, {self.down} to {self.up}, needs too large a "
                "filter. Train with a sampling_rate such as 16000, 22050, 44100 or 48000."
            )
        weights = np.zeros((self.up, (2 * blocks + 1) * self.down), np.float64)
        for phase in range(self.down):
            impulse = torch.zeros((4 * blocks + 3) * self.down, dtype=torch.float64)
            impulse[(2 * blocks + 1) * self.down + phase] = 1
            response = resampled(impulse, sampling_rate, processor).numpy().reshape(-1, self.up)
            # In the output block `step` blocks after that of the impulse, the impulse lies `step` blocks earlier.
            for step in range(-blocks, blocks + 1):
                weights[:, phase + (blocks - step) * self.down] = response[2 * blocks + 1 + step]
        used = np.flatnonzero(np.abs(weights).max(axis=0) > MIN_WEIGHT)
        first, end = int(used[0]), int(used[-1]) + 1
        self.before, self.after = blocks * self.down - first, end - (blocks + 1) * self.down
        self.register_buffer("kernels", torch.from_numpy(weights[:, None, first:end].astype(np.float32)))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        if self.up == self.down:
            return waveform
        samples = waveform.shape[-1]
        count = (2 * samples * self.up + self.down) // (2 * self.down)  # rounded, halves up
        steps = (count + self.up - 1) // self.up
        padded = F.pad(waveform, (self.before, steps * self.down + self.after - samples))
        made = F.conv1d(padded[:, None], self.kernels, stride=self.down)
        return made.transpose(1, 2).flatten(1)[:, :count]


class LogMel(nn.Module):
    """
    Computes the log-Mel frames of transformers' [`WhisperFeatureExtractor`] from samples, in separate pieces of at
    most 30 s, like `feature_extraction_maxmvit.py`. The Fourier transform of 400 points is a convolution.
    """

    transform: torch.Tensor
    bank: torch.Tensor

    def __init__(self, processor: WhisperFeatureExtractor):
        super().__init__()
        self.n_fft, self.hop_length, self.n_samples = processor.n_fft, processor.hop_length, processor.n_samples
        turns = np.arange(self.n_fft // 2 + 1)[:, None] * np.arange(self.n_fft) / self.n_fft
        window = torch.hann_window(self.n_fft, dtype=torch.float64).numpy()
        transform = window * np.exp(-2j * np.pi * turns)
        transform = np.concatenate([transform.real, transform.imag])[:, None]
        for name, values in {"transform": transform, "bank": processor.mel_filters.T}.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, speech: torch.Tensor, begin: torch.Tensor, count: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Computes the log-Mel frames of the spoken part.

        Args:
            speech (`torch.Tensor` of shape `(samples,)`): At Whisper's rate.
            begin, count (`torch.Tensor`): int64, the first sample and the number of samples of the spoken part.

        Returns:
            `input_values` and `attention_mask`, see [`Speech`].
        """
        pieces = size_of((count + self.n_samples - 1) // self.n_samples, 1)
        longest = count.clamp(SHORTEST, self.n_samples) // self.hop_length
        most = size_of(longest, SHORTEST // self.hop_length, self.n_samples // self.hop_length)
        first = torch.arange(pieces)[:, None] * self.n_samples
        own = count - first
        lengths = own.clamp(SHORTEST, self.n_samples)  # shorter ones are padded with zeros
        place = (torch.arange((most - 1) * self.hop_length + self.n_fft) - self.n_fft // 2).abs()
        place = torch.minimum(place, 2 * (lengths - 1) - place).clamp(min=0)  # reflected at both ends of the piece
        samples = _taken(speech, begin + first + place, place < own)
        power = _power(F.conv1d(samples[:, None], self.transform, stride=self.hop_length))
        level = (self.bank @ power).clamp(min=1e-10).log10()
        mask = torch.arange(most) < lengths // self.hop_length
        loudest = torch.where(mask[:, None], level, -torch.inf).amax((1, 2), keepdim=True)
        values = (torch.maximum(level, loudest - 8) + 4) / 4 * mask[:, None]
        return {"input_values": values[None], "attention_mask": mask.long()[None]}


def size_of(number: torch.Tensor, least: int, most: int | None = None) -> int:
    """Returns a size that depends on the values of a clip, and declares to torch.export that it is between `least` and
    `most`."""
    size: Any = number.item()
    torch._check(size >= least)
    if most is not None:
        torch._check(size <= most)
    return size


def _taken(samples: torch.Tensor, place: torch.Tensor, is_own: torch.Tensor) -> torch.Tensor:
    """Returns the samples, `(T,)`, at `place`, of any shape, with zeros where `is_own` is false."""
    return torch.where(is_own, samples[place.clamp(max=samples.shape[0] - 1)], 0.0)


def _columns(values: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """Returns the columns `frame`, `(B, n)`, of `(B, rows, frames)`: `(B, rows, n)`."""
    return values.gather(2, frame[:, None].expand(*values.shape[:2], -1))


def _as_rows(waveform: torch.Tensor, width: int, before: int, rows: int) -> torch.Tensor:
    """Arranges `(B, samples)` as `(B, width, rows)`, with `before` rows of zeros in front, and zeros at the end."""
    behind = (rows - before) * width - waveform.shape[-1]
    return F.pad(waveform, (before * width, behind)).reshape(waveform.shape[0], -1, width).transpose(1, 2)


def _power(parts: torch.Tensor) -> torch.Tensor:
    """Computes the power, `(B, n, ...)`, of `n` real parts followed by their imaginary parts, `(B, 2 n, ...)`."""
    real, imaginary = parts.chunk(2, dim=1)
    return real * real + imaginary * imaginary


def _decibels(power: torch.Tensor) -> torch.Tensor:
    """Converts power to dB, at least -100 dB."""
    return power.clamp(min=MIN_POWER).log10() * 10


def _wavelet_kernels(extractor: MaxMViTFeatureExtractor, margins: list[int]) -> Iterator[torch.Tensor]:
    """
    Yields the kernels of each octave, `(2 * bins, hop_length, 2 * margin)`, real parts followed by imaginary parts.

    They are the inverse Fourier transforms of the frequency responses that the extractor multiplies spectra by. The
    wavelets' formula differs from these in their faintest frequencies, which the extractor leaves out, and the
    difference is visible in quiet images.
    """
    hop_length, size = extractor.cqt_hop_length, 4 * max(margins)
    parameters = extractor.cqt_parameters
    responses = wavelet_responses(size, *parameters, torch.device("cpu"))
    for margin, (below, above, rows) in zip(margins, responses, strict=True):
        response = np.zeros((len(rows), size * hop_length), np.complex128)
        response[:, np.arange(-below * size, above * size)] = hop_length * rows.flatten(1).numpy()
        reach = margin * hop_length
        # A frame is the sum of y[n] h[t - n], so a sample n after the frame has the weight h[-n].
        kernels = np.fft.ifft(response)[:, -np.arange(-reach, reach)]
        kernels = np.concatenate([kernels.real, kernels.imag]).astype(np.float32)
        yield torch.from_numpy(kernels.reshape(-1, 2 * margin, hop_length).transpose(0, 2, 1).copy())


__all__ = ["FrontEnd"]
