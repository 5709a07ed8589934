"""Reads reference segments of recordings, and scores predictions along a recording against them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_maxmvit import ROUNDING_S, SILENCE
from ser.data.tables import FILE_COLUMNS, read_list
from ser.utils import DataError

# ---- Scores of segments ----
# A segment is an emotion with its start and end; elsewhere, and in segments labelled "silence", there is no emotion.
# The emotion diarization error rate and its parts are those of Wang et al. (2023), "Speech Emotion Diarization: Which
# Emotion Appears When?", https://arxiv.org/abs/2306.12991, for any number of segments and whole label names:
#
# EDER = (missed + false + confused) / total time
#
# missed: emotion in the reference, none predicted; false: the other way round; confused: two different emotions.

MIN_IOU = 0.5  # minimum intersection over union for a segment to count as found


class Segment(NamedTuple):
    """An emotion, `label`, from `start` to `end` in seconds, and the line of the file it was read from, if any."""

    start: float
    end: float
    label: str
    line: int | None = None


def timeline_segments(rows: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """
    Returns the segments of a pipeline's timeline. Each window labels the time that is nearer to its middle than to
    that of any other, and neighbours with one label become one segment. Silence and empty segments are left out.

    Args:
        rows: `[{"start", "end", "label", ...}, ...]` in the order of their starts, as the pipeline returns them.
    """
    if not rows:
        return []
    middles = [(row["start"] + row["end"]) / 2 for row in rows]
    edges = [rows[0]["start"], *((a + b) / 2 for a, b in pairwise(middles)), rows[-1]["end"]]
    segments: list[Segment] = []
    for (start, end), row in zip(pairwise(edges), rows, strict=True):
        if segments and segments[-1].label == row["label"]:
            start = segments.pop().start
        segments.append(Segment(start, end, row["label"]))
    return [segment for segment in segments if segment.label != SILENCE and segment.start < segment.end]


def diarization_scores(
    reference: Iterable[Segment], predicted: Iterable[Segment], duration: float | None = None
) -> dict[str, float]:
    """
    Computes the scores of one recording.

    Args:
        reference: Segments that do not overlap, in any order.
        predicted: Segments of the model, likewise; see [`timeline_segments`].
        duration: Length of the recording in seconds; by default the end of the last segment.

    Returns:
        Seconds `total`, `missed`, `false`, `confused` and `right` (emotional time with the right label);
        `emotional`, the reference's emotional time; counts `reference_segments`, `answer_segments` and
        `found_segments`; and the rates computed from them, see [`rates`].

    Raises:
        ValueError: Segments overlap, end before they start or lie outside the recording.
    """
    sides = [
        [segment for segment in in_order(name, segments) if segment.label != SILENCE]
        for name, segments in (("reference", reference), ("prediction", predicted))
    ]
    last = max((segment.end for side in sides for segment in side), default=0.0)
    duration = last if duration is None else duration
    if last > duration + 1e-6:
        raise ValueError(f"A segment ends at {last:g} s, after the recording's end at {duration:g} s.")
    edges = sorted({0.0, duration, *(edge for side in sides for segment in side for edge in segment[:2])})
    seconds = dict.fromkeys(("missed", "false", "confused", "right"), 0.0)
    for start, end in pairwise(edges):
        true, named = (_label_at(side, (start + end) / 2) for side in sides)
        if true is not None or named is not None:
            kind = "false" if true is None else "missed" if named is None else "right"
            seconds["confused" if kind == "right" and true != named else kind] += end - start
    scores = {
        "total": duration,
        **seconds,
        "emotional": sum(segment.end - segment.start for segment in sides[0]),
        "reference_segments": len(sides[0]),
        "answer_segments": len(sides[1]),
        "found_segments": _found(*sides),
    }
    return scores | rates(scores)


def pooled_scores(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the scores of several recordings as if they were one: rates of their summed times and counts."""
    scores = list(scores)
    summed = {name: sum(each[name] for each in scores) for name in scores[0] if name not in RATES}
    return summed | rates(summed)


RATES = ("EDER", "time_right", "segment_F1")


