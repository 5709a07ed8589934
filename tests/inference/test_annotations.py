"""Predictions are written as annotation files, read by the libraries of each format, and summed up by speaker."""

import random
from itertools import pairwise

import parselmouth
import pympi
import pysubs2
import pytest
from praatio import textgrid

from ser.inference.annotations import (
    Annotation,
    annotation_paths,
    annotations_of,
    format_totals,
    identity,
    speaker_totals,
    tiers_of,
    write_annotations,
)
from ser.inference.given_segments import read_segment_file
from ser.inference.references import read_segments
from ser.utils import UsageError

LABELS = ["happy", "sad"]


def window(start, end, label, score, **more):
    scores = {"happy": "", "sad": ""}
    if label != "silence":
        best = label if label in LABELS else "happy"
        scores = {name: score if name == best else 1 - score for name in LABELS}
    return {"start": start, "end": end, "prediction": label, **scores, **more}


WINDOWS = [
    window(0, 2, "happy", 0.9), window(1, 3, "happy", 0.7), window(2, 4, "sad", 0.8), window(3, 5, "silence", 0),
    window(4, 6, "uncertain", 0.55), window(4.5, 6.5, "happy", 0.6),
]  # fmt: skip
MERGED = [
    Annotation(0, 2.5, "happy", pytest.approx(0.8)), Annotation(2.5, 3.5, "sad", 0.8),
    Annotation(4.5, 5.25, "uncertain", 0.55), Annotation(5.25, 6.5, "happy", 0.6),
]  # fmt: skip
TURNS = [
    window(0.5, 2.25, "happy", 0.9, segment=1, speaker="anna", text='well <then> "x" --> & {y}'),
    window(2, 4, "sad", 0.75, segment=2, speaker="ben", text=""),
    window(3, 3.5, "happy", 0.6, segment=3, speaker="ben", text="ja, größer"),
    window(4, 4.2, "too short", 0.6, segment=4, speaker="anna", text=""),
    window(4.5, 5.5, "silence", 0, segment=5, speaker="", text="(pause)"),
]


@pytest.mark.parametrize("as_text", [False, True])
def test_windows_with_one_label_become_one_annotation(as_text):
    rows = [{name: str(value) for name, value in row.items()} for row in WINDOWS] if as_text else WINDOWS
    assert annotations_of(rows, LABELS) == MERGED


def test_segments_are_not_merged():
    found = annotations_of(TURNS, LABELS)
    assert [(each.start, each.end, each.label, each.speaker) for each in found] == [
        (row["start"], row["end"], row["prediction"], row["speaker"]) for row in TURNS
    ]
    split = [window(0, 2, "sad", 0.9, segment=1), window(1, 3, "happy", 0.6, segment=1), window(5, 6, "happy", 0.6,
             segment=2)]  # fmt: skip
    assert [each[:3] for each in annotations_of(split, LABELS)] == [
        (0, 1.5, "sad"),
        (1.5, 3, "happy"),
        (5, 6, "happy"),
    ]


def test_tiers_are_by_speaker_and_never_overlap():
    tiers = {tier.name: tier for tier in tiers_of(annotations_of(TURNS, LABELS))}
    assert [interval[2] for interval in tiers["emotion ben"].intervals] == ["sad"]
    assert [interval[2] for interval in tiers["emotion ben (2)"].intervals] == ["happy"]
    assert tiers["score anna"].intervals[0] == (0.5, 2.25, "0.900")
    assert "text ben" not in tiers and tiers["text ben (2)"].intervals[0][2] == "ja, größer"
    rng = random.Random(0)
    for _ in range(50):
        starts = sorted(rng.random() for _ in range(rng.randrange(12)))
        some = [Annotation(at, at + rng.random(), "sad", 0.5, rng.choice(["", "a", "a (2)"])) for at in starts]
        found = tiers_of(some)
        assert sum(len(tier.intervals) for tier in found if tier.name.startswith("emotion")) == len(some)
        assert all(one[1] <= other[0] for tier in found for one, other in pairwise(tier.intervals))


