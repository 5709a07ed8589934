"""What stands in an output directory: nothing, a run to go on with, or a finished one."""

import json
import os
from pathlib import Path
from typing import Literal

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.arguments import SERTrainingArguments
from ser.checkpoints import CHECKPOINT_LIST, last_checkpoint, list_checkpoints, remove, remove_leftovers
from ser.errors import DataError
from ser.models import EXTRACTOR_FIELDS, MODEL_FIELDS
from ser.report import REPORT_FILES

FINISHED_MARK = "FINISHED"


def resume_or_start(
    output_dir: str | os.PathLike, overwrite: bool = False
) -> tuple[Literal["fresh", "resume", "finished"], str | None]:
    """
    What is to be done in an output directory.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run; it need not exist.
        overwrite (`bool`, defaults to False): Deletes the checkpoints of an earlier run, so that the answer is fresh.

    Returns:
        `("fresh", None)`, `("resume", checkpoint)` for [`SERTrainer.train`]'s `resume_from_checkpoint`, or
        `("finished", newest checkpoint)` if [`mark_finished`] was called. In a distributed run, call it on every
        process, on the main one first (`with training_args.main_process_first():`).
    """
    folder = Path(output_dir)
    if overwrite:
        (folder / FINISHED_MARK).unlink(missing_ok=True)
        remove_leftovers(folder)
        for checkpoint in list_checkpoints(folder).values():
            remove(checkpoint)
        (folder / CHECKPOINT_LIST).unlink(missing_ok=True)
    checkpoint = last_checkpoint(folder)
    if (folder / FINISHED_MARK).exists():
        return "finished", checkpoint
    return ("resume", checkpoint) if checkpoint else ("fresh", None)


def mark_finished(output_dir: str | os.PathLike) -> None:
    """Says that a run is complete. To be called last, by the main process, when everything else has been written."""
    (Path(output_dir) / FINISHED_MARK).touch()


def earlier_run(
    args: SERTrainingArguments, config: MaxMViTConfig, feature_extractor: MaxMViTFeatureExtractor, splits: dict
) -> str | None:
    """The checkpoint to go on from, None to start afresh, or "finished"; refuses to go on from a run of other clips,
    images or another model, whose weights may have been trained on what is tested here."""
    folder = Path(args.output_dir)
    with args.main_process_first(local=False, desc="looking for an earlier run"):
        if args.overwrite_output_dir and args.should_save:
            for name in REPORT_FILES:
                (folder / name).unlink(missing_ok=True)
        state, checkpoint = resume_or_start(folder, args.overwrite_output_dir and args.should_save)
    if state == "fresh":
        return None
    source = checkpoint if state == "resume" else folder
    before = MaxMViTConfig.from_pretrained(source), MaxMViTFeatureExtractor.from_pretrained(source)
    same = json.loads((folder / "splits.json").read_text()) == splits
    for earlier, now, names in zip(
        before, (config, feature_extractor), ((*MODEL_FIELDS, "id2label"), EXTRACTOR_FIELDS), strict=True
    ):
        same = same and all(getattr(earlier, name) == getattr(now, name) for name in names)
    if not same:
        raise DataError(
            f"{folder} holds an earlier run with another model or feature extractor, other classes, or other clips to "
            "train and test on. Name another --output_dir, or start over in this one by --overwrite_output_dir."
        )
    return "finished" if state == "finished" else checkpoint
