#!/usr/bin/env python
"""
Classifies the emotion of recordings with a file from export_ser.py, without PyTorch:

    pip install numpy soundfile soxr onnxruntime
    python onnx_ser.py OUT.onnx FILE_OR_FOLDER... [--window 3 --hop 1 --smooth 1]

This file needs no other file of the project: copy it and OUT.onnx to where they are needed. It prints the table that
predict_ser.py prints, treats silence and long recordings in the same way, reads the same lists, and has the same exit
codes (0: every file was classified, 1: some could not be read, or the table could not be written, 2: the command could
not start, 130: interrupted, 141: the program that reads its output ended first). Three things differ. URLs are not
fetched. Files that are cut off or damaged are classified as far as they can be read. And overlapping windows are
classified separately, whereas predict_ser.py cuts them out of spectrograms of the whole recording, which changes their
first and last half second.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soundfile
import soxr
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

FAILED, NOT_STARTED, INTERRUPTED, NO_READER = 1, 2, 130, 141
BLOCK_S, BLOCK_VALUES = 30, 2**22  # of a file in memory at a time: seconds, or numbers if those are fewer
LOWEST_RATE, HIGHEST_RATE = 1_000, 4_000_000  # Hz; rates beyond these come from broken headers
GREATEST_SAMPLE = 1e9
CANCELLED_POWER = 1e-3  # of the channels' power; if their mean has less, one channel is the inverse of the other
MIN_POWER = 1e-6  # of full scale (-60 dB); quieter channels count as silent
MAX_CLIP_S, WINDOW_S = 6.0, 3.0  # for files without these values in their metadata
SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 0.1, 600.0
UNCERTAIN = "uncertain"
SILENCE, SILENCE_DB, SILENCE_FRAME_S = "silence", -60.0, 0.05  # a window without a louder frame is not classified
LIST_SUFFIXES, FILE_COLUMNS = {".csv", ".tsv", ".jsonl"}, ("file", "file_name", "audio")
MISSING = {"", "nan", "<na>"}  # how spreadsheets, numpy and pandas write a missing value
AUDIO_SUFFIXES = {
    ".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".htk", ".iff", ".ircam", ".mp1",
    ".mp2", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sds", ".sf", ".snd", ".sph", ".svx",
    ".voc", ".w64", ".wav", ".wave", ".wve",
    ".3g2", ".3gp", ".aac", ".amr", ".asf", ".awb", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".weba",
    ".webm", ".wma",
}  # fmt: skip


class InputError(Exception):
    """Raised for input that the user can correct; the message says how."""


class Recognizer:
    """
    Classifies recordings with a file from export_ser.py.

    Args:
        path: The ONNX file.
        threads (`int`, defaults to 0): Number of threads; 0 for one per core.

    Raises:
        InputError: The file is missing or broken, or is not a file from export_ser.py for waveforms.
    """

    def __init__(self, path: str, threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # spinning is slow when other processes are busy
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise InputError(f"{path} cannot be used: {error}") from error
        about = self.session.get_modelmeta().custom_metadata_map
        if "labels" not in about or self.session.get_inputs()[0].name != "waveform":
            raise InputError(
                f"{path} does not take waveforms: export it by export_ser.py, without --without_front_end."
            )
        self.labels: list[str] = json.loads(about["labels"])
        self.classes = self.labels[: int(about.get("classes", len(self.labels)))]  # dimensions follow
        self.sampling_rate = int(about["sampling_rate"])
        self.min_length = int(about["min_length"])
        self.samples = (
            int(about["samples"]) if about["samples"] else None
        )  # length of every waveform; None for any length
        # A recording up to max_clip_s is one clip; for a longer one, windows of window_s are averaged.
        self.max_clip_s = float(about.get("max_clip_s", MAX_CLIP_S))
        self.window_s = float(about.get("window_s", WINDOW_S))

    def scores(self, waveform: np.ndarray, name: str) -> np.ndarray:
        """Returns the scores, `(labels,)`, of a float32 waveform, `(T,)`, at `sampling_rate`; errors name `name`."""
        if self.samples is None and len(waveform) < self.min_length:
            waveform = np.pad(waveform, (0, self.min_length + 1 - len(waveform)))
        (scores,) = self.session.run(["probabilities"], {"waveform": waveform[None]})[0]
        if not np.isfinite(scores).all():
            raise InputError(f"{name}: the model's scores are not finite. Export it again.")
        return scores

    def answer(self, path: str, window_s: float | None, hop_s: float | None) -> list[dict[str, Any]]:
        """
        Classifies the windows of a recording: `{"start", "end", "scores"}`, without scores for silent ones.

        Args:
            window_s, hop_s (`float`, *optional*): In seconds. Without them, a recording that is no longer than the
                longest training clip is one window, and a longer one has consecutive windows of the length that the
                model was trained on. A file for one window length ignores `window_s`.

        Raises:
            InputError: The recording cannot be used, or is shorter than the window of the file.
        """
        rate = self.sampling_rate
        pieces = read(path, rate)
        if self.samples is not None:
            window_s = self.samples / rate
        elif window_s is None:
            longest = math.ceil(self.max_clip_s * rate)
            begin = list(_until(pieces, longest))
            is_clip = sum(map(len, begin)) <= longest
            pieces, window_s = chain(begin, pieces), (longest / rate if is_clip else self.window_s)
        rows: list[dict[str, Any]] = []
        for start, sound in _windows(pieces, window_s * rate, (hop_s or window_s) * rate):
            if self.samples is not None and len(sound) < self.samples:
                raise InputError(
                    f"{path} lasts {len(sound) / rate:.2f} s, but this model takes windows of {window_s:g} s: "
                    "export it with --dynamic."
                )
            row: dict[str, Any] = {"start": start / rate, "end": (start + len(sound)) / rate}
            if loudness(sound, rate) >= SILENCE_DB:
                row["scores"] = self.scores(sound, path)  # one by one: a batch takes more memory and no less time
            rows.append(row)
        return rows


def read(path: str, sampling_rate: int) -> Iterator[np.ndarray]:
    """
    Reads a recording in consecutive float32 pieces, `(samples,)`: the mean of its channels, resampled.

    Raises:
        InputError: The file is missing, empty or not audio, has samples that are not finite, or channels that cancel
            out.
    """
    length = 0
    try:
        # File names that are not text must be given as bytes, which Windows does not accept.
        with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path) as audio:
            rate = audio.samplerate
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise InputError(f"{path} has the sampling rate {rate} Hz; export it again.")
            resampler = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32", quality="HQ")
            made = 0
            while len(block := audio.read(min(BLOCK_S * rate, BLOCK_VALUES // audio.channels), "float32", True)):
                with np.errstate(all="ignore"):  # what is not finite is refused below
                    piece = block.mean(axis=1)
                if not np.abs(piece).max() <= GREATEST_SAMPLE:
                    raise InputError(f"{path} holds NaN, infinite or enormous samples; export it again.")
                power = np.square(block).mean()
                if power > MIN_POWER and np.square(piece).mean() < CANCELLED_POWER * power:
                    raise InputError(
                        f"{path} has channels that cancel each other when they are averaged: one is the inverse of "
                        "the other. Use one channel only, or invert one."
                    )
                length += len(piece)
                if rate != sampling_rate:
                    piece = resampler.resample_chunk(piece)
                made += len(piece)
                yield piece
            if rate != sampling_rate and length:
                rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                missing = -(-length * sampling_rate // rate) - made - len(rest)  # soxr rounds the length down
                yield np.pad(rest, (0, max(0, missing)))
    except (OSError, soundfile.SoundFileError) as error:
        reason = str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error).rstrip(".")
        raise InputError(
            f"{path} cannot be read ({reason}). Wav, flac, ogg, opus, mp3 and aiff files can be read; convert others."
        ) from error
    if not length:
        raise InputError(f"{path} is empty: it holds no samples.")


def loudness(waveform: np.ndarray, sampling_rate: int) -> float:
    """Returns the RMS level of the loudest 50 ms of a waveform, `(T,)`, in dB of full scale, at least -200."""
    length = max(1, min(len(waveform), round(SILENCE_FRAME_S * sampling_rate)))
    frames = waveform[: len(waveform) // length * length].reshape(-1, length)
    return float(10 * np.log10(np.square(frames).mean(axis=1).max(initial=0.0) + 1e-20))


def _until(pieces: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yields pieces up to the one that exceeds `length` samples in total."""
    while length >= 0 and (piece := next(pieces, None)) is not None:
        length -= len(piece)
        yield piece


