"""Constant-Q and Mel spectrograms: their filters, spectrograms of clips and, block by block, of long recordings."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import librosa
import numpy as np
import torch
import torch.nn.functional as F

# ---- Filters ----
# Filters of spectrograms and images. They are written out, since importing librosa and scipy for them takes three
# times as long as loading a small model.

HANN_BANDWIDTH = 1.50018310546875  # equivalent noise bandwidth of a Hann window in bins, as in librosa


@lru_cache(maxsize=8)
def wavelets(
    sampling_rate: int, fmin: float, n_bins: int, bins_per_octave: int, hop_length: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the wavelets' frequencies in cycles per sample, their lengths in samples, and librosa's decimation.

    The lengths are those of `librosa.filters.wavelet_lengths`, with fractions. `librosa.cqt` first decimates by a
    power of two where the highest wavelet allows it (`__early_downsample_count`). An exact transform depends on that
    factor only in its number of frames, which is counted on the decimated clip.

    Raises:
        ValueError: The highest bin reaches above half the sampling rate.
    """
    frequencies = fmin * 2.0 ** (np.arange(n_bins) / bins_per_octave)
    ratio = 2.0 ** (2 / bins_per_octave)
    quality = (ratio + 1) / (ratio - 1)
    lengths = quality * sampling_rate / frequencies
    cutoff = frequencies[-1] * (1 + 0.5 * HANN_BANDWIDTH / quality)
    if cutoff > sampling_rate / 2:
        raise ValueError(
            f"the highest of {n_bins} CQT bins reaches {cutoff:.0f} Hz, above half the sampling rate ({sampling_rate} "
            "Hz): lower cqt_n_bins or cqt_fmin"
        )
    octaves = math.ceil(n_bins / bins_per_octave)
    twos_in_hop = (hop_length & -hop_length).bit_length() - 1
    spare = math.ceil(math.log2(sampling_rate / 2 / cutoff)) - 2
    return frequencies / sampling_rate, lengths, 2 ** max(0, min(spare, twos_in_hop - octaves + 1))


def mel_filters(sampling_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """
    Returns the filter bank of `librosa.filters.mel` with its defaults: triangles on Slaney's scale (linear up to
    1 kHz, logarithmic above), from 0 Hz to half the sampling rate, each divided by half its width in Hz.

    Returns:
        `np.ndarray` of shape `(n_mels, 1 + n_fft // 2)`, float32.
    """
    mels_per_hz, knee_hz, log_step = 3 / 200, 1000.0, math.log(6.4) / 27
    knee = knee_hz * mels_per_hz
    top_hz = sampling_rate / 2
    top = top_hz * mels_per_hz if top_hz < knee_hz else knee + math.log(top_hz / knee_hz) / log_step
    mels = np.linspace(0, top, n_mels + 2)
    hertz = np.where(mels < knee, mels / mels_per_hz, knee_hz * np.exp(log_step * (mels - knee)))
    ramps = np.subtract.outer(hertz, np.fft.rfftfreq(n_fft, 1 / sampling_rate))
    widths = np.diff(hertz)[:, None]
    triangles = np.minimum(-ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]).clip(0).astype(np.float32)
    return (triangles * (2 / (hertz[2:] - hertz[:-2]))[:, None]).astype(np.float32)


def delta_filters(width: int) -> np.ndarray:
    """
    Returns the weights of `width` samples in the slope of the line and in the curvature of the parabola that fit them
    best (Savitzky and Golay, 1964): `scipy.signal.savgol_coeffs(width, order, deriv=order, use="dot")`.

    Returns:
        `np.ndarray` of shape `(2, width)`, float64: the weights of order 1 and of order 2.
    """
    at = np.arange(width) - width // 2
    fits = [np.linalg.pinv(np.vander(at, order + 1, increasing=True))[order] for order in (1, 2)]
    return np.stack([fits[0], 2 * fits[1]])


def cosine_filters(size: int, rows: int) -> np.ndarray:
    """Returns the first `rows` rows of the orthonormal DCT-II of `size` numbers: `(rows, size)`, float64."""
    turns = np.arange(rows)[:, None] * (np.arange(size) + 0.5) / size
    basis = np.cos(np.pi * turns) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis


# ---- Spectrograms ----