def rates(scores: Mapping[str, float]) -> dict[str, float]:
    """
    Returns `EDER`; `time_right`, the share of the reference's emotional time with the right label; and `segment_F1`,
    twice the number of segments found (matched once to one of the same label with an intersection over union of at
    least 0.5) over the number of segments of both sides. A rate whose denominator is 0 is 0.
    """
    both = scores["reference_segments"] + scores["answer_segments"]
    wrong = scores["missed"] + scores["false"] + scores["confused"]
    return {
        "EDER": wrong / scores["total"] if scores["total"] else 0.0,
        "time_right": scores["right"] / scores["emotional"] if scores["emotional"] else 0.0,
        "segment_F1": 2 * scores["found_segments"] / both if both else 0.0,
    }


def in_order(name: str, segments: Iterable[Segment]) -> list[Segment]:
    """
    Sorts segments by time, and checks that no two overlap.

    Raises:
        ValueError: Two overlap, or one does not have 0 <= start < end; the message starts with `name`.
    """
    ordered = sorted(segments)
    for segment in ordered:
        if not 0 <= segment.start < segment.end:
            raise ValueError(
                f"{name}: a segment goes from {segment.start:g} to {segment.end:g} s; 0 <= start < end is needed."
            )
    for before, after in pairwise(ordered):
        if after.start < before.end - 1e-6:
            lines = "" if after.line is None else f" of lines {before.line} and {after.line}"
            raise ValueError(
                f"{name}: the segments{lines} at {before.start:g} s ({before.label}) and {after.start:g} s "
                f"({after.label}) overlap; one emotion at a time is scored."
            )
    return ordered


def _label_at(segments: Sequence[Segment], time: float) -> str | None:
    return next((segment.label for segment in segments if segment.start <= time < segment.end), None)


def _found(reference: Sequence[Segment], predicted: Sequence[Segment]) -> int:
    left, found = list(predicted), 0
    for segment in reference:
        match = next(
            (other for other in left if other.label == segment.label and _iou(segment, other) >= MIN_IOU), None
        )
        if match is not None:
            left.remove(match)
            found += 1
    return found


def _iou(one: Segment, other: Segment) -> float:
    shared = min(one.end, other.end) - max(one.start, other.start)
    return max(0.0, shared) / (max(one.end, other.end) - min(one.start, other.start))


# ---- Reference segments ----


def read_segments(path: str | Path) -> dict[str, list[Segment]]:
    """
    Reads reference segments by file, in the order of time, from a list (.csv, .tsv or .jsonl) with the columns
    `file,start,end,label` (seconds) or an RTTM file (`SPEAKER file channel start duration <NA> <NA> label ...`).
    Overlapping segments are refused.

    Raises:
        DataError: A line cannot be used; the message names it and the reason.
    """
    path = Path(path)
    rows = rttm_rows(path) if path.suffix.lower() == ".rttm" else _listed_rows(path)
    segments: dict[str, list[Segment]] = {}
    for line, row in rows:
        try:
            file, start, end, label = row["file"], float(row["start"]), float(row["end"]), row["label"].strip()
            if not (file and label and 0 <= start < end < float("inf")):
                raise ValueError("a file, a label and 0 <= start < end are needed")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {line}: not a segment with file, start, end and label ({error})."
            ) from error
        segments.setdefault(file, []).append(Segment(start, end, label, line))
    if not segments:
        raise DataError(f"{path} holds no segments.")
    return _ordered(segments, path)


def _listed_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    table = read_list(path, [*FILE_COLUMNS, "start", "end", "label"])
    file_column = table.file_column()
    table.require("start", "end", "label")
    return [(line, row | {"file": row[file_column]}) for line, row in table.rows]


RTTM_FIELDS = (
    *("type", "file", "channel", "start", "duration", "orthography", "subtype", "label", "confidence", "lookahead"),
    "superfluous",
)


def rttm_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns the number and the fields of each line of an RTTM file, with its `end` if it has a duration."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        fields = [field for field in re.split(r"[ \t\r]+", content) if field]  # names may contain other kinds of space
        if fields and not content.startswith(";"):
            row: dict[str, Any] = dict(zip(RTTM_FIELDS, fields, strict=False))
            if "duration" in row:
                row["end"] = _sum(row["start"], row["duration"])
            rows.append((line, row))
    return rows


def _sum(start: str, duration: str) -> float:
    try:
        return float("nan") if "_" in start + duration else float(start) + float(duration)  # float reads 1_0 as 10
    except ValueError:
        return float("nan")


