"""Clips -> spectrograms, once: extracted in parallel, kept on disk, read row by row."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Audio, Dataset
from transformers.utils import logging

from audio_maxmvit import AudioError, read_audio
from ser.errors import DataError
from ser.processes import Crew
from ser.spectrogram_cache import STORED, SpectrogramCache, StoredSpectrograms, Versions, clip_keys, pack
from ser.waveforms import WaveformCopies

logger = logging.get_logger(__name__)
SKIP = "To train on the other clips, use --on_bad_audio skip."
NOT_SHARED = "Another process could not finish extracting features; its own message says why."


def extract_features(
    clips: Dataset,
    feature_extractor: Any,
    *,
    num_workers: int = 1,
    cache_dir: str | os.PathLike | None = None,
    cache_gib: float = 50.0,
    on_bad_audio: Literal["error", "skip"] = "error",
    copies: WaveformCopies | None = None,
    crew: Crew | None = None,
) -> Dataset:
    """The table of clips with its `audio` replaced by the spectrograms of `feature_extractor.spectrograms`.

    Each clip is decoded and transformed once, and kept in a [`SpectrogramCache`] under a name of what its audio is and
    of what shapes its spectrograms. It is used again in whatever table it stands, by every extractor that differs in
    how it draws pictures only; labels and all other columns come from `clips` and may change freely.

    Args:
        clips (`Dataset`): columns `file` (a name for messages) and `audio` (path or bytes), and any others.
        feature_extractor (`MaxMViTFeatureExtractor`): makes the spectrograms.
        num_workers (`int`, defaults to 1): processes, of one thread each if more than one.
        cache_dir (`str`, *optional*): defaults to the cache folder of `datasets`.
        cache_gib (`float`, defaults to 50): see [`SpectrogramCache`].
        on_bad_audio (`str`, defaults to `"error"`): `"error"` stops at the first clip that cannot be decoded; `"skip"`
            leaves such clips out, with a warning that names each, here and at every later start. What was left out is
            what `clips["file"]` has and the result has not.
        copies (`WaveformCopies`, *optional*): altered copies to keep besides each clip.
        crew (`Crew`, *optional*): processes that all call this with the same clips, each of which extracts its share.

    Returns:
        `Dataset` with the columns of `clips` less `audio`, and `spectrograms`: of each clip its [`Versions`], of which
        the first is a dict as the extractor returns it, read from disk when it is indexed, and the others those of
        the clip's `copies`; `content`: a digest of the waveform, equal for equal sound; and `seconds`: its length.

    Raises:
        AudioError: a clip cannot be decoded (its name is in the message), or none can.
        DataError: another process of the crew could not do its share.
    """
    if on_bad_audio not in ("error", "skip"):
        raise ValueError(f'on_bad_audio must be "error" or "skip", got {on_bad_audio!r}')
    if not len(clips):
        raise ValueError("there are no clips to extract features from")
    extract = partial(
        _packed,
        feature_extractor=feature_extractor,
        one_thread=num_workers > 1,
        skip=on_bad_audio == "skip",
        copies=copies,
    )
    per_clip = 1 + (copies.count if copies else 0)
    keys = [name for key in clip_keys(clips) for name in (key, *(copies.keys(key) if copies else ()))]

    def write(missing: list[int], folder: Path, name: str = "spectrograms") -> None:
        jobs = [(keys[i], i % per_clip) for i in missing]
        path = folder / f"{name}.arrow"
        _write_rows(clips.select([i // per_clip for i in missing]), jobs, extract, path, num_workers)

    cache = SpectrogramCache(cache_dir, feature_extractor, cache_gib)
    stored = _find_or_share(cache, keys, write, crew) if crew else cache.find_or_write(keys, write)
    facts = {name: stored.facts(name)[::per_clip] for name in ("content", "seconds", "error")}
    names = clips["file"][:]
    errors = [f"{name}: {error}" if error else None for name, error in zip(names, facts.pop("error"), strict=True)]
    left_out = [error for error in errors if error]
    if left_out and on_bad_audio == "error":
        raise AudioError(f"{left_out[0]} {SKIP}")
    for message in left_out:
        logger.warning(f"Left out: {message}")
    if len(left_out) == len(clips):
        raise AudioError(f"none of the {len(clips)} clips can be decoded")
    rows = [stored.rows[i : i + per_clip] for i in range(0, len(keys), per_clip)]
    features = _table(clips, stored, rows, facts)
    if left_out:
        features = features.select([row for row, error in enumerate(errors) if error is None])
    return features


def _find_or_share(cache: SpectrogramCache, keys: Sequence[str], write: Callable, crew: Crew) -> StoredSpectrograms:
    """As `cache.find_or_write`, with each process of the crew writing its share of what the leading one misses."""
    has_said = False

    def do_share(missing: list[int], folder: Path) -> None:
        done = False
        try:
            if mine := crew.share(missing):
                write(mine, folder, f"spectrograms-{crew.index:05}")
            done = True
        finally:
            all_done = crew.agree(done)
        if not all_done:
            raise DataError(NOT_SHARED)

    def lead(missing: list[int], folder: Path) -> None:
        nonlocal has_said
        has_said = True
        crew.hear((missing, folder.name))
        do_share(missing, folder)

    stored = None
    if crew.index == 0:
        try:
            stored = cache.find_or_write(keys, lead)
        finally:
            if not has_said:
                crew.hear(None)  # nothing is missing, or it cannot be told
            crew.agree(stored is not None)
        return stored
    try:
        if (work := crew.hear()) is not None:
            do_share(work[0], cache.folder / work[1])
    finally:
        is_written = crew.agree(True)
    if not is_written:
        raise DataError(NOT_SHARED)
    return cache.find_or_write(keys, write)


def rearranged(features: Dataset, rows: Sequence[int], **columns: Sequence) -> Dataset:
    """Rows of a table of clips, with features or still with audio, each as often as it is named, with further or other
    columns."""
    table = features.with_format(None).select(rows).flatten_indices(keep_in_memory=True)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.remove_columns(name)
        table = table.add_column(name, list(values))
    transform = features.format["format_kwargs"].get("transform")
    return table if transform is None else table.with_transform(transform)


def read_clip(row: Mapping[str, Any], feature_extractor: Any) -> np.ndarray:
    """The waveform of a row at the extractor's rate; an error names the row's `file`."""
    try:
        return read_audio(row["audio"], feature_extractor.sampling_rate)
    except AudioError as error:
        raise AudioError(f"{row['file']}: {error}") from error


def _table(clips: Dataset, stored: StoredSpectrograms, rows: list[list[int]], facts: dict[str, list]) -> Dataset:
    """The columns of `clips` less `audio`, in memory, beside the places of their spectrograms in the store."""
    others = clips.remove_columns("audio")
    others = Dataset(others.with_format("arrow")[:], info=others.info)  # without the rows not selected
    for name, values in {"spectrograms": rows, **facts}.items():
        others = others.add_column(name, values)
    return others.with_transform(partial(_open_versions, stored=stored))


def _open_versions(batch: dict[str, list], stored: StoredSpectrograms) -> dict[str, list]:
    if "spectrograms" in batch:
        batch["spectrograms"] = [Versions(stored, rows) for rows in batch["spectrograms"]]
    return batch


def _write_rows(clips: Dataset, jobs: list[tuple[str, int]], extract: partial, path: Path, num_workers: int) -> None:
    """Writes packed spectrograms, row by row as in `clips`, to an Arrow file or, of several workers, some of that name
    and a number. A job is a key and what is to be kept under it: the original (0) or the copy of that number."""
    clips = clips.with_format(None).cast_column("audio", Audio(decode=False)).select_columns(["file", "audio"])
    clips.map(
        extract,
        with_indices=True,
        fn_kwargs={"jobs": jobs},
        remove_columns=clips.column_names,
        features=STORED,
        num_proc=min(num_workers, len(clips)) if num_workers > 1 else None,
        writer_batch_size=64,
        cache_file_name=str(path),
        new_fingerprint=path.parent.stem[-40:],
        desc="Extracting CQT and Mel spectrograms",
    )


def _packed(
    row: Mapping[str, Any],
    index: int,
    jobs: list[tuple[str, int]],
    feature_extractor: Any,
    one_thread: bool,
    skip: bool,
    copies: WaveformCopies | None,
) -> dict[str, Any]:
    if one_thread:
        torch.set_num_threads(1)
    key, number = jobs[index]
    try:
        waveform = read_audio(row["audio"], feature_extractor.sampling_rate)
    except AudioError as error:
        if not skip:
            raise AudioError(f"{row['file']}: {error} {SKIP}") from error
        return {**dict.fromkeys(STORED), "key": key, "error": str(error)}
    if number and copies is not None:
        waveform = copies.make(waveform, feature_extractor.sampling_rate, number)
    return {
        "key": key,
        "spectrograms": pack(feature_extractor.spectrograms(waveform)[0]),
        "content": hashlib.sha1(waveform.tobytes(), usedforsecurity=False).hexdigest(),
        "seconds": len(waveform) / feature_extractor.sampling_rate,
        "error": None,
    }
