"""Segments to classify are read from the files of annotation tools, speech recognizers and diarizers."""

import pytest

from ser.inference.given_segments import read_given_segments, read_segment_file, require_library
from ser.utils import DataError, UsageError
from tests.helpers.segments import FILES, SRT, TURNS


def write(folder, name: str, content: str | None = None):
    encoding = "utf-16" if name == "short.TextGrid" else "utf-8"
    (folder / name).write_bytes((FILES[name] if content is None else content).encode(encoding))
    return folder / name


def quadruples(segments):
    return [(each["start"], each["end"], each.get("speaker"), each.get("text")) for each in segments]


def expected(speakers: bool = True, texts: bool = True):
    return [(s, e, who if speakers else None, t if texts else None) for s, e, who, t in TURNS]


@pytest.mark.parametrize(
    ("name", "speakers", "texts"),
    [
        ("a.csv", True, True), ("a.tsv", True, True), ("a.jsonl", True, True), ("a.rttm", True, False),
        ("a.srt", False, True), ("a.vtt", True, True), ("a.json", True, True), ("pyannote.json", True, False),
        ("core.json", True, False), ("hf.json", False, True), ("list.json", False, False), ("a.txt", False, True),
    ],
)  # fmt: skip
def test_each_format_gives_the_same_segments(tmp_path, name, speakers, texts):
    assert quadruples(read_segment_file(write(tmp_path, name))) == expected(speakers, texts)


def test_speakers_and_entities_in_subtitles(tmp_path):
    first = quadruples(read_segment_file(write(tmp_path, "b.srt")))[0]
    assert first == (0.5, 2.25, "SPEAKER_00", "well then")
    assert quadruples(read_segment_file(write(tmp_path, "b.vtt"))) == [(0.5, 2.25, None, "well & then")]
    assert quadruples(read_segment_file(write(tmp_path, "api.json"))) == [(1, 2, "anna", None)]


@pytest.mark.parametrize("name", ["a.TextGrid", "short.TextGrid"])
def test_tiers_of_a_textgrid_are_chosen_by_name(tmp_path, name):
    path = write(tmp_path, name)
    anna = [(s, e, None, t) for s, e, who, t in TURNS if who == "anna"]
    assert quadruples(read_segment_file(path, ["anna"])) == anna
    both = sorted(quadruples(read_segment_file(path, ["ben", "anna"])))
    assert [each[:3] for each in both] == [each[:3] for each in expected()] and both[1][3] == 'no, "never"'
    with pytest.raises(DataError, match="has the tiers 'anna', 'ben': name one or several with --tiers"):
        read_segment_file(path)
    with pytest.raises(DataError, match="no tier 'clicks' of intervals; it has 'anna', 'ben'"):
        read_segment_file(path, ["clicks"])


def test_tiers_of_elan_have_participants(tmp_path):
    path = write(tmp_path, "a.eaf")
    assert sorted(quadruples(read_segment_file(path, ["A-speech", "B-speech"]))) == expected()
    assert quadruples(read_segment_file(path, ["B-speech"])) == [(2.0, 4.0, "ben", "no, never")]
    with pytest.raises(DataError, match="has the tiers 'A-speech', 'B-speech'"):
        read_segment_file(path)
    with pytest.raises(DataError, match="has no tiers: leave out --tiers"):
        read_segment_file(write(tmp_path, "a.csv"), ["x"])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("a.csv", "2.0,4.0", "4.0,2.0", "line 3: not a segment: it goes from '4.0' to '2.0'"),
        ("a.csv", "2.0,4.0", "nan,4.0", "line 3"),
        ("a.csv", "2.0,4.0", "-2.0,4.0", "line 3"),
        ("a.csv", "2.0,4.0,", "2.0,", "line 3: 3 cells for the 4 columns"),
        ("a.csv", "start,", "begin,", "no column 'start'"),
        ("a.rttm", "SPEAKER a 1 2.0", "SPEKER a 1 2.0", "line 4: not a line 'SPEAKER"),
        ("a.rttm", "2.0 2.0", "2.0 x", "line 4"),
        ("a.rttm", "SPEAKER a 1 2.0", "SPEAKER my talk 1 2.0", "line 4: .*fields hold no spaces"),
        ("a.csv", "2.0,4.0", "2.0,4_0", "line 3: not a segment"),
        ("a.rttm", " <NA> <NA> ben <NA> <NA>", "", "line 4"),
        ("a.srt", "00:00:02,000 -->", "00:00:02,000 ->", "line 5: not a subtitle"),
        ("a.srt", "00:00:04,000", "00:00:04", "line 6: not a subtitle"),
        ("a.srt", "00:00:04,000", "00:00:01,000", "line 6: not a segment: it goes from 2.0 to 1.0"),
        ("a.srt", "\r\n\r\n2\r\n", "\r\n2\r\n", "line 2: not a subtitle"),
        ("a.vtt", "WEBVTT", "VTT", "line 1: a VTT file begins with WEBVTT"),
        ("a.vtt", "00:00:02.000 -->", "00:00:02.0 -->", "line 12: not a subtitle"),
        ("a.json", '"end": 4.0', '"end": "4.0"', "segment 2: start and end must be numbers"),
        ("a.json", '"end": 4.0', '"end": NaN', "segment 2: not a segment"),
        ("a.json", '"end": 4.0', '"end": null', "segment 2: not a segment"),
        ("a.json", '"end": 4.0, ', "", "segment 2: not a segment with start and end"),
        ("a.json", '"end": 4.0', '"end": 4.0, "end": 9.0', "a key twice"),
        ("a.json", '"segments"', '"parts"', "has no list of segments"),
        ("a.json", "}", "", "is not JSON"),
        ("a.txt", "2.000000\t", "2.000000 ", "line 3: not a segment"),
        ("a.eaf", 'TIME_VALUE="4000"', "", "tier 'B-speech', annotation 1 is not aligned"),
        ("a.eaf", "</TIER>", "", "is not an ELAN file, or is damaged"),
        ("a.TextGrid", "xmin = 0.5 ", "xmin = 0.7 ", "tier 'anna', interval 2 begins at 0.7 s, where 0.5 s"),
        ("a.TextGrid", 'text = "why" ', "", "is not a TextGrid, or is damaged"),
        ("a.TextGrid", "xmin = 0.5 ", "xmin = half ", "is not a TextGrid, or is damaged"),
    ],
)  # fmt: skip
def test_invalid_entries_are_named_by_their_line(tmp_path, name, old, new, message):
    assert old in FILES[name]
    path = write(tmp_path, name, FILES[name].replace(old, new, 1 if old != "}" else 99))
    with pytest.raises(DataError, match=message) as error:
        read_segment_file(path, ["anna"] if "TextGrid" in name else ["B-speech"] if "eaf" in name else [])
    assert str(path) in str(error.value)


