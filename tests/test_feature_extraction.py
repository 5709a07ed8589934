"""The CQT/Mel pair: against librosa, against its definition in float64, and the properties it must have."""

import inspect
import os
import pickle
from pathlib import Path
from unittest import mock

import cv2
import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor

from audio_maxmvit import read_audio
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from spectrograms_maxmvit import C1, cqt_magnitude, frame_power, mel_power
from tests.tiny import tiny_feature_extractor, voice

RATE = 44_100
FREQUENCIES = librosa.cqt_frequencies(84, fmin=C1)
IMAGES = ("cqt_values", "mel_values")
SPECTROGRAMS = ("cqt", "mel", "rms")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def cqt_of(y: np.ndarray) -> np.ndarray:
    return cqt_magnitude(torch.from_numpy(y)[None])[0].numpy()


def cqt_by_definition(
    y: np.ndarray, frames: list[int], frequencies: np.ndarray = FREQUENCIES, rate: int = RATE, hop: int = 512
) -> np.ndarray:
    """(bins, len(frames)), one float64 inner product with librosa's own wavelet per value."""
    wavelets, lengths = librosa.filters.wavelet(freqs=frequencies, sr=rate, norm=1, dtype=np.complex128)
    half = wavelets.shape[1] // 2
    y = np.pad(y.astype(np.float64), half + hop)
    pieces = np.stack([y[hop * (t + 1) : hop * (t + 1) + 2 * half] for t in frames])
    return np.abs(pieces @ wavelets.conj().T).T * np.sqrt(lengths)[:, None]


def relative_rms(value: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


# --- the numbers ---


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
def test_as_many_frames_as_librosa(samples):
    y = noise(samples)
    assert cqt_of(y).shape == librosa.cqt(y, sr=RATE).shape
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256)
    np.testing.assert_allclose(mel_power(torch.from_numpy(y)[None])[0], mel, rtol=1e-4, atol=1e-6 * mel.max())


@pytest.mark.parametrize(
    ("rate", "fmin", "bins", "per_octave", "hop", "n_fft", "mel_hop", "n_mels"),
    [(16_000, C1, 80, 12, 160, 1024, 160, 64), (RATE, 55.0, 61, 24, 512, 4096, 255, 50)],
)
def test_other_parameters(rate, fmin, bins, per_octave, hop, n_fft, mel_hop, n_mels):
    y = voice(1.5, sampling_rate=rate)
    cqt = cqt_magnitude(torch.from_numpy(y)[None], rate, fmin, bins, per_octave, hop)[0].numpy()
    frequencies = librosa.cqt_frequencies(bins, fmin=fmin, bins_per_octave=per_octave)
    assert relative_rms(cqt, cqt_by_definition(y, range(cqt.shape[1]), frequencies, rate, hop)) < 1e-4
    reference = librosa.cqt(y, sr=rate, fmin=fmin, n_bins=bins, bins_per_octave=per_octave, hop_length=hop)
    assert cqt.shape == reference.shape
    mel = librosa.feature.melspectrogram(y=y, sr=rate, n_fft=n_fft, hop_length=mel_hop, n_mels=n_mels)
    own = mel_power(torch.from_numpy(y)[None], rate, n_fft, mel_hop, n_mels)[0]
    np.testing.assert_allclose(own, mel, rtol=1e-4, atol=1e-6 * mel.max())