def _windows(pieces: Iterator[np.ndarray], length: float, hop: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields first sample and samples of windows, one every `hop` samples and one that ends with the recording."""
    size = max(1, round(length))
    kept, first, index = np.zeros(0, np.float32), 0, 0  # samples still needed, position of the first one, next window
    for piece in pieces:
        kept = np.concatenate([kept, piece])
        while (start := round(index * hop)) + size <= first + len(kept):
            yield start, kept[start - first : start - first + size]
            index += 1
        passed = max(0, min(start, first + len(kept) - size) - first)
        kept, first = kept[passed:], first + passed
    end = first + len(kept)
    if index == 0 or round((index - 1) * hop) + size < end:
        start = max(0, end - size)
        yield start, kept[start - first :]


def find(inputs: list[str], labels: list[str]) -> dict[str, str | None]:
    """
    Returns every recording in the given files, folders and lists, once, with its label if known. Files of a folder
    without the suffix of a recording are counted in a line on the standard error.

    Raises:
        InputError: A folder holds no recording, a list cannot be used, or a recording has two labels.
    """
    found: dict[str, str | None] = {}
    for source in inputs:
        path = Path(source)
        if path.is_dir():
            new = _in_folder(path, labels)
        elif path.suffix.lower() in LIST_SUFFIXES and "://" not in source:
            new = _listed(path, labels)
        else:
            new = {source: None}
        for file, label in new.items():
            known = found.get(file)
            if label and known not in (None, label):
                raise InputError(f"{file} has two labels, {known} and {label} (in {source}): correct one of them.")
            found[file] = known or label
    return found


def _in_folder(folder: Path, labels: list[str]) -> dict[str, str | None]:
    present = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    clips = [path for path in present if path.suffix.lower() in AUDIO_SUFFIXES]
    if not clips:
        raise InputError(f"{folder} holds no audio files ({' '.join(sorted(AUDIO_SUFFIXES))}).")
    if others := Counter(path.suffix.lower() or "without a suffix" for path in present if path not in {*clips}):
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        print(f"{folder}: left out by their suffix: {counts}.", file=sys.stderr)
    known = {label.lower(): label for label in labels}
    return {str(clip): known.get(clip.parent.name.lower()) for clip in clips}


def _listed(path: Path, labels: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for line, cells in _rows(path):
        where = f"{path}, line {line}"
        row: dict[str, str] = {}
        for name, value in cells:
            column = name.strip().casefold()
            if column not in (*FILE_COLUMNS, "label", "start", "end"):
                continue
            if column in row:
                raise InputError(f"{where}: there are two columns {column!r}: rename one.")
            row[column] = _text_of(value, f"{where}: {name!r}")
        file = next((row[column] for column in FILE_COLUMNS if column in row), "")
        if not file:
            raise InputError(
                f"{where} names no file. A list has the columns file and, if known, label; this row has "
                f"{', '.join(name.strip() for name, _ in cells)}."
            )
        label = (
            row.get("label") if not {"start", "end"} <= {*row} else None
        ) or None  # labels of segments are not labels of files
        if label not in (None, *labels):
            raise InputError(
                f"{where}: the model does not have the label {label!r}. Its labels are {', '.join(labels)}. Rename "
                "it, or leave the column label out."
            )
        file = file if "://" in file else str(path.parent / file)
        if found.get(file, label) != label:
            raise InputError(f"{where}: {file} has two labels, {found[file]} and {label}: correct one of them.")
        found[file] = label
    if not found:
        raise InputError(f"{path} lists no file: it needs a line of column names, including file, and rows.")
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """Yields the line of each row of a .csv, .tsv or .jsonl file, and its cells with the names of their columns."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    if path.suffix.lower() == ".jsonl":
        for line, content in enumerate(text.split("\n"), start=1):
            if not content.strip():
                continue
            try:
                row = json.loads(content, object_pairs_hook=list)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {line}: {error}.") from error
            if not content.lstrip().startswith("{"):
                raise InputError(f'{path}, line {line} is not an object, such as {{"file": "a.wav"}}.')
            yield line, row
        return
    line = 1
    try:
        mark = max(",;\t", key=lambda mark: len(next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), [])))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        names = next(reader, [])
        for cells in reader:
            line = reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path}, line {line}: {len(cells)} cells for the {len(names)} columns {', '.join(names)}. Put "
                    "text that holds a separator in double quotes."
                )
            if torn := [cell for cell in cells if cell.endswith('"') and cell.count('"') % 2]:
                raise InputError(f"{path}, line {line}: {torn[0]:.80} ends with a double quote that is not opened.")
            yield line, list(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, from line {line} on: {error}.") from error


def _text_of(value: Any, where: str) -> str:
    """Returns a cell's text without surrounding spaces, "" for a missing value."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where} is neither text nor a number, but {value!r:.80}.")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip(" \t")
    return "" if text.casefold() in MISSING else text


def table_rows(
    windows: list[dict[str, Any]],
    labels: list[str],
    smooth: int | None,
    min_score: float = 0.0,
    n_classes: int | None = None,
) -> list[dict[str, Any]]:
    """Returns the rows of a recording: one per window, smoothed, or one for all windows if `smooth` is None. The
    prediction is the best of the first `n_classes` labels (default: all), empty if that is 0, and "uncertain" if its
    score is below `min_score`."""
    scores = [window.get("scores") for window in windows]
    if smooth is None:
        scored = [row for row in scores if row is not None]
        return [_row(np.mean(scored, axis=0) if scored else None, labels, min_score, n_classes)]
    rows = []
    for index, window in enumerate(windows):
        around = [row for row in scores[max(0, index - smooth // 2) : index + smooth // 2 + 1] if row is not None]
        place = {"start": round(window["start"], 3), "end": round(window["end"], 3), "windows": len(windows)}
        mean = None if scores[index] is None else np.mean(around, axis=0)
        rows.append(place | _row(mean, labels, min_score, n_classes))
    return rows


def _row(scores: np.ndarray | None, labels: list[str], min_score: float, n_classes: int | None) -> dict[str, Any]:
    if scores is None:
        return {"prediction": SILENCE}
    of_classes, prediction = scores[:n_classes], ""
    if len(of_classes):
        prediction = labels[int(of_classes.argmax())] if of_classes.max() >= min_score else UNCERTAIN
    return {"prediction": prediction} | {
        label: round(float(score), 6) for label, score in zip(labels, scores, strict=True)
    }


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        if sys.stdout is None:
            raise InputError("the standard output is closed: open it.")
        recognizer = Recognizer(args.model, args.threads)
        if args.window is not None and recognizer.samples is not None:
            own = recognizer.samples / recognizer.sampling_rate
            if abs(args.window - own) > 1e-6:
                raise InputError(f"{args.model} takes windows of {own:g} s: leave out --window, or set it to that.")
        items = find(args.inputs, recognizer.classes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_STARTED
    places = [] if args.window is None else ["start", "end", "windows"]
    truth = ["label"] if any(items.values()) else []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be text
    writer = csv.DictWriter(
        sys.stdout, ["file", *truth, *places, "prediction", *recognizer.labels], lineterminator="\n"
    )
    writer.writeheader()
    judged, n_failed, unnamed = [], 0, {SILENCE: 0, UNCERTAIN: 0}
    for file, label in items.items():
        try:
            windows = recognizer.answer(file, args.window, args.hop)
        except InputError as error:
            print(error, file=sys.stderr)
            n_failed += 1
            continue
        smooth = None if args.window is None else args.smooth
        options = (args.min_score, len(recognizer.classes))
        for row in table_rows(windows, recognizer.labels, smooth, *options):
            writer.writerow({"file": file} | ({"label": label} if truth else {}) | row)
        sys.stdout.flush()
        (overall,) = table_rows(windows, recognizer.labels, None, *options)
        if label and overall["prediction"] in unnamed:
            unnamed[overall["prediction"]] += 1
        elif label:
            judged.append((label, overall["prediction"]))
    print(f"{len(items)} files: {len(items) - n_failed} classified, {n_failed} failed.", file=sys.stderr)
    if judged:
        kinds = zip(("silent", "uncertain"), unnamed.values(), strict=True)
        left_out = "".join(f" ({count} {kind} ones left out)" for kind, count in kinds if count)
        print(f"{_accuracy(judged)} on {len(judged)} labelled files{left_out}", file=sys.stderr)
    return FAILED if n_failed else 0


def _accuracy(judged: list[tuple[str, str]]) -> str:
    """Formats WA, the share of correct predictions, and UA, its mean over the classes of the recordings."""
    right: dict[str, list[bool]] = {}
    for label, prediction in judged:
        right.setdefault(label, []).append(label == prediction)
    weighted = np.mean([label == prediction for label, prediction in judged])
    return f"WA {weighted:.4f}  UA {np.mean([np.mean(hits) for hits in right.values()]):.4f}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="file from export_ser.py")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE_OR_FOLDER",
        help="audio files, folders (searched recursively; a folder named after a label gives the true label of its "
        "files), or .csv, .tsv or .jsonl lists with a column file and, if known, a column label",
    )
    parser.add_argument("--window", type=float, help="seconds; one row per window instead of one per file")
    parser.add_argument(
        "--hop", type=float, help="seconds from one window to the next (default: the length of a window)"
    )
    parser.add_argument(
        "--smooth", type=int, default=1, help="odd number of windows to average around each one (default 1)"
    )
    parser.add_argument(
        "--min_score", type=float, default=0.0, help='from 0 to 1; a prediction with a lower score is "uncertain"'
    )
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: one per core)")
    args = parser.parse_args(arguments)
    if args.hop is not None and args.window is None:
        parser.error("--hop needs --window")
    if args.window is not None:
        hop = args.window if args.hop is None else args.hop
        if not SHORTEST_WINDOW_S <= hop <= args.window <= LONGEST_WINDOW_S:
            parser.error(
                f"--window and --hop must be from {SHORTEST_WINDOW_S:g} to {LONGEST_WINDOW_S:g} seconds, and --hop no "
                "longer than --window"
            )
    if args.smooth < 1 or args.smooth % 2 == 0:
        parser.error("--smooth must be an odd number of windows")
    if not 0 <= args.min_score <= 1:
        parser.error("--min_score must be from 0 to 1")
    if args.threads < 0:
        parser.error("--threads must be 0 or more")
    return args


def command() -> int:
    try:
        return main()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # of the standard output; errors of files that are read become InputError
        # Python flushes the output once more at exit, and would report the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return NO_READER
        print(f"error: the standard output cannot be written: {error.strerror}.", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(command())
