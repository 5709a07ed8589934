"""Reads tables, folders and CSV files of clips of any corpus as an audio column and raw rows."""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
from datasets.exceptions import DatasetsError

from audio_maxmvit import AUDIO_SUFFIXES
from ser.data.corpora.dimensions import DIMENSIONS
from ser.data.corpora.streamed import Shards, StreamedSplit, open_streamed
from ser.data.tables import FILE_COLUMNS, read_list, text_of
from ser.utils import DataError

TABLE_SUFFIXES = {".parquet", ".arrow"}
METADATA = ("metadata.csv", "metadata.jsonl")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass
class Rows:
    """Result of a reader.

    Args:
        audio: one column `audio` ({"path", "bytes"}), or `place` in `shards` and `content` for streamed clips.
        rows: facts of each clip: `file`, `label` and, if the source states them, `speaker`, `sex`, `language`,
            `session`, `sentence`, `split`, `votes`, `dimensions` (name -> raw value); `drop` is a reason to leave out
            the row, `no_class` a reason why it has no single class, and `key` the name of the recording, if the file
            name is that.
        labels: classes in order.
        location: Hub id or path.
        revision: Hub commit, or a digest.
        schema: the form of the source.
        dropped: reason -> number of rows already left out.
        shards: the audio of streamed clips.
    """

    audio: datasets.Dataset
    rows: list[dict]
    labels: Sequence[str]
    location: str
    revision: str | None = None
    schema: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    shards: Shards | None = None


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Returns files in a stable order, without the `._name` companions in some archives."""
    return sorted(p for p in folder.glob(pattern) if not p.name.startswith(".") and p.is_file())


def audio_files(folder: Path) -> list[Path]:
    return [p for p in visible_files(folder, "**/*") if p.suffix.lower() in AUDIO_SUFFIXES]


def named_files(
    folder: Path, name: re.Pattern[str], clip: str, read: Callable[[re.Match[str]], dict]
) -> Iterator[dict]:
    """Yields the rows of a tree whose file names contain all facts.

    Args:
        folder: the tree.
        name: pattern that is searched for in the path of every audio file below the folder, without its suffix.
        clip: name for such a file ("a RAVDESS clip"), for the reason why other files are left out.
        read: a match -> `label` and `speaker`, `drop`, or other facts. A second file with the same `key` is left out;
            the key defaults to the file name.
    """
    for audio in audio_files(folder):
        path = audio.relative_to(folder)
        match = name.search(path.with_suffix("").as_posix())
        row = {"file": path.as_posix(), "audio": audio, "key": audio.stem}
        yield row | (read(match) if match else {"drop": f"not named as {clip}"})


def holds_tables(path: Path) -> bool:
    return any(p.suffix.lower() in TABLE_SUFFIXES for p in ([path] if path.is_file() else visible_files(path, "**/*")))


def audio_from_paths(rows: list[dict]) -> datasets.Dataset:
    paths = datasets.Dataset.from_dict({"audio": [str(row["audio"]) for row in rows]})
    return paths.cast_column("audio", datasets.Audio(decode=False))  # created as Audio, it would require torchcodec


Tables = Mapping[str, Any]  # split -> `datasets.Dataset` or `StreamedSplit`


def open_tables(location: str, load: dict) -> tuple[Tables, str | None]:
    """Opens a Hub data set or local tables; returns (its splits, Hub commit or None)."""
    path, source = Path(location), location
    options = {name: value for name, value in load.items() if name != "streaming"}
    if path.is_file():
        source = path.suffix[1:].lower()
        options = {"data_files": location, "cache_dir": load["cache_dir"]}
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            table = datasets.load_from_disk(location)
        elif load["streaming"]:
            splits, files = open_streamed(source, **options)
            return splits, _commit(files)
        else:
            table = datasets.load_dataset(source, **options)
    except ImportError as error:  # recordings beside the tables, which `datasets` decodes with torchcodec
        raise DataError(
            f"{location} holds tables among other files: put the tables into a separate folder, or the recordings "
            "into a folder for each class."
        ) from error
    except (OSError, ValueError, StopIteration, DatasetsError) as error:  # StopIteration: an empty table
        reason = " ".join(str(error.__cause__ or error).split()) or "it is empty"
        raise DataError(f"{location} cannot be read: {reason} (--data_dir names a local copy.)") from error
    if isinstance(table, datasets.Dataset):
        table = datasets.DatasetDict({"train": table})
    return table, _commit(" ".join(next(iter(table.values())).info.download_checksums or {}))


def _commit(addresses: str) -> str | None:
    commit = re.search(r"@([0-9a-f]{40})/", addresses)
    return commit[1] if commit else None


def rows_of_tables(
    table: Tables, splits: Sequence[str], audio_column: str, columns: Sequence[str], where: str
) -> tuple[datasets.Dataset, list[dict], Shards | None]:
    """Returns the audio column of the splits (for streamed ones see [`Rows`]), their rows, and the shards of streamed
    splits. The rows have `columns`, with class names instead of numbers, `path` (the name stored with the audio),
    `split`, and `drop`, the reason why a row is left out."""
    parts, rows, shards = [], [], Shards()
    for split in splits:
        part = table[split]
        if missing := [name for name in (audio_column, *columns) if name not in part.column_names]:
            have = ", ".join(part.column_names)
            raise DataError(f"{where} has no column {', '.join(map(repr, missing))} (split {split}); it has {have}.")
        try:
            if isinstance(part, StreamedSplit):
                if _holds_arrays(part.features[audio_column]):
                    raise DataError(f"Column {audio_column!r} of {where} holds arrays, but --streaming reads encoded "
                                    "recordings: leave it out.")  # fmt: skip
                known = part.facts(audio_column, columns)
                audio = shards.add(part, audio_column, known)
                has_bytes, paths = known[":has_bytes"].to_pylist(), known[":path"].to_pylist()
                facts = known.select(list(columns)).to_pydict()
            else:
                audio = _encoded(part.select_columns([audio_column]), audio_column, where)
                audio = audio if audio_column == "audio" else audio.rename_column(audio_column, "audio")
                audio = audio.cast_column("audio", datasets.Audio(decode=False))
                cells = audio.with_format("arrow")[:]["audio"]
                has_bytes = pc.is_valid(pc.struct_field(cells, "bytes")).to_pylist()
                paths = pc.struct_field(cells, "path").to_pylist()
                facts = part.select_columns(list(columns)).with_format("arrow")[:].to_pydict() if columns else {}
        except (TypeError, pa.ArrowException) as error:
            kind = part.features[audio_column]
            raise DataError(
                f"Column {audio_column!r} of {where} holds {kind}, not audio: name another with --audio_column_name."
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where} (split {split}) holds text that is not UTF-8: {error}.") from error
        for name in columns:
            if isinstance(feature := part.features[name], datasets.ClassLabel):
                facts[name] = [None if v is None or v < 0 else feature.int2str(v) for v in facts[name]]
        names = [None if path is None else Path(path).name for path in paths]
        reasons = [None if known or path else "no audio" for known, path in zip(has_bytes, paths, strict=True)]
        facts |= {"path": names, "split": [split] * len(names), "drop": reasons}
        rows += [dict(zip(facts, values, strict=True)) for values in zip(*facts.values(), strict=True)]
        parts.append(audio)
    return datasets.concatenate_datasets(parts), rows, shards if len(shards) else None


def _holds_arrays(feature: Any) -> bool:
    """Returns whether a column holds {"array", "sampling_rate"}, the form of decoded audio in `datasets`."""
    return isinstance(feature, dict) and {"array", "sampling_rate"} <= {*feature}


def _encoded(part: datasets.Dataset, column: str, where: str) -> datasets.Dataset:
    """Encodes a column of arrays losslessly as wav files, for which `datasets` would require torchcodec."""
    if not _holds_arrays(part.features[column]):
        return part
    features = datasets.Features({column: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    kinds = {"float": "FLOAT", "double": "DOUBLE", "int16": "PCM_16"}

    def encode(tables: pa.Table) -> pa.Table:
        cells = tables[column].combine_chunks()
        kind = cells.type.field("array").type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if str(kind) not in kinds:
            raise DataError(
                f"Column {column!r} of {where} holds samples of the type {kind}: give floats from -1 to 1, or int16."
            )
        files = [_wav_of(cell, kinds[str(kind)], where) for cell in cells.to_pylist()]
        return pa.table({column: pa.array(files, features.arrow_schema.field(column).type)})

    return part.with_format("arrow").map(encode, batched=True, batch_size=100, features=features).with_format(None)


def _wav_of(cell: dict | None, subtype: str, where: str) -> dict | None:
    if cell is None or cell["array"] is None:
        return None
    try:
        samples = np.asarray(cell["array"], "int16" if subtype == "PCM_16" else "float64")
        samples = samples.T if samples.ndim == 2 and samples.shape[0] < samples.shape[1] else samples
        file = io.BytesIO()
        soundfile.write(file, samples, int(cell["sampling_rate"]), format="WAV", subtype=subtype)
    except (TypeError, ValueError, OverflowError, soundfile.SoundFileError) as error:
        raise DataError(f"{where} holds an array at {cell['sampling_rate']} Hz that is not audio: {error}.") from error
    return {"bytes": file.getvalue(), "path": cell.get("path")}


def distinct_labels(rows: Iterable[dict]) -> list[str]:
    return sorted({(text_of(row["label"]) or "").strip() for row in rows} - {""})


def _split_name(name: str, where: str) -> str:
    if name.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split {name!r} must be train, validation or test.")
    return SPLIT_NAMES[name.lower()]


def has_class_folders(folder: Path) -> bool:
    """Returns whether recordings are in two or more sub-folders, so that a table among them is ignored."""
    return len({p.relative_to(folder).parts[0] for p in audio_files(folder) if p.parent != folder}) > 1


def read_class_folders(folder: Path) -> Rows:
    """Reads `[split/]class/.../clip.wav` and counts other files. (`datasets` would take any "test" in a file name for
    a split, and leave out the other files.)"""
    files = [p.relative_to(folder) for p in audio_files(folder)]
    others = [p for p in visible_files(folder, "*/**/*") if p.suffix.lower() not in AUDIO_SUFFIXES]
    if inner := [p for p in others if p.name in METADATA and p.parent.name.lower() in SPLIT_NAMES]:
        raise DataError(f"{inner[0]} is not read: put one {inner[0].name} into {folder} itself, with the split of "
                        "each file in a column split.")  # fmt: skip
    dropped = Counter(f"not audio by its name ({p.suffix.lower() or 'no suffix'})" for p in others)
    if not files:
        raise DataError(f"{folder} holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))}) and no parquet files.")
    by_split = all(p.parts[0].lower() in SPLIT_NAMES and len(p.parts) > 2 for p in files)
    rows = []
    for file in files:
        split = SPLIT_NAMES[file.parts[0].lower()] if by_split else None
        rows.append({"file": file.as_posix(), "audio": folder / file, "label": _class_of(file, folder, by_split)})
        rows[-1]["split"] = split
    return Rows(audio_from_paths(rows), rows, distinct_labels(rows), str(folder), dropped=dropped)


def _class_of(file: Path, folder: Path, by_split: bool) -> str:
    if len(file.parts) < 2 + by_split:
        raise DataError(f"{folder / file} is not in a class folder: move it into the folder of its class.")
    return file.parts[by_split]


def metadata_of(folder: Path) -> Path | None:
    """Returns the list of recordings in a folder, if there is one."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def read_listed(
    path: Path,
    base: Path,
    columns: tuple[str | None, str | None, str | None],
    dimensions: Sequence[str] = (),
    needs_label: bool = True,
) -> Rows:
    """Reads a list of recordings: CSV, TSV or JSON Lines of `file,label[,speaker][,split][,sentence]`.

    Args:
        path: the list. If it is called metadata, it may have no labels; its recordings must then be in class folders.
        base: the folder to which paths in the list are relative.
        columns: names of the columns of files, labels and speakers, if they are not the default ones.
        dimensions: columns of dimensions, some of which the list may have.
        needs_label: whether the list must have labels.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    names = {"label": columns[1] or "label", "speaker": columns[2] or "speaker", "split": "split"}
    names["sentence"] = "sentence"
    own = [*names.values(), *([columns[0]] if columns[0] else FILE_COLUMNS)]
    table = read_list(path, [*dict.fromkeys([*own, *dimensions])])
    scales = [name for name in dimensions if name in table.columns]
    table.require(*(name for name in columns if name))
    file_column = columns[0] or table.file_column()
    without_label = path.name in METADATA and columns[1] is None and "label" not in table.columns
    in_folders = without_label and needs_label
    if needs_label and not in_folders:
        table.require(names["label"])
    by_split = without_label and all(
        Path(row[file_column]).parts[:1] and Path(row[file_column]).parts[0].lower() in SPLIT_NAMES
        for _, row in table.rows
    )
    rows: list[dict] = []
    line_of: dict[str, int] = {}
    for line, row in table.rows:
        file = Path(row[file_column]).as_posix()
        if not os.path.isfile(base / file):  # Path.is_file would raise for a name that is too long
            raise DataError(f"{path}, line {line}: {base / file} is not a file.")
        if file in line_of:
            raise DataError(f"{path}: {file} is listed twice, in lines {line_of[file]} and {line}.")
        line_of[file] = line
        label = _class_of(Path(file), base, by_split) if in_folders else row.get(names["label"], "")
        split = row.get("split") or (Path(file).parts[0] if by_split else "")
        rows.append({"file": file, "audio": base / file, "label": label})
        rows[-1] |= {key: row.get(names[key]) or None for key in ("speaker", "sentence")}
        rows[-1][DIMENSIONS] = {name: row[name] for name in scales}
        rows[-1]["split"] = _split_name(split, f"{path}, line {line}") if split else None
    if not rows:
        raise DataError(f"{path} lists no clips: add a row for each.")
    left = len({*audio_files(base)} - {row["audio"] for row in rows}) if path.name in METADATA else 0
    dropped = {f"not in {path.name}": left} if left else {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Rows(audio_from_paths(rows), rows, distinct_labels(rows), str(path), f"sha256-{digest}", dropped=dropped)
