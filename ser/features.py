"""Clips -> images, once: extracted in parallel, kept on disk, handed to the model in batches."""

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets import Audio, Dataset, Features, Value, concatenate_datasets
from filelock import FileLock
from transformers.utils import logging

import audio_maxmvit
import spectrograms_maxmvit
from audio_maxmvit import AudioError, read_audio

logger = logging.get_logger(__name__)
IMAGES = ("cqt_values", "mel_values")
# An image is stored as the bytes of its float16 pixels: a batch is read several times as fast as from Array3D.
STORED = Features({**{name: Value("binary") for name in IMAGES}, "content": Value("string"), "error": Value("string")})
SUMMARY = "features.json"


def extract_features(
    clips: Dataset,
    feature_extractor: Any,
    *,
    num_workers: int = 1,
    cache_dir: str | os.PathLike | None = None,
    on_bad_audio: Literal["error", "skip"] = "error",
) -> Dataset:
    """The table of clips with its `audio` replaced by the images of `feature_extractor.extract`.

    Each clip is decoded and transformed once. The images lie in `cache_dir`, in a folder named by `cache_key`, are
    memory-mapped from there, and are used again whenever the same clips in the same order meet the same extractor;
    labels and all other columns come from `clips` and may change freely. So give it the whole corpus and `select` the
    parts afterwards. The folder gets its name only when it is complete. Processes that want the same folder wait for
    the one that began it.

    Args:
        clips (`Dataset`): columns `file` (a name for messages) and `audio` (path or bytes), and any others.
        feature_extractor (`MaxMViTFeatureExtractor`): makes the images.
        num_workers (`int`, defaults to 1): processes, of one thread each if more than one.
        cache_dir (`str`, *optional*): defaults to `maxmvit_features` in the cache folder of `datasets`.
        on_bad_audio (`str`, defaults to `"error"`): `"error"` stops at the first clip that cannot be decoded; `"skip"`
            leaves such clips out, with a warning that names each, here and at every later start. What was left out is
            what `clips["file"]` has and the result has not.

    Returns:
        `Dataset` with the columns of `clips` less `audio`, and `cqt_values`, `mel_values`: float16 tensors
        `(1, image_size, image_size)` in [0, 1], and `content`: a digest of the waveform, equal for equal sound.

    Raises:
        AudioError: a clip cannot be decoded (its name is in the message), or none can.
    """
    if on_bad_audio not in ("error", "skip"):
        raise ValueError(f'on_bad_audio must be "error" or "skip", got {on_bad_audio!r}')
    if not len(clips):
        raise ValueError("there are no clips to extract features from")
    cache_dir = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE, "maxmvit_features"))
    folder = cache_dir / cache_key(clips, feature_extractor)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            logger.info(f"Using the images in {folder}")
        else:
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _write_images(clips, feature_extractor, partial, num_workers, on_bad_audio)
            os.replace(partial, folder)

    images = concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(folder.glob("images*.arrow"))])
    left_out = json.loads((folder / SUMMARY).read_text())["left_out"]
    if left_out and on_bad_audio == "error":
        raise AudioError(next(iter(left_out.values())))
    for message in left_out.values():
        logger.warning(f"Left out: {message}")
    if len(left_out) == len(clips):
        raise AudioError(f"none of the {len(clips)} clips can be decoded")
    others = clips.remove_columns("audio")
    others = Dataset(others.with_format("arrow")[:], info=others.info)  # in memory, without the rows not selected
    features = concatenate_datasets([others, images.remove_columns("error")], axis=1)
    if left_out:
        features = features.select([row for row in range(len(clips)) if str(row) not in left_out])
    return features.with_transform(_images_from_bytes)


def relabel(clips: Dataset, labels: Sequence[int]) -> Dataset:
    """The table of `extract_features` with other labels, one a row. The rows are copied into memory."""
    # As it is given, `datasets` would copy the decoded images, into the folder of the cache.
    rows = clips.with_format(None).remove_columns("label").flatten_indices(keep_in_memory=True)
    return rows.add_column("label", labels).with_transform(_images_from_bytes)


