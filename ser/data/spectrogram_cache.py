"""Caches spectrograms on disk: one file for each clip and altered copy, written atomically, with checksums."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from inspect import getsource
from pathlib import Path
from typing import Any

import datasets
import soundfile
import torch
from datasets import Audio, Dataset
from safetensors.torch import save
from transformers.utils import logging

import audio_maxmvit
import spectrograms_maxmvit
from feature_extraction_maxmvit import IMAGE_PARAMETERS, WAVEFORM, make_processor, resampled
from ser.files import atomic_write

logger = logging.get_logger(__name__)
FOLDER = "maxmvit_spectrograms"
FORMAT = 2  # of an entry
RECENT_S = 3600  # entries used within this time are not evicted, since a run may be reading them
PEAK = 32767
DTYPES = {"F16": torch.float16, "F32": torch.float32, "I16": torch.int16}
SOURCES = (audio_maxmvit, spectrograms_maxmvit)


class DamagedEntry(Exception):
    """Raised for a cache entry that differs from what was written."""


class SpectrogramCache:
    """
    Spectrograms by key, one file each at `FOLDER/EXTRACTOR/KE/KEY`.

    An entry is written under a temporary name and then renamed, so that any number of processes may read and write the
    same folder without waiting for each other. An entry is a line of JSON, preceded by the checksum of that line, and
    the packed spectrograms, whose checksum is in the line. The line and the length of the file are checked at every
    reading, the spectrograms only if [`read`] has to verify them.

    Args:
        cache_dir (`str`, *optional*): Folder whose sub-folder `maxmvit_spectrograms` holds the entries; defaults to
            the cache folder of `datasets`.
        feature_extractor (`MaxMViTFeatureExtractor`): Computes the spectrograms; see [`extractor_key`].
    """

    def __init__(self, cache_dir: str | os.PathLike | None, feature_extractor: Any):
        self.root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / FOLDER
        self.folder = self.root / extractor_key(feature_extractor)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def write(self, key: str, packed: bytes, **facts: Any) -> None:
        """Writes an entry: spectrograms from [`pack`], and `facts` about them, which must be valid JSON."""
        line = json.dumps({**facts, "bytes": len(packed), "crc32": zlib.crc32(packed)}).encode()
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its checksums tell whether it is complete, so that it need not be on the disk: to wait takes 8 ms.
        with atomic_write(path, durable=False) as unfinished:
            unfinished.write_bytes(b"%08x %s\n%s" % (zlib.crc32(line), line, packed))

    def read_facts(self, key: str) -> dict[str, Any]:
        """
        Returns the facts of an entry, and marks it as used.

        Raises:
            FileNotFoundError: there is no such entry.
            DamagedEntry: the line of the entry is damaged, or the length of the file differs from the one in the line.
        """
        return self._read(key, with_spectrograms=False)[0]

    def read(self, key: str, verify: bool = True) -> dict[str, torch.Tensor]:
        """Returns the spectrograms of an entry, float32; raises like [`read_facts`] and, if `verify`, also if the
        spectrograms are damaged."""
        facts, packed = self._read(key, with_spectrograms=True)
        if verify and facts["crc32"] != zlib.crc32(packed):
            raise DamagedEntry("its spectrograms do not match their checksum")
        return unpack(packed)

    def _read(self, key: str, with_spectrograms: bool) -> tuple[dict[str, Any], bytearray]:
        path = self.path(key)
        with open(path, "rb", buffering=512) as file:  # most lines are shorter; the rest is read in one go
            line, size = file.readline(), os.fstat(file.fileno()).st_size
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if checksum != b"%08x" % zlib.crc32(text):
                raise DamagedEntry("its first line does not match its checksum")
            facts = json.loads(text)
            length = len(line) + facts["bytes"]
            if size != length:
                raise DamagedEntry(f"it has {size:,} bytes instead of {length:,}")
            packed = bytearray(facts["bytes"] if with_spectrograms else 0)
            file.readinto(packed)  # type: ignore[attr-defined]  # a buffered reader has it
        with suppress(OSError):  # a read-only cache is evicted by its owner
            os.utime(path)
        return facts, packed

    def evict(self, max_gib: float) -> None:
        """Deletes the least recently used entries, of all extractors, until the others take at most `max_gib` GiB;
        entries used within the last hour are kept."""
        files = []
        for folder, _, names in os.walk(self.root):
            for path in (os.path.join(folder, name) for name in names):
                with suppress(FileNotFoundError):  # evicted, or renamed, by another process
                    status = os.stat(path)
                    files.append((status.st_mtime, status.st_size, path))
        total, limit, recent = sum(size for _, size, _ in files), max_gib * 2**30, time.time() - RECENT_S
        deleted = 0
        for used, size, path in sorted(files):
            if total <= limit or used > recent:
                break
            Path(path).unlink(missing_ok=True)
            total, deleted = total - size, deleted + 1
        if deleted:
            logger.info(f"Deleted the {deleted} least recently used spectrograms to stay within {max_gib:g} GiB")
        if total > limit:
            logger.warning(
                f"The spectrograms used within the last hour in {self.root} take {total / 2**30:.1f} GiB, more than "
                f"the {max_gib:g} GiB of --feature_cache_gib: raise it, or choose another --cache_dir."
            )


def pack(spectrograms: dict[str, torch.Tensor]) -> bytes:
    """Packs spectrograms as bytes: float16 in dB relative to each one's maximum, which loses less than 0.04 dB in the
    upper 128 dB, and that maximum as float32. A waveform is packed as int16 relative to its peak."""
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


def unpack(contents: bytes | bytearray) -> dict[str, torch.Tensor]:
    """Unpacks the bytes of [`pack`] to float32."""
    # Like `safetensors.torch.load` without its copies, which take a third of the time of reading a clip.
    buffer = contents if isinstance(contents, bytearray) else bytearray(contents)
    start = 8 + int.from_bytes(buffer[:8], "little")
    packed = {}
    for name, tensor in json.loads(buffer[8:start]).items():
        first, last = tensor["data_offsets"]
        dtype = DTYPES[tensor["dtype"]]
        values = torch.frombuffer(buffer, dtype=dtype, count=(last - first) // dtype.itemsize, offset=start + first)
        packed[name] = values.view(tensor["shape"])
    levels = {name: packed[f"{name}_level"] for name in packed if f"{name}_level" in packed}
    return {
        name: packed[name].float().mul_(level / PEAK) if name == WAVEFORM else packed[name].float().add_(level)
        for name, level in levels.items()
    }


def shaping_parameters(feature_extractor: Any) -> dict[str, Any]:
    """Returns the extractor's parameters that affect spectrograms, without entries added by saving and loading."""
    settings = feature_extractor.to_dict()
    if (processor := settings.pop("speech_processor", None)) is not None:
        settings["speech_rate"] = make_processor(processor).sampling_rate
    return {name: value for name, value in settings.items() if name not in (*IMAGE_PARAMETERS, "auto_map")}


def extractor_key(feature_extractor: Any) -> str:
    """
    Returns a digest of everything except the audio that affects spectrograms: the extractor's parameters without those
    of images, the source code of reading and extraction (so that an edited algorithm never reads spectrograms of the
    old one), and the libraries that decode, resample and transform. Of numpy and torch only the major version counts,
    since between minor versions an FFT differs only in its last bits.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for source in SOURCES:
        digest.update(Path(source.__file__ or "").read_bytes())
    for function in (type(feature_extractor).spectrograms, resampled):
        digest.update(getsource(function).encode())
    libraries = {name: version(name) for name in ("librosa", "soundfile", "soxr")}
    libraries |= {"libsndfile": soundfile.__libsndfile_version__}
    libraries |= {name: version(name).partition(".")[0] for name in ("numpy", "torch")}
    settings = [shaping_parameters(feature_extractor), libraries, FORMAT]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def clip_keys(clips: Dataset) -> Iterator[str]:
    """
    Yields a digest of the audio of each clip, in order: of the undecoded bytes if the table holds them, at a few GB/s;
    of path, size and modification time for files on disk, which are not opened.
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
    if not os.path.exists(path):  # the extraction reports it by name
        return "missing"
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"