def test_a_textgrid_is_read_by_praat_and_by_praatio(tmp_path):
    write_annotations(tmp_path / "a.TextGrid", "a.wav", annotations_of(TURNS, LABELS))
    grid = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=False)
    assert [tuple(entry) for entry in grid.getTier("emotion anna").entries] == [
        (0.5, 2.25, "happy"), (4, 4.2, "too short")
    ]  # fmt: skip
    praat = parselmouth.Data.read(str(tmp_path / "a.TextGrid"))
    names = [parselmouth.praat.call(praat, "Get tier name", number + 1) for number in range(len(grid.tierNames))]
    assert names == list(grid.tierNames)
    tier = names.index("text anna") + 1
    assert parselmouth.praat.call(praat, "Get label of interval", tier, 2) == 'well <then> "x" --> & {y}'
    assert parselmouth.praat.call(praat, "Get end time of interval", tier, 2) == 2.25
    assert parselmouth.praat.call(praat, "Get end time") == 5.5
    own = read_segment_file(tmp_path / "a.TextGrid", ["emotion ben"])
    assert [(each["start"], each["end"], each["text"]) for each in own] == [(2, 4, "sad")]


def test_windows_in_a_textgrid_have_a_tier_of_scores(tmp_path):
    write_annotations(tmp_path / "a.textgrid", "a.wav", annotations_of(WINDOWS, LABELS))
    grid = parselmouth.Data.read(str(tmp_path / "a.textgrid"))
    for tier, texts in (
        (1, ["happy", "sad", "", "uncertain", "happy"]),
        (2, ["0.800", "0.800", "", "0.550", "0.600"]),
    ):
        count = parselmouth.praat.call(grid, "Get number of intervals", tier)
        assert [parselmouth.praat.call(grid, "Get label of interval", tier, i + 1) for i in range(count)] == texts


def test_an_elan_file_is_read_by_pympi(tmp_path):
    write_annotations(tmp_path / "a.eaf", str(tmp_path / "a.wav"), annotations_of(TURNS, LABELS))
    document = pympi.Eaf(str(tmp_path / "a.eaf"))
    assert sorted(document.get_annotation_data_for_tier("emotion anna")) == [
        (500, 2250, "happy"), (4000, 4200, "too short")
    ]  # fmt: skip
    assert document.get_annotation_data_for_tier("score ben") == [(2000, 4000, "0.750")]
    assert document.get_parameters_for_tier("text ben (2)")["PARTICIPANT"] == "ben"
    assert document.get_annotation_data_for_tier("text anna")[0][2] == 'well <then> "x" --> & {y}'
    (own,) = read_segment_file(tmp_path / "a.eaf", ["emotion ben (2)"])
    assert (own["start"], own["end"], own["speaker"], own["text"]) == (3, 3.5, "ben", "happy")


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_subtitles_are_read_by_pysubs2(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_annotations(path, "a.wav", annotations_of(TURNS, LABELS))
    events = pysubs2.load(str(path), keep_html_tags=True)
    assert [(event.start, event.end) for event in events] == [
        (500, 2250), (2000, 4000), (3000, 3500), (4000, 4200), (4500, 5500)
    ]  # fmt: skip
    texts = [each.get("text") for each in read_segment_file(path)]
    assert texts[1:] == ["ben: sad", "ben: [happy] ja, größer", "anna: too short", "[silence] (pause)"]
    if suffix == ".vtt":  # SRT has no escapes: text that looks like a tag is read as a tag
        assert texts[0] == 'anna: [happy] well <then> "x" -> & {y}'


def test_rttm_can_be_read_as_reference_segments(tmp_path):
    write_annotations(tmp_path / "a.rttm", "/x/my talk.wav", annotations_of(WINDOWS, LABELS))
    (found,) = read_segments(tmp_path / "a.rttm").items()
    assert found[0] == "my_talk" and [each[:3] for each in found[1]] == [each[:3] for each in MERGED]
    assert "happy 0.600 <NA>" in (tmp_path / "a.rttm").read_text()


@pytest.mark.parametrize(("rows", "count"), [(WINDOWS, 4), (TURNS, 5), ([window(0, 1, "silence", 0)], 0)])
def test_labels_of_audacity_and_files_without_annotations(tmp_path, rows, count):
    for suffix in (".txt", ".TextGrid", ".eaf", ".srt", ".vtt", ".rttm"):
        write_annotations(tmp_path / f"a{suffix}", "a.wav", annotations_of(rows, LABELS))
    found = read_segment_file(tmp_path / "a.txt")
    assert len(found) == count
    assert [(each["start"], each["end"]) for each in found] == [each[:2] for each in annotations_of(rows, LABELS)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"a{s}" for s in (
        ".txt", ".TextGrid", ".eaf", ".srt", ".vtt", ".rttm"))  # fmt: skip


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match="a.srt cannot be written: No such file"):
        write_annotations(tmp_path / "none" / "a.srt", "a.wav", MERGED[1:2])