def test_librosa_backend_is_the_table():
    y = voice(1.3)
    cqt = librosa.amplitude_to_db(np.abs(librosa.cqt(y, sr=RATE)), ref=np.max, top_db=80)
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256, n_mels=128)
    mel = librosa.power_to_db(mel, ref=np.max, top_db=80)
    pair = MaxMViTFeatureExtractor(backend="librosa")(y, sampling_rate=RATE, return_tensors="pt")
    for name, db in zip(IMAGES, (cqt, mel), strict=True):
        image = cv2.resize((db - db.min()) / (db.max() - db.min()), (244, 244))
        image = (image - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
        np.testing.assert_allclose(pair[name][0], image, atol=2e-5)


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("samples", [4097, 30_001, 2 * RATE])
def test_spectrograms_are_librosas_in_absolute_db(samples):
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
        loud = truth > truth.max() - 50  # further down, what is left of the wavelets' cut tails shows
        np.testing.assert_allclose(clip["cqt"].numpy()[loud], truth[loud], atol=0.05)
        np.testing.assert_allclose(clip["mel"], librosa.power_to_db(mel, top_db=None), atol=1e-3)
        np.testing.assert_allclose(clip["rms"], librosa.amplitude_to_db(rms, top_db=None), atol=1e-4)


@pytest.mark.parametrize("hop", [255, 256, 512, 2048, 3000])
def test_levels_are_librosas_at_any_hop(hop):
    for samples in (1, 2047, 4 * hop, 4 * hop + 1, 20_000):
        y = noise(samples)
        rms = librosa.feature.rms(y=y, frame_length=2048, hop_length=hop)[0]
        np.testing.assert_allclose(frame_power(torch.from_numpy(y)[None], hop)[0].sqrt(), rms, rtol=1e-5)


@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR does not name a RAVDESS folder")
def test_backends_agree_on_speech():
    clips = sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))[::199]
    waveforms = [read_audio(clip, RATE) for clip in clips]
    fast, reference = (MaxMViTFeatureExtractor(backend=backend).extract(waveforms) for backend in ("torch", "librosa"))
    assert (fast["mel_values"] - reference["mel_values"]).abs().mean((1, 2, 3)).max() < 1e-5
    assert (fast["cqt_values"] - reference["cqt_values"]).abs().mean((1, 2, 3)).max() < 0.003


# --- properties ---