C1 = 32.70319566257483  # Hz, librosa.note_to_hz("C1")
# Distance from its centre up to which a wavelet's frequency response is kept, in units of 1 / (its length). The side
# lobes of a Hann window fall as 1 / (pi x^3) of the peak, so the response is cut at 4e-5. The strong low frequencies
# of speech lie in the tails of every wavelet, on both sides of 0 Hz.
RESPONSE_SUPPORT = 20
MAX_SEGMENT_FRAMES = 512  # of the CQT; longer clips are transformed piece by piece
CPU_STFT_FRAMES = 64  # frames whose spectra (1 MiB) stay in a core's cache between FFT and filter bank
GPU_STFT_FRAMES = 8192
GPU_SEGMENTS = 64
MAX_PEAK = 1e6  # a waveform with a higher peak is scaled to 1, since its power would overflow float32
MIN_POWER = 1e-10  # librosa's `amin`: lower powers are raised to it (-100 dB)
MIN_BIN_POWER = 1e-16  # of one frequency (-160 dB): the sum over a Mel band must not reach MIN_POWER
MAX_CHANNELS = 8  # a list of more waveforms, of at most so many samples each, is one waveform of several channels
_CHANNELS = set(range(1, MAX_CHANNELS + 1))
_ONE_OF_CHANNELS = (
    "an array of shape ({}, {}) looks like (samples, channels), not like a batch of mono waveforms: average the "
    "channels first, waveform.mean(axis=1)"
)
RMS_LENGTH = 2048  # samples, librosa's `frame_length` for levels and for trimming


def cqt_magnitude(
    waveforms: torch.Tensor,
    sampling_rate: int = 44100,
    fmin: float = C1,
    n_bins: int = 84,
    bins_per_octave: int = 12,
    hop_length: int = 512,
) -> torch.Tensor:
    """Returns the magnitude of the constant-Q transform, |sum_n y[t hop_length + n] conj(wavelet_k[n])|.

    The clip is padded with zeros. The wavelets are those of `librosa.filters.wavelet`, L1-normalised and scaled by the
    root of their length. All frames of a bin come from one multiplication in the frequency domain. The real FFT of the
    padded clip has N = M * hop_length points; times a wavelet's conjugate response, it is the spectrum of that bin at
    every sample. Taking every hop_length-th sample is the same as summing that spectrum modulo M (intended aliasing),
    and an inverse FFT of M points gives the frames. Long clips are cut into segments that overlap by the longest
    wavelet, so that the memory for spectra does not grow with the clip.

    Args:
        waveforms (`torch.Tensor` of shape `(B, T)`): float32.

    Returns:
        `torch.Tensor` of shape `(B, n_bins, frames)`, frames = 1 + T // hop_length as `librosa.cqt` counts them.
    """
    parameters = (sampling_rate, fmin, n_bins, bins_per_octave, hop_length)
    frames, margin, size, step = cqt_layout(waveforms.shape[-1], *parameters)
    segments = math.ceil(frames / step)
    end = ((segments - 1) * step + size - margin) * hop_length
    padded = F.pad(waveforms, (margin * hop_length, end - waveforms.shape[-1]))
    rows = padded.unfold(-1, size * hop_length, step * hop_length).flatten(0, 1)
    responses = wavelet_responses(size, *parameters, waveforms.device)
    lowest, highest = max(below for below, _, _ in responses), max(above for _, above, _ in responses)
    pieces = []
    for part in rows.split(GPU_SEGMENTS if rows.is_cuda else 1):
        spectrum = torch.fft.rfft(part)
        spectrum = torch.cat([spectrum[:, 1 : lowest * size + 1].flip(1).conj(), spectrum[:, : highest * size]], dim=1)
        spectrum = spectrum.view(-1, 1, lowest + highest, size)
        folded = [
            (spectrum[:, :, lowest - below : lowest + above] * response).sum(2) for below, above, response in responses
        ]
        bins = torch.fft.ifft(torch.cat(folded, dim=1))
        pieces.append(bins[..., margin : margin + step].abs())
    pieces = torch.cat(pieces).unflatten(0, (len(waveforms), segments))
    return pieces.transpose(1, 2).flatten(2)[..., :frames]


