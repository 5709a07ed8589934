"""How well emotions along a recording agree with reference segments.

A segment is an emotion and the time it fills; where there is none, or one labelled "silence", there is no emotion.
The emotion diarization error rate and its parts are those of Wang et al. (2023), "Speech Emotion Diarization: Which
Emotion Appears When?", https://arxiv.org/abs/2306.12991, for any number of segments and whole label names:

    EDER = (missed + false + confused) / total time

missed: emotion in the reference, none in the answer; false: the other way round; confused: two different emotions.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline_maxmvit import SILENCE

LEAST_IOU = 0.5  # a segment is found if one of its label shares this much of their union with it


class Segment(NamedTuple):
    """`label` from `start` to `end`, in seconds; and the line of the file that it was read from, if it was."""

    start: float
    end: float
    label: str
    line: int | None = None


def timeline_segments(rows: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """
    The segments of a pipeline's timeline: each window speaks for the time nearer to its middle than to that of any
    other, and neighbours of one label are one segment. Silence is left out, and so is a segment that fills no time.

    Args:
        rows: `[{"start", "end", "label", ...}, ...]` in the order of their starts, as the pipeline answers.
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
    reference: Iterable[Segment], answer: Iterable[Segment], duration: float | None = None
) -> dict[str, float]:
    """
    Scores of one recording.

    Args:
        reference: Segments that do not overlap, in any order.
        answer: The same of the model, see [`timeline_segments`].
        duration: Of the recording, in seconds; by default up to where the last segment of either ends.

    Returns:
        Seconds `total`, `missed`, `false`, `confused` and `right` (of the reference's emotional time, named rightly);
        `emotional`, the reference's emotional time; counts `reference_segments`, `answer_segments` and
        `found_segments`; and what follows from them, see [`rates`].

    Raises:
        ValueError: segments overlap, end before they start or lie outside of the recording.
    """
    sides = [
        [segment for segment in in_order(name, segments) if segment.label != SILENCE]
        for name, segments in (("reference", reference), ("answer", answer))
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
    """The scores of several recordings taken as one long one: times and counts are added up, then divided."""
    scores = list(scores)
    summed = {name: sum(each[name] for each in scores) for name in scores[0] if name not in RATES}
    return summed | rates(summed)


RATES = ("EDER", "time_right", "segment_F1")


def rates(scores: Mapping[str, float]) -> dict[str, float]:
    """
    `EDER`; `time_right`, the share of the reference's emotional time that is named rightly; `segment_F1`, twice the
    segments found (one of the same label with an intersection over union of at least 0.5, each counted once) over the
    segments of both sides. What would be a division by nothing is 0.
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
    In the order of time, once it is sure that no two overlap.

    Raises:
        ValueError: names the side and what is wrong with it.
    """
    ordered = sorted(segments)
    for segment in ordered:
        if not 0 <= segment.start < segment.end:
            raise ValueError(f"{name}: a segment from {segment.start:g} to {segment.end:g} s fills no time.")
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


def _found(reference: Sequence[Segment], answer: Sequence[Segment]) -> int:
    left, found = list(answer), 0
    for segment in reference:
        match = next(
            (other for other in left if other.label == segment.label and _iou(segment, other) >= LEAST_IOU), None
        )
        if match is not None:
            left.remove(match)
            found += 1
    return found


def _iou(one: Segment, other: Segment) -> float:
    shared = min(one.end, other.end) - max(one.start, other.start)
    return max(0.0, shared) / (max(one.end, other.end) - min(one.start, other.start))
