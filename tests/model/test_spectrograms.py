"""Tests the spectrograms against librosa and their definition in float64, and the properties they must have."""

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from spectrograms_maxmvit import C1, _by_torch, cqt_magnitude, frame_power, mel_power
from tests.helpers.tiny import noise, tiny_feature_extractor, voice

RATE = 44_100
FREQUENCIES = librosa.cqt_frequencies(84, fmin=C1)
SPECTROGRAMS = ("cqt", "mel", "rms")


def cqt_of(y: np.ndarray) -> np.ndarray:
    return cqt_magnitude(torch.from_numpy(y)[None])[0].numpy()


def cqt_by_definition(
    y: np.ndarray, frames: list[int], frequencies: np.ndarray = FREQUENCIES, rate: int = RATE, hop: int = 512
) -> np.ndarray:
    """Computes each value, `(bins, len(frames))`, as a float64 inner product with a wavelet of librosa."""
    wavelets, lengths = librosa.filters.wavelet(freqs=frequencies, sr=rate, norm=1, dtype=np.complex128)
    half = wavelets.shape[1] // 2
    y = np.pad(y.astype(np.float64), half + hop)
    pieces = np.stack([y[hop * (t + 1) : hop * (t + 1) + 2 * half] for t in frames])
    return np.abs(pieces @ wavelets.conj().T).T * np.sqrt(lengths)[:, None]


def relative_rms(value: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("samples", [4097, 4607, 30_000, 3 * RATE, 20 * RATE])
def test_cqt_follows_its_definition(samples):
    y = voice(samples / RATE) + 0.05  # a constant offset leaks into every bin over 0 Hz
    cqt = cqt_of(y)
    frames = sorted({0, 1, cqt.shape[1] - 1, *range(0, cqt.shape[1], 29)})
    truth = cqt_by_definition(y, frames)
    assert relative_rms(cqt[:, frames], truth) < 1e-4
    assert relative_rms(np.abs(librosa.cqt(y, sr=RATE))[:, frames], truth) < 0.05  # the same transform


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("samples", [4097, 20_479, 20_480, 20_481])
def test_the_number_of_frames_is_that_of_librosa(samples):
    y = noise(samples)
    assert cqt_of(y).shape == librosa.cqt(y, sr=RATE).shape
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256)
    np.testing.assert_allclose(mel_power(torch.from_numpy(y)[None])[0], mel, rtol=1e-4, atol=1e-6 * mel.max())


