"""
Reads the segments of recordings that are to be classified, such as speaker turns or subtitles.

Every segment is a dict for the pipeline's `segments`: `start` and `end` in seconds, `speaker` and `text` if the file
has them, and `place`, which names its line in error messages.

praatio reads TextGrids. The other formats are read here, since pysubs2 skips lines that it does not understand, and
pympi raises no specific exception for a damaged file.
"""

import html
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ser.data.tables import FILE_COLUMNS, read_list
from ser.inference.references import RecordingNames, rttm_rows
from ser.utils import DataError, UsageError

GivenSegment = dict[str, Any]
SEGMENT_TEXTS = ("speaker", "text")  # optional columns, which tables of predictions repeat
SEGMENT_COLUMNS = ("start", "end", *SEGMENT_TEXTS)
LIBRARIES = {".textgrid": "praatio", ".eaf": "pympi", ".srt": "pysubs2", ".vtt": "pysubs2"}
OTHER_RTTM_TYPES = {
    *("SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "SU", "IP", "CB"),
    *("A/P", "SPKR-INFO"),
}


def require_library(suffix: str) -> None:
    """Raises `UsageError` if the library for files of a format is not installed."""
    package = LIBRARIES[suffix]
    if importlib.util.find_spec(package) is None:
        raise UsageError(f'{suffix} files need {package}, which is not installed: pip install ".[annotations]".')


# ---- All recordings ----


def read_given_segments(
    source: str | Path, files: Sequence[str], tiers: Sequence[str] = ()
) -> dict[str, list[GivenSegment]]:
    """
    Returns the segments of recordings, by recording, in the order of their file. A recording whose file is well-formed
    but holds no segments is left out, with a line on the standard error.

    Args:
        source: A file, or a folder with one for each recording: the names without suffixes must be equal
            (`talk.wav`, `talk.srt` or `talk.wav.srt`), and if there are several such files, the one whose folders
            agree best is used. A file that names recordings (RTTM, or a list with a column `file`) names them as in
            [`read_references`]; a file that does not must be for a single recording.
        files: The recordings: paths and URLs.
        tiers: Names of the tiers to read from TextGrid and ELAN files; may be left out if there is only one.

    Raises:
        DataError: A segment cannot be used (the message names its line), or a recording has no file, no line, or
            several files.
        UsageError: The library for a format is not installed.
    """
    source = Path(source)
    places = {file: _file_for(file, source) if source.is_dir() else source for file in files}
    read: dict[Path, list[GivenSegment]] = {}
    names = RecordingNames(files)
    found = {}
    for file, path in places.items():
        if path not in read:
            read[path] = read_segment_file(path, tiers)
        segments = _segments_for(file, read[path], path, names, len(files) == 1 or source.is_dir())
        if segments:
            found[file] = segments
        else:
            print(f"{path} holds no segments: {file} is left out.", file=sys.stderr)
    if not found:
        raise DataError(f"{source} holds no segments.")
    return found


def _segments_for(
    file: str, segments: list[GivenSegment], path: Path, names: RecordingNames, is_own: bool
) -> list[GivenSegment]:
    """Returns the segments of one recording from a file. `is_own`: the file may be for this recording alone."""
    named = dict.fromkeys(each["file"] for each in segments if each.get("file"))
    if segments and not named and not is_own:
        raise DataError(
            f"{path} does not name recordings, and there are several: give a folder with one file for each, or a list "
            "with a column 'file'."
        )
    own = {name for name in named if file in names.denoted(name, path.parent)}
    if named and not own:
        if not (is_own and len(named) == 1 and Path(file).stem == path.name.split(".")[0]):
            raise DataError(
                f"{path} has no segments for {file}; it has some for {next(iter(named))}"
                f"{' and others' if len(named) > 1 else ''}. Add them, or leave the recording out."
            )
        own = {*named}
    for name in own:
        if len(others := names.denoted(name, path.parent)) > 1:
            raise DataError(f"{path}: {name!r} may be {others[0]} or {others[1]}; give more of its path.")
    kept = [each for each in segments if not named or each.get("file") in own]
    return [{name: value for name, value in each.items() if name != "file"} for each in kept]


def _file_for(file: str, folder: Path) -> Path:
    """Returns the file in a folder that has the name of a recording."""
    parts = Path(file).with_suffix("").parts
    best: list[Path] = []
    depth = 0
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in READERS or path.is_dir():
            continue
        names = [path.relative_to(folder).with_suffix("")]
        if names[0].name == Path(file).name:  # talk.wav.srt
            names.append(names[0].with_suffix(""))
        common = max(_common_end(parts, name.parts) for name in names)
        if common and common >= depth:
            best = [path] if common > depth else [*best, path]
            depth = common
    if not best:
        raise DataError(
            f"{folder} has no file for {file}: expected {Path(file).stem} with one of {', '.join(READERS)}."
        )
    if len(best) > 1:
        raise DataError(f"{folder} has several files for {file}: {best[0]} and {best[1]}. Leave one of them.")
    return best[0]


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-count - 1] == other[-count - 1]:
        count += 1
    return count


