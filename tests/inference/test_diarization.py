"""Scores of predicted segments against reference segments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser.inference.references import Segment, diarization_scores, pooled_scores, timeline_segments

REFERENCE = [Segment(0, 4, "sad"), Segment(4, 8, "surprise"), Segment(10, 12, "angry")]


def test_errors_equal_those_counted_by_hand():
    predicted = [Segment(0, 3, "sad"), Segment(4, 9, "sad"), Segment(10, 12, "angry")]
    scores = diarization_scores(REFERENCE, predicted, duration=20)
    assert (scores["missed"], scores["false"], scores["confused"], scores["right"]) == (1, 1, 4, 5)
    assert scores["EDER"] == 6 / 20 and scores["time_right"] == 5 / 10
    assert scores["found_segments"] == 2 and scores["segment_F1"] == 2 * 2 / 6


def test_emotions_with_the_same_first_letter_are_different():
    scores = diarization_scores([Segment(0, 2, "sad")], [Segment(0, 2, "surprise")])
    assert scores["EDER"] == 1 and scores["time_right"] == scores["segment_F1"] == 0


@st.composite
def segments(draw):
    edges = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=12)))
    labels = st.sampled_from(["sad", "happy", "angry", "silence"])
    return [Segment(a, b, draw(labels)) for a, b in zip(edges[::2], edges[1::2], strict=False)]


@given(segments(), segments())
def test_agrees_with_counting_second_by_second(reference, predicted):
    def label(side, second):
        return next((s.label for s in side if s.start <= second < s.end and s.label != "silence"), None)

    pairs = [(label(reference, t), label(predicted, t)) for t in range(40)]
    scores = diarization_scores(reference, predicted, duration=40)
    assert scores["missed"] == sum(a is not None and b is None for a, b in pairs)
    assert scores["false"] == sum(a is None and b is not None for a, b in pairs)
    assert scores["confused"] == sum(None not in (a, b) and a != b for a, b in pairs)
    assert scores["right"] == sum(a is not None and a == b for a, b in pairs)
    assert diarization_scores(reference, reference)["EDER"] == 0


def test_windows_label_their_middle_and_equal_neighbours_are_joined():
    rows = [{"start": k, "end": k + 3, "label": label} for k, label in enumerate(["sad", "sad", "silence", "happy"])]
    assert timeline_segments(rows) == [Segment(0, 3, "sad"), Segment(4, 6, "happy")]
    assert timeline_segments([]) == []
    assert timeline_segments([{"start": 0.0, "end": 0.0, "label": "sad"}]) == []


def test_recordings_are_pooled_as_one():
    one = diarization_scores([Segment(0, 10, "sad")], [Segment(0, 10, "sad")])
    two = diarization_scores([Segment(0, 30, "sad")], [Segment(0, 30, "happy")])
    assert pooled_scores([one, two])["EDER"] == 0.75


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([Segment(0, 3, "sad"), Segment(2, 4, "happy")], "overlap"),
        ([Segment(3, 3, "sad")], "0 <= start < end is needed"),
        ([Segment(0, 30, "sad")], "after the recording's end"),
    ],
)
def test_impossible_segments_are_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        diarization_scores(reference, [], duration=20)