@pytest.mark.parametrize(
    ("rate", "fmin", "bins", "per_octave", "hop", "n_fft", "mel_hop", "n_mels"),
    [(16_000, C1, 80, 12, 160, 1024, 160, 64), (RATE, 55.0, 61, 24, 512, 4096, 255, 50)],
)
def test_spectrograms_with_other_parameters(rate, fmin, bins, per_octave, hop, n_fft, mel_hop, n_mels):
    y = voice(1.5, sampling_rate=rate)
    cqt = cqt_magnitude(torch.from_numpy(y)[None], rate, fmin, bins, per_octave, hop)[0].numpy()
    frequencies = librosa.cqt_frequencies(bins, fmin=fmin, bins_per_octave=per_octave)
    assert relative_rms(cqt, cqt_by_definition(y, range(cqt.shape[1]), frequencies, rate, hop)) < 1e-4
    reference = librosa.cqt(y, sr=rate, fmin=fmin, n_bins=bins, bins_per_octave=per_octave, hop_length=hop)
    assert cqt.shape == reference.shape
    mel = librosa.feature.melspectrogram(y=y, sr=rate, n_fft=n_fft, hop_length=mel_hop, n_mels=n_mels)
    computed = mel_power(torch.from_numpy(y)[None], rate, n_fft, mel_hop, n_mels)[0]
    np.testing.assert_allclose(computed, mel, rtol=1e-4, atol=1e-6 * mel.max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("samples", [4097, 30_001, 2 * RATE])
def test_spectrograms_equal_those_of_librosa_in_absolute_db(samples):
    y = voice(samples / RATE)
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256, n_mels=128)
    rms = librosa.feature.rms(y=y, frame_length=2048, hop_length=256)[0]
    cqt = {
        "torch": librosa.amplitude_to_db(cqt_by_definition(y, range(1 + samples // 512)), top_db=None),
        "librosa": librosa.amplitude_to_db(np.abs(librosa.cqt(y, sr=RATE)), top_db=None),
    }
    for backend, truth in cqt.items():
        (clip,) = MaxMViTFeatureExtractor(backend=backend).spectrograms(y)
        assert tuple(clip) == SPECTROGRAMS and all(db.dtype == torch.float32 for db in clip.values())
        loud = truth > truth.max() - 50  # further down, the truncated tails of the wavelets matter
        np.testing.assert_allclose(clip["cqt"].numpy()[loud], truth[loud], atol=0.05)
        np.testing.assert_allclose(clip["mel"], librosa.power_to_db(mel, top_db=None), atol=1e-3)
        np.testing.assert_allclose(clip["rms"], librosa.amplitude_to_db(rms, top_db=None), atol=1e-4)


@pytest.mark.parametrize("hop", [255, 256, 512, 2048, 3000])
def test_levels_equal_those_of_librosa_at_any_hop(hop):
    for samples in (1, 2047, 4 * hop, 4 * hop + 1, 20_000):
        y = noise(samples)
        rms = librosa.feature.rms(y=y, frame_length=2048, hop_length=hop)[0]
        np.testing.assert_allclose(frame_power(torch.from_numpy(y)[None], hop)[0].sqrt(), rms, rtol=1e-5)


@given(gain=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_magnitude_is_linear_in_gain(gain, seed):
    y = torch.from_numpy(noise(9000, seed))[None]
    torch.testing.assert_close(cqt_magnitude(y * gain), cqt_magnitude(y) * gain, rtol=1e-4, atol=1e-5 * gain)
    torch.testing.assert_close(mel_power(y * gain), mel_power(y) * gain**2, rtol=1e-4, atol=1e-5 * gain**2)


@given(gain=st.floats(-20, 200), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_a_gain_shifts_the_spectrograms_by_its_db(gain, seed):
    """Also where the power of the waveform would overflow float32."""
    extractor, y = tiny_feature_extractor(), noise(9000, seed)
    (plain,), (loud,) = extractor.spectrograms(y), extractor.spectrograms(y * np.float32(10 ** (gain / 20)))
    for name in SPECTROGRAMS:
        audible = plain[name] > -79
        torch.testing.assert_close(loud[name][audible], plain[name][audible] + gain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("k", [0, 1, 24, 57, 83])
def test_a_tone_has_its_maximum_in_its_bin(k):
    tone = 0.5 * np.cos(2 * np.pi * FREQUENCIES[k] * np.arange(2 * RATE) / RATE).astype(np.float32)
    middle = cqt_of(tone)[:, 60:110]
    assert (middle.argmax(axis=0) == k).all()
    _, lengths = librosa.filters.wavelet(freqs=FREQUENCIES, sr=RATE)
    np.testing.assert_allclose(middle[k], 0.25 * np.sqrt(lengths[k]), rtol=0.01)  # half of a cosine, half a window


@given(hops=st.integers(1, 60), samples=st.integers(4097, 12_000))
@settings(max_examples=10, deadline=None)
def test_a_shift_by_hops_shifts_frames(hops, samples):
    y = noise(samples)
    later = np.concatenate([np.zeros(512 * hops, np.float32), y])
    cqt, shifted = cqt_of(y), cqt_of(later)
    assert relative_rms(shifted[:, hops:], cqt) < 2e-4  # each within 1e-4 of the definition
    mel, shifted = (mel_power(torch.from_numpy(x)[None]) for x in (y, later))
    torch.testing.assert_close(shifted[..., 2 * hops :], mel, rtol=1e-4, atol=1e-4)


def test_a_long_clip_computed_in_segments_follows_the_definition():
    y = noise(60 * RATE)
    cqt = cqt_of(y)
    assert cqt.shape == (84, 1 + len(y) // 512)
    frames = list(range(440, 620, 4)) + [cqt.shape[1] - 1]
    assert relative_rms(cqt[:, frames], cqt_by_definition(y, frames)) < 1e-4


def test_padding_in_a_gpu_batch_changes_nothing():
    """Computes on the CPU, but as one batch, which otherwise only a GPU does."""
    extractor = tiny_feature_extractor()
    waveforms = [torch.from_numpy(voice(seconds)) for seconds in (1.0, 1.04, 1.07)] + [torch.zeros(RATE)]
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    together = _by_torch(batch, extractor.cqt_parameters, extractor.mel_parameters)
    for i, waveform in enumerate(waveforms):
        (alone,) = extractor.spectrograms(waveform)
        for name, db in alone.items():
            torch.testing.assert_close(together[name][i, ..., : db.shape[-1]], db, rtol=0, atol=1e-3)  # dB


def test_a_cut_has_as_many_frames_as_a_waveform_of_its_length():
    extractor = tiny_feature_extractor()
    (clip,) = extractor.spectrograms(voice(2.0))
    hops = {"cqt": 512, "mel": 256, "rms": 256}
    for start, seconds in ((0.0, 2.0), (0.3, 0.1), (0.7, 1.0), (1.0, 0.5)):
        (window,) = extractor.spectrograms(np.zeros(round(seconds * RATE)))
        for name, db in extractor.cut(clip, start, start + seconds).items():
            assert db.shape == window[name].shape
            first = round(start * RATE / hops[name])
            assert torch.equal(db, clip[name][..., first : first + db.shape[-1]])
    for name, db in extractor.cut(clip, 1.5, 9.0).items():  # as far as the clip goes
        assert torch.equal(db, clip[name][..., round(1.5 * RATE / hops[name]) :])
    assert all(db.shape[-1] == 1 for db in extractor.cut(clip, 0.5, 0.501).values())
    assert all(db.shape[-1] == 1 for db in extractor.cut(clip, 2.0, 3.0).values())
    for start, end in ((1.0, 1.0), (1.0, 0.5), (-0.1, 1.0), (2.1, 3.0)):
        with pytest.raises(ValueError, match="seconds"):
            extractor.cut(clip, start, end)


@pytest.mark.slow
@given(
    seconds=st.floats(0.01, 6),
    block_s=st.sampled_from([0.1, 1.0, 2.3]),
    lengths=st.lists(st.integers(0, 50_000), min_size=1, max_size=4),
)
@settings(max_examples=15, deadline=None)
def test_the_blocks_of_a_stream_equal_the_whole(seconds, block_s, lengths):
    y, pieces, begin = voice(seconds), [], 0
    while begin < len(y):
        pieces.append(y[begin : begin + 1 + lengths[len(pieces) % len(lengths)]])
        begin += len(pieces[-1])
    extractor = tiny_feature_extractor()
    (whole,) = extractor.spectrograms(y)
    blocks = list(extractor.stream(iter(pieces), block_s=block_s))
    for name, tolerance in (("cqt", 5e-3), ("mel", 1e-3), ("rms", 1e-4)):
        joined = torch.cat([block[name] for block in blocks], dim=-1)
        assert joined.shape == whole[name].shape
        audible = whole[name] > whole[name].max() - 60
        torch.testing.assert_close(joined[audible], whole[name][audible], rtol=0, atol=tolerance)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="empty"):
        list(tiny_feature_extractor().stream([]))