def mel_power(
    waveforms: torch.Tensor, sampling_rate: int = 44100, n_fft: int = 4096, hop_length: int = 256, n_mels: int = 128
) -> torch.Tensor:
    """Returns the Mel power spectrogram of `librosa.feature.melspectrogram(pad_mode="constant")`.

    Args:
        waveforms (`torch.Tensor` of shape `(B, T)`): float32.

    Returns:
        `torch.Tensor` of shape `(B, n_mels, 1 + T // hop_length)`.
    """
    blocks = _mel_blocks(sampling_rate, n_fft, n_mels, waveforms.device)
    mels = torch.empty(len(waveforms), 1 + waveforms.shape[-1] // hop_length, n_mels, device=waveforms.device)
    done = 0
    for spectra in _spectra(waveforms, n_fft, hop_length):
        squares = torch.view_as_real(spectra).square_().flatten(-2)
        out, first = mels[:, done : done + spectra.shape[1]], 0
        done += spectra.shape[1]
        for columns, weights in blocks:
            last = first + weights.shape[1]
            out[..., first:last] = squares[..., columns].to(weights.dtype) @ weights
            first = last
    return mels.transpose(1, 2)


def bin_power(waveforms: torch.Tensor, n_fft: int = 4096, hop_length: int = 256) -> torch.Tensor:
    """Returns the power of each frequency of `mel_power`'s STFT, `(B, 1 + n_fft // 2, 1 + T // hop_length)`."""
    powers = [torch.view_as_real(part).square_().sum(-1) for part in _spectra(waveforms, n_fft, hop_length)]
    return torch.cat(powers, dim=1).transpose(1, 2)


def _spectra(waveforms: torch.Tensor, n_fft: int, hop_length: int) -> Iterator[torch.Tensor]:
    """Yields the STFT in parts of `(B, frames, 1 + n_fft // 2)`."""
    window = torch.hann_window(n_fft, device=waveforms.device)
    frames = F.pad(waveforms, (n_fft // 2, n_fft // 2)).unfold(-1, n_fft, hop_length)
    at_once = max(64, GPU_STFT_FRAMES // len(waveforms)) if waveforms.is_cuda else CPU_STFT_FRAMES
    for part in frames.split(at_once, dim=1):
        yield torch.fft.rfft(part * window)


def frame_power(waveforms: torch.Tensor, hop_length: int = 256) -> torch.Tensor:
    """Returns the mean square of the 2,048 samples around each frame, which is the square of `librosa.feature.rms`.

    Args:
        waveforms (`torch.Tensor` of shape `(B, T)`): float32.

    Returns:
        `torch.Tensor` of shape `(B, 1 + T // hop_length)`.
    """
    block = math.gcd(RMS_LENGTH, hop_length)  # frames overlap; sums over the blocks that they share are computed once
    frames = 1 + waveforms.shape[-1] // hop_length
    end = (frames - 1) * hop_length + RMS_LENGTH // 2
    squares = F.pad(waveforms, (RMS_LENGTH // 2, end - waveforms.shape[-1])).square_()
    sums = squares.unflatten(-1, (-1, block)).sum(-1)
    return sums.unfold(-1, RMS_LENGTH // block, hop_length // block).sum(-1).div_(RMS_LENGTH)


def decibels(power: torch.Tensor, amin: float = MIN_POWER) -> torch.Tensor:
    """Converts powers to decibels in place; powers below `amin` (default: -100 dB) are raised to it."""
    return power.clamp_(min=amin).log10_().mul_(10)


def spectrograms_of(
    waveforms: list[torch.Tensor], cqt: tuple, mel: tuple, backend: str, device: torch.device, bins: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Computes `cqt`, `mel` and `rms` of each clip in dB; see [`MaxMViTFeatureExtractor.spectrograms`].

    Args:
        waveforms (`list[torch.Tensor]`): from `as_waveforms`.
        cqt (`tuple`): the parameters of `cqt_magnitude`.
        mel (`tuple`): the parameters of `mel_power`.
        backend (`str`): `"torch"` or `"librosa"`.
        device (`torch.device`): where to compute.
        bins (`bool`, defaults to False): whether to add `power`, that of every frequency.
    """
    clips: list[dict[str, torch.Tensor]] = [{} for _ in waveforms]
    grouped = device.type == "cuda" and backend == "torch"
    for group in _groups(waveforms, cqt) if grouped else [[i] for i in range(len(waveforms))]:
        batch = torch.nn.utils.rnn.pad_sequence([waveforms[i].to(device) for i in group], batch_first=True)
        batch, attenuation_db = _within_float32(batch, group)
        batches = (_by_librosa if backend == "librosa" else _by_torch)(batch, cqt, mel, bins)
        for row, i in enumerate(group):
            counts = {"cqt": cqt_layout(len(waveforms[i]), *cqt)[0]}
            frames = 1 + len(waveforms[i]) // mel[2]
            clips[i] = {name: db[row, ..., : counts.get(name, frames)] for name, db in batches.items()}
            if attenuation_db[row]:
                clips[i] = {name: db + attenuation_db[row] for name, db in clips[i].items()}
    return clips


def _groups(waveforms: list[torch.Tensor], cqt: tuple) -> list[list[int]]:
    """Returns the indices of clips that a GPU computes together, since their transforms have one size."""
    groups = defaultdict(list)
    for i, waveform in enumerate(waveforms):
        frames, _, size, step = cqt_layout(len(waveform), *cqt)
        groups[size if frames <= step else -i - 1].append(i)
    return [group[i : i + GPU_SEGMENTS] for group in groups.values() for i in range(0, len(group), GPU_SEGMENTS)]


def _by_torch(waveforms: torch.Tensor, cqt: tuple, mel: tuple, bins: bool = False) -> dict[str, torch.Tensor]:
    spectrograms = {
        "cqt": decibels(cqt_magnitude(waveforms, *cqt).square_()),
        "mel": decibels(mel_power(waveforms, *mel)),
        "rms": decibels(frame_power(waveforms, mel[2])),
    }
    if bins:
        spectrograms["power"] = decibels(bin_power(waveforms, *mel[1:3]), MIN_BIN_POWER)
    return spectrograms


def _by_librosa(waveforms: torch.Tensor, cqt: tuple, mel: tuple, bins: bool = False) -> dict[str, torch.Tensor]:
    """Computes the reference spectrograms of one waveform `(1, T)`."""
    y = waveforms[0].cpu().numpy()
    sampling_rate, fmin, n_bins, bins_per_octave, cqt_hop_length = cqt
    _, n_fft, hop_length, n_mels = mel
    magnitude = np.abs(
        librosa.cqt(
            y,
            sr=sampling_rate,
            fmin=fmin,
            n_bins=n_bins,
            bins_per_octave=bins_per_octave,
            hop_length=cqt_hop_length,
        )
    )
    power = librosa.feature.melspectrogram(y=y, sr=sampling_rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels)
    rms = librosa.feature.rms(y=y, frame_length=RMS_LENGTH, hop_length=hop_length)[0]
    spectrograms = {
        "cqt": librosa.amplitude_to_db(magnitude, amin=MIN_POWER**0.5, top_db=None),
        "mel": librosa.power_to_db(power, amin=MIN_POWER, top_db=None),
        "rms": librosa.amplitude_to_db(rms, amin=MIN_POWER**0.5, top_db=None),
    }
    if bins:
        spectra = np.abs(librosa.stft(y, n_fft=n_fft, hop_length=hop_length, pad_mode="constant"))
        spectrograms["power"] = librosa.amplitude_to_db(spectra, amin=MIN_BIN_POWER**0.5, top_db=None)
    return {name: torch.from_numpy(db)[None].to(waveforms.device) for name, db in spectrograms.items()}


def cqt_layout(samples: int, *parameters: Any) -> tuple[int, int, int, int]:
    """Returns the frames of the clip, the margin of a segment, the frames of its FFT and those that it yields."""
    _, lengths, decimation = wavelets(*parameters)
    hop_length = parameters[-1]
    frames = 1 + math.ceil(samples / decimation) // (hop_length // decimation)
    margin = math.ceil((lengths.max() / 2 + 1) / hop_length)
    size = _transform_frames(min(frames, max(MAX_SEGMENT_FRAMES, 4 * margin)) + 2 * margin)
    return frames, margin, size, size - 2 * margin


def as_waveforms(waveforms: Any, min_length: int) -> list[torch.Tensor]:
    """Converts one waveform or many (arrays, tensors or lists) to float32 tensors.

    Waveforms shorter than `min_length` are padded with zeros to `min_length + 1` samples.

    Raises:
        ValueError: an item is empty or not a mono waveform, or the argument is one waveform of several channels.
    """
    prepared = []
    for index, waveform in enumerate(_as_list(waveforms)):
        try:
            if not isinstance(waveform, torch.Tensor):
                waveform = torch.from_numpy(np.require(waveform, np.float32, ["C", "W"]))
            waveform = waveform.detach().float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"item {index} is not a waveform of numbers: {error}") from error
        if waveform.ndim != 1:
            raise ValueError(
                f"item {index} has shape {tuple(waveform.shape)}: give mono waveforms of shape (samples,)"
            )
        if not len(waveform):
            raise ValueError(f"item {index} is empty")
        if len(waveform) < min_length:
            waveform = F.pad(waveform, (0, min_length + 1 - len(waveform)))
        prepared.append(waveform)
    return prepared


def _as_list(waveforms: Any) -> list:
    """Returns one waveform or many as a list of waveforms."""
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        if waveforms.ndim == 2 and waveforms.shape[0] > waveforms.shape[1] > 0:
            raise ValueError(_ONE_OF_CHANNELS.format(*waveforms.shape))
        return list(waveforms) if waveforms.ndim == 2 else [waveforms]
    if not isinstance(waveforms, (list, tuple)):
        raise ValueError(f"expected a waveform or a list of waveforms, got {type(waveforms).__name__}")
    if not len(waveforms):
        raise ValueError("no waveforms given: the list is empty")
    if np.isscalar(waveforms[0]):
        return [waveforms]
    if len(waveforms) > MAX_CHANNELS and {len(w) if hasattr(w, "__len__") else 0 for w in waveforms} <= _CHANNELS:
        raise ValueError(_ONE_OF_CHANNELS.format(len(waveforms), len(waveforms[0])))
    return list(waveforms)


def _within_float32(batch: torch.Tensor, items: list[int]) -> tuple[torch.Tensor, list[float]]:
    """Scales waveforms whose powers would overflow float32 to 1; returns them and the attenuation of each in dB.

    Raises:
        ValueError: an item holds NaN or infinite samples.
    """
    low, high = batch.aminmax(dim=1)
    peaks = torch.maximum(-low, high)  # NaN and infinity are kept
    attenuation_db = []
    for item, peak in zip(items, peaks.tolist(), strict=True):
        if not math.isfinite(peak):
            raise ValueError(f"item {item} holds NaN or infinite samples")
        attenuation_db.append(20 * math.log10(peak) if peak > MAX_PEAK else 0.0)
    return batch / torch.where(peaks > MAX_PEAK, peaks, 1)[:, None] if any(attenuation_db) else batch, attenuation_db


def segment(
    spectrogram: Mapping[str, torch.Tensor], start: float, end: float, sampling_rate: int, hops: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Returns the frames from `start` to `end`, in seconds; see [`MaxMViTFeatureExtractor.cut`]."""
    if not end > start:
        raise ValueError(f"cannot cut from {start} to {end} seconds: the end must come after the start")
    frames = {}
    for name, db in spectrogram.items():
        first, count = round(start * sampling_rate / hops[name]), db.shape[-1]
        if not 0 <= first <= count:
            seconds = (count - 1) * hops[name] / sampling_rate
            raise ValueError(f"start={start} is not within the clip's {seconds:.3f} seconds")
        first = min(first, count - 1)
        # Seconds stand for whole samples: without rounding, 3 x 0.1 s would be one sample too short.
        frames[name] = db[..., first : first + 1 + round((end - start) * sampling_rate) // hops[name]]
    return frames


def overlapping(pieces: Iterable[np.ndarray], block: int, margin: int) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Divides a recording that arrives in pieces into blocks that overlap by `margin` samples on either side.

    Args:
        pieces (`Iterable[np.ndarray]`): of any lengths, each `(samples,)`.
        block (`int`): samples of a block, at least `margin`.
        margin (`int`): samples before and after a block.

    Yields:
        The samples of a block with its margins, the position of the block in them, and whether it is the last block,
        which extends to the end.
    """
    kept, begin = np.zeros(0, np.float32), 0
    for piece in pieces:
        kept = np.concatenate([kept, piece])
        while len(kept) > begin + block + margin:
            yield kept[: begin + block + margin], begin, False
            kept, begin = kept[begin + block - margin :], margin
    yield kept, begin, True


def _transform_frames(frames: int) -> int:
    """Returns the next size (ratio about 1.12) with a fast FFT; MKL is slow at powers of two."""
    octave = 1
    while 64 * octave < frames:
        octave *= 2
    return next(size * octave for size in (35, 40, 45, 50, 56, 63, 70) if size * octave >= frames)


@lru_cache(maxsize=16)
def wavelet_responses(
    size: int,
    sampling_rate: int,
    fmin: float,
    n_bins: int,
    bins_per_octave: int,
    hop_length: int,
    device: torch.device,
) -> list[tuple[int, int, torch.Tensor]]:
    """Returns the conjugate frequency responses of the wavelets on the grid of an FFT of `size * hop_length` points.

    There is one entry per octave: its rows of `size` frequencies below and above 0, and a tensor (bins, rows, size).

    A wavelet is a periodic Hann window w of L samples times exp(2 pi i f n), divided by its L1 norm (L / 2) and
    multiplied by sqrt(length) as `librosa.cqt(scale=True)` does. `librosa.filters.wavelet` makes every L odd,
    2 floor(length / 2) + 1, with the window's centre half a sample before n = 0. Around its centre the window is
    even, and its transform is real:

        W(v) = sin(v L / 2) (cot(v / 2) / 2 - cot(v / 2 - pi / L) / 4 - cot(v / 2 + pi / L) / 4),   v in rad/sample,

    the sum of the three Dirichlet kernels of 1/2 + 1/2 cos(2 pi n / L). Half a sample of delay is the only phase that
    matters, since only magnitudes are used.
    """
    frequencies, lengths, _ = wavelets(sampling_rate, fmin, n_bins, bins_per_octave, hop_length)
    octaves = []
    for first in range(0, n_bins, bins_per_octave):
        octave = slice(first, first + bins_per_octave)
        f, length = frequencies[octave, None], lengths[octave, None]
        taps = 2 * np.floor(length / 2) + 1
        below = max(0, math.ceil((RESPONSE_SUPPORT / length - f).max() * hop_length))  # rows of negative frequency
        above = min(math.ceil((RESPONSE_SUPPORT / length + f).max() * hop_length), hop_length // 2)
        grid = np.arange(-below * size, above * size) / (size * hop_length)
        v = 2 * np.pi * (grid - f)
        for pole in (0, -2 * np.pi / taps, 2 * np.pi / taps):  # removable: step beside them
            v = np.where(np.abs(v - pole) < 1e-9, pole + 1e-9, v)
        response = np.sin(v * taps / 2) * (
            0.5 / np.tan(v / 2) - 0.25 / np.tan(v / 2 - np.pi / taps) - 0.25 / np.tan(v / 2 + np.pi / taps)
        )
        response = response * np.sqrt(length) / (taps / 2) * np.exp(-1j * np.pi * grid) / hop_length
        response = torch.from_numpy(response).to(torch.complex64).view(-1, below + above, size)
        octaves.append((below, above, response.to(device)))
    return octaves


@lru_cache(maxsize=8)
def _mel_blocks(sampling_rate: int, n_fft: int, n_mels: int, device: torch.device) -> list[tuple[slice, torch.Tensor]]:
    """Returns the Slaney filter bank in blocks of 16 mels: (columns of the spectrum, weights).

    A filter covers few frequencies, so the blocks save nine of ten products of the whole matrix. Each weight is there
    twice, for the squares of the real and of the imaginary part. On a GPU the weights are float64, since float32
    products may be computed in TF32, whose 10 bits would be visible in the image.
    """
    bank = mel_filters(sampling_rate, n_fft, n_mels)
    blocks = []
    for rows in np.array_split(bank, math.ceil(n_mels / 16)):
        used = np.flatnonzero(rows.any(axis=0))
        lo, hi = (used[0], used[-1] + 1) if len(used) else (0, 1)
        weights = torch.from_numpy(np.repeat(rows[:, lo:hi].T, 2, axis=0).copy())
        if device.type == "cuda":
            weights = weights.double()
        blocks.append((slice(2 * int(lo), 2 * int(hi)), weights.to(device)))
    return blocks


# ---- Spectrograms of long recordings, block by block ----

STEP_S = 20.0  # seconds of a recording whose spectrograms are computed at a time


class SpectrogramStream:
    """
    Spectrograms of a recording that arrives in pieces. They are computed once, and parts of them are cut out in the
    order of their starts. Memory does not grow with the recording.

    Args:
        pieces (`Iterator[np.ndarray]`): The recording at the extractor's rate.
        feature_extractor (`MaxMViTFeatureExtractor`): With `backend="torch"`.
        device (`torch.device`): Where to compute.
        step_s (`float`, defaults to 20): Seconds whose spectrograms are computed at a time. A shorter step waits for
            less of the recording, and computes more: each step needs some sound on either side of it.
    """

    def __init__(
        self, pieces: Iterator[np.ndarray], feature_extractor: Any, device: torch.device, step_s: float = STEP_S
    ):
        self.pieces = pieces
        self.extractor = feature_extractor
        self.device = device
        self.hops = feature_extractor.hops
        unit, rate = common_hop(feature_extractor), feature_extractor.sampling_rate
        _, lengths, _ = wavelets(*feature_extractor.cqt_parameters)
        longest = max(lengths.max(), feature_extractor.mel_n_fft)  # half of it lies on either side of a frame
        self.margin = unit * math.ceil(longest / unit)
        self.step = unit * math.ceil(step_s * rate / unit)
        self.samples, self.first = np.zeros(0, np.float32), 0  # the samples kept, and the place of the first of them
        self.frames: dict[str, torch.Tensor] = {}
        self.begin, self.end, self.is_over = 0, 0, False  # the samples whose frames are kept

    def cut(self, start: int, length: int) -> dict[str, torch.Tensor]:
        """Returns the frames of `length` samples from `start` on, like the extractor's `cut`."""
        # The last frame of a window may begin half a hop after its end.
        while self.end <= start + length + max(self.hops.values()) / 2 and not self.is_over:
            self._extend()
        self._drop_before(start)
        found = {}
        for name, db in self.frames.items():
            hop = self.hops[name]
            first = min(round(start / hop) - self.begin // hop, db.shape[-1] - 1)
            found[name] = db[..., first : first + 1 + length // hop]
        return found

    def _extend(self) -> None:
        """Computes the frames of one more step."""
        reached = self.end + self.step + self.margin
        parts, held = [self.samples], self.first + len(self.samples)
        while held < reached and (piece := next(self.pieces, None)) is not None:
            parts.append(piece)
            held += len(piece)
        self.samples, self.is_over = np.concatenate(parts), held < reached
        here = self.samples if self.is_over else self.samples[: reached - self.first]
        spectrograms = self.extractor.spectrograms(here, device=self.device)[0]
        before, steps = self.end - self.first, None if self.is_over else self.step
        for name, db in spectrograms.items():
            hop = self.hops[name]
            new = db[..., before // hop :] if steps is None else db[..., before // hop : (before + steps) // hop]
            self.frames[name] = torch.cat([self.frames[name], new], dim=-1) if name in self.frames else new
        self.end = held if self.is_over else self.end + self.step
        kept = max(self.first, self.end - self.margin)
        self.samples, self.first = self.samples[kept - self.first :], kept

    def _drop_before(self, start: int) -> None:
        """Drops the frames before `start`, some seconds at a time."""
        if start - self.begin > 2 * self.step:
            passed = (start - self.begin) // self.step * self.step - self.step
            self.frames = {name: db[..., passed // self.hops[name] :].clone() for name, db in self.frames.items()}
            self.begin += passed


def common_hop(feature_extractor: Any) -> int:
    """Returns the number of samples after which a frame begins in each of a clip's spectrograms."""
    return math.lcm(*(Fraction(hop).numerator for hop in feature_extractor.hops.values()))


def stream_blocks(
    extractor: Any, pieces: Iterable[np.ndarray], device: str | torch.device, block_s: float
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the spectrograms of consecutive blocks; see [`MaxMViTFeatureExtractor.stream`]."""
    hop, hops = common_hop(extractor), extractor.hops
    _, cqt_margin, _, _ = cqt_layout(extractor.min_length, *extractor.cqt_parameters)
    reach = max(cqt_margin * extractor.cqt_hop_length, extractor.mel_n_fft // 2, RMS_LENGTH // 2, extractor.min_length)
    margin = math.ceil(reach / hop) * hop
    block = max(margin, round(block_s * extractor.sampling_rate / hop) * hop)
    for samples, begin, is_last in overlapping(pieces, block, margin):
        (spectrograms,) = extractor.spectrograms(samples, device)
        end = None if is_last else begin + block
        yield {name: db[..., begin // hops[name] : end and end // hops[name]] for name, db in spectrograms.items()}


def twice(pieces: Iterator[np.ndarray]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Returns two iterators over the pieces. Unlike `itertools.tee`, they keep none that both have passed."""

    def read(own: deque[np.ndarray], others: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if own:
                yield own.popleft()
            elif (piece := next(pieces, None)) is not None:
                others.append(piece)
                yield piece
            else:
                return

    one: deque[np.ndarray] = deque()
    other: deque[np.ndarray] = deque()
    return read(one, other), read(other, one)
