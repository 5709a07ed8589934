"""The filters of the spectrograms and pictures. Written out: to import what librosa and scipy compute them with takes
three times as long as to load a small model."""

import math
from functools import lru_cache

import numpy as np

HANN_BANDWIDTH = 1.50018310546875  # equivalent noise bandwidth of a Hann window in bins, as librosa has it


@lru_cache(maxsize=8)
def wavelets(
    sampling_rate: int, fmin: float, n_bins: int, bins_per_octave: int, hop_length: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Frequencies in cycles per sample, fractional lengths in samples, and the factor librosa decimates by first.

    The lengths are those of `librosa.filters.wavelet_lengths`.

    `librosa.cqt` decimates by a power of two where the highest wavelet leaves room (`__early_downsample_count`); the
    only trace of it in an exact transform is that the number of frames is counted on the decimated clip.
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
    The filter bank of `librosa.filters.mel` with its defaults: triangles on Slaney's scale, linear up to 1 kHz and
    logarithmic above it, from 0 Hz to half the sampling rate, each divided by half its width in Hz.

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
    What each of `width` samples around one counts in the slope of the line and in the curvature of the parabola that
    fit them best (Savitzky and Golay, 1964): `scipy.signal.savgol_coeffs(width, order, deriv=order, use="dot")`.

    Returns:
        `np.ndarray` of shape `(2, width)`, float64: of order 1 and of order 2.
    """
    at = np.arange(width) - width // 2
    fits = [np.linalg.pinv(np.vander(at, order + 1, increasing=True))[order] for order in (1, 2)]
    return np.stack([fits[0], 2 * fits[1]])


def cosine_filters(size: int, rows: int) -> np.ndarray:
    """The first `rows` rows of the orthonormal DCT-II of `size` numbers: `(rows, size)`, float64."""
    turns = np.arange(rows)[:, None] * (np.arange(size) + 0.5) / size
    basis = np.cos(np.pi * turns) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis
