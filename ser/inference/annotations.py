"""
Writes predictions along recordings as annotations for Praat, ELAN, Audacity and players of subtitles, and sums them up
by speaker.

Neighbouring windows with one label become one annotation, and silence none; given segments stay as they are.
TextGrid and ELAN files have tiers for emotions, scores (the mean over the windows) and the texts of given segments:
separate ones for each speaker, and for segments that overlap others. In RTTM, the emotion takes the place of the
speaker, as `--segments` reads it, and its score that of the confidence.
"""

import csv
import html
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_maxmvit import SILENCE, TOO_SHORT
from ser.files import atomic_write
from ser.inference.given_segments import SEGMENT_TEXTS
from ser.utils import UsageError

Row = Mapping[str, Any]


class Annotation(NamedTuple):
    """An emotion from `start` to `end`, in seconds, with its mean score if there is one."""

    start: float
    end: float
    label: str
    score: float | None = None
    speaker: str = ""
    text: str = ""

    @property
    def caption(self) -> str:
        """The line of a subtitle: `anna: [happy] well then`."""
        label = f"[{self.label}] {self.text}" if self.text else self.label
        return f"{self.speaker}: {label}" if self.speaker else label


# ---- From rows to annotations ----


def annotations_of(rows: Sequence[Row], label_names: Sequence[str]) -> list[Annotation]:
    """
    Returns the annotations of one recording.

    Args:
        rows: The recording's rows in a table: of its windows, or of its segments (with the column `segment`).
        label_names: The columns that hold scores.
    """
    found = []
    for number, group in groupby(rows, key=lambda row: row.get("segment")):
        for (start, end), same in _merged(list(group)):
            label = same[0]["prediction"]
            if number is None and label == SILENCE:
                continue
            values = [score for score in (_score(row, label_names) for row in same) if score is not None]
            score = sum(values) / len(values) if values else None
            given = {name: same[0].get(name) or "" for name in SEGMENT_TEXTS}
            found.append(Annotation(start, end, label, score, **given))
    return sorted(found, key=lambda each: (each.start, each.end))


def _merged(rows: Sequence[Row]) -> Iterator[tuple[tuple[float, float], list[Row]]]:
    """Yields start and end of neighbouring windows with one label, and their rows."""
    timed = list(zip(spans(rows), rows, strict=True))
    for _, group in groupby(timed, key=lambda each: each[1]["prediction"]):
        same = list(group)
        yield (same[0][0][0], same[-1][0][1]), [row for _, row in same]


