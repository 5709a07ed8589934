"""
Names the emotion in files, folders and lists of recordings:

    python predict_ser.py MODEL FILE_OR_FOLDER... [--window 3 --hop 1] [--output out.csv]

Rows are written as they come. A run that was broken off goes on where it stopped when the same command is given again;
beside out.csv, out.csv.origin.json keeps which model and windows its rows are of, and no others are added to them.
Ends with exit code 0 if every file was answered, 1 if some could not be read (they are named, and have no row), 2 if
nothing could be started, and 130 if it was interrupted (Ctrl+C).
"""

import argparse
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm
from transformers.utils import logging

from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.metrics import confusion_matrix, scores_from_confusion

# What a folder is searched for. Some of it libsndfile cannot decode: those files are named, not overlooked.
AUDIO_SUFFIXES = {
    ".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp3", ".mp4",
    ".oga", ".ogg", ".opus", ".wav", ".webm", ".wma",
}  # fmt: skip
FAILED, NOT_STARTED, INTERRUPTED = 1, 2, 130
PROVENANCE = ("_name_or_path", "auto_map", "transformers_version")  # settings that no score depends on
OUTPUT_SUFFIXES = (".csv", ".json", ".jsonl")


class UsageError(Exception):
    """What the user has to change before anything can be predicted."""


@dataclass
class Item:
    """A recording to be answered: its path or URL, and the true label where the input tells it."""

    file: str
    label: str | None = None


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    timeline = {} if args.window is None else {"window_s": args.window, "hop_s": args.hop, "smooth": args.smooth}
    try:
        classify = load_pipeline(args.model, args.device, batch_size=args.batch_size, on_error="skip", **timeline)
        label_names = [classify.model.config.id2label[index] for index in range(classify.model.config.num_labels)]
        items = find_items(args.inputs, label_names)
        table = open_table(args, items, label_names, classify)
    except UsageError as error:
        print(f"predict_ser.py: {error}", file=sys.stderr)
        return NOT_STARTED
    n_failed = predict(classify, items, table)
    summarise(items, table, n_failed, label_names)
    return FAILED if n_failed else 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, or its name on the Hugging Face Hub")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE_OR_FOLDER",
        help="audio files, URLs, folders (searched to the bottom; where a file lies in a folder named after a label, "
        "that is its true label), or .csv lists with a column file and, if known, one label",
    )
    parser.add_argument("--window", type=float, help="seconds; one row for each window instead of one for each file")
    parser.add_argument("--hop", type=float, help="seconds from window to window (default: the window's length)")
    parser.add_argument("--smooth", type=int, default=1, help="windows averaged around each (odd; default 1)")
    parser.add_argument("--output", help=".csv, .json or .jsonl file (default: CSV on the standard output)")
    parser.add_argument("--batch_size", type=int, default=8, help="clips or windows in one forward (default 8)")
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: the first accelerator, or the CPU)")
    args = parser.parse_args(arguments)
    if args.hop is not None and args.window is None:
        parser.error("--hop needs --window")
    if args.window is not None and not 0 < (args.hop or args.window) <= args.window:
        parser.error("--window and --hop must be above 0, and --hop no longer than --window")
    if args.smooth < 1 or args.smooth % 2 == 0:
        parser.error("--smooth must be an odd number of windows")
    if args.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    if args.output is not None and Path(args.output).suffix not in OUTPUT_SUFFIXES:
        parser.error(f"--output must end in {', '.join(OUTPUT_SUFFIXES)}")
    return args


def load_pipeline(model: str, device: str | None = None, **parameters: Any) -> MaxMViTAudioClassificationPipeline:
    """The pipeline of a checkpoint, with this repository's code rather than the checkpoint's copy of it."""
    logging.disable_progress_bar()
    try:
        return MaxMViTAudioClassificationPipeline(
            model=MaxMViTForAudioClassification.from_pretrained(model),
            feature_extractor=MaxMViTFeatureExtractor.from_pretrained(model),
            task="audio-classification",
            device=None if device is None else torch.device(device),
            **parameters,
        )
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a device that is not there
        raise UsageError(f"cannot use {model!r}: {error}") from error


