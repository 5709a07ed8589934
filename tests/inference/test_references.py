"""Reference segments: how they are read, matched with recordings, and used to score predictions."""

import pytest

from ser.inference.references import Segment, format_scores, read_references, read_segments, reference_scores
from ser.utils import DataError

LABELS = ["happy", "sad"]


def test_segments_are_read_from_csv_and_rttm(tmp_path):
    table, rttm = tmp_path / "segments.csv", tmp_path / "segments.rttm"
    table.write_text("file,start,end,label\na.wav,0,1.5,sad\na.wav,2,4,happy\nb.wav,0,1,sad\n")
    rttm.write_text(
        ";; comment\nSPEAKER a.wav 1 0 1.5 <NA> <NA> sad <NA> <NA>\nSPEAKER a.wav 1 2 2 <NA> <NA> happy <NA> <NA>\n"
        "SPEAKER b.wav 1 0 1 <NA> <NA> sad <NA> <NA>\n"
    )
    expected = {
        "a.wav": [Segment(0, 1.5, "sad", 2), Segment(2, 4, "happy", 3)],
        "b.wav": [Segment(0, 1, "sad", 4)],
    }
    assert read_segments(table) == read_segments(rttm) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", " Label ;END;start;File\r\nsad;1.5;0;a\x85b.wav\r\n;;;\r\nhappy;4;2;a\x85b.wav\r\n"),
        ("a.TSV", "file_name\tstart\tend\tlabel\na\x85b.wav\t2\t4\thappy\na\x85b.wav\t0\t1.5\tsad\n"),
        ("a.jsonl", '{"File": "a\x85b.wav", "start": 0, "end": 1.5, "label": "sad"}\n'
         '{"File": "a\x85b.wav", "START": "2", "end": 4, "label": "happy"}\n'),
        ("a.rttm", "SPEAKER a\x85b.wav 1 0 1.5 <NA> <NA> sad\r\nSPEAKER\ta\x85b.wav 1 2 2 <NA> <NA> happy\r\n"),
    ],
)  # fmt: skip
def test_segments_are_read_from_every_dialect(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    (found,) = read_segments(tmp_path / name).items()
    assert found[0] == "a\x85b.wav" and [each[:3] for each in found[1]] == [(0, 1.5, "sad"), (2, 4, "happy")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file,start,label\n", "no column 'end'"),
        ("a.csv", "file,start,end,label\nx.wav,2,1,sad\n", "line 2"),
        ("a.csv", "file,start,end,label\nx.wav,one,2,sad\n", "line 2"),
        ("a.csv", "file,start,end,label\nx.wav,0,2,sad\nx.wav,1,3,sad\n", "x.wav: .*lines 2 and 3 .*overlap"),
        ("a.csv", "file,start,end,label\n", "no segments"),
        ("a.csv", f"file,start,end,label\n{'x' * 200_000},0,1,sad\n", "line 2: field larger than field limit"),
        ("a.csv", "file,start,end,label\nx.wav,0,2,sad,happy\n", "line 2: 5 cells for the 4 columns"),
        ("a.csv", "file,start,end,label,Start\nx.wav,0,2,sad,1\n", "has the column 'start' twice"),
        ("a.rttm", "SPEAKER a.wav 1 0\n", "line 1"),
        ("a.rttm", "SPEAKER a.wav 1 0 x <NA> <NA> sad\n", "line 1"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_segments(tmp_path / name)


def write(folder, lines):
    path = folder / "true.csv"
    path.write_text("file,start,end,label\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_a_name_matches_a_whole_path_first_and_the_end_of_a_path_next(tmp_path):
    files = ["/data/talks/a.wav", "/data/talks/b.wav", "https://host/talks/c.mp3?x=1", "a.wav", f"{tmp_path}/d.flac"]
    names = ["talks/a", "b", "https://host/talks/c.mp3?x=1", "a.wav", "d.flac"]
    found = read_references(write(tmp_path, [f"{name},0,1,sad" for name in names]), files, LABELS)
    assert {file: segments[0].line for file, segments in found.items()} == dict(zip(files, range(2, 7), strict=True))
    paths = [f"{tmp_path}/a.wav", f"{tmp_path}/x/a.wav"]
    found = read_references(write(tmp_path, ["x/a.wav,0,1,sad", "a.wav,1,2,happy"]), paths, LABELS)
    assert found == {paths[1]: [Segment(0, 1, "sad", 2)], paths[0]: [Segment(1, 2, "happy", 3)]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.wav,0,1,sad", "b.wav,0,1,bored"], "line 3: the model has no label 'bored'; it has happy, sad. Rename it"),
        (["a.wav,0,1,sad", "x/b.wav,3,4,sad", "c.wav,0,1,sad"], "line 4: 'c.wav' is not a recording of the command"),
        (["a.wav,0,1,silence", "z.wav,1,2,silence"], "line 3: 'z.wav' is not a recording of the command"),
        (["a.wav,0,1,sad", "b.wav,0,1,sad"], "line 3: 'b.wav' may be x/b.wav or y/b.wav; give more of its path"),
        (["a.wav,0,1,sad", "x/b.wav,0,1,sad"], "has no line for y/b.wav: add its segments .* or leave the recording"),
        (
            ["x/b.wav,0,2,sad", "a.wav,0,1,sad", "a,0.5,2,happy", "y/b.wav,0,1,sad"],
            "a.wav: the segments of lines 3 and 4 .* overlap",
        ),
    ],
)
def test_lines_without_a_matching_recording_or_label_are_named(tmp_path, lines, message):
    path = write(tmp_path, lines)
    with pytest.raises(DataError, match=message) as refused:
        read_references(path, ["a.wav", "x/b.wav", "y/b.wav"], LABELS)
    assert str(path) in str(refused.value)


def test_scores_stop_at_the_end_of_a_recording(tmp_path):
    lines = ["a.wav,0,1,sad", "a.wav,1,3.04,happy", "b.wav,0,2,silence", "late.wav,0,1,sad"]
    path = write(tmp_path, lines)
    references = read_references(path, ["a.wav", "b.wav", "late.wav"], LABELS)
    predictions = {"b.wav": ([Segment(0, 1, "sad")], 2.0), "a.wav": ([Segment(0, 3, "sad")], 3.0)}
    scores = reference_scores(references, predictions, path)
    assert list(scores) == ["a.wav", "b.wav"]  # late.wav has no predictions
    assert (scores["a.wav"]["total"], scores["a.wav"]["right"], scores["a.wav"]["confused"]) == (3, 1, 2)
    assert (scores["b.wav"]["false"], scores["b.wav"]["EDER"]) == (1, 0.5)
    assert format_scores(scores["a.wav"]) == (
        "EDER 0.667 (missed 0.000, false 0.000, confused 0.667), time labelled right 0.333, segment F1 0.000"
    )
    with pytest.raises(DataError, match="line 3: the segment ends at 3.04 s, but a.wav at 2.98 s. Correct its times"):
        reference_scores(references, {"a.wav": ([], 2.98)}, path)