def spans(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Returns the time that each window stands for: the time nearer to its middle than to that of any other."""
    times = [(float(row["start"]), float(row["end"])) for row in rows]
    middles = [(start + end) / 2 for start, end in times]
    return list(pairwise([times[0][0], *((one + other) / 2 for one, other in pairwise(middles)), times[-1][1]]))


def _score(row: Row, label_names: Sequence[str]) -> float | None:
    """Returns the score of the label of a row, or the best score if the row is uncertain or the like."""
    scores = {name: float(row[name]) for name in label_names if row[name] not in (None, "")}
    return scores.get(row["prediction"], max(scores.values())) if scores else None


class Tier(NamedTuple):
    """The intervals (start, end, text) of a tier, which do not overlap, and their speaker."""

    name: str
    speaker: str
    intervals: list[tuple[float, float, str]]


def tiers_of(annotations: Iterable[Annotation]) -> list[Tier]:
    """Returns tiers of emotions, scores and texts, for each speaker and layer of overlapping annotations."""
    layers: dict[str, list[list[Annotation]]] = {}
    for each in annotations:
        if each.start == each.end:
            continue  # an interval needs a length
        own = layers.setdefault(each.speaker, [])
        free = next((layer for layer in own if layer[-1].end <= each.start), None)
        if free is None:
            own.append(free := [])
        free.append(each)
    tiers: dict[str, Tier] = {}
    for speaker, own in layers.items():
        for number, layer in enumerate(own, start=1):
            ending = (f" {speaker}" if speaker else "") + (f" ({number})" if number > 1 else "")
            for kind, text in (
                ("emotion", lambda each: each.label),
                ("score", lambda each: "" if each.score is None else f"{each.score:.3f}"),
                ("text", lambda each: each.text),
            ):
                intervals = [(each.start, each.end, text(each)) for each in layer]
                name = f"{kind}{ending}"
                while name in tiers:  # of a speaker who is called "anna (2)"
                    name += "'"
                if kind != "text" or any(value for _, _, value in intervals):
                    tiers[name] = Tier(name, speaker, intervals)
    return list(tiers.values())


# ---- Files ----


def _write_textgrid(path: Path, recording: str, annotations: Sequence[Annotation]) -> None:
    from praatio import textgrid

    grid = textgrid.Textgrid()
    end = max((each.end for each in annotations), default=1.0)
    for tier in tiers_of(annotations) or [Tier("emotion", "", [])]:
        grid.addTier(textgrid.IntervalTier(tier.name, tier.intervals, minT=0, maxT=end))
    grid.save(str(path), format="long_textgrid", includeBlankSpaces=True)


def _write_eaf(path: Path, recording: str, annotations: Sequence[Annotation]) -> None:
    from pympi import Eaf

    document = Eaf(author="MaxMViT-MLP")
    document.remove_tier("default")
    document.add_linked_file(recording, mimetype="audio/x-wav" if recording.endswith(".wav") else "audio/*")
    for tier in tiers_of(annotations) or [Tier("emotion", "", [])]:
        document.add_tier(tier.name, part=tier.speaker or None)
        for start, end, text in tier.intervals:
            first, last = round(1000 * start), round(1000 * end)
            if first < last:
                document.add_annotation(tier.name, first, last, text)
    document.to_file(str(path))


def _write_subtitles(path: Path, recording: str, annotations: Sequence[Annotation], form: str) -> None:
    import pysubs2

    subtitles = pysubs2.SSAFile()
    for each in annotations:
        text = each.caption.replace("-->", "->")
        text = html.escape(text, quote=False) if form == "vtt" else text
        subtitles.append(pysubs2.SSAEvent(round(1000 * each.start), round(1000 * each.end), text))
    path.write_text(subtitles.to_string(form, keep_ssa_tags=True), encoding="utf-8", errors="surrogateescape")


def _write_srt(path: Path, recording: str, annotations: Sequence[Annotation]) -> None:
    _write_subtitles(path, recording, annotations, "srt")


def _write_vtt(path: Path, recording: str, annotations: Sequence[Annotation]) -> None:
    _write_subtitles(path, recording, annotations, "vtt")


def _write_rttm(path: Path, recording: str, annotations: Sequence[Annotation]) -> None:
    name, lines = re.sub(r"\s", "_", Path(recording).stem), []
    for each in annotations:
        score = "<NA>" if each.score is None else f"{each.score:.3f}"
        label, length = re.sub(r"\s", "_", each.label), each.end - each.start  # a space ends a field
        lines.append(f"SPEAKER {name} 1 {each.start:.3f} {length:.3f} <NA> <NA> {label} {score} <NA>\n")
    path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def _write_audacity(path: Path, recording: str, annotations: Sequence[Annotation]) -> None:
    lines = [f"{each.start:.6f}\t{each.end:.6f}\t{' '.join(each.caption.split())}\n" for each in annotations]
    path.write_text("".join(lines), encoding="utf-8")


WRITERS: dict[str, Callable[[Path, str, Sequence[Annotation]], None]] = {
    ".TextGrid": _write_textgrid, ".eaf": _write_eaf, ".srt": _write_srt, ".vtt": _write_vtt, ".rttm": _write_rttm,
    ".txt": _write_audacity,
}  # fmt: skip
FORMATS = {suffix.lower(): suffix for suffix in WRITERS}


def write_annotations(path: str | Path, recording: str, annotations: Sequence[Annotation]) -> None:
    """
    Writes annotations in the format of the path's suffix, and replaces an existing file only by a complete one.

    Args:
        path: A path that ends in one of `FORMATS`, in upper or lower case.
        recording: The path or URL of the recording.
        annotations: From [`annotations_of`].

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        with atomic_write(path) as unfinished:
            WRITERS[FORMATS[Path(path).suffix.lower()]](unfinished, recording, annotations)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def annotation_paths(folder: str | Path, files: Sequence[str], suffixes: Iterable[str]) -> dict[str, list[Path]]:
    """Returns the paths of the annotations of recordings: below `folder`, in the same sub-folders as the recordings
    below their common folder, and with their names; names that differ only in their suffix keep it (`a.wav.srt`)."""
    local = [os.path.abspath(file) for file in files if "://" not in file]
    common = os.path.commonpath([os.path.dirname(path) for path in local]) if local else ""
    places = {
        file: Path(file.rsplit("/", 1)[-1]) if "://" in file else Path(os.path.relpath(file, common)) for file in files
    }
    stems = Counter(place.with_suffix("") for place in places.values())
    found = {}
    for file, place in places.items():
        stem = place.with_suffix("") if stems[place.with_suffix("")] == 1 else place
        found[file] = [Path(folder) / stem.parent / f"{stem.name}{FORMATS[suffix.lower()]}" for suffix in suffixes]
    return found


# ---- Totals by speaker ----

LOCAL_NAME = re.compile(r"(?:speaker|spkr|spk|s)?[ _-]*\d+", re.IGNORECASE)


def identity(file: str, speaker: str | None) -> str:
    """Returns a speaker's name that is unique among all recordings. Numbers from diarization (SPEAKER_00) identify a
    speaker in one recording only; another name is one speaker in all recordings."""
    if not speaker:
        return ""
    return f"{speaker} ({Path(file).name})" if LOCAL_NAME.fullmatch(speaker) else speaker


def speaker_totals(
    recordings: Mapping[str, Sequence[Row]], label_names: Sequence[str], dimensions: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """
    Sums the rows of segments up by speaker, in the order of their names; segments without one come last.

    Args:
        recordings: The rows of each recording.
        label_names: The columns that hold scores of classes.
        dimensions: The columns of dimensions, for which there is the mean only (`arousal_score`).

    Returns:
        For each speaker `speaker`, `segments`, `seconds`; for each label its share of these seconds (`happy_time`) and
        its mean score (`happy_score`), weighted by time, over what is classified and not too short; and `other_time`,
        the share of silence and of other predictions that are not a label of the model.
    """
    seconds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: Counter[str] = Counter()
    scored = [*label_names, *dimensions]
    for file, rows in recordings.items():
        for _, group in groupby(rows, key=lambda row: row["segment"]):
            own = list(group)
            name = identity(file, own[0].get("speaker"))
            counts[name] += 1
            for (start, end), row in zip(spans(own), own, strict=True):
                label = row["prediction"]
                is_label = label in label_names or not label  # None or "" for a row of dimensions only
                seconds[name][(label or "") if is_label else "other"] += end - start
                if row[scored[0]] not in (None, "") and label != TOO_SHORT:
                    sums[name][""] += end - start
                    for each in scored:
                        sums[name][each] += float(row[each]) * (end - start)
    totals = []
    for name in sorted(seconds, key=lambda name: (not name, name)):
        total, classified = sum(seconds[name].values()), sums[name][""]
        row = {"speaker": name, "segments": counts[name], "seconds": round(total, 3)}
        for label in label_names:
            row[f"{label}_time"] = round(seconds[name][label] / total, 6) if total else 0.0
            row[f"{label}_score"] = round(sums[name][label] / classified, 6) if classified else ""
        for label in dimensions:
            row[f"{label}_score"] = round(sums[name][label] / classified, 6) if classified else ""
        totals.append(row | {"other_time": round(seconds[name]["other"] / total, 6) if total else 0.0})
    return totals


def format_totals(totals: Sequence[Row], label_names: Sequence[str], dimensions: Sequence[str] = ()) -> str:
    """Formats totals as a table: for each speaker and class the share of time, and in brackets the mean score; then
    the mean of each dimension."""
    lines = [["speaker", "segments", "seconds", *label_names, *dimensions, "other"]]
    for row in totals:
        cells = [f"{row[f'{label}_time']:.2f} ({row[f'{label}_score'] or 0:.2f})" for label in label_names]
        cells += [f"{row[f'{label}_score'] or 0:.2f}" for label in dimensions]
        speaker = "".join(char if char.isprintable() else "\ufffd" for char in row["speaker"] or "(none)")
        lines.append([speaker, str(row["segments"]), f"{row['seconds']:.1f}", *cells, f"{row['other_time']:.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_totals(path: str | Path, totals: Sequence[Row]) -> None:
    """Writes totals as CSV.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        with (
            atomic_write(path) as unfinished,
            open(unfinished, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.DictWriter(file, list(totals[0]))
            writer.writeheader()
            writer.writerows(totals)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
