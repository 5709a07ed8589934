"""Plots of spectrograms, envelopes and timelines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser.evaluation.plots import clock, envelope, plot_spectrograms, plot_timeline
from tests.helpers.tiny import tiny_feature_extractor

RATE = 44_100


@pytest.mark.parametrize("hertz", [262, 523, 1047, 2093])
def test_a_tone_is_brightest_at_its_frequency_on_the_axis(hertz):
    tone = np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE).astype(np.float32)
    for figure in plot_spectrograms(tiny_feature_extractor(image_size=244), tone, start=5.0):
        axes = figure.axes[0]
        ticks = {
            int(tick.get_text().replace(",", "")): at
            for tick, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
        }
        image = axes.images[0]
        left, right, bottom, top = image.get_extent()
        assert (left, right) == (5.0, 7.0)
        levels = image.get_array().mean(axis=1)
        brightest = bottom + (levels.argmax() + 0.5) / len(levels) * (top - bottom)
        expected = np.interp(hertz, list(ticks), list(ticks.values()))
        assert brightest == pytest.approx(expected, abs=0.03 * (top - bottom))


def test_the_time_axis_of_a_trimmed_image_is_that_of_the_recording():
    y = np.zeros(3 * RATE, np.float32)
    y[RATE : 2 * RATE] = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    extractor = tiny_feature_extractor(trim_db=35, trim_margin=0.0)
    for figure in plot_spectrograms(extractor, y, start=10.0):
        left, right, _, _ = figure.axes[0].images[0].get_extent()
        assert (left, right) == pytest.approx((11.0, 12.0), abs=0.03)


@given(st.integers(1, 500), st.integers(1, 100), st.floats(0.5, 120))
def test_an_envelope_holds_the_extremes_and_does_not_depend_on_the_pieces(length, piece, step):
    samples = np.random.default_rng(0).normal(size=length).astype(np.float32)
    rows = envelope((samples[start : start + piece] for start in range(0, length, piece)), 1, step)
    size = max(1, round(step))
    expected = [(part.min(), part.max()) for part in (samples[i : i + size] for i in range(0, length, size))]
    np.testing.assert_array_equal(rows, np.array(expected))


def test_a_timeline_stacks_the_scores_to_one_and_leaves_silence_empty():
    rows = [
        {"start": 0.0, "end": 2.0, "label": "a", "scores": {"a": 0.75, "b": 0.25}},
        {"start": 2.0, "end": 4.0, "label": "silence", "scores": {}},
        {"start": 4.0, "end": 6.0, "label": "b", "scores": {"a": 0.25, "b": 0.75}},
    ]
    figure = plot_timeline(rows, np.tile([[-0.5, 0.5]], (60, 1)), 0.1, ["a", "b"])
    wave, stack = figure.axes
    assert stack.get_xlim() == (0, 6)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "silence"]
    lower, upper = (area.get_paths()[0].vertices for area in stack.collections)
    for time, border, top in ((1.0, 0.75, 1.0), (3.0, 0.0, 0.0), (5.0, 0.25, 1.0)):
        assert [height_at(area, time) for area in (lower, upper)] == [border, top]
    assert len(wave.collections) == 3


def test_a_timeline_of_dimensions_has_a_line_for_each_and_a_gap_at_silence():
    rows = [
        {"start": 0.0, "end": 2.0, "label": None, "scores": {"arousal": 0.75, "valence": 0.25, "dominance": 0.5}},
        {"start": 2.0, "end": 4.0, "label": "silence", "scores": {}},
        {"start": 4.0, "end": 6.0, "label": None, "scores": {"arousal": 0.25, "valence": 1.02, "dominance": 0.5}},
    ]
    names = ["arousal", "valence", "dominance"]
    figure = plot_timeline(rows, np.tile([[-0.5, 0.5]], (60, 1)), 0.1, [], names)
    wave, lines = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "silence"]
    for line, values in zip(
        lines.get_lines(), ([0.75, np.nan, 0.25], [0.25, np.nan, 1.02], [0.5, np.nan, 0.5]), strict=True
    ):
        np.testing.assert_array_equal(line.get_ydata()[:3], values)
    assert len(wave.collections) == 2 and len({line.get_color() for line in lines.get_lines()}) == 3


def height_at(outline: np.ndarray, time: float) -> float:
    """Returns the top of a filled step area at a time between its edges."""
    sides = zip(outline[:-1], outline[1:], strict=True)
    return max(y for (x, y), (right, _) in sides if min(x, right) < time < max(x, right))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (4.42, "0:04.4"), (59.96, "1:00"), (70, "1:10"), (3_600, "1:00:00"), (7_265.5, "2:01:05.5")],
)
def test_times_are_formatted(seconds, text):
    assert clock(seconds) == text
