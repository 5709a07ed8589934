"""Checkpoints in a run's folder: which are there, and how they come and go without leaving a half one."""

import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from ser.files import sync, write_json

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
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


def complete(unfinished: Path, folder: Path) -> None:
    """Gives a checkpoint its name once all of it is on the disk: not even a power failure leaves half of one."""
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
