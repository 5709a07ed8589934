"""Tests the feature extractor: its images, inputs, outputs and parameters, and saving and loading it."""

import inspect
import os
import pickle
from pathlib import Path

import cv2
import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

from audio_maxmvit import read_audio
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from tests.helpers.tiny import noise, tiny_feature_extractor, voice

RATE = 44_100
IMAGES = ("cqt_values", "mel_values")
SPECTROGRAMS = ("cqt", "mel", "rms")


# --- values ---


@pytest.mark.slow
def test_the_librosa_backend_computes_the_images_of_the_paper():
    y = voice(1.3)
    cqt = librosa.amplitude_to_db(np.abs(librosa.cqt(y, sr=RATE)), ref=np.max, top_db=80)
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256, n_mels=128)
    mel = librosa.power_to_db(mel, ref=np.max, top_db=80)
    pair = MaxMViTFeatureExtractor(backend="librosa")(y, sampling_rate=RATE, return_tensors="pt")
    for name, db in zip(IMAGES, (cqt, mel), strict=True):
        image = cv2.resize((db - db.min()) / (db.max() - db.min()), (244, 244))
        image = (image - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
        np.testing.assert_allclose(pair[name][0], image, atol=2e-5)


@pytest.mark.slow
@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR is not set")
def test_backends_agree_on_speech():
    clips = sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))[::199]
    waveforms = [read_audio(clip, RATE) for clip in clips]
    fast, reference = (MaxMViTFeatureExtractor(backend=backend).extract(waveforms) for backend in ("torch", "librosa"))
    assert (fast["mel_values"] - reference["mel_values"]).abs().mean((1, 2, 3)).max() < 1e-5
    assert (fast["cqt_values"] - reference["cqt_values"]).abs().mean((1, 2, 3)).max() < 0.003


# --- properties ---


def test_images_do_not_depend_on_the_gain():
    extractor = tiny_feature_extractor()
    plain = extractor.extract(voice(0.5))
    for gain in (0.5, 8.0, 1e9, 1e25):
        loud = extractor.extract(voice(0.5) * np.float32(gain))
        for name in IMAGES:
            torch.testing.assert_close(loud[name], plain[name], rtol=0, atol=1e-4)


def test_images_do_not_depend_on_the_batch():
    extractor = tiny_feature_extractor()
    waveforms = [voice(0.7), noise(100), voice(1.9, f0=200), np.zeros(5000, np.float32), voice(0.7, f0=90)]
    batch = extractor.extract(waveforms)
    for i, waveform in enumerate(waveforms):
        for name, images in extractor.extract(waveform).items():
            assert torch.equal(batch[name][i : i + 1], images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
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


# --- inputs and outputs ---


@pytest.mark.parametrize(
    "convert",
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
def test_accepted_kinds_of_input(convert):
    extractor, y = tiny_feature_extractor(), voice(0.15)
    for name, images in extractor.extract(convert(y)).items():
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
def test_invalid_inputs_are_refused(raw_speech, message, backend):
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
        {"image_size": (64,)},
        {"image_size": (64, 0)},
        {"image_size": (64, 32.5)},
        {"image_size": "64"},
        {"trim_db": 0},
        {"trim_margin": -0.1},
        {"level": "peak"},
        {"full_scale_db": (0, -60)},
        {"full_scale_db": (0, 10, 20)},
        {"n_mfcc": 129, "mel_representation": "mfcc"},
        {"n_mfcc": 0},
        {"channels": "delta"},
        {"mel_n_fft": 1023},
        {"cqt_n_bins": 120},
        {"image_mean": [0.5]},
        {"cqt_n_bins": 84, "sampling_rate": 6000},
    ],
)
def test_invalid_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        MaxMViTFeatureExtractor(**parameters)


def test_an_unknown_keyword_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(TypeError, match="MaxMViTFeatureExtractor has no parameter 'sample_rate'; .*'sampling_rate'"):
        MaxMViTFeatureExtractor(sample_rate=16_000)
    with pytest.raises(TypeError, match="no parameter 'colour'; it has sampling_rate, min_length"):
        MaxMViTFeatureExtractor(colour="red")
    extractor, y = tiny_feature_extractor(), voice(0.2)
    with pytest.raises(TypeError, match="__call__ has no parameter 'sample_rate'; .*'sampling_rate'"):
        extractor(y, sample_rate=16_000)
    extractor(y, sampling_rate=RATE, padding=True, truncation=False, max_length=9, return_attention_mask=False)
    extractor.save_pretrained(tmp_path)
    for load in (MaxMViTFeatureExtractor.from_pretrained, AutoFeatureExtractor.from_pretrained):
        with pytest.raises(TypeError, match="no parameter 'topdb'; .*'top_db'"):
            load(tmp_path, topdb=60, trust_remote_code=True)


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
        assert all(torch.equal(clip[key], copy[key]) for key in SPECTROGRAMS)  # unchanged
    with pytest.raises(ValueError, match="no spectrogram"):
        extractor.images([])


def test_autocast_does_not_affect_the_filter_bank():
    extractor, y = tiny_feature_extractor(), voice(0.2)
    plain = extractor.extract(y)["mel_values"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor.extract(y)["mel_values"], plain)


# --- saving and loading ---


