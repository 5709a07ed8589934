"""Spectrograms of clips on disk: found by what shaped them, whole or absent, memory-mapped, kept within a size."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from inspect import getsource
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value, concatenate_datasets
from filelock import FileLock
from safetensors.torch import load, save
from transformers.utils import logging

import audio_maxmvit
import filters_maxmvit
import spectrograms_maxmvit
from speech_maxmvit import WAVEFORM, make_processor, resampled

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
except ImportError:  # Windows, which deletes no file that is in use
    flock = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)
FOLDER = "maxmvit_spectrograms"
SUMMARY = "summary.json"  # written last: a part without it is none
IN_USE = "in_use"  # locked by whoever reads the part; its time of change is that of the last use
STORED = Features(
    {
        "key": Value("string"),
        "spectrograms": Value("binary"),
        "content": Value("string"),
        "seconds": Value("float64"),
        "error": Value("string"),
    }
)
# What only pictures depend on: the extractor's parameters that leave spectrograms as they are.
PICTURE_PARAMETERS = {
    "trim_db", "trim_margin", "level", "full_scale_db", "channels", "mel_representation", "n_mfcc", "image_size",
    "top_db", "image_mean", "image_std",
}  # fmt: skip
PEAK = 32767
SOURCES = (audio_maxmvit, filters_maxmvit, spectrograms_maxmvit)


class SpectrogramCache:
    """
    Rows of spectrograms by key, in parts: folders of Arrow files, each written by one extraction.

    A part gets its name only when it is complete. Processes that want clips of the same extractor wait for the one
    that began. When all parts together are larger than `max_gib`, those used least recently are deleted; never one
    that a living process reads.

    Args:
        cache_dir (`str`, *optional*): The parts lie in its sub-folder `maxmvit_spectrograms`; defaults to the cache
            folder of `datasets`.
        feature_extractor (`MaxMViTFeatureExtractor`): Whose spectrograms these are; see [`extractor_key`].
        max_gib (`float`): Size in GiB to keep all parts within, those of other extractors included.
    """

    def __init__(self, cache_dir: str | os.PathLike | None, feature_extractor: Any, max_gib: float):
        self.folder = cache_folder(cache_dir)
        self.extractor = extractor_key(feature_extractor)
        self.settings = shaping_parameters(feature_extractor)
        self.max_gib = max_gib

    def find_or_write(self, keys: Sequence[str], write: Callable[[list[int], Path], None]) -> "StoredSpectrograms":
        """
        The rows of `keys`, in this order.

        Args:
            keys (`Sequence[str]`): One per row; equal ones are stored once.
            write (`Callable`): `write(missing, folder)` fills an empty folder with Arrow files (`*.arrow`) of the
                features `STORED`: the rows of the keys at the indices `missing`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{self.extractor}.lock"):
            parts = list(filter(None, map(_open_part, self.folder.glob(f"{self.extractor}-*"))))
            known = {key for part in parts for key in part.rows}
            missing = [i for key, i in {key: i for i, key in reversed(list(enumerate(keys)))}.items()
                       if key not in known]  # fmt: skip
            if missing:
                parts.append(self._write_part(sorted(missing), keys, write))
            else:
                logger.info(f"All {len(keys)} spectrograms are in {self.folder}")
        wanted = set(keys)
        stored = StoredSpectrograms([part for part in parts if not wanted.isdisjoint(part.rows)], keys)
        del parts  # what is not used may be deleted
        self._evict()
        return stored

    def _write_part(self, missing: list[int], keys: Sequence[str], write: Callable) -> "_Part":
        name = hashlib.sha1("\n".join(keys[i] for i in missing).encode(), usedforsecurity=False).hexdigest()
        path = self.folder / f"{self.extractor}-{name}"
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(missing, partial)
        (partial / IN_USE).touch()
        (partial / SUMMARY).write_text(json.dumps({"clips": len(missing), "extractor": self.settings}, indent=2))
        os.replace(partial, path)
        written = _open_part(path)
        assert written is not None  # nobody evicts under the lock that is held here
        return written

    def _evict(self) -> None:
        """Deletes the parts used least recently until the rest fits; those in use stay."""
        with FileLock(self.folder / "eviction.lock"):
            finished = [path for path in self.folder.glob(f"*/{IN_USE}") if not path.parent.suffix]
            uses = {path: path.stat().st_mtime for path in finished}
            sizes = {use: sum(file.stat().st_size for file in use.parent.iterdir()) for use in uses}
            total, limit = sum(sizes.values()), self.max_gib * 2**30
            for use in sorted(uses, key=uses.__getitem__):
                if total <= limit:
                    return
                with open(use, "ab") as file:
                    if not _lock(file, exclusive=True):
                        continue
                    logger.info(f"Deleting {use.parent}, used least recently, to keep within {self.max_gib:g} GiB")
                    gone = use.parent.with_suffix(".evicted")
                    os.replace(use.parent, gone)
                shutil.rmtree(gone)
                total -= sizes[use]
            if total > limit:
                logger.warning(
                    f"The spectrograms in use in {self.folder} take {total / 2**30:.1f} GiB, more than the "
                    f"{self.max_gib:g} GiB that --feature_cache_gib allows: raise it, or name another --cache_dir."
                )


def cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    """Where the parts lie; see [`SpectrogramCache`]."""
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / FOLDER


class StoredSpectrograms:
    """Rows of a cache, read from disk when they are asked for. Its parts are not evicted while it lives."""

    def __init__(self, parts: list["_Part"], keys: Sequence[str]):
        self._parts = parts
        rows: dict[str, int] = {}
        first = 0
        for part in parts:
            os.utime(part.use.name)
            rows |= {key: first + row for key, row in part.rows.items()}
            first += len(part.table)
        self._table = concatenate_datasets([part.table for part in parts])
        self.rows = [rows[key] for key in keys]

    def __getstate__(self) -> dict:
        """For another process: the parent holds the parts."""
        return self.__dict__ | {"_parts": []}

    def read(self, row: int) -> dict[str, torch.Tensor]:
        """The spectrograms of one row of the store, as the extractor returned them, float32."""
        return unpack(self._table.data.column("spectrograms")[row].as_buffer())

    def content(self, row: int) -> str:
        """The digest of the waveform that one row of the store was made of."""
        return self._table.data.column("content")[row].as_py()

    def facts(self, column: str) -> list:
        """`content`, `seconds` or `error` of every key."""
        return self._table.data.column(column).take(pyarrow.array(self.rows)).to_pylist()


class Versions(Sequence[dict[str, torch.Tensor]]):
    """
    The spectrograms of one clip: of the original, then of its altered copies. Each is read when it is indexed.

    Attributes:
        contents (`list[str]`): For each version a digest of its waveform, equal for equal sound.
    """

    def __init__(self, stored: StoredSpectrograms, rows: Sequence[int]):
        self.stored = stored
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def contents(self) -> list[str]:
        return [self.stored.content(row) for row in self.rows]

    def __getitem__(self, version: int) -> dict[str, torch.Tensor]:  # type: ignore[override]  # no slices
        return self.stored.read(self.rows[version])


class _Part:
    """A finished part that is held against eviction until this object is gone."""

    def __init__(self, path: Path, use: Any):
        self.use = use
        self.table = concatenate_datasets([Dataset.from_file(str(file)) for file in sorted(path.glob("*.arrow"))])
        self.rows = {key: row for row, key in enumerate(self.table.data.column("key").to_pylist())}

    def __del__(self):
        self.use.close()


def _open_part(path: Path) -> _Part | None:
    """None if there is no such part (any more)."""
    if path.suffix or not (path / SUMMARY).exists():
        return None
    try:
        use = open(path / IN_USE, "ab")  # noqa: SIM115 - held for as long as the part is
    except FileNotFoundError:
        return None
    _lock(use, exclusive=False)
    if not (path / SUMMARY).exists():  # evicted meanwhile
        use.close()
        return None
    return _Part(path, use)


