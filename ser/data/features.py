"""Extracts the spectrograms of clips in parallel, caches them on disk, and reads them row by row."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from datasets import Audio, Dataset
from datasets.utils import tqdm
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.utils import logging

from audio_maxmvit import AudioError, read_audio
from ser.data.altered_copies import WaveformCopies
from ser.data.spectrogram_cache import DamagedEntry, SpectrogramCache, clip_keys, pack
from ser.distributed import all_or_none, process_ranks
from ser.utils import DataError

logger = logging.get_logger(__name__)
SKIP = "To train without such clips, use --on_bad_audio skip."


def extract_features(
    clips: Dataset,
    feature_extractor: Any,
    *,
    num_workers: int = 1,
    cache_dir: str | os.PathLike | None = None,
    cache_gib: float = 50.0,
    on_bad_audio: Literal["error", "skip"] = "error",
    copies: WaveformCopies | None = None,
    args: TrainingArguments | None = None,
) -> Dataset:
    """Replaces the `audio` of a table of clips by the spectrograms of `feature_extractor.spectrograms`.

    Each clip is decoded and transformed once, and cached in a [`SpectrogramCache`] under a key of its audio and of
    everything that affects its spectrograms. The entry is reused in any table, and by every extractor that differs
    only in how it renders images; labels and other columns come from `clips` and may change freely. An interrupted
    extraction resumes with the clips that are not cached yet. Entries that are damaged, or were deleted by another
    run, are computed again at the start, or when they are first read in a run.

    Args:
        clips (`Dataset`): columns `file` (a name for messages) and `audio` (path or bytes), and any others.
        feature_extractor (`MaxMViTFeatureExtractor`): computes the spectrograms.
        num_workers (`int`, defaults to 1): processes; with more than one, each has a single thread.
        cache_dir (`str`, *optional*): defaults to the cache folder of `datasets`.
        cache_gib (`float`, defaults to 50): size limit of the cache in GiB, entries of other extractors included; see
            [`SpectrogramCache.evict`].
        on_bad_audio (`str`, defaults to `"error"`): `"error"` stops at the first clip that cannot be decoded; `"skip"`
            leaves such clips out, with a warning that names each, now and in every later run.
        copies (`WaveformCopies`, *optional*): altered copies to extract in addition to each clip.
        args (`TrainingArguments`, *optional*): arguments of a run. All of its processes call this with the same clips,
            and each extracts a part of them.

    Returns:
        `Dataset` with the columns of `clips` except `audio`, and `spectrograms`: the [`Versions`] of each clip, whose
        first item is a dict as the extractor returns it, read from disk when it is indexed, and whose other items are
        those of the clip's `copies`; `content`: a digest of the waveform, equal for equal sound; and `seconds`.

    Raises:
        AudioError: a clip cannot be decoded (the message names it), or no clip can.
        DataError: another process of the run could not extract its part, or entries vanish right after they are
            written.
    """
    if on_bad_audio not in ("error", "skip"):
        raise ValueError(f'on_bad_audio must be "error" or "skip", got {on_bad_audio!r}')
    if not len(clips):
        raise ValueError("there are no clips to extract features from")
    cache = SpectrogramCache(cache_dir, feature_extractor)
    stored = StoredSpectrograms(clips, feature_extractor, cache, copies)
    if args is not None:
        # Machines that share no folder extract everything, each among its own processes.
        for index, count in process_ranks(args):
            with all_or_none(args, "finding cached features"):  # every process lists them before one writes
                missing = stored.missing()
            with all_or_none(args, "extracting features"):
                stored.make(missing[index::count], num_workers, on_bad_audio == "skip")
    stored.make(stored.missing(), num_workers, on_bad_audio == "skip")
    if stored.missing():
        raise DataError(f"Files just written to {cache.folder} are missing or damaged: choose another --cache_dir.")
    cache.evict(cache_gib)
    facts = [stored.facts[originals[0]] for originals in stored.keys]
    reasons = [fact["error"] for fact in facts]
    errors = [f"{file}: {reason}" if reason else None for file, reason in zip(clips["file"][:], reasons, strict=True)]
    left_out = [error for error in errors if error]
    if left_out and on_bad_audio == "error":
        raise AudioError(f"{left_out[0]} {SKIP}")
    for message in left_out:
        logger.warning(f"Left out: {message}")
    if len(left_out) == len(clips):
        raise AudioError(f"none of the {len(clips)} clips can be decoded")
    # datasets pickles the content of its transforms for every fingerprint, which would be slow with all facts.
    stored.contents, stored.facts = {key: fact["content"] for key, fact in stored.facts.items()}, {}
    features = _table(clips, stored, {name: [fact[name] for fact in facts] for name in ("content", "seconds")})
    if left_out:
        features = features.select([row for row, error in enumerate(errors) if error is None])
    return features


class StoredSpectrograms:
    """
    Spectrograms of a table of clips and of their altered copies: computes missing ones, and reads all from the cache.

    Args:
        clips (`Dataset`): columns `file` and `audio`.
        feature_extractor (`MaxMViTFeatureExtractor`): computes the spectrograms.
        cache (`SpectrogramCache`): cache of this extractor.
        copies (`WaveformCopies`, *optional*): altered copies to extract in addition to each clip.

    Attributes:
        keys (`list[list[str]]`): for each clip the keys of its versions: the original, then the copies.
        facts (`dict[str, dict]`): key -> `content`, `seconds` and `error` of the versions found so far.
        contents (`dict[str, str]`): key -> `content` of all versions, once they are extracted.
    """

    def __init__(
        self, clips: Dataset, feature_extractor: Any, cache: SpectrogramCache, copies: WaveformCopies | None = None
    ):
        undecoded = clips.with_format(None).cast_column("audio", Audio(decode=False))
        self.clips = undecoded.select_columns(["file", "audio"])
        self.feature_extractor = feature_extractor
        self.cache = cache
        self.copies = copies
        self.keys = [[key, *(copies.keys(key) if copies else ())] for key in clip_keys(clips)]
        self.facts: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, str] = {}
        # Shared by all workers of a data loader and all epochs, since a checksum takes a fifth of the reading time.
        self._verified = torch.zeros(len(self.keys), len(self.keys[0]), dtype=torch.bool).share_memory_()
        self._damaged: dict[str, DamagedEntry] = {}

    def missing(self) -> list[tuple[int, list[int]]]:
        """Returns the rows of clips with versions that are not in the cache, and the numbers of those versions."""
        missing, named = [], set()
        for row, keys in enumerate(self.keys):
            numbers = []
            for number, key in enumerate(keys):
                if key not in named and not self._is_kept(key):
                    numbers.append(number)
                    named.add(key)
            if numbers:
                missing.append((row, numbers))
        return missing

    def _is_kept(self, key: str) -> bool:
        if key not in self.facts:
            try:
                self.facts[key] = self.cache.read_facts(key)
            except FileNotFoundError:
                return False
            except DamagedEntry as error:
                self._damaged[key] = error
                return False
        return True

    def make(self, missing: list[tuple[int, list[int]]], num_workers: int, skip: bool) -> None:
        """Computes what [`missing`] found. If `skip`, clips that cannot be decoded get entries with the error."""
        if not missing:
            return
        for row, numbers in missing:
            for key in (self.keys[row][number] for number in numbers):
                if error := self._damaged.pop(key, None):
                    self._warn_of_damage(row, key, error)
        # torch's workers have one thread each, and end silently on Ctrl+C and when their parent process ends.
        loader: DataLoader = DataLoader(
            missing,  # type: ignore[arg-type]  # any sequence will do
            batch_size=None,
            collate_fn=partial(self._make_versions, skip=skip),
            num_workers=min(num_workers, len(missing)) if num_workers > 1 else 0,
            generator=torch.Generator(),  # so that the global generator does not depend on which clips are missing
        )
        # tqdm must not wrap the loader: it would start to iterate over it twice, with twice the workers.
        with tqdm(total=len(missing), desc="Extracting CQT and Mel spectrograms") as progress:
            for message in loader:
                if message:
                    raise AudioError(message)
                progress.update()

    def _make_versions(self, job: tuple[int, Sequence[int]], skip: bool) -> str | None:
        """Writes versions of one clip to the cache; returns an error message if it cannot be decoded."""
        row, numbers = job
        clip, rate = self.clips[row], self.feature_extractor.sampling_rate
        try:
            original = read_audio(clip["audio"], rate)
        except AudioError as error:
            if not skip:
                return f"{clip['file']}: {error} {SKIP}"
            for number in numbers:
                self.cache.write(self.keys[row][number], b"", content=None, seconds=None, error=str(error))
            return None
        for number in numbers:
            waveform = self.copies.make(original, rate, number) if self.copies and number else original
            self.cache.write(
                self.keys[row][number],
                pack(self.feature_extractor.spectrograms(waveform)[0]),
                content=hashlib.sha1(waveform.tobytes(), usedforsecurity=False).hexdigest(),
                seconds=len(waveform) / rate,
                error=None,
            )
        return None

    def read(self, row: int, number: int) -> dict[str, torch.Tensor]:
        """
        Returns the spectrograms of one version of a clip as the extractor returned them, float32.

        Raises:
            AudioError: the spectrograms are damaged or deleted, and the clip has changed or cannot be read.
        """
        key = self.keys[row][number]
        try:
            spectrograms = self.cache.read(key, verify=not self._verified[row, number])
            self._verified[row, number] = True
            return spectrograms
        except FileNotFoundError:
            logger.warning_once(f"Spectrograms in {self.cache.folder} were deleted during the run: recomputing them.")
        except DamagedEntry as error:
            self._warn_of_damage(row, key, error)
        if next(clip_keys(self.clips.select([row]))) != self.keys[row][0]:
            raise AudioError(
                f"{self.clips[row]['file']} has changed or was deleted since this run started, and its spectrograms "
                "are no longer in the cache: start the run again."
            )
        if message := self._make_versions((row, [number]), skip=False):
            raise AudioError(message)
        return self.cache.read(key)

    def _warn_of_damage(self, row: int, key: str, error: DamagedEntry) -> None:
        file = self.clips[row]["file"]
        logger.warning(f"{self.cache.path(key)}, spectrograms of {file}, is damaged ({error}): recomputing them.")


class Versions(Sequence[dict[str, torch.Tensor]]):
    """
    Spectrograms of one clip: those of the original, then those of its altered copies. Each is read when it is indexed.

    Attributes:
        contents (`list[str]`): Digest of each version's waveform, equal for equal sound.
    """

    def __init__(self, stored: StoredSpectrograms, row: int):
        self.stored = stored
        self.row = row

    def __len__(self) -> int:
        return len(self.stored.keys[self.row])

    @property
    def contents(self) -> list[str]:
        return [self.stored.contents[key] for key in self.stored.keys[self.row]]

    def __getitem__(self, version: int) -> dict[str, torch.Tensor]:  # type: ignore[override]  # no slices
        return self.stored.read(self.row, version)


def rearranged(features: Dataset, rows: Sequence[int], **columns: Sequence) -> Dataset:
    """Returns the given rows of a table of clips, which may repeat, with columns added or replaced."""
    table = features.with_format(None).select(rows).flatten_indices(keep_in_memory=True)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.remove_columns(name)
        table = table.add_column(name, list(values))
    transform = features.format["format_kwargs"].get("transform")
    return table if transform is None else table.with_transform(transform)


def read_clip(row: Mapping[str, Any], feature_extractor: Any) -> np.ndarray:
    """Returns the waveform of a row at the extractor's sampling rate; an error names the row's `file`."""
    try:
        return read_audio(row["audio"], feature_extractor.sampling_rate)
    except AudioError as error:
        raise AudioError(f"{row['file']}: {error}") from error


def _table(clips: Dataset, stored: StoredSpectrograms, facts: dict[str, list]) -> Dataset:
    """Returns the columns of `clips` except `audio`, in memory, with their spectrograms and `facts`."""
    others = clips.remove_columns("audio")
    others = Dataset(others.with_format("arrow")[:], info=others.info)  # without the rows not selected
    for name, values in {"spectrograms": list(range(len(clips))), **facts}.items():
        others = others.add_column(name, values)
    return others.with_transform(partial(_open_versions, stored=stored))


def _open_versions(batch: dict[str, list], stored: StoredSpectrograms) -> dict[str, list]:
    if "spectrograms" in batch:
        batch["spectrograms"] = [Versions(stored, row) for row in batch["spectrograms"]]
    return batch