def test_round_trip(tmp_path):
    every_parameter = {
        "sampling_rate": 22_050, "min_length": 2048, "cqt_fmin": 65.5, "cqt_n_bins": 70, "cqt_bins_per_octave": 14,
        "cqt_hop_length": 256, "mel_n_fft": 2048, "mel_hop_length": 128, "n_mels": 60, "trim_db": 30.0,
        "trim_margin": 0.1, "level": "full_scale", "top_db": 70.0, "full_scale_db": [-50.0, 20.0],
        "mel_representation": "mfcc", "n_mfcc": 13, "channels": "deltas", "image_size": [32, 48],
        "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "filter_bank": "learnable", "backend": "librosa",
        "speech_processor": Wav2Vec2FeatureExtractor().to_dict(),
    }  # fmt: skip
    assert set(inspect.signature(MaxMViTFeatureExtractor).parameters) - {"kwargs"} == set(every_parameter)
    extractor = MaxMViTFeatureExtractor(**every_parameter)
    extractor.extract(voice(0.2))  # computing must not add anything to what is saved
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


# A file of a version that had only one kind of images.
OLD = """{
  "auto_map": {"AutoFeatureExtractor": "feature_extraction_maxmvit.MaxMViTFeatureExtractor"},
  "backend": "torch",
  "cqt_bins_per_octave": 12,
  "cqt_fmin": 32.70319566257483,
  "cqt_hop_length": 512,
  "cqt_n_bins": 84,
  "feature_extractor_type": "MaxMViTFeatureExtractor",
  "feature_size": 1,
  "image_mean": [0.485, 0.456, 0.406],
  "image_size": 244,
  "image_std": [0.229, 0.224, 0.225],
  "mel_hop_length": 256,
  "mel_n_fft": 4096,
  "min_length": 4096,
  "n_mels": 128,
  "padding_side": "right",
  "padding_value": 0.0,
  "return_attention_mask": false,
  "sampling_rate": 44100,
  "top_db": 80.0
}"""


def test_an_old_file_loads_as_the_defaults_and_accepts_new_parameters(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(OLD)
    loaded = MaxMViTFeatureExtractor.from_pretrained(tmp_path)
    changed = MaxMViTFeatureExtractor.from_pretrained(tmp_path, trim_db=30.0, image_size=(64, 128), proxies=None)
    assert changed.trim_db == 30.0 and changed.image_size == [64, 128]
    for extractor, defaults in (
        (loaded, MaxMViTFeatureExtractor()),
        (changed, MaxMViTFeatureExtractor(trim_db=30.0, image_size=(64, 128))),
    ):
        assert {**extractor.to_dict(), "auto_map": None} == {**defaults.to_dict(), "auto_map": None}
    with pytest.raises(ValueError, match="level"):
        MaxMViTFeatureExtractor.from_pretrained(tmp_path, level="peak")
    # `pipeline` passes these arguments to everything that it loads.
    MaxMViTFeatureExtractor.from_pretrained(tmp_path, _from_pipeline="audio-classification", dtype="auto", token=None)


def test_an_extractor_loaded_with_its_own_code_gives_the_same_images(tmp_path):
    tiny_feature_extractor().save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded) is not MaxMViTFeatureExtractor
    for name, images in loaded.extract(voice(0.2)).items():
        assert torch.equal(images, tiny_feature_extractor().extract(voice(0.2))[name])


@pytest.mark.parametrize("shape", [(5_000, 2), (9, 3), (700, 6)])
def test_one_waveform_of_several_channels_is_not_taken_for_a_batch(shape):
    samples = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for batch in (samples, torch.tensor(samples), samples.tolist(), list(samples)):
        with pytest.raises(ValueError, match=rf"shape \({shape[0]}, {shape[1]}\) looks like \(samples, channels\)"):
            tiny_feature_extractor()(batch, sampling_rate=44_100)
    assert len(tiny_feature_extractor()(samples.T, sampling_rate=44_100)["mel_values"]) == shape[1]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("n_mels", "many", "a whole number"),
        ("cqt_n_bins", 84.5, "a whole number"),
        ("sampling_rate", None, "a whole number"),
        ("top_db", [80], "a finite number"),
        ("trim_db", "30", "a finite number or None"),
        ("level", None, "a string"),
        ("full_scale_db", 40.0, "a list of numbers"),
        ("image_mean", ["x", 1, 2], "a list of numbers"),
        ("image_std", [float("inf"), 1, 1], "a list of numbers"),
        ("image_size", {"height": 64}, "a whole number or a list of whole numbers"),
        ("speech_processor", [], "a dictionary or None"),
        ("cqt_hop_length", True, "a whole number"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(name, value, wanted):
    with pytest.raises(ValueError, match=f"{name}=.* does not work: it must be {wanted}"):
        MaxMViTFeatureExtractor(**{name: value})
    with pytest.raises(ValueError, match=f"{name}="):
        MaxMViTFeatureExtractor.from_dict({name: value})


def test_numpy_arrays_and_numbers_are_accepted():
    extractor = MaxMViTFeatureExtractor(image_mean=np.zeros(3), n_mels=np.int64(64), top_db=60, image_size=(64, 96))
    assert (extractor.image_mean, extractor.n_mels, extractor.image_shape) == ([0, 0, 0], 64, [64, 96])
