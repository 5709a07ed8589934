"""Finds the recordings to classify, and writes the predictions for them to a table."""

import argparse
import csv
import hashlib
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from audio_maxmvit import AUDIO_SUFFIXES
from pipeline_maxmvit import SILENCE, TOO_SHORT, UNCERTAIN, UNFAMILIAR, MaxMViTAudioClassificationPipeline
from ser.data.tables import FILE_COLUMNS, RESERVED, is_list, read_list
from ser.files import atomic_write
from ser.inference.given_segments import SEGMENT_COLUMNS, SEGMENT_TEXTS
from ser.inference.references import Segment, timeline_segments
from ser.models import checkpoint_digest
from ser.utils import DataError, UsageError

OUTPUT_SUFFIXES = (".csv", ".jsonl")
ORIGIN = ".origin.json"  # suffix of the file, beside a table, that records how its rows were made
ANY_NAME: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}  # file names need not be text


@dataclass
class Item:
    """A recording to classify: its path or URL, its true label and speaker if the input gives them, and the segments
    to classify, if only these are."""

    file: str
    label: str | None = None
    speaker: str | None = None
    segments: list[dict[str, Any]] | None = None


def find_items(inputs: Iterable[str], label_names: list[str], with_speakers: bool = False) -> list[Item]:
    """Returns every recording in the inputs, once, in a fixed order. Files of a folder without the suffix of a
    recording are counted in a line on the standard error.

    Args:
        with_speakers: Whether the column `speaker` of a list is read.

    Raises:
        UsageError: A folder holds no recording, or two inputs give a recording different labels or speakers.
        DataError: A list cannot be used; the message names the line.
    """
    items: dict[str, Item] = {}
    for source in inputs:
        path = Path(source)
        if path.is_dir():
            found = _folder_items(path, label_names)
        elif is_list(path) and "://" not in source:
            found = _listed_items(path, label_names, with_speakers)
        else:
            found = [Item(source)]
        for item in found:
            known = items.setdefault(item.file, item)
            if item.label and known.label not in (None, item.label):
                raise UsageError(
                    f"{item.file} has two labels, {known.label} and {item.label} (in {source}): correct one of them."
                )
            if item.speaker and known.speaker not in (None, item.speaker):
                raise UsageError(f"{item.file} has two speakers, {known.speaker} and {item.speaker} (in {source}).")
            known.label = known.label or item.label
            known.speaker = known.speaker or item.speaker
    return list(items.values())


def _folder_items(folder: Path, label_names: list[str]) -> list[Item]:
    found = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    files = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    if not files:
        raise UsageError(f"{folder} holds no audio files ({' '.join(sorted(AUDIO_SUFFIXES))}).")
    others = Counter(path.suffix.lower() or "without a suffix" for path in found if path not in {*files})
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        print(f"{folder}: left out by their suffix: {counts}.", file=sys.stderr)
    names = {name.lower(): name for name in label_names}
    return [Item(str(path), names.get(path.parent.name.lower())) for path in files]


def _listed_items(path: Path, label_names: list[str], with_speakers: bool) -> list[Item]:
    table = read_list(path, [*FILE_COLUMNS, "label", "start", "end", *(["speaker"] if with_speakers else [])])
    file_column = table.file_column()
    if not table.rows:
        raise DataError(f"{path} lists no file.")
    if nameless := [str(line) for line, row in table.rows if not row[file_column]]:
        raise DataError(f"{path} names no file in line {', '.join(nameless)}; fill in the names or remove the lines.")
    # Labels of segments are not labels of files, and a model without classes has none.
    has_labels = bool(label_names) and "label" in table.columns and not {"start", "end"} <= table.columns
    items: dict[str, Item] = {}
    line_of: dict[str, int] = {}
    for line, row in table.rows:
        file = row[file_column] if "://" in row[file_column] else str(path.parent / row[file_column])
        label = (row["label"] if has_labels else "") or None
        if label not in (None, *label_names):
            raise DataError(
                f"{path}, line {line}: the model does not have the label {label!r}. Its labels are "
                f"{', '.join(label_names)}. Rename it, or leave the column label out."
            )
        if file in items and items[file].label != label:
            raise DataError(f"{path}: {row[file_column]} has two labels, in lines {line_of[file]} and {line}.")
        speaker = row.get("speaker") or None
        if file in items and items[file].speaker != speaker:
            raise DataError(f"{path}: {row[file_column]} has two speakers, in lines {line_of[file]} and {line}.")
        items.setdefault(file, Item(file, label, speaker))
        line_of.setdefault(file, line)
    return list(items.values())