def fingerprint(classify: MaxMViTAudioClassificationPipeline) -> str:
    """A hash of all that a checkpoint's scores depend on: both configurations and the weights, wherever they lie."""
    digest = hashlib.sha256()
    for part in (classify.model.config, classify.feature_extractor):
        settings = {name: value for name, value in part.to_dict().items() if name not in PROVENANCE}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weights in classify.model.state_dict().items():
        digest.update(name.encode())
        digest.update(weights.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def find_items(inputs: Iterable[str], label_names: list[str]) -> list[Item]:
    """Every recording the inputs name, once, in a fixed order."""
    items = {}
    for source in inputs:
        path = Path(source)
        if path.is_dir():
            found = _folder_items(path, label_names)
        elif path.suffix == ".csv":
            found = _listed_items(path, label_names)
        else:
            found = [Item(source)]
        for item in found:
            items.setdefault(item.file, item)
    return list(items.values())


def _folder_items(folder: Path, label_names: list[str]) -> list[Item]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir() and not path.name.startswith(".")
    )
    if not files:
        raise UsageError(f"{folder} holds no audio files ({' '.join(sorted(AUDIO_SUFFIXES))}).")
    names = {name.lower(): name for name in label_names}
    return [Item(str(path), names.get(path.parent.name.lower())) for path in files]


def _listed_items(path: Path, label_names: list[str]) -> list[Item]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            numbered = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    rows = [row for _, row in numbered]
    if not rows or "file" not in rows[0]:
        raise UsageError(f"{path} needs a line of column names, among them file, and then a line for each file.")
    if nameless := [str(line) for line, row in numbered if not row["file"]]:
        raise UsageError(f"{path} names no file in line {', '.join(nameless)}; fill in or remove what is incomplete.")
    labels = {row["label"] for row in rows if row.get("label")}
    if unknown := sorted(labels - set(label_names)):
        raise UsageError(
            f"{path} holds labels that the model does not know: {', '.join(unknown)}. It knows "
            f"{', '.join(label_names)}. Rename them, or leave the column label out."
        )
    base = path.parent
    names = (row["file"] if "://" in row["file"] else str(base / row["file"]) for row in rows)
    return [Item(name, row.get("label") or None) for name, row in zip(names, rows, strict=True)]


def predict(classify: MaxMViTAudioClassificationPipeline, items: list[Item], table: "Table") -> int:
    """Answers the items that the table does not hold yet, and returns how many cannot be."""
    todo = [item for item in items if item.file not in table.done]
    if table.done:
        print(f"{table.path} holds {len(table.done)} files already; {len(todo)} are left to do.", file=sys.stderr)
    n_failed = 0
    answers = classify(item.file for item in todo)
    with tqdm(total=len(todo), unit="file", file=sys.stderr) as progress:
        for item, answer in zip(todo, answers, strict=True):
            if isinstance(answer, dict):
                n_failed += 1
                progress.write(answer["error"], file=sys.stderr)
                progress.set_postfix(failed=n_failed, refresh=False)
            else:
                table.add(item, answer)
            progress.update()
    table.close()
    return n_failed


def summarise(items: list[Item], table: "Table", n_failed: int, label_names: list[str]) -> None:
    print(f"{len(items)} files: {len(items) - n_failed} answered, {n_failed} failed.", file=sys.stderr)
    labelled = [(item.label, table.done[item.file]) for item in items if item.label and item.file in table.done]
    judged = [(label_names.index(label), label_names.index(answer)) for label, answer in labelled if answer]
    if judged:
        scores = scores_from_confusion(confusion_matrix(*zip(*judged, strict=True), len(label_names)))
        silent = f" ({len(labelled) - len(judged)} silent ones left out)" if len(judged) < len(labelled) else ""
        print(f"WA {scores['WA']:.4f}  UA {scores['UA']:.4f} on {len(judged)} labelled files{silent}", file=sys.stderr)


