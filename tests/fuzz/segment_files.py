"""Fuzz cases: segment files of every format, damaged, which are refused or read as the undamaged file."""

import random
import re
from pathlib import Path

from ser.inference.given_segments import read_given_segments
from ser.utils import DataError
from tests.fuzz.kinds import Case, refused
from tests.fuzz.mutations import broken
from tests.helpers.segments import FILES

NAMES = ("a.csv", "a.tsv", "a.jsonl", "a.rttm", "a.srt", "a.vtt", "a.json", "pyannote.json", "a.txt", "a.TextGrid",
         "short.TextGrid", "a.eaf")  # fmt: skip
TIERS = {".TextGrid": ["anna", "ben"], ".eaf": ["A-speech", "B-speech"]}
TIME = {  # matches each time, without its surroundings
    ".csv": r"(?<=\n)[\d.]+|(?<=,)[\d.]+(?=,)", ".tsv": r"(?<=\t)[\d.]+(?=\t)", ".jsonl": r"(?<=(?:rt|nd)\": )[\d.]+",
    ".rttm": r"(?<= )\d+\.\d+(?= )", ".srt": r"\d\d:\d\d:\d\d,\d{3}", ".vtt": r"\d\d:\d\d:\d\d\.\d{3}",
    ".json": r"(?<=(?:rt|nd)\": )[\d.]+", ".txt": r"\d+\.\d{6}",
    ".TextGrid": r"(?<= )[\d.]+(?= \n)|(?<=\n)[\d.]+(?=\n)", ".eaf": r"(?<=VALUE=\")\d+",
}  # fmt: skip
MARKS = {  # the marks that structure a format; one of them is removed
    ".csv": ",(?! )", ".tsv": "\t", ".jsonl": '[{}":]|,(?! never)',
    ".rttm": "SPEAKER|<NA> <NA> (?=anna|ben)|(?<= 1 )[^ ]+ ", ".srt": "-->|:", ".vtt": "WEBVTT|-->|:(?=\\d)",
    ".json": '[][{}":]|,(?! never)', ".txt": "\t(?=\\d)", ".TextGrid": '"', ".eaf": "[<>]",
}  # fmt: skip
NO_TIME = ("x", "", "nan", "-1", "inf", "1e999", "1_0", "--", "0x1")
# Any truncation of these formats is detected; of the others, not one between two lines.
CLOSED = (".json", ".TextGrid", ".eaf")
HARMLESS = ("none", "blank lines", "line ends", "byte order mark")
DEEDS = (*HARMLESS, "no time", "a mark lost", "a mark lost", "not UTF-8", "cut", "noise")


def make(rng: random.Random, name: str | None = None) -> Case:
    name = name or rng.choice(NAMES)
    suffix, deed = Path(name).suffix, rng.choice(DEEDS)
    text = FILES[name]
    if deed == "cut" and suffix not in CLOSED:
        deed = "no time"
    if deed in ("no time", "a mark lost"):
        places = list(re.finditer(TIME[suffix] if deed == "no time" else MARKS[suffix], text))
        place = rng.choice(places)
        text = text[: place.start()] + (rng.choice(NO_TIME) if deed == "no time" else "") + text[place.end() :]
    elif deed == "cut":
        text = text[: rng.randrange(len(text.rstrip()) - 1)]
    elif deed == "blank lines":
        text = text.rstrip("\r\n") + "\n\n\n"
    elif deed == "line ends" and suffix != ".TextGrid":
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    content = text.encode("utf-16" if name == "short.TextGrid" else "utf-8")
    if deed == "byte order mark" and not content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        content = b"\xef\xbb\xbf" + content
    elif deed == "not UTF-8":
        content += b"\xff"
    elif deed == "noise":
        content = broken(content, rng)
    return Case("segments", {f"talk{suffix}": content}, {"of": name, "deed": deed})


def run(case: Case, folder: Path) -> str:
    ((name, _),) = case.files.items()
    path, deed = folder / name, case.options["deed"]
    tiers = TIERS.get(path.suffix, [])
    try:
        (found,) = read_given_segments(path, ["talk.wav"], tiers).values()
    except DataError as error:
        assert deed not in HARMLESS, f"{deed}: {error}"
        return refused(error, [str(path)])
    assert all(0 <= each["start"] <= each["end"] < float("inf") for each in found)
    if deed != "noise":  # noise may change a digit or a word
        assert _times(found) == _expected(case.options["of"], folder), f"{deed}: {found}"
    return "accepted"


def _expected(name: str, folder: Path) -> list[tuple]:
    whole = folder / f"whole{Path(name).suffix}"
    whole.write_bytes(FILES[name].encode("utf-16" if name == "short.TextGrid" else "utf-8"))
    (found,) = read_given_segments(whole, ["whole.wav"], TIERS.get(whole.suffix, [])).values()
    return _times(found)


def _times(segments: list[dict]) -> list[tuple]:
    return [(each["start"], each["end"], each.get("speaker"), each.get("text")) for each in segments]
