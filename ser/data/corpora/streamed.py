"""Reads streamed data sets: once for the facts about their clips, then shard by shard for the audio."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from transformers.utils.versions import require_version

from ser.data.corpora.corpus import sound_facts
from ser.utils import DataError

FOLDER = "maxmvit_streams"
# Facts stored for every clip besides the requested columns -> type; no column of a data set begins with a colon.
SOUND_FIELDS = {
    ":path": "string", ":has_bytes": "bool", ":content": "string", ":seconds": "float64", ":file": "int32",
    ":group": "int32",
}  # fmt: skip


@dataclass
class StreamedSplit:
    """One split of a streamed data set.

    Args:
        name: name of the split.
        rows: its rows, with one shard for each file.
        files: names of the files.
        version: a string that changes with the files.
        folder: folder where the facts of its clips are stored.
    """

    name: str
    rows: datasets.IterableDataset
    files: Sequence[str]
    version: str
    folder: Path

    @property
    def features(self) -> datasets.Features:
        return self.rows.features

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    def facts(self, audio_column: str, columns: Sequence[str]) -> pa.Table:
        """Returns the columns and `SOUND_FIELDS`: the name stored with the audio, whether there are bytes, a digest
        and the seconds of the audio, and the file and group of each clip. The first call reads all rows; later calls
        read the result from the disk."""
        types = {name: self.features[name] for name in columns}
        types |= {name: datasets.Value(kind) for name, kind in SOUND_FIELDS.items()}
        key = repr((self.version, audio_column, types)).encode()
        try:
            table = datasets.Dataset.from_generator(
                lambda: self._read(audio_column, columns),
                features=datasets.Features(types),
                cache_dir=str(self.folder),
                fingerprint=hashlib.sha1(key, usedforsecurity=False).hexdigest(),
            )
        except DatasetGenerationError as error:
            raise (reason := error.__cause__ or error) from reason.__cause__
        return table.with_format("arrow")[:]

    def _read(self, audio_column: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields the facts of each row. A clip that cannot be decoded has a unique digest, also across splits."""
        rows = undecoded(self.rows, audio_column, columns)
        for file in range(rows.num_shards):
            try:
                for group in range(groups_of(rows, file).num_shards):
                    for number, row in enumerate(rows_of_group(rows, file, group)):
                        audio = row.pop(audio_column) or {"path": None, "bytes": None}
                        content, seconds = sound_facts(f"{self.name} {file} {group} {number}", audio)
                        own = (audio["path"], audio["bytes"] is not None, content, seconds, file, group)
                        yield row | dict(zip(SOUND_FIELDS, own, strict=True))
            except (OSError, pa.ArrowInvalid) as error:
                name = f"Shard {file + 1} of {rows.num_shards}"
                name = self.files[file] if len(self.files) == rows.num_shards else name
                raise DataError(f"{name} cannot be read: {error} Repair or remove it.") from error


def undecoded(
    rows: datasets.IterableDataset, audio_column: str, columns: Sequence[str] = ()
) -> datasets.IterableDataset:
    return rows.select_columns([audio_column, *columns]).cast_column(audio_column, datasets.Audio(decode=False))


@cache  # reads the end of a file
def groups_of(rows: datasets.IterableDataset, file: int) -> datasets.IterableDataset:
    """Returns a file as shards that can be read separately: the row groups of parquet, otherwise the whole file."""
    return rows.shard(num_shards=rows.num_shards, index=file).reshard()


def rows_of_group(rows: datasets.IterableDataset, file: int, group: int) -> datasets.IterableDataset:
    groups = groups_of(rows, file)
    return groups.shard(num_shards=groups.num_shards, index=group)


class Shards:
    """Reads the undecoded audio of the clips of streamed splits, from any clip on. The place of a clip is its number,
    from 0, in the order of splits, files and rows."""

    def __init__(self) -> None:
        self._groups: list[tuple[datasets.IterableDataset, int, int]] = []  # rows of a split, file, group in it
        self._starts = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def add(self, split: StreamedSplit, audio_column: str, facts: pa.Table) -> datasets.Dataset:
        """Appends a split; returns a table with `place`, `content` and `seconds` of its clips."""
        rows = undecoded(split.rows, audio_column)
        rows = rows if audio_column == "audio" else rows.rename_column(audio_column, "audio")
        pairs = np.stack([facts[name].to_numpy() for name in (":file", ":group")], axis=1)
        groups, counts = np.unique(pairs, axis=0, return_counts=True)
        self._groups += [(rows, file, group) for file, group in groups.tolist()]
        first = len(self)
        self._starts = np.append(self._starts, first + counts.cumsum())
        places = pa.array(np.arange(first, len(self)))
        known = {name: facts[f":{name}"].combine_chunks() for name in ("content", "seconds")}
        return datasets.Dataset(pa.table({"place": places, **known}))

    def group_of(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the number of the group that each clip is in."""
        return np.searchsorted(self._starts, places, side="right") - 1

    def read(self, places: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        """Yields `{"path", "bytes"}` of clips in the order of `places`. A group is read once if its places increase,
        and not at all if there are none.

        Raises:
            DataError: the data set has fewer clips than when they were listed.
        """
        opened, row, found = -1, -1, dict[str, Any]()
        source: Iterator[dict[str, Any]] = iter(())
        for place, group in zip(np.asarray(places).tolist(), self.group_of(places).tolist(), strict=True):
            wanted = place - int(self._starts[group])
            if group != opened or wanted < row:
                opened, row, source = group, -1, iter(self._group(group))
            while row < wanted:
                row, found = row + 1, next(source, {})
                if not found:
                    raise DataError("The streamed data set has fewer clips than when training began: start again.")
            yield found["audio"]

    def _group(self, number: int) -> datasets.IterableDataset:
        return rows_of_group(*self._groups[number])


def open_streamed(location: str, cache_dir: str | None, **choices: Any) -> tuple[dict[str, StreamedSplit], str]:
    """Opens a data set like `datasets.load_dataset`, but without downloading, converting or reading anything; returns
    (its splits, the names of its files)."""
    try:
        require_version("datasets>=5.2")
    except ImportError as error:
        raise DataError(
            "--streaming reads parquet by row groups, which needs datasets 5.2 or newer: pip install -U datasets"
        ) from error
    builder = datasets.load_dataset_builder(location, cache_dir=cache_dir, **choices)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / FOLDER
    splits = {}
    for name, rows in builder.as_streaming_dataset().items():
        files = (builder.config.data_files or {}).get(name)
        if rows.features is None or files is None:
            raise ValueError(
                "its columns are unknown until everything is read, so it cannot be streamed: leave out --streaming, "
                "or use parquet."
            )
        splits[str(name)] = StreamedSplit(
            str(name), rows, files, repr((name, [*files], files.origin_metadata)), folder
        )
    return splits, " ".join(split.version for split in splits.values())
