"""Tests trimming, level, representation, channels and size of the images, most of them against librosa."""

import os
from itertools import product
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_maxmvit import read_audio
from feature_extraction_maxmvit import MaxMViTFeatureExtractor, between, clip_range, loud_frames, with_deltas
from tests.helpers.tiny import noise, tiny_feature_extractor, voice

RATE = 44_100
IMAGES = ("cqt_values", "mel_values")
PARAMETERS = ("trim_db", "level", "mel_representation", "channels")
ALL_IMAGES = [
    dict(zip(PARAMETERS, values, strict=True))
    for values in product((None, 35.0), ("clip", "full_scale"), ("log-mel", "mfcc"), ("repeat", "deltas"))
]


def with_silence() -> np.ndarray:
    """Returns 0.4 s of faint noise, a voice of 1 s, and 0.3 s of faint noise."""
    return np.concatenate([noise(17_640, 1) * 1e-3, voice(1.0), noise(13_230, 2) * 1e-3])


@pytest.fixture(scope="module", params=["synthesised", pytest.param("RAVDESS", marks=pytest.mark.slow)])
def clips(request) -> list[np.ndarray]:
    if request.param == "synthesised":
        return [with_silence(), voice(0.5, f0=220)]
    if "SER_RAVDESS_DIR" not in os.environ:
        pytest.skip("SER_RAVDESS_DIR is not set")
    paths = sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))[::479]
    return [read_audio(path, RATE) for path in paths]


def unresized(y: np.ndarray, name: str, rows: int | None = None, **kwargs) -> np.ndarray:
    """Returns the image of a clip, `(channels, rows, frames)`, in the size that it has before it is resized."""
    bins, hop = {"cqt": (84, 512), "mel": (128, 256)}[name]
    size = (rows or bins, 1 + len(y) // hop)
    return MaxMViTFeatureExtractor(image_size=size, **kwargs).extract(y)[f"{name}_values"][0].numpy()


def librosa_db(y: np.ndarray, name: str, **kwargs) -> np.ndarray:
    if name == "cqt":
        return librosa.amplitude_to_db(np.abs(librosa.cqt(y, sr=RATE)), **kwargs)
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256, n_mels=128)
    return librosa.power_to_db(mel, **kwargs)


# The CQT of the torch backend is closer to the definition than librosa's, so the two differ by more than 1e-4.
BACKENDS = pytest.mark.parametrize("name, backend", [("cqt", "librosa"), ("mel", "torch"), ("mel", "librosa")])


@BACKENDS
def test_levels_equal_those_of_librosa(clips, name, backend):
    for y in clips:
        db = librosa_db(y, name, ref=np.max, top_db=60)
        image = unresized(y, name, top_db=60.0, backend=backend)
        np.testing.assert_allclose(image[0], (db - db.min()) / (db.max() - db.min()), atol=1e-4)
        db = librosa_db(y, name, ref=1.0, top_db=None)
        image = unresized(y, name, level="full_scale", full_scale_db=(-50, 10), backend=backend)
        np.testing.assert_allclose(image[0], np.clip((db + 50) / 60, 0, 1), atol=1e-4)


@pytest.mark.slow
@BACKENDS
def test_deltas_equal_those_of_librosa(clips, name, backend):
    for y, level in product(clips, ("clip", "full_scale")):
        static = unresized(y, name, level=level, backend=backend)
        channels = unresized(y, name, level=level, channels="deltas", backend=backend)
        assert np.array_equal(channels[:1], static)
        db = librosa_db(y, name, **({"ref": np.max, "top_db": 80} if level == "clip" else {"top_db": None}))
        low, high = (db.min(), db.max()) if level == "clip" else (-60, 40)
        for order, reach in ((1, 1 / 12), (2, 1 / 24)):
            change = librosa.feature.delta(np.clip(db, low, high), order=order) / (high - low)
            np.testing.assert_allclose(channels[order], np.clip(0.5 + change / (2 * reach), 0, 1), atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "librosa"])