def test_each_recording_has_its_own_file():
    files = ["/x/a/1.wav", "/x/b/1.wav", "/x/b/2.wav", "/x/b/2.mp3", "https://y/z/3.ogg"]
    found = annotation_paths("out", files, [".textgrid", ".srt"])
    assert [str(found[file][1]) for file in files] == [
        "out/a/1.srt", "out/b/1.srt", "out/b/2.wav.srt", "out/b/2.mp3.srt", "out/3.srt"
    ]  # fmt: skip
    assert str(found[files[0]][0]) == "out/a/1.TextGrid"
    assert list(map(str, annotation_paths("out", ["/x/a/1.wav"], [".srt"])["/x/a/1.wav"])) == ["out/1.srt"]


def test_numbered_speakers_are_of_one_recording_and_named_ones_of_all():
    assert identity("/x/a.wav", "SPEAKER_00") == "SPEAKER_00 (a.wav)" != identity("/x/b.wav", "SPEAKER_00")
    assert identity("/x/a.wav", "spk1") == "spk1 (a.wav)"
    assert identity("/x/a.wav", "anna") == identity("/x/b.wav", "anna") == "anna"
    assert identity("/x/a.wav", None) == identity("/x/a.wav", "") == ""


def test_totals_are_weighted_by_time():
    rows = [
        window(0, 3, "happy", 0.9, segment=1, speaker="anna"), window(3, 4, "sad", 0.6, segment=2, speaker="anna"),
        window(4, 4.25, "too short", 0.6, segment=3, speaker="anna"), window(5, 8.75, "silence", 0, segment=4,
        speaker="anna"), window(0, 2, "sad", 0.7, segment=5, speaker=""), window(1, 3, "happy", 0.7, segment=5,
        speaker=""),
    ]  # fmt: skip
    anna, unnamed = speaker_totals({"a.wav": rows}, LABELS)
    assert (anna["speaker"], anna["segments"], anna["seconds"]) == ("anna", 4, 8)
    assert (anna["happy_time"], anna["sad_time"], anna["other_time"]) == (3 / 8, 1 / 8, 4 / 8)
    assert anna["happy_score"] == pytest.approx((3 * 0.9 + 1 * 0.4) / 4, abs=1e-6)
    assert (unnamed["speaker"], unnamed["segments"], unnamed["seconds"], unnamed["happy_time"]) == ("", 1, 3, 0.5)
    assert format_totals([anna, unnamed], LABELS).splitlines() == [
        "speaker  segments  seconds  happy        sad          other",
        "anna     4         8.0      0.38 (0.78)  0.12 (0.23)  0.50",
        "(none)   1         3.0      0.50 (0.50)  0.50 (0.50)  0.00",
    ]