class Table:
    """
    Writes rows to a .csv or .jsonl file, recording by recording. Rows of an earlier run are kept, except those of a
    recording that was written only in part, which is classified again.

    Args:
        path: The file, or None for CSV on the standard output.
        columns: Names, in order. If `windows`, or `rows` of segments, is one of them, its value is the number of rows
            of a recording.
        label_names: The columns that hold scores, of classes and then of dimensions.
        origin: What the scores depend on besides the recording, by name. It is stored in a file beside the table, so
            that rows are added only to rows of the same origin.
        keeps_rows: Whether `rows` is filled.
        n_classes: Number of classes; by default, there are no dimensions.

    Attributes:
        done: Label of each finished file; None if all of it is silent, "uncertain" if its best score is below the
            origin's `min_score`, "unfamiliar" if its familiarity is below the origin's `min_familiarity`.
        along: Segments and end, in seconds, of each file that is classified window by window.
        rows: The rows of each finished file.

    Raises:
        UsageError: The file is not such a table, has rows of another origin, or cannot be read or written.
    """

    def __init__(
        self,
        path: str | None,
        columns: list[str],
        label_names: list[str],
        origin: dict[str, Any] | None = None,
        keeps_rows: bool = False,
        n_classes: int | None = None,
    ):
        self.classes, self.dimensions = label_names[:n_classes], label_names[len(label_names[:n_classes]) :]
        self.keeps_rows, self.rows = keeps_rows, dict[str, list[dict[str, Any]]]()
        self.count = "rows" if "rows" in columns else "windows"
        self.path, self.columns, self.label_names, self.origin = path, columns, label_names, origin or {}
        self.suffix = ".csv" if path is None else Path(path).suffix
        self.done: dict[str, str | None] = {}
        self.along: dict[str, tuple[list[Segment], float]] = {}
        try:
            self._start()
        except OSError as error:
            if path is None:
                raise
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from error

    def _start(self) -> None:
        if self.path is None:
            if sys.stdout is None:
                raise UsageError("the standard output is closed: open it, or give --output.")
            self.file: TextIO = sys.stdout
            if isinstance(self.file, io.TextIOWrapper):
                self.file.reconfigure(errors="surrogateescape")  # file names need not be text
            self._write(self._head())
            return
        recordings = self._recordings(self.path)
        for file, rows in recordings.items():
            self._note(file, rows)
        if recordings:
            self._check_origin(self.path)
        self.write_rows(self.path, [row for rows in recordings.values() for row in rows])
        self.file = open(self.path, "a", **ANY_NAME)  # noqa: SIM115

    def recordings_at(self, path: str) -> dict[str, list[dict[str, Any]]]:
        """
        Returns the rows of the complete recordings, by file, in a table like this one; none if there is no such file.

        Raises:
            UsageError: The file is not such a table, or has rows of another origin.
        """
        recordings = self._recordings(path)
        if recordings:
            self._check_origin(path)
        return recordings

    def _recordings(self, path: str) -> dict[str, list[dict[str, Any]]]:
        if not os.path.exists(path):
            return {}
        with open(path, **ANY_NAME) as file:  # a file name may hold any kind of line break, which must be preserved
            rows = self._parse(path, file.read())
        groups = ((file, list(group)) for file, group in groupby(rows, key=lambda row: row["file"]))
        return {file: group for file, group in groups if len(group) == int(group[0].get(self.count, 1))}

    def write_rows(self, path: str, rows: list[dict[str, Any]]) -> None:
        """
        Writes a table of the same kind and origin, and replaces an existing one only when the new one is complete.

        Raises:
            UsageError: It cannot be written.
        """
        texts = {
            f"{path}{ORIGIN}": json.dumps(self.origin) + "\n",
            path: self._head() + self._text(rows),
        }
        try:
            for name, text in texts.items():  # the origin first, so that no rows are ever without one
                with atomic_write(name) as unfinished:
                    unfinished.write_bytes(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}. Earlier rows are kept: free some space and run the "
                "same command again."
            ) from error

    def _head(self) -> str:
        return self._csv_line(self.columns) if self.suffix == ".csv" else ""

    def _check_origin(self, path: str) -> None:
        """Raises `UsageError` unless the rows of a table are of this origin, according to the file beside it."""
        beside = f"{path}{ORIGIN}"
        remedy = f"give another --output, or remove {path} to start again."
        try:
            known = dict(json.loads(Path(beside).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise UsageError(
                f"{path} holds rows, but {beside}, which records how they were made, is missing or broken; {remedy}"
            ) from error
        if differing := [name for name, value in self.origin.items() if known.get(name) != value]:
            raise UsageError(f"{path} holds rows made with another {' and '.join(differing)}; {remedy}")

    def add(self, item: Item, entries: list[dict[str, Any]]) -> None:
        """Adds the rows of one recording, from the pipeline's prediction for it, its timeline or its segments."""
        if "segment" in self.columns:
            rows = _segment_rows(entries)
        elif "windows" not in self.columns:
            scores_by_label = {entry["label"]: round(entry["score"], 6) for entry in entries}
            best = entries[0]["label"]
            rows = [scores_by_label | {"prediction": None if best in self.dimensions else best}]
        else:
            rows = [
                {"start": entry["start"], "end": entry["end"], "windows": len(entries), "prediction": entry["label"]}
                | {label: round(score, 6) for label, score in entry["scores"].items()}
                for entry in entries
            ]
        for row, entry in zip(rows, entries, strict=False):
            if "familiarity" in entry:
                row["familiarity"] = round(entry["familiarity"], 6)
            if "only" in entry:
                row["only"] = " ".join(entry["only"])
        given = {"file": item.file, "label": item.label}
        rows = [{column: (given | row).get(column) for column in self.columns} for row in rows]
        self._write(self._text(rows))
        self._note(item.file, rows)

    def close(self) -> None:
        if self.path is not None:
            self.file.close()

    def _write(self, text: str) -> None:
        try:
            self.file.write(text)
            self.file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.path is None:
                raise UsageError(f"the standard output cannot be written: {error.strerror}.") from error
            with suppress(OSError):  # closing tries to write the rest once more
                self.file.close()
            raise UsageError(
                f"{self.path} cannot be written any further: {error.strerror}. Its complete rows are kept: free some "
                "space and run the same command again."
            ) from error

    def _note(self, file: str, rows: list[dict[str, Any]]) -> None:
        self.done[file] = self._overall(rows)
        if self.keeps_rows:
            self.rows[file] = rows
        if "windows" in self.columns:
            # A window without a label of the model counts as silence.
            replaced = {None: SILENCE, "": SILENCE, UNCERTAIN: SILENCE, UNFAMILIAR: SILENCE}
            windows = [
                {"start": float(row["start"]), "end": float(row["end"]), "label": replaced.get(label, label)}
                for row, label in ((row, row["prediction"]) for row in rows)
            ]
            middles = [window["start"] + window["end"] for window in windows]
            if middles != sorted(middles):
                raise self._other_table(self.path)
            self.along[file] = timeline_segments(windows), windows[-1]["end"]

    def _other_table(self, path: str | None) -> UsageError:
        return UsageError(
            f"{path} exists and is not a table of this kind (columns {', '.join(self.columns)}); give another "
            "--output, or remove it."
        )

    def _overall(self, rows: list[dict[str, Any]]) -> str | None:
        """Returns the label of a recording by the mean scores of its rows, None if they have none."""
        first, min_score, min_familiarity = (
            self.label_names[0],
            *map(self.origin.get, ("min_score", "min_familiarity")),
        )
        scored = [row for row in rows if row[first] not in (None, "")]
        scored = [row for row in scored if row["prediction"] != TOO_SHORT] or scored
        if not scored:
            return None
        if len(rows) == 1:
            return rows[0]["prediction"]  # made from scores that were not rounded
        columns = [*self.classes, *(["familiarity"] if min_familiarity is not None else [])]
        mean = {column: sum(float(row[column]) for row in scored) / len(scored) for column in columns}
        if mean.pop("familiarity", 1.0) < (min_familiarity or 0.0):
            return UNFAMILIAR
        best = max(mean, key=mean.__getitem__, default=None)
        return best if best is None or min_score is None or mean[best] >= min_score else UNCERTAIN

    def _is_valid(self, row: dict[str, Any]) -> bool:
        scores = [row[column] for column in self.columns if column in {*self.label_names, "familiarity"}]
        is_silent = all(score in (None, "") for score in scores)
        try:
            int(row.get(self.count, 1))
            has_time = 0 <= float(row.get("start", 0)) <= float(row.get("end", 0)) < math.inf
            for score in [] if is_silent else scores:
                float(score)
        except (TypeError, ValueError, OverflowError):
            return False
        return has_time and list(row) == self.columns and isinstance(row["file"], str)

    def _csv_line(self, values: Iterable[Any]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(values)  # the writer quotes names that hold either character
        return line.getvalue().removesuffix("\r\n") + "\n"

    def _text(self, rows: list[dict[str, Any]]) -> str:
        if self.suffix == ".csv":
            return "".join(self._csv_line(row[column] for column in self.columns) for row in rows)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _parse(self, path: str, text: str) -> list[dict[str, Any]]:
        """Returns the complete rows in the text of a table, which may end anywhere."""
        whole = text[: text.rfind("\n") + 1]
        rows: list[dict[str, Any]] = []
        if self.suffix == ".csv":
            rows = [row for row in csv.DictReader(io.StringIO(whole, newline="")) if None not in row.values()]
            head = self._csv_line(self.columns)
            is_table = whole.startswith(head) if whole else head.startswith(text)
        else:
            lines = [line for line in text.split("\n") if line.strip()]
            for index, line in enumerate(lines):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    if index < len(lines) - 1:
                        rows.append({})
            is_table = all(isinstance(row, dict) and list(row) == self.columns for row in rows)
        if not (is_table and all(map(self._is_valid, rows))):
            raise self._other_table(path)
        return rows


def _segment_rows(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the segments of a recording, or of the windows within those that have windows."""
    rows = []
    for number, segment in enumerate(segments, start=1):
        for window in segment.get("windows", [segment]):
            label = segment["label"] if segment["label"] == TOO_SHORT else window["label"]
            row = {"segment": number, "start": window["start"], "end": window["end"], "prediction": label}
            row |= {name: segment.get(name) for name in SEGMENT_TEXTS}
            row |= {label: round(score, 6) for label, score in window["scores"].items()}
            row |= {name: window[name] for name in ("familiarity", "only") if name in window}
            rows.append(row)
    for row in rows:
        row |= {"rows": len(rows)} | ({"familiarity": round(row["familiarity"], 6)} if "familiarity" in row else {})
        if "only" in row:
            row["only"] = " ".join(row["only"])
    return rows


class MemoryTable(Table):
    """Keeps rows in memory only, for files that are written when all rows are complete."""

    def _start(self) -> None:
        self.keeps_rows = True

    def _write(self, text: str) -> None:
        pass


class TerminalTable(Table):
    """
    Prints rows as lines for a terminal: file, label if there is one, times of a window or segment, speaker of a
    segment, emotion, score, familiarity if requested, the two next emotions, and the text of a segment. Progress bars
    of tqdm stay below.
    """

    NAME_WIDTH = 40
    SPEAKER_WIDTH = 12

    def _write(self, text: str) -> None:
        tqdm.write(text, file=self.file, end="")

    def _head(self) -> str:
        return self._line("file", "label", "seconds", "speaker", "emotion", "score", "familiarity", "next", "text")

    def _text(self, rows: list[dict[str, Any]]) -> str:
        return "".join(map(self._row, rows))

    def _row(self, row: dict[str, Any]) -> str:
        scores = {label: float(row[label]) for label in self.label_names if row[label] not in (None, "")}
        ranked = sorted((label for label in scores if label in self.classes), key=scores.__getitem__, reverse=True)
        named = row["prediction"] if row["prediction"] in scores else None
        others = [label for label in ranked if label != named][:2] + [
            name for name in self.dimensions if name in scores
        ]
        score = f"{scores[named or ranked[0]]:.2f}" if ranked else ""
        seconds = f"{row['start']:.1f}-{row['end']:.1f}" if "start" in row else ""
        label, following = row.get("label") or "", ", ".join(f"{other} {scores[other]:.2f}" for other in others)
        familiarity = f"{float(row['familiarity']):.2f}" if scores and "familiarity" in row else ""
        speaker, text = row.get("speaker") or "", row.get("text") or ""
        named = row["prediction"] or ""
        return self._line(row["file"], label, seconds, speaker, named, score, familiarity, following, text)

    def _line(
        self,
        file: str,
        label: str,
        seconds: str,
        speaker: str,
        emotion: str,
        score: str,
        familiarity: str,
        following: str,
        text: str,
    ) -> str:
        file, speaker, text = map(_printable, (file, speaker, text))
        name = file if len(file) <= self.NAME_WIDTH else f"...{file[3 - self.NAME_WIDTH :]}"
        width = max(map(len, (*self.label_names, SILENCE, TOO_SHORT, UNCERTAIN, UNFAMILIAR)))
        cells = [f"{name:{self.NAME_WIDTH}}"]
        cells += [f"{label:{width}}"] if "label" in self.columns else []
        cells += [f"{seconds:>15}"] if "start" in self.columns else []
        width_s = self.SPEAKER_WIDTH
        cells += [f"{speaker[:width_s]:{width_s}}"] if "speaker" in self.columns else []
        cells += [f"{emotion:{width}}", f"{score:>5}"]
        cells += [f"{familiarity:>11}"] if "familiarity" in self.columns else []
        cells += [f"{following:{2 * width + 12}}", text] if "text" in self.columns else [following]
        return "  ".join(cells).rstrip() + "\n"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)  # no escape sequences


def open_table(
    args: argparse.Namespace,
    items: list[Item],
    label_names: list[str],
    classify: MaxMViTAudioClassificationPipeline,
    path: str | None,
    in_memory: bool = False,
) -> Table:
    """Opens the table of some recordings at a path, or on the standard output, where a terminal gets readable lines.

    Args:
        args: The options `window`, `hop`, `smooth`, `min_score`, `min_familiarity`, `only`, and `adaptation`.
        items: The recordings.
        label_names: The columns of scores.
        classify: The pipeline, for the digest of its model.
        path: The table; None for the standard output.
        in_memory: Whether the rows are kept in memory and written nowhere.

    Raises:
        UsageError: As for [`Table`]; or a label of the model is a column's name, or a reserved label such as silence.
    """
    if taken := sorted(RESERVED & {name.casefold() for name in label_names}):
        raise UsageError(
            f"The model has a label {taken[0]!r}, which is a reserved name in the table of predictions: rename it in "
            "id2label and label2id of the model's config.json."
        )
    segments = [segment for item in items for segment in item.segments or ()]
    columns = ["file"]
    columns += ["label"] if any(item.label for item in items) else []
    if segments:
        columns += ["segment", "start", "end"]
        columns += [name for name in SEGMENT_TEXTS if any(segment.get(name) for segment in segments)]
        columns += ["rows"]
    elif args.window is not None:
        columns += ["start", "end", "windows"]
    columns += ["prediction", *label_names]
    columns += [] if args.min_familiarity is None else ["familiarity"]
    columns += [] if args.only is None else ["only"]
    bounds = {"min_score": args.min_score, "min_familiarity": args.min_familiarity}
    config = classify.model.config
    n_classes = len(label_names) - (config.num_labels - config.num_classes)
    if path is None:
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        kind = MemoryTable if in_memory else TerminalTable if on_terminal else Table
        return kind(None, columns, label_names, bounds, keeps_rows=bool(segments), n_classes=n_classes)
    origin = {"model": checkpoint_digest(classify), **bounds, "adapt": args.adaptation}
    if args.window is not None:
        origin |= {"window": args.window, "hop": args.hop or args.window, "smooth": args.smooth}
    if args.only is not None:
        origin["only"] = " ".join(label_names)
    if segments:
        origin["segments"] = _segments_digest(items)
    keeps_rows = bool(segments) or args.output_dir is not None
    return Table(path, columns, label_names, origin, keeps_rows, n_classes)


def _segments_digest(items: Sequence[Item]) -> str:
    """Returns a hash of the segments of all recordings, without the places that they were read from."""
    whole = sorted(
        (item.file, [[each.get(name) for name in SEGMENT_COLUMNS] for each in item.segments or ()]) for item in items
    )
    return f"sha256-{hashlib.sha256(json.dumps(whole).encode('utf-8', 'surrogateescape')).hexdigest()}"