@pytest.mark.parametrize("n_mfcc", [13, 128])
def test_mfcc_equals_that_of_librosa(clips, n_mfcc, backend):
    for y in clips:
        db = librosa_db(y, "mel", ref=np.max, top_db=80)
        cepstrum = librosa.feature.mfcc(S=db, n_mfcc=n_mfcc) / 128**0.5  # row 0: the mean level of a frame
        cepstrum[0] -= db.min()
        expected = cepstrum / (db.max() - db.min()) + np.where(np.arange(n_mfcc) == 0, 0, 0.5)[:, None]
        kwargs = {"mel_representation": "mfcc", "n_mfcc": n_mfcc, "backend": backend}
        np.testing.assert_allclose(unresized(y, "mel", n_mfcc, **kwargs)[0], expected, atol=1e-4)
        assert expected.min() >= 0 and expected.max() <= 1  # nothing is clipped
        assert np.array_equal(unresized(y, "cqt", **kwargs), unresized(y, "cqt", backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("trim_db", [20.0, 35.0, 60.0])
def test_trimming_equals_that_of_librosa(clips, trim_db):
    for y in clips:
        _, (start, end) = librosa.effects.trim(y, top_db=trim_db, frame_length=2048, hop_length=256)
        for backend in ("torch", "librosa"):
            extractor = tiny_feature_extractor(backend=backend, trim_db=trim_db, trim_margin=0.0)
            (clip,) = extractor.spectrograms(y)
            first, last = loud_frames(clip["rms"], trim_db)
            assert (first * 256, min(last * 256, len(y))) == (start, end)
            trimmed = extractor.cut(clip, start / RATE, last * 256 / RATE)
            assert torch.equal(trimmed["mel"], clip["mel"][:, first : last + 1])
            for image, expected in zip(extractor.extract(y).items(), extractor.images([trimmed]).items(), strict=True):
                assert torch.equal(image[1], expected[1])


def test_a_trimmed_clip_equals_a_shorter_waveform_except_at_its_ends():
    y = with_silence()
    extractor = tiny_feature_extractor(trim_db=35.0)
    (clip,) = extractor.spectrograms(y)
    first, last = loud_frames(clip["rms"], 35.0)
    start, end = first * 256 / RATE, last * 256 / RATE
    assert abs(start - 0.4) < 0.03 and abs(end - 1.4) < 0.03
    with_margin = extractor.cut(clip, start - 0.05, end + 0.05)
    assert all(torch.equal(db, with_margin[name]) for name, db in extractor.trim(clip).items())
    for name, images in extractor.extract(y).items():
        assert torch.equal(images, tiny_feature_extractor().images([with_margin])[name])
    (alone,) = extractor.spectrograms(y[first * 256 : last * 256])
    difference = (extractor.cut(clip, start, end)["mel"] - alone["mel"]).abs()
    assert difference[:, 8:-9].max() < 1e-3  # dB; at either end, half of the Mel window's 4,096 samples lies beyond


@given(
    samples=st.integers(1, 9000),
    seed=st.integers(0, 5),
    trim_db=st.floats(1e-6, 500, exclude_min=True),
    trim_margin=st.sampled_from([0.0, 0.01, 3.0]),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)
@settings(max_examples=60, deadline=None)
def test_trimming_never_removes_everything(samples, seed, trim_db, trim_margin, scale):
    y = noise(samples, seed) * np.float32(scale)
    y[: samples // 2] *= np.float32(1e-3)
    extractor = tiny_feature_extractor(trim_db=trim_db, trim_margin=trim_margin)
    assert all(images.isfinite().all() for images in extractor.extract(y).values())
    (clip,) = extractor.spectrograms(y)
    first, last = loud_frames(clip["rms"], trim_db)
    assert first <= clip["rms"].argmax() < last <= len(clip["rms"])


@pytest.mark.slow
@given(gain=st.floats(-20, 20))
@settings(max_examples=15, deadline=None)
def test_a_gain_shifts_images_of_level_full_scale_but_not_of_level_clip(gain):
    y, louder = noise(20_000), noise(20_000) * np.float32(10 ** (gain / 20))
    for name in ("cqt", "mel"):
        for channels in ("repeat", "deltas"):
            plain, loud = (unresized(waveform, name, channels=channels) for waveform in (y, louder))
            np.testing.assert_allclose(plain, loud, atol=1e-4)
        kwargs = {"level": "full_scale", "full_scale_db": (-90.0, 60.0), "channels": "deltas"}
        plain, loud = (unresized(waveform, name, **kwargs) for waveform in (y, louder))
        assert min(plain[0].min(), loud[0].min()) > 0 and max(plain[0].max(), loud[0].max()) < 1
        np.testing.assert_allclose(loud[0] - plain[0], gain / 150, atol=1e-5)
        np.testing.assert_allclose(loud[1:], plain[1:], atol=1e-4)
    kwargs = {"level": "full_scale", "full_scale_db": (-90.0, 60.0), "mel_representation": "mfcc", "rows": 40}
    plain, loud = (unresized(waveform, "mel", **kwargs)[0] for waveform in (y, louder))
    np.testing.assert_allclose(loud[0] - plain[0], gain / 150, atol=1e-5)
    np.testing.assert_allclose(loud[1:], plain[1:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("backend", ["torch", "librosa"])
@pytest.mark.parametrize("parameters", ALL_IMAGES, ids=str)
def test_silence_and_a_clip_of_one_sample(parameters, backend):
    extractor = tiny_feature_extractor(backend=backend, **parameters)
    waveforms = [[0.0], [1.0], np.zeros(20_000)]
    channels = 3 if parameters["channels"] == "deltas" else 1
    for name, images in extractor.extract(waveforms).items():
        assert images.shape == (3, channels, 64, 64)
        assert images.min() >= 0 and images.max() <= 1  # and so no NaN
        for silent in images[0], images[2]:
            assert all((change - 0.5).abs().max() < 1e-6 for change in silent[1:])
            if name == "mel_values" and parameters["mel_representation"] == "mfcc":
                assert (silent[0, 0] == 0).all() and (silent[0, -1] - 0.5).abs().max() < 1e-6
            else:
                assert (silent[0] == 0).all()


@given(frames=st.integers(1, 20), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_deltas_of_few_frames(frames, seed):
    image = torch.rand(3, frames, generator=torch.Generator().manual_seed(seed))
    channels = with_deltas(image)
    assert torch.equal(channels[0], image)
    longer = np.pad(image.numpy(), ((0, 0), (0, max(0, 9 - frames))), mode="edge")
    for order, reach in ((1, 1 / 12), (2, 1 / 24)):
        change = librosa.feature.delta(longer, order=order)[:, :frames]
        np.testing.assert_allclose(channels[order], np.clip(0.5 + change / (2 * reach), 0, 1), atol=1e-5)
    if frames == 1:
        assert (channels[1:] - 0.5).abs().max() < 1e-6


@given(values=st.lists(st.floats(-100, 60, width=32), min_size=1, max_size=30), top_db=st.floats(1, 100))
@settings(max_examples=50, deadline=None)
def test_the_range_of_a_clip_is_mapped_to_0_and_1(values, top_db):
    db = torch.tensor(values)
    low, high = clip_range(db, top_db)
    image = between(db, low, high)
    assert image.min() == 0 and image.max() == (high > low)
    assert high - low <= top_db + 1e-4


@pytest.mark.parametrize("image_size, shape", [(64, (64, 64)), ((64, 96), (64, 96)), ([128, 32], (128, 32))])
def test_image_size(image_size, shape):
    extractor, y = MaxMViTFeatureExtractor(image_size=image_size, channels="deltas"), voice(0.5)
    for images in extractor(y, sampling_rate=RATE, return_tensors="pt").values():
        assert images.shape == (1, 3, *shape)
    wide, square = (MaxMViTFeatureExtractor(image_size=size).extract(y) for size in (shape, (64, 64)))
    for name in IMAGES:
        assert wide[name].shape == (1, 1, *shape)
        resized = torch.nn.functional.interpolate(square[name], size=shape, mode="bilinear")
        assert (wide[name] - resized).abs().mean() < 0.05  # the same image


def test_three_channels_are_normalised_separately():
    extractor, y = tiny_feature_extractor(channels="deltas"), voice(0.5)
    values = extractor(y, sampling_rate=RATE, return_tensors="pt")
    for name, images in extractor.extract(y).items():
        mean, std = torch.tensor(extractor.image_mean), torch.tensor(extractor.image_std)
        torch.testing.assert_close(values[name] * std[:, None, None] + mean[:, None, None], images)