def cache_key(clips: Dataset, feature_extractor: Any) -> str:
    """Name for the images of these clips, in this order, by this extractor.

    It changes with every parameter of the extractor, with the source files of the extractor and of `read_audio` (so
    an edited algorithm never meets images of the old one), and with the audio: of clips held in the table all bytes
    are hashed, undecoded, at a few GB/s; of files on disk, which are not opened, the path, size and modification
    time.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for source in (inspect.getfile(type(feature_extractor)), spectrograms_maxmvit.__file__, audio_maxmvit.__file__):
        digest.update(Path(source).read_bytes())
    digest.update(json.dumps([_parameters(feature_extractor), list(STORED)], sort_keys=True).encode())
    column = clips.with_format(None).cast_column("audio", Audio(decode=False)).select_columns("audio")
    for table in column.with_format("arrow").iter(batch_size=256):
        audio = table["audio"].combine_chunks()
        for contents, path in zip(audio.field("bytes"), audio.field("path").to_pylist(), strict=True):
            if contents.is_valid:
                digest.update(f"{len(contents.as_buffer())} bytes:".encode())
                digest.update(contents.as_buffer())
            else:
                digest.update(f"{os.path.abspath(path)} {_size_and_time(path)}:".encode())
    return digest.hexdigest()


def read_clip(row: Mapping[str, Any], feature_extractor: Any) -> np.ndarray:
    try:
        return read_audio(row["audio"], feature_extractor.sampling_rate)
    except AudioError as error:
        raise AudioError(f"{row['file']}: {error}") from error


def extract_clip(waveform: np.ndarray, feature_extractor: Any) -> dict[str, torch.Tensor]:
    """`(1, H, W)` images of one clip."""
    return {name: images[0] for name, images in feature_extractor.extract(waveform).items()}


def _write_images(clips: Dataset, feature_extractor: Any, folder: Path, num_workers: int, on_bad_audio: str) -> None:
    """Fills a folder with Arrow files of images, row by row as in `clips`, and a summary."""
    folder.mkdir()
    clips = clips.with_format(None).cast_column("audio", Audio(decode=False)).select_columns(["file", "audio"])
    images = clips.map(
        _bytes_of_clip,
        fn_kwargs={
            "feature_extractor": feature_extractor,
            "one_thread": num_workers > 1,
            "skip": on_bad_audio == "skip",
        },
        remove_columns=clips.column_names,
        features=STORED,
        num_proc=num_workers if num_workers > 1 else None,
        writer_batch_size=64,
        cache_file_name=str(folder / "images.arrow"),
        new_fingerprint=folder.stem,
        desc="Extracting CQT and Mel images",
    )
    left_out = {str(row): error for row, error in enumerate(images["error"]) if error is not None}
    summary = {"clips": len(clips), "left_out": left_out, "extractor": _parameters(feature_extractor)}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2))


def _bytes_of_clip(row: Mapping[str, Any], feature_extractor: Any, one_thread: bool, skip: bool) -> dict[str, Any]:
    if one_thread:
        torch.set_num_threads(1)
    try:
        waveform = read_clip(row, feature_extractor)
    except AudioError as error:
        if not skip:
            raise
        return {**dict.fromkeys((*IMAGES, "content")), "error": str(error)}
    images = extract_clip(waveform, feature_extractor)
    content = hashlib.sha1(waveform.tobytes(), usedforsecurity=False).hexdigest()
    pixels = {name: image.half().numpy().tobytes() for name, image in images.items()}
    return {**pixels, "content": content, "error": None}


def _images_from_bytes(batch: dict[str, list]) -> dict[str, list]:
    for name in IMAGES:
        if batch.get(name):
            pixels = [np.frombuffer(contents, np.float16) for contents in batch[name]]
            side = round(len(pixels[0]) ** 0.5)
            batch[name] = list(torch.from_numpy(np.stack(pixels)).view(-1, 1, side, side))
    return batch


def _parameters(feature_extractor: Any) -> dict[str, Any]:
    """Without what saving and loading add to it."""
    return {name: value for name, value in feature_extractor.to_dict().items() if name != "auto_map"}


def _size_and_time(path: str) -> str:
    if not os.path.exists(path):  # extraction says so, by name
        return "missing"
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"
