"""Reference segments of recordings: read, told which recording is theirs, and held against the answers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_maxmvit import SILENCE
from ser.diarization import Segment, diarization_scores, in_order
from ser.errors import DataError
from ser.tables import FILE_COLUMNS, read_list

ROUNDING_S = 0.05  # that a segment may end after its recording: annotations are rounded, and codecs pad


def read_segments(path: str | Path) -> dict[str, list[Segment]]:
    """
    Reference segments by file, in the order of time, from a list (.csv, .tsv or .jsonl) with the columns
    `file,start,end,label` (seconds) or an RTTM file (`SPEAKER file channel start duration <NA> <NA> label ...`).
    Overlapping segments are refused.

    Raises:
        DataError: names the line that cannot be used, and why.
    """
    path = Path(path)
    rows = _rttm_rows(path) if path.suffix.lower() == ".rttm" else _listed_rows(path)
    segments: dict[str, list[Segment]] = {}
    for line, row in rows:
        try:
            file, start, end, label = row["file"], float(row["start"]), float(row["end"]), row["label"].strip()
            if not (file and label and 0 <= start < end < float("inf")):
                raise ValueError("a file, a label and 0 <= start < end are needed")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, line {line}: no segment of file, start, end, label ({error}).") from error
        segments.setdefault(file, []).append(Segment(start, end, label, line))
    if not segments:
        raise DataError(f"{path} holds no segments.")
    return _ordered(segments, path)


def _listed_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    table = read_list(path, [*FILE_COLUMNS, "start", "end", "label"])
    file_column = table.file_column()
    table.require("start", "end", "label")
    return [(line, row | {"file": row[file_column]}) for line, row in table.rows]


def _rttm_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        fields = [field for field in re.split(r"[ \t\r]+", content) if field]  # other spaces may be in a name
        if fields and not content.startswith(";"):
            row: dict[str, Any] = dict(
                zip(("type", "file", "channel", "start", "duration", "_", "_", "label"), fields, strict=False)
            )
            if "duration" in row:
                row["end"] = _sum(row["start"], row["duration"])
            rows.append((line, row))
    return rows


def _sum(start: str, duration: str) -> float:
    try:
        return float(start) + float(duration)
    except ValueError:
        return float("nan")


def _ordered(segments: Mapping[str, list[Segment]], path: Path) -> dict[str, list[Segment]]:
    try:
        return {file: in_order(file, found) for file, found in segments.items()}
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def read_references(path: str | Path, files: Sequence[str], label_names: Sequence[str]) -> dict[str, list[Segment]]:
    """
    The reference segments of recordings, by recording.

    A name stands for the recording of that path or URL, from where the command runs or from the folder of `path`; or
    else for the one whose path ends in it, with or without its suffix: `talks/a.wav`, `a.wav` and, as RTTM has it, `a`
    for `/data/talks/a.wav`. A recording without emotion has one segment, labelled "silence".

    Args:
        path: A file for [`read_segments`].
        files: The recordings: paths and URLs.
        label_names: The labels of the model.

    Raises:
        DataError: names the line that cannot be used, or whose label the model does not have, or whose name stands for
            none or for several of the recordings; or the recording that no line is of.
    """
    path = Path(path)
    named = read_segments(path)
    whole = {Path(file).parts: file for file in files}
    ends: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        for end in _ends(file):
            ends.setdefault(end, []).append(file)
    found: dict[str, list[Segment]] = {}
    for name, segments in named.items():
        for segment in segments:
            if segment.label not in (*label_names, SILENCE):
                raise DataError(
                    f"{path}, line {segment.line}: the model has no label {segment.label!r}; it has "
                    f"{', '.join(label_names)}. Rename it, or remove the line ({SILENCE!r} is no emotion)."
                )
        exact = whole.get(Path(name).parts) or whole.get((path.parent / name).parts)
        candidates = [exact] if exact else ends.get(Path(name).parts, [])
        line = min(segment.line or 0 for segment in segments)
        if not candidates:
            raise DataError(f"{path}, line {line}: {name!r} is none of the recordings to be answered; name it too, or "
                            "remove its lines.")  # fmt: skip
        if len(candidates) > 1:
            raise DataError(f"{path}, line {line}: {name!r} may be {candidates[0]} or {candidates[1]}; write more of "
                            "its path.")  # fmt: skip
        found.setdefault(candidates[0], []).extend(segments)
    if without := [file for file in files if file not in found]:
        raise DataError(
            f"{path} has no line of {without[0]}: add its segments (one of {SILENCE!r} over all of it if it holds no "
            "emotion), or leave the recording out."
        )
    return _ordered(found, path)


def _ends(file: str) -> set[tuple[str, ...]]:
    """All ends of a path, part by part, with its suffix and without."""
    parts = Path(file).parts
    places = range(len(parts))
    return {parts[i:] for i in places} | {(*parts[i:-1], Path(file).stem) for i in places}


def reference_scores(
    references: Mapping[str, list[Segment]], answers: Mapping[str, tuple[list[Segment], float]], path: str | Path
) -> dict[str, dict[str, float]]:
    """
    The scores of every recording that is answered, see [`diarization_scores`], in the order of the references.

    Args:
        references: What [`read_references`] gave.
        answers: The model's segments by recording, and where each ends, in seconds.
        path: Of the file of the references, for messages.

    Raises:
        DataError: names the line of a segment that ends more than 0.05 s after its recording.
    """
    scores = {}
    for file, segments in references.items():
        if file not in answers:
            continue
        answer, end = answers[file]
        for segment in segments:
            if segment.end > end + ROUNDING_S:
                raise DataError(
                    f"{path}, line {segment.line}: the segment ends at {segment.end:g} s, and {file} at {end:g} s. "
                    "Correct its times, or the name of its recording."
                )
        reference = [each._replace(end=min(each.end, end)) for each in segments if each.start < end]
        scores[file] = diarization_scores(reference, answer, end)
    return scores


def in_words(scores: Mapping[str, float]) -> str:
    """Scores in a line; missed, false and confused as the shares of time that add up to the EDER."""
    total = scores["total"] or 1.0
    parts = ", ".join(f"{name} {scores[name] / total:.3f}" for name in ("missed", "false", "confused"))
    return (
        f"EDER {scores['EDER']:.3f} ({parts}), time named right {scores['time_right']:.3f}, "
        f"segment F1 {scores['segment_F1']:.3f}"
    )