# ---- One file ----


def read_segment_file(path: str | Path, tiers: Sequence[str] = ()) -> list[GivenSegment]:
    """
    Reads one file, by its suffix: .rttm; .csv, .tsv or .jsonl (`start,end[,speaker][,text][,file]`); .srt, .vtt;
    .TextGrid, .eaf (ELAN); .json of whisper, whisperX, pyannote or transformers; .txt (labels of Audacity).

    Returns:
        Segments, in the order of the file, with the key `file` if it names recordings.

    Raises:
        DataError: The file or a segment cannot be used; the message names the line, or what comes closest to it.
        UsageError: The library for the format is not installed.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a file of segments: its suffix must be one of {', '.join(READERS)}.")
    if tiers and reader not in (_read_textgrid, _read_eaf):
        raise DataError(f"{path} has no tiers: leave out --tiers.")
    segments = []
    for given in reader(path, tiers):
        place, start, end = given["place"], _seconds(given["start"]), _seconds(given["end"])
        if start is None or end is None or not 0 <= start <= end:
            raise DataError(
                f"{place}: not a segment: it goes from {given['start']!r} to {given['end']!r}, where seconds with "
                "0 <= start <= end are needed."
            )
        segment: GivenSegment = {"start": start, "end": end}
        for name in (*SEGMENT_TEXTS, "file"):
            if (value := given.get(name)) is not None and not isinstance(value, str | int):
                raise DataError(f"{place}: its {name} is {value!r}, which is not text.")
            value = "" if value is None else str(value)
            value = value if name == "file" else " ".join(value.split())
            if value:
                segment[name] = value
        segments.append(segment | {"place": place})
    return segments


NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)


def _seconds(value: Any) -> float | None:
    """Returns a time as a number, or None."""
    if isinstance(value, str):
        value = float(value) if NUMBER.fullmatch(value) else None  # float would read 1_0 as 10
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error


def _read_list(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    table = read_list(path, [*FILE_COLUMNS, *SEGMENT_COLUMNS])
    table.require("start", "end")
    named = next((name for name in FILE_COLUMNS if name in table.columns), None)
    for line, row in table.rows:
        place = f"{path}, line {line}"
        if named and not row[named]:
            raise DataError(f"{place} names no file: fill it in, or remove the column {named!r}.")
        given: GivenSegment = {name: row.get(name) for name in SEGMENT_COLUMNS}
        yield given | {"file": row[named] if named else None, "place": place}


def _read_rttm(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    for line, row in rttm_rows(path):
        place = f"{path}, line {line}"
        if row["type"] in OTHER_RTTM_TYPES:
            continue
        if row["type"] != "SPEAKER" or "confidence" not in row or "superfluous" in row:
            raise DataError(
                f"{place}: not a line 'SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>', whose fields "
                "hold no spaces."
            )
        speaker = None if row["label"] == "<NA>" else row["label"]
        yield {"start": row["start"], "end": row["end"], "speaker": speaker, "file": row["file"], "place": place}


def _read_audacity(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    for line, content in enumerate(_text_of(path).split("\n"), start=1):
        if not content.strip() or content.startswith("\\"):  # the line of a label's frequencies
            continue
        cells = content.rstrip("\r").split("\t")
        if not 2 <= len(cells) <= 3:
            raise DataError(f"{path}, line {line}: not a label of Audacity: start, end and label with tabs between.")
        text = cells[2] if len(cells) == 3 else ""
        yield {"start": cells[0], "end": cells[1], "text": text, "place": f"{path}, line {line}"}


CLOCK = r"(?:(\d{1,4}):)?([0-5]?\d):([0-5]\d)[.,](\d{3})"
CUE = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(\s.*)?")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<[\d:.]+>")
VOICE = re.compile(r"<v(?:\.[^\s>]+)?\s+([^>]+)>")
PREFIX = re.compile(r"\[(SPEAKER_\d+)\]: ")  # as whisperX writes it


def _read_subtitles(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    is_vtt = path.suffix.lower() == ".vtt"
    text = _text_of(path).replace("\r\n", "\n").replace("\r", "\n")
    if is_vtt and not re.match(r"WEBVTT(?:[ \t].*)?(?:\n|$)", text):
        raise DataError(f"{path}, line 1: a VTT file begins with WEBVTT.")
    for number, (line, block) in enumerate(_blocks(text)):
        is_header = number == 0 and not any("-->" in each for each in block)
        if is_vtt and (is_header or re.match(r"NOTE\b|STYLE\b|REGION\b", block[0])):
            continue
        at = next((index for index, each in enumerate(block[:2]) if "-->" in each), None)
        place = f"{path}, line {line + (at or 0)}"
        times = None if at is None else CUE.fullmatch(block[at])
        if times is None or any("-->" in each for each in block[(at or 0) + 1 :]):
            raise DataError(f"{place}: not a subtitle: its times must be on its first or second line, as "
                            "00:00:01,500 --> 00:00:03,000, and an empty line must follow its text.")  # fmt: skip
        groups = times.groups()
        content = "\n".join(block[(at or 0) + 1 :])
        voice, prefix = VOICE.search(content), PREFIX.match(content)
        speaker = voice.group(1) if voice else prefix.group(1) if prefix else None
        content = TAG.sub("", content.removeprefix(prefix.group(0)) if prefix else content)
        yield {
            "start": _clock_seconds(groups[:4]), "end": _clock_seconds(groups[4:8]), "speaker": speaker,
            "text": html.unescape(content) if is_vtt else content, "place": place,
        }  # fmt: skip


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the first line and the lines of parts of a text with empty lines between."""
    block: list[str] = []
    for line, content in enumerate([*text.split("\n"), ""], start=1):
        if content.strip():
            block.append(content)
        elif block:
            yield line - len(block), block
            block = []


