"""The benchmark of sounds without speech: reproducible inputs, and a table of the pipeline's scores."""

import json
from collections import Counter

import numpy as np
import pytest

from audio_maxmvit import loudness
from benchmarks import robustness
from benchmarks.robustness import KINDS, kind_of, sound
from ser.models import load_pipeline
from tests.helpers.tiny import convnet_model, tiny_feature_extractor

RATE = 16_000


@pytest.mark.slow
def test_inputs_are_divided_evenly_among_kinds_and_are_reproducible():
    assert set(Counter(map(kind_of, range(200))).values()) == {14, 15} and len(KINDS) == 14
    waveforms = [sound(index, RATE) for index in range(2 * len(KINDS))]
    for index, waveform in enumerate(waveforms):
        assert 2 * RATE <= len(waveform) <= 6 * RATE and waveform.dtype == np.float32
        assert np.isfinite(waveform).all() and np.abs(waveform).max() <= 1
        np.testing.assert_array_equal(waveform, sound(index, RATE))
    for index, kind in enumerate(KINDS):
        assert len(waveforms[index]) != len(waveforms[index + len(KINDS)])
        assert waveforms[index].any() == (kind != "silence")


def test_levels_are_within_the_stated_ranges():
    for index in range(3 * len(KINDS)):
        waveform = sound(index, RATE)
        if (kind := kind_of(index)) == "silence" or np.abs(waveform).max() == 1:
            continue
        low, high = robustness.NEAR_SILENCE_DB if kind == "near silence" else robustness.LEVELS_DB
        assert low <= 20 * np.log10(np.sqrt(np.mean(waveform.astype(float) ** 2))) <= high, kind


@pytest.mark.parametrize(("kind", "db_per_octave"), [("white noise", 0), ("pink noise", -3), ("brown noise", -6)])
def test_noise_has_its_colour(kind, db_per_octave):
    waveform = KINDS[kind](np.random.default_rng(0), np.arange(20 * RATE) / RATE)
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform), 1 / RATE)
    octaves = [power[(frequencies >= low) & (frequencies < 2 * low)].mean() for low in (125, 250, 500, 1000, 2000)]
    assert np.diff(10 * np.log10(octaves)) == pytest.approx(db_per_octave, abs=0.5)


@pytest.mark.slow
def test_the_table_holds_the_scores_of_the_pipeline(tmp_path, capsys):
    convnet_model().save_pretrained(tmp_path / "model")
    tiny_feature_extractor().save_pretrained(tmp_path / "model")
    kept, n_inputs = tmp_path / "figures.json", 2 * len(KINDS)
    robustness.main(["no_speech", str(tmp_path / "model"), "--inputs", str(n_inputs), "--json", str(kept)])
    figures = json.loads(kept.read_text())["figures"]
    rows = {row["kind"]: row for row in [*figures["kinds"], figures["all"]]}
    classify = load_pipeline(str(tmp_path / "model"))
    rate = classify.feature_extractor.sampling_rate
    scores = [max(row["score"] for row in classify(sound(index, rate))) for index in range(n_inputs)]
    assert list(rows) == [*KINDS, "all"] and rows["all"]["inputs"] == n_inputs
    for index, kind in enumerate(KINDS):
        own = scores[index], scores[index + len(KINDS)]
        assert (rows[kind]["median"], rows[kind]["largest"]) == pytest.approx((np.mean(own), max(own)), abs=1e-5)
        quiet = [loudness(sound(place, rate), rate) < -60 for place in (index, index + len(KINDS))]
        assert rows[kind]["silence"] == np.mean(quiet)
    assert rows["silence"]["silence"] == 1 and rows["engine"]["silence"] == 0
    assert rows["all"]["percentile_95"] == pytest.approx(np.percentile(scores, 95), abs=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 + len(KINDS) + 1
    assert printed[-1].split(" | ")[1:3] == [str(n_inputs), f"{rows['all']['silence']:.3f}"]
