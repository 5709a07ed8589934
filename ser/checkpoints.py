"""Checkpoints in a run's folder: which are there, and how they go without leaving a half one."""

import os
import re
import shutil
from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "tmp-"
CHECKPOINT_LIST = "checkpoints.json"


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest complete checkpoint in a run's folder."""
    found = list_checkpoints(output_dir)
    return str(found[max(found)]) if found else None


def list_checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if (folder / "trainer_state.json").is_file()]
    return {int(match[1]): folder for folder in folders if (match := CHECKPOINT.fullmatch(folder.name))}


def remove(folder: Path) -> None:
    """Deletes a checkpoint; a kill meanwhile leaves nothing that looks like one."""
    if folder.exists():
        doomed = folder.with_name(UNFINISHED + "removed-" + folder.name)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def remove_leftovers(run_dir: Path) -> None:
    for folder in run_dir.glob(UNFINISHED + "*checkpoint-*"):
        shutil.rmtree(folder)
