"""Altered copies of training clips: reproducible by seed, and cached with the originals."""

import hashlib

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

import ser.data.features
from ser.data import altered_copies
from ser.data.altered_copies import CHAINS, Draw, WaveformCopies
from ser.data.batches import PairCollator, SeededCollator
from ser.data.features import extract_features
from tests.helpers.tiny import tiny_feature_extractor, voice

RATE = 44_100


@pytest.fixture
def clips(tmp_path) -> Dataset:
    rows = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", voice(0.5, f0=100 + 40 * i), RATE, subtype="FLOAT")
        rows.append({"file": f"{i}.wav", "audio": str(tmp_path / f"{i}.wav"), "label": i})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("link", [link for link, _ in CHAINS["all"]], ids=lambda link: link.__name__)
def test_every_link_changes_a_clip_into_another_valid_one(link):
    waveform = torch.from_numpy(voice(0.5))
    for seed in range(4):  # covers all kinds of channel
        changed = link(waveform, RATE, Draw(seed))
        assert changed.isfinite().all() and changed.dtype == torch.float32 and changed.ndim == 1
        assert 0.8 * len(waveform) < len(changed) < 1.2 * len(waveform)
        assert len(changed) != len(waveform) or not torch.equal(changed, waveform)
        assert torch.equal(changed, link(waveform, RATE, Draw(seed)))


def test_background_noise_has_a_ratio_within_its_range():
    waveform = torch.from_numpy(voice(1.0))
    for seed in range(5):
        noise = altered_copies.background(waveform, RATE, Draw(seed)) - waveform
        ratio = 10 * torch.log10(waveform.square().mean() / noise.square().mean())
        assert 4.9 < ratio < 25.1


def test_copies_depend_only_on_sound_number_chain_and_seed():
    waveform = voice(0.4)
    state = torch.get_rng_state()
    first = WaveformCopies(2, "all", seed=1).make(waveform, RATE, 1)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator must not change"
    torch.manual_seed(5)
    assert np.array_equal(first, WaveformCopies(7, "all", seed=1).make(waveform.copy(), RATE, 1))
    others = [
        WaveformCopies(2, "all", 1).make(waveform, RATE, 2), WaveformCopies(2, "all", 2).make(waveform, RATE, 1),
        WaveformCopies(2, "all", 1).make(voice(0.4, seed=9), RATE, 1),
    ]  # fmt: skip
    assert len({copy.tobytes() for copy in (first, *others)}) == 4
    keys = {
        tuple(WaveformCopies(2, chain, seed).keys(clip))
        for chain in CHAINS for seed in (0, 1) for clip in ("a", "b")
    }  # fmt: skip
    assert len({key for pair in keys for key in pair}) == 2 * 3 * 2 * 2
    assert WaveformCopies(3).keys("a")[:2] == WaveformCopies(2).keys("a")


def test_unknown_chains_are_refused():
    with pytest.raises(ValueError, match="chain='noise' is unknown: choose one of all, voice, recording"):
        WaveformCopies(1, "noise")
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        WaveformCopies(0)


def test_copies_are_cached_with_the_originals_and_made_once(clips, tmp_path, monkeypatch):
    extractor, copies = tiny_feature_extractor(), WaveformCopies(2, "recording", 3)
    cache = {"cache_dir": tmp_path / "cache"}
    plain = extract_features(clips, extractor, **cache)
    training = extract_features(clips.select([2, 0]), extractor, copies=copies, num_workers=2, **cache)
    assert [len(row["spectrograms"]) for row in training] == [3, 3]
    assert [len(row["spectrograms"]) for row in plain] == [1, 1, 1]
    for row, original in zip(training, (plain[2], plain[0]), strict=True):
        assert torch.equal(row["spectrograms"][0]["mel"], original["spectrograms"][0]["mel"])
        assert row["content"] == original["content"]
    altered = copies.make(voice(0.5, f0=180), RATE, 2)
    expected = extractor.spectrograms(altered)[0]["mel"]
    assert (training[0]["spectrograms"][2]["mel"] - expected).abs().max() < 0.04

    monkeypatch.setattr(ser.data.features, "read_audio", None)
    again = extract_features(clips.select([0, 2]), extractor, copies=copies, **cache)
    assert torch.equal(again[1]["spectrograms"][1]["cqt"], training[0]["spectrograms"][1]["cqt"])
    with pytest.raises(TypeError):  # another seed makes other copies
        extract_features(clips.select([0]), extractor, copies=WaveformCopies(2, "recording", 4), **cache)


def test_every_version_has_the_digest_of_its_own_waveform(clips, tmp_path):
    extractor, copies = tiny_feature_extractor(), WaveformCopies(2, "recording", 3)
    soundfile.write(tmp_path / "again.wav", voice(0.5, f0=140), RATE, subtype="FLOAT")
    clips = clips.add_item({"file": "again.wav", "audio": str(tmp_path / "again.wav"), "label": 3})
    features = extract_features(clips, extractor, copies=copies, cache_dir=tmp_path / "cache")
    contents = [row["spectrograms"].contents for row in features]
    assert [first for first, *_ in contents] == features["content"][:]
    assert contents[3] == contents[1]
    assert len({content for versions in contents for content in versions}) == 9
    waveform = voice(0.5, f0=140)
    versions = [waveform, *(copies.make(waveform, RATE, number) for number in (1, 2))]
    assert contents[1] == [hashlib.sha1(version.tobytes(), usedforsecurity=False).hexdigest() for version in versions]


def test_training_draws_versions_evenly_by_seed_and_evaluation_uses_originals(clips, tmp_path):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, copies=WaveformCopies(2), cache_dir=tmp_path / "cache")
    versions = [extractor.images([version])["mel_values"].half() for version in features[1]["spectrograms"]]
    assert not torch.equal(versions[0], versions[1]) and not torch.equal(versions[1], versions[2])

    def drawn(collator, index):
        images = collator([(index, features[1])])["images"]["mel"]
        return [torch.equal(images, version) for version in versions].index(True)

    training = SeededCollator(PairCollator(extractor, draw_versions=True), seed=0)
    draws = [drawn(training, index) for index in range(120)]
    assert all(25 < draws.count(version) < 55 for version in range(3))
    assert draws[:5] == [drawn(training, index) for index in range(5)]
    assert {drawn(SeededCollator(PairCollator(extractor), seed=0), index) for index in range(20)} == {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "samples, rate", [(1, 8_000), (2, 192_000), (5, 44_100), (100, 192_000), (511, 8_000), (511, 44_100)]
)
def test_clips_that_are_short_or_silent_have_copies(samples, rate):
    copies = WaveformCopies(40)
    sound = np.random.default_rng(samples).normal(scale=0.1, size=samples).astype(np.float32)
    for number in range(1, copies.count + 1):
        for clip in (sound, np.zeros_like(sound)):
            copy = copies.make(clip, rate, number)
            assert copy.dtype == np.float32 and len(copy) >= 1 and np.isfinite(copy).all()
            assert clip.any() or np.abs(copy).max() < 1e-3  # silence stays silent
