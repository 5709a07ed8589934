"""The demo corpus: reproducible files, and emotions that differ in pitch, level and spectrum."""

import hashlib
import json
from pathlib import Path

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from ser.data.corpora import demo as demo_corpus
from ser.data.corpora.demo import (
    EMOTIONS,
    FRAME,
    MANIFEST,
    SAMPLING_RATE,
    glottal_flow,
    make_voice,
    resonate,
    synthesize_clip,
    write_demo_corpus,
)

VOICES = range(4)
SMALL = {"n_voices": 2, "clips_per_emotion": 1}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def clips() -> dict[str, list[np.ndarray]]:
    """Synthesizes three takes of each emotion by each of four voices, as (voices, takes)."""
    return {emotion: [[synthesize_clip(emotion, v, t) for t in range(3)] for v in VOICES] for emotion in EMOTIONS}


def semitones(waveform: np.ndarray, voice: int) -> np.ndarray:
    """Returns the pitch of the loud frames by YIN, in semitones relative to the voice's usual pitch."""
    waveform = librosa.resample(waveform, orig_sr=SAMPLING_RATE, target_sr=11025)
    f0 = librosa.yin(waveform, fmin=60, fmax=600, sr=11025, frame_length=1024, hop_length=512)
    level = librosa.feature.rms(y=waveform, frame_length=1024, hop_length=512)[0]
    return 12 * np.log2(f0[level > 0.25 * level.max()] / make_voice(voice).f0)


def high_band(waveform: np.ndarray) -> float:
    """Returns the energy from 1 to 4 kHz relative to that below 1 kHz, in dB, as the mean of the loud frames."""
    power = np.abs(librosa.stft(waveform, n_fft=2048, hop_length=1024)) ** 2
    frequency = librosa.fft_frequencies(sr=SAMPLING_RATE, n_fft=2048)
    power = power[:, power.sum(axis=0) > 0.05 * power.sum(axis=0).max()]
    band = power[(frequency > 1000) & (frequency < 4000)].sum(axis=0) / power[frequency < 1000].sum(axis=0)
    return float(np.mean(10 * np.log10(band)))


def average(clips: dict, measure) -> dict[str, float]:
    return {e: np.mean([measure(clip, v) for v in VOICES for clip in clips[e][v]]) for e in EMOTIONS}


@pytest.mark.slow
def test_the_same_parameters_write_the_same_bytes(tmp_path):
    write_demo_corpus(tmp_path / "a", **SMALL)
    write_demo_corpus(tmp_path / "nested" / "b", **SMALL)
    write_demo_corpus(tmp_path / "c", **SMALL, seed=1)
    first, second, other = (digests(tmp_path / name) for name in ("a", "nested/b", "c"))
    assert first == second
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == len(first) == 2 * len(EMOTIONS) + 1


def test_a_clip_does_not_depend_on_how_many_are_written(tmp_path):
    write_demo_corpus(tmp_path / "a", **SMALL)
    rate, samples = wavfile.read(tmp_path / "a" / "voice_01" / "angry_00.wav")
    assert rate == SAMPLING_RATE == 44_100
    assert samples.dtype == np.int16 and samples.ndim == 1
    np.testing.assert_array_equal(samples, np.round(synthesize_clip("angry", 1, 0) * 32767))