def _clock_seconds(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds, thousandths = (int(group or 0) for group in groups)
    return round(3600 * hours + 60 * minutes + seconds + thousandths / 1000, 3)


def _read_json(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    try:
        content = json.loads(_text_of(path), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not JSON: {error}.") from error
    entries = _json_segments(content)
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list of segments as whisper, whisperX, pyannote or transformers write it.")
    for index, entry in enumerate(entries, start=1):
        place = f"{path}, segment {index}"
        times = entry.get("segment", entry) if isinstance(entry, dict) else None
        if isinstance(entry, dict) and isinstance(stamp := entry.get("timestamp"), list) and len(stamp) == 2:
            times = {"start": stamp[0], "end": stamp[1]}
        if not isinstance(times, dict) or not isinstance(entry, dict) or not {"start", "end"} <= times.keys():
            raise DataError(f"{place}: not a segment with start and end, but {entry!r:.80}.")
        if isinstance(times["start"], str) or isinstance(times["end"], str):
            raise DataError(f"{place}: start and end must be numbers of seconds, not text.")
        speaker = entry.get("label") if "segment" in entry else entry.get("speaker")
        yield {
            "start": times["start"], "end": times["end"], "speaker": speaker, "text": entry.get("text"),
            "place": place,
        }  # fmt: skip


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has a key twice, among {', '.join(name for name, _ in pairs)}")
    return found


def _json_segments(content: Any) -> Any:
    """Returns the list of segments: of whisper and whisperX, pyannote's API and pyannote.core, transformers."""
    while isinstance(content, dict):
        names = ("segments", "diarization", "output", "content", "chunks")
        content = next((content[name] for name in names if name in content), None)
    return content


# ---- Tiers ----


def _chosen(path: Path, names: Sequence[str], tiers: Sequence[str]) -> list[str]:
    """Returns the tiers to read, which must be given if there are several."""
    there = ", ".join(map(repr, names)) or "none"
    if missing := [tier for tier in tiers if tier not in names]:
        raise DataError(f"{path} has no tier {missing[0]!r} of intervals; it has {there}.")
    if len({*tiers} or {*names}) != 1 and not tiers:
        raise DataError(f"{path} has the tiers {there}: name one or several with --tiers.")
    return [name for name in names if name in (tiers or names)]


def _read_textgrid(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    require_library(".textgrid")
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    damaged = f"{path} is not a TextGrid, or is damaged ({{}}). Save it with Praat again."
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
        if text.count('"') % 2:  # praatio would continue at another place
            raise DataError(damaged.format("a double quote is missing"))
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
        kinds = {tier.name: tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (PraatioException, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(damaged.format(error)) from error
    chosen = _chosen(path, list(kinds), tiers)
    for name in chosen:
        end = float(kinds[name].minTimestamp)
        for index, interval in enumerate(kinds[name].entries, start=1):
            place = f"{path}, tier {name!r}, interval {index}"
            if abs(interval.start - end) > 1e-4:
                raise DataError(f"{place} begins at {interval.start:g} s, where {end:g} s is expected: the file is "
                                "damaged. Save it with Praat again.")  # fmt: skip
            end = interval.end
            if interval.label.strip():
                speaker = name if len(chosen) > 1 else None
                yield {"start": interval.start, "end": end, "speaker": speaker, "text": interval.label, "place": place}
        if abs(end - grid.maxTimestamp) > 1e-4:
            raise DataError(f"{path}, tier {name!r} ends at {end:g} s, and the TextGrid at {grid.maxTimestamp:g} s: "
                            "the file is damaged. Save it with Praat again.")  # fmt: skip


def _read_eaf(path: Path, tiers: Sequence[str]) -> Iterator[GivenSegment]:
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not an ELAN file, or is damaged ({error}). Save it with ELAN again.") from error
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    aligned = [tier for tier in root.iter("TIER") if tier.find(".//ALIGNABLE_ANNOTATION") is not None]
    chosen = _chosen(path, [tier.get("TIER_ID", "") for tier in aligned], tiers)
    for tier in aligned:
        name = tier.get("TIER_ID", "")
        if name not in chosen:
            continue
        for index, annotation in enumerate(tier.iter("ALIGNABLE_ANNOTATION"), start=1):
            place = f"{path}, tier {name!r}, annotation {index}"
            times = [slots.get(annotation.get(f"TIME_SLOT_REF{end}")) for end in (1, 2)]
            if not all(time and re.fullmatch(r"\d+", time) for time in times):
                raise DataError(f"{place} is not aligned with the time: a whole number of milliseconds is needed for "
                                "its start and end. Align it in ELAN.")  # fmt: skip
            start, end = (int(time or 0) / 1000 for time in times)
            speaker = tier.get("PARTICIPANT") or (name if len(chosen) > 1 else None)
            text = annotation.findtext("ANNOTATION_VALUE")
            yield {"start": start, "end": end, "speaker": speaker, "text": text, "place": place}


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[GivenSegment]]] = {
    ".csv": _read_list, ".tsv": _read_list, ".jsonl": _read_list, ".rttm": _read_rttm, ".srt": _read_subtitles,
    ".vtt": _read_subtitles, ".textgrid": _read_textgrid, ".eaf": _read_eaf, ".json": _read_json,
    ".txt": _read_audacity,
}  # fmt: skip
