"""Checkpoints in a run's folder: which are there, and how they come and go without leaving a half one."""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

from transformers.utils import logging

from ser.errors import DataError
from ser.files import sync, write_json

logger = logging.get_logger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
CHECKSUMS = "checksums.json"  # of every other file of a checkpoint: its bytes and their CRC-32
BLOCK = 2**22  # bytes read at once
UNFINISHED = "tmp-"
CHECKPOINT_LIST = "checkpoints.json"


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest complete checkpoint in a run's folder."""
    found = list_checkpoints(output_dir)
    return str(found[max(found)]) if found else None


def list_checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """The complete checkpoints in a run's folder, by their step."""
    folders = filter(is_complete, Path(output_dir).glob("checkpoint-*"))
    return {int(match[1]): folder for folder in folders if (match := CHECKPOINT.fullmatch(folder.name))}


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder is a checkpoint with the file in it that is written last."""
    return (checkpoint / "trainer_state.json").is_file()


def sound_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest checkpoint in a run's folder that is as it was written. Newer ones that are damaged are renamed to
    `damaged-checkpoint-*`, with one warning, so that they neither are mistaken for the newest nor get lost.

    Raises:
        DataError: All of them are damaged.
    """
    found = list_checkpoints(output_dir)
    damaged: dict[Path, str] = {}
    for step in sorted(found, reverse=True):
        if (damage := damage_of(found[step])) is None:
            break
        damaged[found[step]] = damage
    else:
        if damaged:
            raise DataError(
                f"{output_dir} holds damaged checkpoints only: {'; '.join(damaged.values())}. Put back the files from "
                "a copy, or start over by --overwrite_output_dir."
            )
        return None
    for folder in damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    if damaged:
        logger.warning(
            f"{'; '.join(damaged.values())}: going on from {found[step]}, the newest that is whole. What is damaged "
            f"is kept as damaged-checkpoint-* in {output_dir}, and can be deleted."
        )
    return str(found[step])


def damage_of(checkpoint: Path) -> str | None:
    """
    What differs in a checkpoint from what was written, in a few words that name the file; None if nothing does. Of
    one that was written before there were checksums, only the state is read.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return f"{checkpoint / 'trainer_state.json'} cannot be read"
    if not (checkpoint / CHECKSUMS).exists():
        return None
    try:
        written = json.loads((checkpoint / CHECKSUMS).read_bytes())
        expected = {name: (size, checksum) for name, (size, checksum) in written.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{checkpoint / CHECKSUMS} cannot be read"
    for name, of_file in expected.items():
        if not (checkpoint / name).is_file():
            return f"{checkpoint / name} is missing"
        try:
            is_same = of_file == (os.path.getsize(checkpoint / name), _checksum(checkpoint / name))
        except OSError as error:
            return f"{checkpoint / name} cannot be read ({error.strerror})"
        if not is_same:
            return f"{checkpoint / name} is damaged"
    return None


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def complete(unfinished: Path, folder: Path) -> None:
    """Gives a checkpoint its checksums, and its name once all of it is on the disk: not even a power failure leaves
    half of one."""
    files = {str(file.relative_to(unfinished)): file for file in sorted(unfinished.rglob("*")) if file.is_file()}
    checksums = {name: (os.path.getsize(file), _checksum(file)) for name, file in files.items() if name != CHECKSUMS}
    write_json(unfinished / CHECKSUMS, checksums)
    for file in unfinished.rglob("*"):
        sync(file)
    sync(unfinished)
    remove(folder)
    unfinished.rename(folder)
    sync(folder.parent)


def keep_best_and_newest(
    run_dir: Path, metric: str, scores: Mapping[int, float], limit: int | None, greater_is_better: bool
) -> None:
    """
    Deletes all but the newest checkpoint and the `limit` best ones, and lists those in `checkpoints.json`.

    Args:
        run_dir: the run's folder.
        metric: what the scores are called in the list.
        scores: score by step; a checkpoint without a finite one is not among the best.
        limit: how many of the best are kept; None for all checkpoints.
        greater_is_better: which way the scores go. Of equal ones the earlier is the better.
    """
    scores = {step: score for step, score in scores.items() if math.isfinite(score)}
    kept = list_checkpoints(run_dir)
    newest = max(kept)
    if limit is not None:
        sign = -1 if greater_is_better else 1
        best = sorted(kept.keys() & scores.keys(), key=lambda step: (sign * scores[step], step))[:limit]
        for step in set(kept) - {*best, newest}:
            remove(kept.pop(step))
    listing = [{"checkpoint": kept[step].name, metric: scores.get(step)} for step in sorted(kept)]
    write_json(run_dir / CHECKPOINT_LIST, {"newest": kept[newest].name, "kept": listing})


def remove(folder: Path) -> None:
    """Deletes a checkpoint; a kill meanwhile leaves nothing that looks like one."""
    if folder.exists():
        doomed = folder.with_name(UNFINISHED + "removed-" + folder.name)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def remove_leftovers(run_dir: Path) -> None:
    """Deletes what a killed run had not completed."""
    for folder in run_dir.glob(UNFINISHED + "*checkpoint-*"):
        shutil.rmtree(folder)
