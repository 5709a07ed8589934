"""Tests that the filters of this project equal those of librosa and scipy."""

import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.signal

from spectrograms_maxmvit import cosine_filters, delta_filters, mel_filters, wavelets


@pytest.mark.parametrize(
    "rate, n_fft, n_mels", [(44_100, 4_096, 128), (16_000, 1_200, 40), (8_000, 512, 8), (1_500, 256, 10)]
)
def test_mel_filters_equal_those_of_librosa(rate, n_fft, n_mels):
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels)
    filters = mel_filters(rate, n_fft, n_mels)
    assert filters.dtype == expected.dtype
    np.testing.assert_array_equal(filters, expected)


@pytest.mark.parametrize("fmin, bins, per_octave", [(32.70319566257483, 84, 12), (55.0, 100, 24)])
def test_wavelets_have_the_frequencies_and_lengths_of_librosa(fmin, bins, per_octave):
    frequencies = librosa.cqt_frequencies(bins, fmin=fmin, bins_per_octave=per_octave)
    ratio = 2.0 ** (2 / per_octave)
    lengths, highest = librosa.filters.wavelet_lengths(freqs=frequencies, sr=44_100, alpha=(ratio - 1) / (ratio + 1))
    own_frequencies, own_lengths, _ = wavelets(44_100, fmin, bins, per_octave, 512)
    np.testing.assert_allclose(44_100 * own_frequencies, frequencies, rtol=1e-12)
    np.testing.assert_allclose(own_lengths, lengths, rtol=1e-12)
    wavelets(int(2 * highest) + 1, fmin, bins, per_octave, 512)
    with pytest.raises(ValueError, match="above half the sampling rate"):
        wavelets(int(2 * highest) - 1, fmin, bins, per_octave, 512)


def test_delta_filters_equal_those_of_scipy():
    expected = [scipy.signal.savgol_coeffs(9, order, deriv=order, use="dot") for order in (1, 2)]
    np.testing.assert_allclose(delta_filters(9), expected, atol=1e-15)


@pytest.mark.parametrize("size, rows", [(128, 40), (13, 13)])
def test_cosine_filters_equal_those_of_scipy(size, rows):
    expected = scipy.fft.dct(np.eye(size), axis=0, norm="ortho")[:rows]
    np.testing.assert_allclose(cosine_filters(size, rows), expected, atol=1e-14)