@given(gain=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_magnitude_is_linear_in_gain(gain, seed):
    y = torch.from_numpy(noise(9000, seed))[None]
    torch.testing.assert_close(cqt_magnitude(y * gain), cqt_magnitude(y) * gain, rtol=1e-4, atol=1e-5 * gain)
    torch.testing.assert_close(mel_power(y * gain), mel_power(y) * gain**2, rtol=1e-4, atol=1e-5 * gain**2)


def test_gain_does_not_show_in_the_images():
    extractor = tiny_feature_extractor()
    plain = extractor.extract(voice(0.5))
    for gain in (0.5, 8.0, 1e9, 1e25):
        loud = extractor.extract(voice(0.5) * np.float32(gain))
        for name in IMAGES:
            torch.testing.assert_close(loud[name], plain[name], rtol=0, atol=1e-4)


@given(gain=st.floats(-20, 200), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_a_gain_moves_the_spectrograms_by_its_db(gain, seed):
    """Also where the power of the waveform would overflow float32."""
    extractor, y = tiny_feature_extractor(), noise(9000, seed)
    (plain,), (loud,) = extractor.spectrograms(y), extractor.spectrograms(y * np.float32(10 ** (gain / 20)))
    for name in SPECTROGRAMS:
        audible = plain[name] > -79
        torch.testing.assert_close(loud[name][audible], plain[name][audible] + gain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("k", [0, 1, 24, 57, 83])
def test_a_tone_lands_in_its_bin(k):
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


def test_segments_of_a_long_clip_meet():
    y = noise(60 * RATE)
    cqt = cqt_of(y)
    assert cqt.shape == (84, 1 + len(y) // 512)
    frames = list(range(440, 620, 4)) + [cqt.shape[1] - 1]
    assert relative_rms(cqt[:, frames], cqt_by_definition(y, frames)) < 1e-4


def test_images_do_not_depend_on_the_batch():
    extractor = tiny_feature_extractor()
    waveforms = [voice(0.7), noise(100), voice(1.9, f0=200), np.zeros(5000, np.float32), voice(0.7, f0=90)]
    batch = extractor.extract(waveforms)
    for i, waveform in enumerate(waveforms):
        for name, images in extractor.extract(waveform).items():
            assert torch.equal(batch[name][i : i + 1], images)


def test_padding_in_a_gpu_batch_does_not_show():
    """What a GPU computes together is computed together here, on the CPU."""
    extractor = tiny_feature_extractor()
    waveforms = [torch.from_numpy(voice(seconds)) for seconds in (1.0, 1.04, 1.07)] + [torch.zeros(RATE)]
    with mock.patch.object(extractor, "_groups", return_value=[[3, 0, 2, 1]]):
        together = extractor.spectrograms(waveforms)
    for clip, waveform in zip(together, waveforms, strict=True):
        (alone,) = extractor.spectrograms(waveform)
        for name in SPECTROGRAMS:
            torch.testing.assert_close(clip[name], alone[name], rtol=0, atol=1e-3)  # dB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_matches_cpu():
    extractor = tiny_feature_extractor()
    waveforms = [voice(0.3), voice(2.0), noise(3), voice(2.1, f0=300), voice(14.0)]
    cpu, gpu = extractor.extract(waveforms), extractor.extract(waveforms, device="cuda")
    for name in IMAGES:
        assert gpu[name].is_cuda
        torch.testing.assert_close(gpu[name].cpu(), cpu[name], rtol=0, atol=1e-3)
        assert (gpu[name].cpu() - cpu[name]).abs().mean() < 1e-5


@pytest.mark.parametrize("backend", ["torch", "librosa"])
@pytest.mark.parametrize("samples", [1, 4096])
def test_silence_is_constant(backend, samples):
    pair = tiny_feature_extractor(backend=backend)(np.zeros(samples), sampling_rate=RATE, return_tensors="pt")
    for name in IMAGES:
        assert pair[name].isfinite().all()
        assert (pair[name] == pair[name][..., :1, :1]).all()


@pytest.mark.filterwarnings("ignore:n_fft")
def test_short_clips_are_padded():
    for extractor in (tiny_feature_extractor(), tiny_feature_extractor(backend="librosa")):
        short, padded = extractor.extract([[0.5], [0.5] + [0.0] * 4096])["cqt_values"]
        assert torch.equal(short, padded)


@given(y=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@settings(max_examples=25, deadline=None)
def test_any_finite_waveform_gives_an_image(y):
    for images in tiny_feature_extractor().extract([y]).values():
        assert images.shape == (1, 1, 64, 64)
        assert images.min() >= 0 and images.max() <= 1


# --- what goes in and out ---


@pytest.mark.parametrize(
    "as_given",
    [
        list,
        np.float64,
        torch.from_numpy,
        lambda y: [y],
        lambda y: torch.from_numpy(y)[None],
        lambda y: (y.tolist(),),
        lambda y: y[::-1].copy()[::-1],  # negative strides
        lambda y: np.frombuffer(y.tobytes(), np.float32),  # read-only
        lambda y: torch.from_numpy(y).requires_grad_(),
    ],
)
def test_accepted_kinds_of_input(as_given):
    extractor, y = tiny_feature_extractor(), voice(0.15)
    for name, images in extractor.extract(as_given(y)).items():
        torch.testing.assert_close(images, extractor.extract(y)[name])


@pytest.mark.parametrize(
    ("raw_speech", "message"),
    [
        ([], "empty"),
        ([np.ones(5), []], "item 1 is empty"),
        ([np.ones(5), np.array([0.0, np.nan])], "item 1 holds NaN"),
        ([float("inf")], "item 0 holds NaN or infinite"),
        ([np.ones((2, 9))], "item 0 has shape"),
        (np.ones((2, 2, 9)), "shape"),
        ([np.ones(5), "speech.wav"], "item 1 is not a waveform"),
        ([np.ones(5), {}], "item 1 is not a waveform"),
        ([np.ones(5), 0.5], "item 1 has shape"),
        ([None], "item 0"),
        ("speech.wav", "got str"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "librosa"])
def test_bad_input_is_named(raw_speech, message, backend):
    with pytest.raises(ValueError, match=message):
        tiny_feature_extractor(backend=backend)(raw_speech, sampling_rate=RATE)


def test_another_sampling_rate_is_refused():
    with pytest.raises(ValueError, match="16000 Hz"):
        tiny_feature_extractor()(voice(0.2), sampling_rate=16_000)


@pytest.mark.parametrize(
    "parameters",
    [
        {"backend": "scipy"},
        {"image_size": 0},
        {"mel_n_fft": 1023},
        {"cqt_n_bins": 120},
        {"image_mean": [0.5]},
        {"sampling_rate": 6000},
    ],
)
def test_parameters_that_cannot_work(parameters):
    with pytest.raises(ValueError):
        MaxMViTFeatureExtractor(**parameters)


def test_return_tensors():
    extractor, y = tiny_feature_extractor(), voice(0.2)
    assert extractor(y, sampling_rate=RATE, return_tensors="pt")["cqt_values"].shape == (1, 3, 64, 64)
    for return_tensors in (None, "np"):
        values = extractor(y, sampling_rate=RATE, return_tensors=return_tensors)["mel_values"]
        assert isinstance(values, np.ndarray) and values.dtype == np.float32


def test_call_is_extract_and_normalize():
    extractor, y = tiny_feature_extractor(), voice(0.2)
    both = extractor(y, sampling_rate=RATE, return_tensors="pt")
    for name, images in extractor.extract(y).items():
        assert images.shape == (1, 1, 64, 64)
        torch.testing.assert_close(both[name], extractor.normalize(images))
        torch.testing.assert_close(extractor.normalize(images.half()), both[name], rtol=0, atol=0.005)
        mean, std = torch.tensor(extractor.image_mean), torch.tensor(extractor.image_std)
        torch.testing.assert_close(both[name] * std[:, None, None] + mean[:, None, None], images.expand(1, 3, 64, 64))


def test_extract_is_spectrograms_and_images():
    extractor, waveforms = tiny_feature_extractor(), [voice(0.4), noise(7)]
    clips = extractor.spectrograms(waveforms)
    before = [{name: db.clone() for name, db in clip.items()} for clip in clips]
    for name, images in extractor.extract(waveforms).items():
        assert torch.equal(images, extractor.images(clips)[name])
        halves = [{key: db.half() for key, db in clip.items()} for clip in clips]
        torch.testing.assert_close(extractor.images(halves)[name], images, rtol=0, atol=1e-3)
    for clip, copy in zip(clips, before, strict=True):
        assert all(torch.equal(clip[key], copy[key]) for key in SPECTROGRAMS)  # not drawn upon
    with pytest.raises(ValueError, match="no spectrogram"):
        extractor.images([])


def test_cut_has_the_frames_of_a_waveform_of_this_length():
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


def test_autocast_does_not_reach_the_filter_bank():
    extractor, y = tiny_feature_extractor(), voice(0.2)
    plain = extractor.extract(y)["mel_values"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor.extract(y)["mel_values"], plain)


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tiny_feature_extractor().extract(voice(0.2))
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError):
            tiny_feature_extractor().extract([float("nan")])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- saved and loaded ---


def test_round_trip(tmp_path):
    every_parameter = {
        "sampling_rate": 22_050, "min_length": 2048, "cqt_fmin": 65.5, "cqt_n_bins": 70, "cqt_bins_per_octave": 14,
        "cqt_hop_length": 256, "mel_n_fft": 2048, "mel_hop_length": 128, "n_mels": 60, "top_db": 70.0,
        "image_size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "backend": "librosa",
    }  # fmt: skip
    assert set(inspect.signature(MaxMViTFeatureExtractor).parameters) - {"kwargs"} == set(every_parameter)
    extractor = MaxMViTFeatureExtractor(**every_parameter)
    extractor.extract(voice(0.2))  # computing leaves nothing behind that would be saved
    extractor.save_pretrained(tmp_path)
    for loaded in (
        MaxMViTFeatureExtractor.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True),
        pickle.loads(pickle.dumps(extractor)),
    ):
        assert loaded.to_dict() == extractor.to_dict()
        assert loaded.to_dict() == every_parameter | {
            name: value for name, value in loaded.to_dict().items() if name not in every_parameter
        }


def test_loaded_from_a_folder_it_works_alone(tmp_path):
    tiny_feature_extractor().save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded) is not MaxMViTFeatureExtractor
    for name, images in loaded.extract(voice(0.2)).items():
        assert torch.equal(images, tiny_feature_extractor().extract(voice(0.2))[name])