def test_files_are_found_for_recordings(tmp_path):
    turns = tmp_path / "turns"
    for name in ("deep/a.srt", "other/a.srt", "b.wav.srt", "c.vtt", "readme.md"):
        (turns / name).parent.mkdir(parents=True, exist_ok=True)
        (turns / name).write_text("WEBVTT\n" if name == "c.vtt" else SRT)
    talks = [str(tmp_path / name) for name in ("deep/a.wav", "b.wav", "c.flac")]
    found = read_given_segments(turns, talks)
    assert list(found) == talks[:2]  # c.vtt holds no segments
    assert found[talks[0]][0]["place"] == f"{turns / 'deep' / 'a.srt'}, line 2"
    with pytest.raises(DataError, match="has several files for .*deeper/a.wav"):
        read_given_segments(turns, [str(tmp_path / "deeper" / "a.wav")])
    with pytest.raises(DataError, match="has no file for d.wav: expected d with one of"):
        read_given_segments(turns, ["d.wav"])
    with pytest.raises(DataError, match="holds no segments"):
        read_given_segments(turns / "c.vtt", talks[2:])
    with pytest.raises(DataError, match="does not name recordings, and there are several"):
        read_given_segments(turns / "deep" / "a.srt", talks)


@pytest.mark.parametrize("name", ["all.csv", "all.rttm"])
def test_one_file_names_several_recordings(tmp_path, name):
    rows = [("talks/a.wav", 0, 1), ("b", 2, 3), ("talks/a.wav", 5, 6), ("elsewhere.wav", 0, 1)]
    if name == "all.csv":
        text = "file,start,end\n" + "".join(f"{file},{s},{e}\n" for file, s, e in rows)
    else:
        text = "".join(f"SPEAKER {file} 1 {s} {e - s} <NA> <NA> x <NA> <NA>\n" for file, s, e in rows)
    (tmp_path / name).write_text(text)
    talks = ["/data/talks/a.wav", "/data/talks/b.flac"]
    found = read_given_segments(tmp_path / name, talks)
    assert {file: [each["start"] for each in own] for file, own in found.items()} == {talks[0]: [0, 5], talks[1]: [2]}
    with pytest.raises(DataError, match="has no segments for /data/c.wav; it has some for talks/a.wav and others"):
        read_given_segments(tmp_path / name, ["/data/c.wav"])
    with pytest.raises(DataError, match="'b' may be /data/talks/b.flac or /data/b.wav; give more of its path"):
        read_given_segments(tmp_path / name, [*talks, "/data/b.wav"])


def test_an_rttm_of_one_recording_may_use_another_name(tmp_path):
    (tmp_path / "talk.rttm").write_text("SPEAKER waveform 1 0 1 <NA> <NA> x <NA> <NA>\n")
    assert len(read_given_segments(tmp_path / "talk.rttm", ["talk.wav"])["talk.wav"]) == 1
    assert len(read_given_segments(tmp_path, ["talk.wav"])["talk.wav"]) == 1
    with pytest.raises(DataError, match="has no segments for walk.wav"):
        read_given_segments(tmp_path / "talk.rttm", ["walk.wav"])


def test_a_missing_library_is_named(monkeypatch):
    require_library(".textgrid")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'.eaf files need pympi, .*: pip install ".\[annotations\]"'):
        require_library(".eaf")