def _lock(file: Any, exclusive: bool) -> bool:
    """Locks an open file until it is closed; False if somebody who reads the part is in the way."""
    if flock is None:
        return True
    try:
        flock(file, LOCK_EX | LOCK_NB if exclusive else LOCK_SH)
    except BlockingIOError:
        return False
    return True


def pack(spectrograms: dict[str, torch.Tensor]) -> bytes:
    """Spectrograms as bytes: float16, in dB relative to each one's maximum, so that half the bits lose under 0.04 dB
    in the upper 128 dB; and that maximum in float32. A waveform among them in whole 32,767ths of its peak."""
    packed: dict[str, torch.Tensor] = {}
    for name, values in spectrograms.items():
        if name == WAVEFORM:
            level = values.abs().amax()
            halved = (values / level.clamp(min=1e-30) * PEAK).round().to(torch.int16)
        else:
            level = values.amax()
            halved = (values - level).half()
        packed |= {name: halved.contiguous(), f"{name}_level": level.reshape(1)}
    return save(packed)


def unpack(contents: Any) -> dict[str, torch.Tensor]:
    """What was given to [`pack`], float32."""
    packed = load(bytes(contents))
    levels = {name: packed[f"{name}_level"] for name in packed if f"{name}_level" in packed}
    return {
        name: packed[name].float() * (level / PEAK) if name == WAVEFORM else packed[name].float() + level
        for name, level in levels.items()
    }


def shaping_parameters(feature_extractor: Any) -> dict[str, Any]:
    """The parameters of an extractor that its spectrograms depend on, without what saving and loading add to it."""
    settings = feature_extractor.to_dict()
    if (processor := settings.pop("speech_processor", None)) is not None:
        settings["speech_rate"] = make_processor(processor).sampling_rate
    return {name: value for name, value in settings.items() if name not in PICTURE_PARAMETERS | {"auto_map"}}


def extractor_key(feature_extractor: Any) -> str:
    """
    Name for all that shapes spectrograms besides the audio: the extractor's parameters less those of pictures, the
    sources of reading and of extraction (so an edited algorithm never meets spectrograms of the old one), and the
    libraries that decode, resample and transform. Of numpy and torch only the major version counts: between minor ones
    an FFT differs in its last bits.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for source in SOURCES:
        digest.update(Path(source.__file__ or "").read_bytes())
    for function in (type(feature_extractor).spectrograms, resampled):
        digest.update(getsource(function).encode())
    libraries = {name: version(name) for name in ("librosa", "soundfile", "soxr")}
    libraries |= {"libsndfile": soundfile.__libsndfile_version__}
    libraries |= {name: version(name).partition(".")[0] for name in ("numpy", "torch")}
    settings = [shaping_parameters(feature_extractor), libraries, list(STORED)]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def clip_keys(clips: Dataset) -> Iterator[str]:
    """
    Name for the audio of each clip, in their order: of clips held in the table a hash of all bytes, undecoded, at a
    few GB/s; of files on disk, which are not opened, one of path, size and modification time.
    """
    column = clips.with_format(None).cast_column("audio", Audio(decode=False)).select_columns("audio")
    for table in column.with_format("arrow").iter(batch_size=256):
        audio = table["audio"].combine_chunks()
        for contents, path in zip(audio.field("bytes"), audio.field("path").to_pylist(), strict=True):
            if contents.is_valid:
                yield hashlib.sha1(contents.as_buffer(), usedforsecurity=False).hexdigest()
            else:
                name = f"{os.path.abspath(path)} {_size_and_time(path)}"
                yield hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


def _size_and_time(path: str) -> str:
    if not os.path.exists(path):  # extraction says so, by name
        return "missing"
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"
