"""Tests overlapping windows that are cut out of spectrograms computed once for the whole recording."""

import numpy as np
import pytest
import torch

import pipeline_maxmvit
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline, _windows
from spectrograms_maxmvit import SpectrogramStream
from tests.helpers.marks import first_fast
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

RATE = 44_100


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """Returns 50 s of voices with pauses, at several levels."""
    parts = []
    for i in range(25):
        parts += [
            voice(1.7, f0=90 + 13 * i, seed=i) * np.float32(0.3 + 0.7 * (i % 3) / 2),
            np.zeros(13_237, np.float32),
        ]
    return np.concatenate(parts)


def in_pieces(waveform: np.ndarray, length: int):
    return (waveform[first : first + length] for first in range(0, len(waveform), length))


@pytest.mark.parametrize("length", first_fast([7_001, 30 * RATE, 10**9]))
def test_the_stream_equals_the_spectrogram_of_the_whole_recording(recording, length):
    extractor = tiny_feature_extractor()
    whole = extractor.spectrograms(recording)[0]
    stream = SpectrogramStream(in_pieces(recording, length), extractor, torch.device("cpu"))
    for start in range(0, len(recording) - 3 * RATE, 40_000):
        part = stream.cut(start, 3 * RATE)
        for name, db in part.items():
            hop = 512 if name == "cqt" else 256
            first = round(start / hop)
            expected = whole[name][..., first : first + 1 + 3 * RATE // hop]
            assert db.shape == expected.shape
            loud = expected > expected.max() - 80
            assert (db - expected)[loud].abs().max() < 0.5 and (db - expected)[loud].abs().mean() < 2e-3
        assert stream.frames["mel"].shape[-1] < 70 * RATE // 256
    end = stream.cut(len(recording) - 3 * RATE, 3 * RATE)
    assert (
        torch.equal(end["rms"][-100:], whole["rms"][-100:])
        or (end["rms"] - whole["rms"][-len(end["rms"]) :]).abs().max() < 1e-3
    )


@pytest.mark.parametrize("step_s", [0.25, 1.0, 4.0])
def test_windows_around_the_ends_of_the_steps_of_a_stream_have_every_frame(recording, step_s):
    extractor, short = tiny_feature_extractor(), recording[: 10 * RATE]
    whole = extractor.spectrograms(short)[0]
    step = SpectrogramStream(iter([short]), extractor, torch.device("cpu"), step_s).step
    stream = SpectrogramStream(in_pieces(short, 3_001), extractor, torch.device("cpu"), step_s)
    length = 44_032 + 311
    ends = [n * step + offset for n in range(5, len(short) // step - 4) for offset in (-400, -255, -100, 0, 90)]
    for start in sorted(end - length for end in ends if end > length):
        for name, db in stream.cut(start, length).items():
            hop = extractor.hops[name]
            first = round(start / hop)
            expected = whole[name][..., first : first + 1 + length // hop]
            assert db.shape == expected.shape, (name, start)
            assert (db - expected)[expected > expected.max() - 80].abs().max() < 0.5


@pytest.mark.slow
def test_images_of_cut_windows_are_close_to_those_of_waveforms(recording):
    extractor = tiny_feature_extractor(image_size=128)
    stream = SpectrogramStream(in_pieces(recording, RATE), extractor, torch.device("cpu"))
    differences = []
    for start, waveform in _windows(in_pieces(recording, RATE), 3 * RATE, RATE):
        cut, separate = extractor.images([stream.cut(start, len(waveform))]), extractor.extract(waveform)
        differences.append([(cut[name] - separate[name]).abs().mean().item() for name in cut])
    assert (np.mean(differences, axis=0) < (0.025, 0.006)).all() and np.max(differences) < 0.04


@pytest.mark.slow
def test_scores_agree_and_each_second_is_computed_once(recording, monkeypatch):
    model, extractor = convnet_model(), tiny_feature_extractor()
    lengths = []
    spectrograms = type(extractor).spectrograms

    def counting(self, waveforms, device="cpu"):
        lengths.append(sum(map(len, waveforms)) if isinstance(waveforms, list) else len(waveforms))
        return spectrograms(self, waveforms, device=device)

    monkeypatch.setattr(type(extractor), "spectrograms", counting)
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=extractor, task="audio-classification", device="cpu"
    )
    cut = classify(recording, window_s=3.0, hop_s=1.0)
    computed = sum(lengths)
    lengths.clear()
    monkeypatch.setattr(pipeline_maxmvit, "SHORTEST_CUT_S", 100.0)
    own = classify(recording, window_s=3.0, hop_s=1.0)
    assert computed < 1.1 * len(recording) and sum(lengths) > 2.8 * len(recording)
    assert [(row["start"], row["end"]) for row in cut] == [(row["start"], row["end"]) for row in own]
    errors = [
        abs(a["scores"][name] - b["scores"][name]) for a, b in zip(cut, own, strict=True) for name in a["scores"]
    ]
    assert np.mean(errors) < 0.01