class Table:
    """
    Rows in a .csv, .json or .jsonl file, added recording by recording. What an earlier run left in the file is kept,
    but for a row or a recording of which only a part was written: that is done again.

    Args:
        path: The file, or None for CSV on the standard output.
        columns: Names, in order. With `windows` among them, a recording has that many rows.
        label_names: The columns that hold scores.
        origin: What the scores depend on besides the recording, by name. It is kept in a file beside the table, so
            that rows are only added to rows of the same origin.

    Attributes:
        done: The answered files, each with its label; None if all of it is silence.

    Raises:
        UsageError: The file holds something else or rows of another origin, or cannot be read or written.
    """

    def __init__(
        self, path: str | None, columns: list[str], label_names: list[str], origin: dict[str, Any] | None = None
    ):
        self.path, self.columns, self.label_names, self.origin = path, columns, label_names, origin
        self.suffix = ".csv" if path is None else Path(path).suffix
        self.done: dict[str, str | None] = {}
        try:
            self._start()
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from error

    def _start(self) -> None:
        kept: list[dict[str, Any]] = []
        if self.path is not None and os.path.exists(self.path):
            rows = self._parse(Path(self.path).read_text(encoding="utf-8", errors="surrogateescape"))
            for file, group in groupby(rows, key=lambda row: row["file"]):
                recording = list(group)
                if len(recording) == int(recording[0].get("windows", 1)):
                    kept += recording
                    self.done[file] = self._overall(recording)
        head = {".csv": self._csv_line(self.columns), ".json": "[\n", ".jsonl": ""}[self.suffix]
        self.is_empty = not kept
        if self.path is None:
            self.file: TextIO = sys.stdout
            self.file.write(head)
            return
        any_name = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # file names may be no text
        origin_path = f"{self.path}.origin.json"
        if kept:
            self._check_origin(origin_path)
        texts = {origin_path: json.dumps(self.origin) + "\n", self.path: head + self._text(kept, is_first=True)}
        for path, text in texts.items():  # the origin first: there are never rows without
            with open(f"{path}.tmp", "w", **any_name) as file:
                file.write(text)
            os.replace(f"{path}.tmp", path)
        self.file = open(self.path, "a", **any_name)  # noqa: SIM115

    def _check_origin(self, path: str) -> None:
        """Raises unless the rows that the table holds are of this origin, by what is written at `path`."""
        remedy = f"give another --output, or remove {self.path} to begin anew."
        try:
            known = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise UsageError(
                f"{self.path} holds rows, but {path}, which says what made them, is missing or broken; {remedy}"
            ) from error
        if differing := [name for name, value in self.origin.items() if known.get(name) != value]:
            raise UsageError(f"{self.path} holds rows made with another {' and '.join(differing)}; {remedy}")

    def add(self, item: Item, answer: list[dict[str, Any]]) -> None:
        """Writes the rows of one recording: its answer or its timeline."""
        if "windows" not in self.columns:
            scores_by_label = {row["label"]: round(row["score"], 6) for row in answer}
            rows = [{"prediction": answer[0]["label"], **scores_by_label}]
        else:
            rows = [
                {"start": window["start"], "end": window["end"], "windows": len(answer), "prediction": window["label"]}
                | {label: round(score, 6) for label, score in window["scores"].items()}
                for window in answer
            ]
        given = {"file": item.file, "label": item.label}
        rows = [{column: (given | row).get(column) for column in self.columns} for row in rows]
        self.file.write(self._text(rows, is_first=self.is_empty))
        self.file.flush()
        self.is_empty = False
        self.done[item.file] = self._overall(rows)

    def close(self) -> None:
        if self.suffix == ".json":
            self.file.write("\n]\n")
        if self.path is not None:
            self.file.close()

    def _overall(self, rows: list[dict[str, Any]]) -> str | None:
        """The label of a recording by the mean scores of its rows, None if they have none."""
        first = self.label_names[0]
        heard = [row for row in rows if row[first] not in (None, "")]
        if not heard:
            return None
        return max(self.label_names, key=lambda label: sum(float(row[label]) for row in heard))

    def _csv_line(self, values: Iterable[Any]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        return line.getvalue()

    def _text(self, rows: list[dict[str, Any]], is_first: bool) -> str:
        if self.suffix == ".csv":
            return "".join(self._csv_line(row[column] for column in self.columns) for row in rows)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        if self.suffix == ".jsonl":
            return "".join(line + "\n" for line in lines)
        return "".join(line if is_first and not index else ",\n" + line for index, line in enumerate(lines))

    def _parse(self, text: str) -> list[dict[str, Any]]:
        """The whole rows in the text of a table that may have been broken off anywhere."""
        whole = text[: text.rfind("\n") + 1]
        rows: list[dict[str, Any]] = []
        if self.suffix == ".csv":
            rows = [row for row in csv.DictReader(io.StringIO(whole, newline="")) if None not in row.values()]
            head = self._csv_line(self.columns)
            is_ours = whole.startswith(head) if whole else head.startswith(text)
        else:
            lines = [line.strip().rstrip(",") for line in text.splitlines()]
            lines = [line for line in lines if line not in ("", "[", "]")]
            for index, line in enumerate(lines):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    if index < len(lines) - 1:
                        rows.append({})
            is_ours = all(isinstance(row, dict) and list(row) == self.columns for row in rows)
        if not is_ours:
            raise UsageError(
                f"{self.path} exists and is no table of this kind (columns {', '.join(self.columns)}); give another "
                "--output, or remove it."
            )
        return rows


def open_table(
    args: argparse.Namespace, items: list[Item], label_names: list[str], classify: MaxMViTAudioClassificationPipeline
) -> Table:
    columns = ["file"]
    columns += ["label"] if any(item.label for item in items) else []
    columns += [] if args.window is None else ["start", "end", "windows"]
    columns += ["prediction", *label_names]
    if args.output is None:
        return Table(None, columns, label_names)
    origin = {"model": fingerprint(classify)}
    if args.window is not None:
        origin |= {"window": args.window, "hop": args.hop or args.window, "smooth": args.smooth}
    return Table(args.output, columns, label_names, origin)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\npredict_ser.py: stopped; with --output, the same command goes on from here.", file=sys.stderr)
        sys.exit(INTERRUPTED)
