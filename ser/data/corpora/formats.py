"""Reads corpora in any of their forms: original trees, tables as on the Hub, and a user's folders and lists."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from audio_maxmvit import AUDIO_SUFFIXES
from ser.data.corpora.dimensions import DIMENSIONS
from ser.data.corpora.readers import (
    SPLIT_NAMES,
    TABLE_SUFFIXES,
    Rows,
    Tables,
    audio_from_paths,
    distinct_labels,
    has_class_folders,
    holds_tables,
    metadata_of,
    open_tables,
    read_class_folders,
    read_listed,
    rows_of_tables,
)
from ser.data.corpora.records import Record
from ser.data.corpora.registry import RECORDS
from ser.data.corpora.streamed import StreamedSplit
from ser.data.tables import LIST_SUFFIXES, is_list, text_of
from ser.utils import DataError


def read_record(
    record: Record, hub_id: str | None, name: str, data_dir: str | None, load: dict, with_dimensions: bool = False
) -> Rows:
    """Reads a corpus of the registry: its original tree, a copy on the Hub, or local tables in the form of a copy."""
    if data_dir:
        rows = list(record.tree(Path(data_dir)))
        tables = record.hub and holds_tables(Path(data_dir))
        if any("label" in row for row in rows) or (rows and not tables):
            return Rows(audio_from_paths(rows), rows, record.labels, data_dir, schema="original tree")
        if not tables:
            raise DataError(f"{data_dir} holds neither the original folder tree of {name} nor parquet files.")
        table, revision = open_tables(data_dir, load | {"revision": None})
        hub_id = hub_id or _recognise(record, table, data_dir)
    elif not record.hub:
        raise DataError(f"No copy of {name} on the Hub is known: give its folder with --data_dir.")
    else:
        hub_id = hub_id or next(iter(record.hub))
        table, revision = open_tables(hub_id, load | {"revision": load["revision"] or record.hub[hub_id].revision})
    source, where = record.hub[hub_id], data_dir or hub_id
    splits = [split for split in source.splits if split in table] or list(table)
    if source.splits and len(splits) > 1 and not set(splits) <= set(source.splits):
        raise DataError(f"{where} has the splits {', '.join(splits)}; expected {', '.join(source.splits)}.")
    votes = [v for v in source.votes if v in table[splits[0]].column_names]
    have = table[splits[0]].column_names
    scales = {name: each for name, each in source.dimensions.items() if with_dimensions and each in have}
    audio, raw, shards = rows_of_tables(table, splits, "audio", (*source.columns, *votes, *scales.values()), where)
    rows = []
    for index, row in enumerate(raw):
        try:
            read = source.read(row)
        except (TypeError, ValueError, OverflowError) as error:
            facts = ", ".join(f"{name} {row[name]!r}" for name in source.columns)
            raise DataError(f"Row {index} of {where} differs in form from {hub_id} ({facts}): {error}.") from error
        rows.append(
            read | {"drop": row["drop"] or read.get("drop")} | ({"votes": [row[v] for v in votes]} if votes else {})
        )
        if scales:
            rows[-1][DIMENSIONS] = {name: row[column] for name, column in scales.items()}
    return Rows(audio, rows, record.labels, where, revision, schema=hub_id, shards=shards)


def _recognise(record: Record, table: Tables, where: str) -> str:
    """Returns the copy on the Hub whose columns local tables have; of several, the one that needs the most columns."""
    have = {name for split in table.values() for name in split.column_names}
    fits = [hub_id for hub_id, source in record.hub.items() if have >= {"audio", *source.columns}]
    if not fits:
        forms = "; ".join(f"{hub_id}: audio, {', '.join(source.columns)}" for hub_id, source in record.hub.items())
        raise DataError(f"The tables in {where} have the columns {', '.join(sorted(have))}; expected {forms}.")
    return max(fits, key=lambda hub_id: len(record.hub[hub_id].columns))


def read_own(
    dataset_name: str,
    data_dir: str | None,
    columns: tuple[str | None, str | None, str | None],
    splits: Mapping[str, str],
    load: dict,
    dimensions: Sequence[str] = (),
    needs_label: bool = True,
) -> Rows:
    """Reads a user's own data set: a list of files, a folder of class folders, tables, or a Hub id. It may have
    columns of `dimensions`, and needs classes only if `needs_label`."""
    path = Path(dataset_name)
    if is_list(path):
        return read_listed(path, Path(data_dir) if data_dir else path.parent, columns, dimensions, needs_label)
    if path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir():
        raise DataError(
            f"{dataset_name} is a recording, not a data set: give a folder with a sub-folder for each class, or a "
            "list of files. predict_ser.py classifies single recordings."
        )
    path = Path(data_dir) if data_dir else path
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(
            f"{path} is not a supported table: give one of {', '.join(sorted(LIST_SUFFIXES | TABLE_SUFFIXES))}."
        )
    if metadata := metadata_of(path):
        return read_listed(metadata, path, columns, dimensions, needs_label)
    if _is_class_folder(path):
        return read_class_folders(path)
    if not path.exists() and (path.is_absolute() or len(path.parts) != 2 or path.parts[0] in {"..", "~"}):
        raise DataError(
            f"{dataset_name} is not a known corpus ({', '.join(RECORDS)}), a file, a folder or a Hub id: check its "
            "spelling."
        )
    where = str(path) if path.exists() else dataset_name
    table, revision = open_tables(where, load)
    splits = _spelt_as_in(table, splits)
    if absent := [name for part, name in splits.items() if name not in (part, *table)]:
        raise DataError(f"{where} has no split {absent[0]!r}; it has {', '.join(table)}.")
    part_of = {name: part for part, name in splits.items()}
    used = [split for split in table if split in part_of] or list(table)
    audio_column, label_column, speaker_column = columns[0] or "audio", columns[1] or "label", columns[2]
    if speaker_column is None and all("speaker" in table[split].column_names for split in used):
        speaker_column = "speaker"
    has_label = (
        needs_label or columns[1] is not None or all(label_column in table[split].column_names for split in used)
    )
    scales = [name for name in dimensions if all(name in table[split].column_names for split in used)]
    known = [c for c in (label_column if has_label else None, speaker_column, *scales) if c]
    audio, raw, shards = rows_of_tables(table, used, audio_column, known, where)
    rows = []
    for row in raw:
        speaker = row.get(speaker_column)
        split = part_of.get(row["split"])
        rows.append({"file": row["path"], "split": split, "drop": row["drop"]})
        rows[-1]["label"] = _cell(row[label_column], label_column, where) if has_label else ""
        rows[-1][DIMENSIONS] = {name: row[name] for name in scales}
        rows[-1]["speaker"] = _cell(speaker, speaker_column, where) or None
    feature = table[used[0]].features.get(label_column)
    labels = feature.names if isinstance(feature, datasets.ClassLabel) else distinct_labels(rows)
    unused = {
        f"split {split!r} not used": len(part)
        for split, part in table.items()
        if split not in used and not isinstance(part, StreamedSplit)  # whose length would have to be read
    }
    return Rows(audio, rows, labels, where, revision, dropped=unused, shards=shards)


def _is_class_folder(path: Path) -> bool:
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return path.is_dir() and not saved and (not holds_tables(path) or has_class_folders(path))


def _spelt_as_in(table: Tables, splits: Mapping[str, str]) -> dict[str, str]:
    """Returns part -> name of its split in the table, which may be a synonym, such as dev for validation."""
    usual = {part: name for name in reversed(list(table)) if (part := SPLIT_NAMES.get(name.lower()))}
    return {part: usual.get(part, name) if name == part and name not in table else name
            for part, name in splits.items()}  # fmt: skip


def _cell(value: Any, column: str | None, where: str) -> str:
    if (text := text_of(value)) is None:
        raise DataError(
            f"Column {column!r} of {where} holds {value!r:.80}, which is neither text nor a number: give text or a "
            "number for each clip."
        )
    return text


def refuse_unused_options(given: set[str], record: Record | None, dataset_name: str, data_dir: str | None) -> None:
    """Raises if options were given that have no effect on data of this form."""
    path = Path(data_dir or dataset_name)
    hub, tables = {"dataset_config_name", "dataset_revision"}, {flag for flag in given if flag.endswith("_split_name")}
    columns = {flag for flag in given if flag.endswith("_column_name")}
    if record:
        form, unused = f"{dataset_name} is a known corpus, with known columns and splits", columns | tables
        if data_dir or not record.hub:
            form, unused = f"{form}, and {path} is not a Hub data set", unused | hub
    elif is_list(Path(dataset_name)) or metadata_of(path):
        form, unused = f"{dataset_name} is a list of files, whose splits are its column split", tables | hub
    elif _is_class_folder(path):
        form, unused = f"{path} is a folder of class folders", columns | tables | hub
    else:
        form, unused = f"{path} is not a Hub data set", {"dataset_revision"} if path.exists() else set()
    if idle := sorted(given & unused):
        raise DataError(f"{form}: leave out {', '.join(f'--{flag}' for flag in idle)}.")
