import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser.diarization import Segment, diarization_scores, pooled_scores, read_segments, timeline_segments
from ser.errors import DataError

REFERENCE = [Segment(0, 4, "sad"), Segment(4, 8, "surprise"), Segment(10, 12, "angry")]


def test_errors_by_hand():
    answer = [Segment(0, 3, "sad"), Segment(4, 9, "sad"), Segment(10, 12, "angry")]
    scores = diarization_scores(REFERENCE, answer, duration=20)
    assert (scores["missed"], scores["false"], scores["confused"], scores["right"]) == (1, 1, 4, 5)
    assert scores["EDER"] == 6 / 20 and scores["time_right"] == 5 / 10
    assert scores["found_segments"] == 2 and scores["segment_F1"] == 2 * 2 / 6


def test_two_emotions_of_one_first_letter_are_two():
    scores = diarization_scores([Segment(0, 2, "sad")], [Segment(0, 2, "surprise")])
    assert scores["EDER"] == 1 and scores["time_right"] == scores["segment_F1"] == 0


@st.composite
def segments(draw):
    edges = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=12)))
    labels = st.sampled_from(["sad", "happy", "angry", "silence"])
    return [Segment(a, b, draw(labels)) for a, b in zip(edges[::2], edges[1::2], strict=False)]


@given(segments(), segments())
def test_agrees_with_counting_second_by_second(reference, answer):
    def label(side, second):
        return next((s.label for s in side if s.start <= second < s.end and s.label != "silence"), None)

    pairs = [(label(reference, t), label(answer, t)) for t in range(40)]
    scores = diarization_scores(reference, answer, duration=40)
    assert scores["missed"] == sum(a is not None and b is None for a, b in pairs)
    assert scores["false"] == sum(a is None and b is not None for a, b in pairs)
    assert scores["confused"] == sum(None not in (a, b) and a != b for a, b in pairs)
    assert scores["right"] == sum(a is not None and a == b for a, b in pairs)
    assert diarization_scores(reference, reference)["EDER"] == 0


def test_a_window_speaks_for_its_middle_and_neighbours_join():
    rows = [{"start": k, "end": k + 3, "label": label} for k, label in enumerate(["sad", "sad", "silence", "happy"])]
    assert timeline_segments(rows) == [Segment(0, 3, "sad"), Segment(4, 6, "happy")]
    assert timeline_segments([]) == []


def test_recordings_are_pooled_as_one():
    one = diarization_scores([Segment(0, 10, "sad")], [Segment(0, 10, "sad")])
    two = diarization_scores([Segment(0, 30, "sad")], [Segment(0, 30, "happy")])
    assert pooled_scores([one, two])["EDER"] == 0.75


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([Segment(0, 3, "sad"), Segment(2, 4, "happy")], "overlap"),
        ([Segment(3, 3, "sad")], "fills no time"),
        ([Segment(0, 30, "sad")], "after the recording's end"),
    ],
)
def test_impossible_segments_are_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        diarization_scores(reference, [], duration=20)


def test_segments_are_read_from_csv_and_rttm(tmp_path):
    table, rttm = tmp_path / "segments.csv", tmp_path / "segments.rttm"
    table.write_text("file,start,end,label\na.wav,0,1.5,sad\na.wav,2,4,happy\nb.wav,0,1,sad\n")
    rttm.write_text(
        ";; comment\nSPEAKER a.wav 1 0 1.5 <NA> <NA> sad <NA> <NA>\nSPEAKER a.wav 1 2 2 <NA> <NA> happy <NA> <NA>\n"
        "SPEAKER b.wav 1 0 1 <NA> <NA> sad <NA> <NA>\n"
    )
    expected = {"a.wav": [Segment(0, 1.5, "sad"), Segment(2, 4, "happy")], "b.wav": [Segment(0, 1, "sad")]}
    assert read_segments(table) == read_segments(rttm) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file,start,label\n", "no column end"),
        ("a.csv", "file,start,end,label\nx.wav,2,1,sad\n", "line 2"),
        ("a.csv", "file,start,end,label\nx.wav,one,2,sad\n", "line 2"),
        ("a.csv", "file,start,end,label\nx.wav,0,2,sad\nx.wav,1,3,sad\n", "x.wav: .*overlap"),
        ("a.csv", "file,start,end,label\n", "no segments"),
        ("a.rttm", "SPEAKER a.wav 1 0\n", "line 1"),
        ("a.rttm", "SPEAKER a.wav 1 0 x <NA> <NA> sad\n", "line 1"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_segments(tmp_path / name)
