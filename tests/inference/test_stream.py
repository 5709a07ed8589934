"""Predictions while a recording arrives, against those for the whole recording."""

import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_maxmvit import AudioError, read_audio
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.models import load_pipeline
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples import live
from tests.helpers.marks import first_fast

LABELS = ["angry", "happy", "neutral", "sad"]


def build(**kwargs) -> MaxMViTAudioClassificationPipeline:
    model = convnet_model()
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    model.config.window_s = 1.5
    with torch.no_grad():
        model.classifier.out_proj.weight *= 15  # so that any difference shows
    return MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification", device="cpu", **kwargs
    )


@pytest.fixture(scope="module")
def classify():
    return build()


def recording(seconds: float, rate: int) -> np.ndarray:
    """Returns a voice whose pitch changes twice a second, with a pause."""
    parts = [voice(0.5, f0=80.0 + 25 * (k % 9), sampling_rate=rate, seed=k) for k in range(round(2 * seconds))]
    sound = np.concatenate(parts)
    sound[3 * rate : 4 * rate] = 0
    return sound


def in_chunks(sound: np.ndarray, seed: int, most: int):
    rng, at = np.random.default_rng(seed), 0
    while at < len(sound):
        length = int(rng.integers(0, most))
        yield sound[at : at + length]
        at += length


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    assert [(row["start"], row["end"], row["label"]) for row in rows] == [
        (row["start"], row["end"], row["label"]) for row in expected
    ]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(list(row["scores"].values()), list(other["scores"].values()), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "windows, rate",
    first_fast([((1.5, 0.5), 16_000), ((1.0, 0.9), 44_100), ((0.5, 0.2), 44_100), ((2.0, 2.0), 16_000)], 2),
)
def test_rows_are_those_of_the_whole_recording(classify, windows, rate):
    sound, (window_s, hop_s) = recording(7.3, rate), windows
    expected = classify({"array": sound, "sampling_rate": rate}, window_s=window_s, hop_s=hop_s)
    for seed, most in ((0, 3_000), (1, 3 * rate)):
        assert_same(list(classify.stream(in_chunks(sound, seed, most), rate, window_s, hop_s)), expected)
    assert "silence" in {row["label"] for row in expected} or window_s >= 1


@pytest.mark.slow
@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR names no folder of RAVDESS clips")
@pytest.mark.parametrize("hop_s", [1.0, 0.5])
def test_rows_of_real_speech_are_those_of_the_whole_recording(hop_s):
    """With the shipped model; `python -m benchmarks.pipeline live` does the same for minutes."""
    classify = load_pipeline(None, "cpu")
    clips = sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))
    sound = np.concatenate([read_audio(clip, 48_000) for clip in clips[5::293]])
    expected = classify({"array": sound, "sampling_rate": 48_000}, window_s=3.0, hop_s=hop_s)
    assert len({row["label"] for row in expected}) > 1 and len(sound) > 15 * 48_000
    assert_same(list(classify.stream(in_chunks(sound, 0, 96_000), 48_000, 3.0, hop_s)), expected)


@pytest.mark.slow
def test_options_apply_as_for_a_whole_recording(classify):
    sound = recording(4.0, 16_000)
    for options in ({"only": ["sad", "happy"]}, {"min_score": 0.9}, {"silence_db": None}):
        expected = classify({"array": sound, "sampling_rate": 16_000}, window_s=1.5, **options)
        assert_same(list(classify.stream([sound], 16_000, **options)), expected)
    stereo = np.stack([1.5 * sound, 0.5 * sound], axis=1)
    as_integers = np.round(sound * 32768).astype(np.int16)
    expected = list(classify.stream([sound], 16_000))
    for other in (stereo, torch.tensor(sound), as_integers):
        for row, known in zip(classify.stream([other], 16_000), expected, strict=True):
            np.testing.assert_allclose(list(row["scores"].values()), list(known["scores"].values()), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("windows", "delay_s"), [((1.5, 0.5), 0.9), ((0.5, 0.25), 0.1), ((2.0, 2.0), 0.1)])
def test_a_row_comes_soon_after_its_window(classify, windows, delay_s):
    rate = classify.feature_extractor.sampling_rate
    read = 0

    def chunks():
        nonlocal read
        for start in range(0, 8 * rate, rate // 20):
            read = start + rate // 20
            yield sound[start:read]

    sound = recording(8.0, rate)
    for row in classify.stream(chunks(), rate, *windows):
        assert read / rate <= row["end"] + delay_s


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(classify):
    def peak(seconds: int) -> int:
        tracemalloc.start()
        second = recording(5.0, 16_000)[:16_000]
        for _ in classify.stream((second for _ in range(seconds)), 16_000, 1.0, 0.5):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(5)
    assert peak(40) < peak(10) + 2**20


def test_invalid_chunks_and_options_are_refused(classify):
    sound = recording(2.0, 16_000)
    for chunk in (sound.astype(np.int32), sound[None, None], np.array(["a"])):
        with pytest.raises(AudioError, match="The stream has a chunk of"):
            list(classify.stream([sound, chunk], 16_000))
    broken = sound.copy()
    broken[7] = np.nan
    with pytest.raises(AudioError, match="The stream holds NaN"):
        list(classify.stream([broken], 16_000))
    for nothing in ([], [sound[:0]]):
        with pytest.raises(AudioError, match="The stream is empty"):
            list(classify.stream(nothing, 16_000))
    with pytest.raises(ValueError, match="sampling_rate=7 does not work"):
        classify.stream([sound], 7)
    for window_s in ("auto", -1, 1e9):
        with pytest.raises(ValueError, match=f"window_s={window_s!r} does not work"):
            classify.stream([sound], 16_000, window_s)
    with pytest.raises(ValueError, match="leaves out audio"):
        list(classify.stream([sound], 16_000, 1.0, 2.0))
    with pytest.raises(TypeError, match="stream takes no top_k"):
        classify.stream([sound], 16_000, top_k=1)
    with pytest.raises(ValueError, match="smooth averages over later windows"):
        build(smooth=3).stream([sound], 16_000)


@pytest.mark.slow
def test_the_example_prints_a_line_for_each_window_of_a_file(classify, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "checkpoint"
    classify.model.save_pretrained(folder)
    classify.feature_extractor.save_pretrained(folder)
    soundfile.write(tmp_path / "talk.wav", recording(4.5, 16_000), 16_000)
    arguments = [str(folder), "--file", str(tmp_path / "talk.wav"), "--window", "1.0", "--hop", "0.5"]
    assert live.main([*arguments, "--fast"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = classify(tmp_path / "talk.wav", window_s=1.0, hop_s=0.5)
    assert [line.split()[4] for line in lines] == [row["label"] for row in expected]
    assert [float(line.split()[0]) for line in lines] == [row["start"] for row in expected]
    waits = []
    monkeypatch.setattr(live.time, "sleep", waits.append)
    assert live.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == lines and max(waits) > 0
    assert live.main([str(folder), "--file", str(tmp_path / "none.wav")]) == 1
    assert "none.wav cannot be read" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert live.main([str(folder)]) == 1
    assert "the microphone needs sounddevice" in capsys.readouterr().err