def test_the_folder_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def fails_at_voice_1(emotion, voice, take, seed):
        if voice == 1:
            raise KeyboardInterrupt
        return np.zeros(100, np.float32)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo_corpus, "synthesize_clip", fails_at_voice_1)
        write_demo_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []
    write_demo_corpus(tmp_path / "corpus", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_second_call_reuses_the_folder(tmp_path, monkeypatch):
    write_demo_corpus(tmp_path / "corpus", **SMALL)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    monkeypatch.setattr(demo_corpus, "synthesize_clip", None)
    write_demo_corpus(tmp_path / "corpus", **SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")} == times


@pytest.mark.slow
def test_the_same_corpus_may_be_written_by_another_process_meanwhile(tmp_path, monkeypatch):
    def write_meanwhile(emotion, voice, take, seed):
        monkeypatch.undo()
        write_demo_corpus(tmp_path / "corpus", **SMALL)
        return synthesize_clip(emotion, voice, take, seed)

    monkeypatch.setattr(demo_corpus, "synthesize_clip", write_meanwhile)
    write_demo_corpus(tmp_path / "corpus", **SMALL)
    write_demo_corpus(tmp_path / "other", **SMALL)
    assert digests(tmp_path / "corpus") == digests(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "other"]


def test_a_folder_with_other_contents_is_refused_and_left_unchanged(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a demo corpus"):
        write_demo_corpus(folder, **SMALL)
    assert (folder / "thesis.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="not a demo corpus"):
        write_demo_corpus(folder / "thesis.txt", **SMALL)

    (folder / "thesis.txt").unlink()
    write_demo_corpus(folder, **SMALL)  # an empty folder is accepted
    with pytest.raises(FileExistsError, match=r"'seed': 0.*'seed': 7"):
        write_demo_corpus(folder, **SMALL, seed=7)
    (folder / "voice_00" / "sad_00.wav").unlink()
    with pytest.raises(FileExistsError, match=r"lacks 1 of its clips, such as voice_00/sad_00\.wav"):
        write_demo_corpus(folder, **SMALL)
    (folder / MANIFEST).write_text('{"version"')
    with pytest.raises(FileExistsError, match="not a demo corpus"):
        write_demo_corpus(folder, **SMALL)


@pytest.mark.parametrize("parameters", [{"n_voices": 0}, {"clips_per_emotion": 0}, {"seed": -1}])
def test_invalid_parameters_are_refused(tmp_path, parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        write_demo_corpus(tmp_path / "corpus", **parameters)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_emotion_is_refused():
    with pytest.raises(ValueError, match="'bored'.*neutral, happy, angry, sad"):
        synthesize_clip("bored", 0, 0)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(EMOTIONS), st.integers(0, 99), st.integers(0, 99), st.integers(0, 2**40))
def test_every_clip_is_finite_and_neither_silent_nor_clipped(emotion, voice, take, seed):
    clip = synthesize_clip(emotion, voice, take, seed)
    assert clip.dtype == np.float32 and clip.ndim == 1
    assert 1.15 < len(clip) / SAMPLING_RATE < 2.05
    assert np.isfinite(clip).all()
    assert 0.02 < np.abs(clip).max() < 0.9
    assert abs(clip.mean()) < 0.01 * np.abs(clip).max()
    edges = np.concatenate([clip[:1000], clip[-1000:]])
    assert np.abs(edges).max() < 0.02 * np.abs(clip).max()


@pytest.mark.slow
def test_pitch_level_and_range_follow_the_emotion(clips):
    level = average(clips, lambda clip, voice: np.median(semitones(clip, voice)))
    spread = average(clips, lambda clip, voice: np.subtract(*np.percentile(semitones(clip, voice), [85, 15])))
    assert level["happy"] > level["angry"] > level["neutral"] + 1 > level["sad"] + 1.5
    assert abs(level["neutral"]) < 1.0
    assert min(spread["happy"], spread["angry"]) > max(spread["neutral"], spread["sad"]) + 0.5


@pytest.mark.slow
def test_the_spectrum_tilts_with_the_emotion(clips):
    tilt = average(clips, lambda clip, voice: high_band(clip))
    assert tilt["angry"] - 3 > tilt["neutral"] > tilt["sad"] + 3


@pytest.mark.slow
def test_length_and_absolute_pitch_do_not_determine_the_emotion(clips):
    seconds = average(clips, lambda clip, voice: len(clip) / SAMPLING_RATE)
    assert max(seconds.values()) - min(seconds.values()) < 0.3
    happy_man, sad_woman = clips["happy"][1], clips["sad"][0]
    assert np.median([semitones(c, 1) for c in happy_man][0]) > np.median([semitones(c, 0) for c in sad_woman][0])


def test_glottal_flow_repeats_at_the_pitch():
    f0 = np.full(SAMPLING_RATE, 100.0)
    flow = glottal_flow(f0, 0.6, jitter=0.0, shimmer=0.0, rng=np.random.default_rng(0))
    assert 0.99 < flow.max() <= 1.0 and flow.min() == 0.0
    np.testing.assert_allclose(flow[441:882], flow[:441], atol=1e-6)
    assert np.mean(flow == 0.0) == pytest.approx(0.4, abs=0.01)
    rough = glottal_flow(f0, 0.6, jitter=0.02, shimmer=0.1, rng=np.random.default_rng(0))
    assert np.abs(rough[441:882] - rough[:441]).max() > 0.05


def test_resonators_equal_the_difference_equation():
    bandwidth, frequency, noise = 300.0, 1500.0, np.random.default_rng(0).standard_normal(20 * FRAME)
    noise[: FRAME // 2] = noise[-FRAME:] = 0.0
    c = -np.exp(-2 * np.pi * bandwidth / SAMPLING_RATE)
    b = 2 * np.exp(-np.pi * bandwidth / SAMPLING_RATE) * np.cos(2 * np.pi * frequency / SAMPLING_RATE)
    expected = np.zeros_like(noise)
    for n in range(len(noise)):
        expected[n] = (1 - b - c) * noise[n] + b * expected[n - 1] + c * expected[n - 2]
    moving = np.full(20, frequency)
    np.testing.assert_allclose(resonate(noise, [(moving, bandwidth)]), expected, atol=1e-3)
    np.testing.assert_allclose(resonate(noise, [(frequency, bandwidth)]), expected, atol=1e-3)


def test_the_manifest_holds_the_parameters_of_the_corpus(tmp_path):
    write_demo_corpus(tmp_path / "corpus", **SMALL, seed=3)
    found = json.loads((tmp_path / "corpus" / MANIFEST).read_text())
    assert found == {"version": demo_corpus.VERSION, **SMALL, "seed": 3}