def _ordered(segments: Mapping[str, list[Segment]], path: Path) -> dict[str, list[Segment]]:
    try:
        return {file: in_order(file, found) for file, found in segments.items()}
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def read_references(path: str | Path, files: Sequence[str], label_names: Sequence[str]) -> dict[str, list[Segment]]:
    """
    Reads the reference segments of recordings, by recording.

    A name denotes the recording with that path or URL, relative to the working directory or to the folder of `path`;
    otherwise the recording whose path ends in it, with or without its suffix: `talks/a.wav`, `a.wav` and, as in RTTM,
    `a` for `/data/talks/a.wav`. A recording without emotion has one segment, labelled "silence".

    Args:
        path: A file for [`read_segments`].
        files: The recordings: paths and URLs.
        label_names: The labels of the model.

    Raises:
        DataError: A line cannot be used, has a label that the model does not have, or a name that denotes none or
            several of the recordings; or a recording has no line. The message names the line or the recording.
    """
    path = Path(path)
    named = read_segments(path)
    recordings = RecordingNames(files)
    found: dict[str, list[Segment]] = {}
    for name, segments in named.items():
        for segment in segments:
            if segment.label not in (*label_names, SILENCE):
                raise DataError(
                    f"{path}, line {segment.line}: the model has no label {segment.label!r}; it has "
                    f"{', '.join(label_names)}. Rename it, or remove the line ({SILENCE!r} stands for no emotion)."
                )
        candidates = recordings.denoted(name, path.parent)
        line = min(segment.line or 0 for segment in segments)
        if not candidates:
            raise DataError(f"{path}, line {line}: {name!r} is not a recording of the command; add it, or "
                            "remove its lines.")  # fmt: skip
        if len(candidates) > 1:
            raise DataError(f"{path}, line {line}: {name!r} may be {candidates[0]} or {candidates[1]}; give more of "
                            "its path.")  # fmt: skip
        found.setdefault(candidates[0], []).extend(segments)
    if without := [file for file in files if file not in found]:
        raise DataError(
            f"{path} has no line for {without[0]}: add its segments (one of {SILENCE!r} over all of it if it holds no "
            "emotion), or leave the recording out."
        )
    return _ordered(found, path)


class RecordingNames:
    """The names by which a file may refer to recordings; see [`read_references`]."""

    def __init__(self, files: Sequence[str]):
        self.whole = {Path(file).parts: file for file in files}
        self.ends: dict[tuple[str, ...], list[str]] = {}
        for file in files:
            for end in _ends(file):
                self.ends.setdefault(end, []).append(file)

    def denoted(self, name: str, folder: Path) -> list[str]:
        """Returns the recordings that a name in a file of `folder` may denote: one, none or several."""
        exact = self.whole.get(Path(name).parts) or self.whole.get((folder / name).parts)
        return [exact] if exact else self.ends.get(Path(name).parts, [])


def _ends(file: str) -> set[tuple[str, ...]]:
    """Returns all ends of a path, part by part, with and without its suffix."""
    parts = Path(file).parts
    places = range(len(parts))
    return {parts[i:] for i in places} | {(*parts[i:-1], Path(file).stem) for i in places}


def reference_scores(
    references: Mapping[str, list[Segment]], predictions: Mapping[str, tuple[list[Segment], float]], path: str | Path
) -> dict[str, dict[str, float]]:
    """
    Returns the scores of every recording with predictions, see [`diarization_scores`], in the order of the references.

    Args:
        references: From [`read_references`].
        predictions: The model's segments by recording, and the end of each recording in seconds.
        path: File of the references, for messages.

    Raises:
        DataError: A segment ends more than 0.05 s after its recording; the message names the line.
    """
    scores = {}
    for file, segments in references.items():
        if file not in predictions:
            continue
        predicted, end = predictions[file]
        for segment in segments:
            if segment.end > end + ROUNDING_S:
                raise DataError(
                    f"{path}, line {segment.line}: the segment ends at {segment.end:g} s, but {file} at {end:g} s. "
                    "Correct its times, or the name of its recording."
                )
        reference = [each._replace(end=min(each.end, end)) for each in segments if each.start < end]
        scores[file] = diarization_scores(reference, predicted, end)
    return scores


def format_scores(scores: Mapping[str, float]) -> str:
    """Formats scores as one line; missed, false and confused are shares of time that add up to the EDER."""
    total = scores["total"] or 1.0
    parts = ", ".join(f"{name} {scores[name] / total:.3f}" for name in ("missed", "false", "confused"))
    return (
        f"EDER {scores['EDER']:.3f} ({parts}), time labelled right {scores['time_right']:.3f}, "
        f"segment F1 {scores['segment_F1']:.3f}"
    )
