"""Complete, ranked checkpoints of a run, and the Trainer that resumes from them exactly."""

import hashlib
import inspect
import json
import math
import os
import re
import shutil
import textwrap
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ser.distributed import all_true, broadcast_from_first, run_lock
from ser.files import sync, write_json
from ser.training.arguments import SERTrainingArguments
from ser.training.callbacks import TrainerEvents, metric_name
from ser.training.finetuning import compact_weights
from ser.utils import DataError

# ---- Checkpoints in the folder of a run ----

logger = logging.get_logger(__name__)
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
CHECKSUMS = "checksums.json"  # the size in bytes and the CRC-32 of every other file of a checkpoint
BLOCK = 2**22  # bytes to read at a time
UNFINISHED = "tmp-"
CHECKPOINT_LIST = "checkpoints.json"


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Returns the newest complete checkpoint in a run's folder."""
    found = list_checkpoints(output_dir)
    return str(found[max(found)]) if found else None


def list_checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Returns the complete checkpoints in a run's folder by their steps."""
    folders = filter(is_complete, Path(output_dir).glob("checkpoint-*"))
    return {int(match[1]): folder for folder in folders if (match := CHECKPOINT.fullmatch(folder.name))}


def is_complete(checkpoint: Path) -> bool:
    """Returns whether a folder is a checkpoint that has the file that is written last."""
    return (checkpoint / "trainer_state.json").is_file()


def sound_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    Returns the newest undamaged checkpoint in a run's folder. Newer, damaged ones are renamed to
    `damaged-checkpoint-*`, with one warning, so that they are kept but not used as the newest.

    Raises:
        DataError: All checkpoints are damaged.
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
                f"{output_dir} holds only damaged checkpoints: {'; '.join(damaged.values())}. Restore the files from "
                "a copy, or start over with --overwrite_output_dir."
            )
        return None
    for folder in damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    if damaged:
        logger.warning(
            f"{'; '.join(damaged.values())}: resuming from {found[step]}, the newest undamaged checkpoint. Damaged "
            f"ones are kept as damaged-checkpoint-* in {output_dir}, and can be deleted."
        )
    return str(found[step])


def damage_of(checkpoint: Path) -> str | None:
    """
    Describes the first damage to a checkpoint, and names the file; None if the checkpoint is undamaged. In old
    checkpoints without checksums, only the state is checked.
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
    """Adds checksums to a checkpoint, and renames it once all of it is on the disk, so that even a power failure
    leaves no incomplete checkpoint."""
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
    Deletes all but the newest checkpoint and the `limit` best ones, and lists what remains in `checkpoints.json`.

    Args:
        run_dir: folder of the run.
        metric: name of the scores in the list.
        scores: score by step; a checkpoint without a finite score is not among the best.
        limit: number of the best checkpoints to keep; None for all checkpoints.
        greater_is_better: whether greater scores are better. Among equal scores, the earlier one is better.
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
    """Deletes a checkpoint. It is renamed first, so that a kill leaves nothing that looks like a checkpoint."""
    if folder.exists():
        removed = folder.with_name(UNFINISHED + "removed-" + folder.name)
        folder.rename(removed)
        shutil.rmtree(removed)


def remove_leftovers(run_dir: Path) -> None:
    """Deletes incomplete checkpoints of a killed run."""
    for folder in run_dir.glob(UNFINISHED + "*checkpoint-*"):
        shutil.rmtree(folder)


def checkpoint_of_first(args: TrainingArguments, checkpoint: str | None) -> str | None:
    """
    Returns the checkpoint from which all processes resume: the one that the first process has found.

    Args:
        args: arguments of the run.
        checkpoint: the checkpoint that this process has found, if any.

    Raises:
        DataError: a process does not find it on its disk; raised in every process.
    """
    if args.world_size == 1:
        return checkpoint
    match = CHECKPOINT.fullmatch(Path(checkpoint).name) if checkpoint else None
    step = broadcast_from_first(args, int(match[1]) if match else -1)
    if step < 0:
        return None
    folder = Path(checkpoint).parent if checkpoint else Path(args.output_dir)
    mine = folder / f"checkpoint-{step}"
    found = is_complete(mine)
    if not all_true(args, found):
        process = "another process" if found else f"process {args.process_index}"
        raise DataError(
            f"The first process resumes from {mine}, which {process} does not find: put --output_dir on a disk that "
            "all machines share, or start over with --overwrite_output_dir."
        )
    return str(mine)


# ---- The resumable Trainer ----
# The process can be killed at any moment: checkpoints are complete and ranked, and a resumed run continues exactly.
# The methods of transformers' Trainer on which it relies are listed below.

# Files of a run's folder (not of its sub-folders) that are pushed to the Hub.
PUBLISHED = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "preprocessor_config.json", "*_maxmvit.py",
    "README.md", "metrics.json", "splits.json", "predictions.csv", "*.png",
)  # fmt: skip


class ResumableTrainer(Trainer):
    """`transformers.Trainer` with complete, synced and ranked checkpoints, which are also found after a run's folder
    was moved."""

    args: SERTrainingArguments
    model: PreTrainedModel

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._resumed_from: str | None = None
        self.add_callback(TrainerEvents(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains like [`~transformers.Trainer.train`], with the output directory locked, and from the checkpoint of the
        first process.

        Raises:
            DataError: another run is training in the output directory, a requested checkpoint does not exist, or one
                of several processes does not find it.
        """
        with run_lock(self.args):
            checkpoint = resume_from_checkpoint or None
            if checkpoint is True:
                find = sound_checkpoint if self.args.process_index == 0 else last_checkpoint  # the first one decides
                checkpoint = find(self.args.output_dir)
                if checkpoint is None:
                    raise DataError(f"{self.args.output_dir} holds no checkpoint to resume from.")
            checkpoint = checkpoint_of_first(self.args, checkpoint)
            self._resumed_from = checkpoint
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer's own method writes file by file into the final folder, so that a kill leaves half a checkpoint.
        run_dir = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        folder = run_dir / (UNFINISHED + name)
        if self.args.should_save:
            remove_leftovers(run_dir)
        self.accelerator.wait_for_everyone()

        self.store_flos()
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.save_progress(folder)
        if not self.args.should_save:  # a machine can sync only its own files on a shared disk
            sync(folder / f"rng_state_{self.args.process_index}.pth")
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if best.name == name or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()

        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            complete(folder, run_dir / name)
            metric = metric_name(self.args) if self.args.metric_for_best_model else "score"
            scores = {entry["step"]: entry[metric] for entry in self.state.log_history if metric in entry}
            limit, greater = self.args.save_total_limit, bool(self.args.greater_is_better)
            keep_best_and_newest(run_dir, metric, scores, limit, greater)
        self.accelerator.wait_for_everyone()

    def begin_training(self) -> None:
        """Prepares an attempt at training, called before its first step and with the state of a checkpoint."""
        if self._resumed_from is not None and self.state.best_global_step:
            # The state has the path of the best checkpoint from before the run's folder was moved or copied.
            best = Path(self._resumed_from).with_name(f"checkpoint-{self.state.best_global_step}")
            if best.is_dir() and str(best) != self.state.best_model_checkpoint:
                logger.warning(f"The best checkpoint so far is taken from {best}.")
                self.state.best_model_checkpoint = str(best)
            self._require_best_checkpoint()

    def end_step(self) -> None:
        """Called after each update and each epoch, before anything is logged, evaluated or saved."""

    def save_progress(self, folder: Path) -> None:
        """Writes further files that a resumed run needs to the folder of a new checkpoint; called in every process."""

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._require_best_checkpoint()
        # With a limit of 1, Trainer's own method deletes the newest checkpoint, from which a run would resume.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _require_best_checkpoint(self) -> None:
        # Without the best checkpoint, Trainer's own method only warns, and uses the last weights.
        best = self.state.best_model_checkpoint
        if not (self.args.load_best_model_at_end and self.state.best_global_step):
            return
        is_there = best and os.path.isdir(best)
        if problem := damage_of(Path(best)) if is_there else f"it is missing in {self.args.output_dir}":
            raise FileNotFoundError(
                f"checkpoint-{self.state.best_global_step}, the best so far, is needed at the end, but {problem}: "
                "restore it, start over with --overwrite_output_dir, or use the last weights with "
                "--no_load_best_model_at_end."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Trainer's own method would add the training arguments, as a pickle that names this machine's folders.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        if self.is_fsdp_enabled:
            # FSDP2 creates a subclass in a module of torch; the checkpoint must name and hold this project's class.
            sharded = type(self.model)
            sharded.__name__, sharded.__module__ = sharded.__bases__[-1].__name__, sharded.__bases__[-1].__module__
        self.model.save_pretrained(
            folder, state_dict=compact_weights(self.model) if state_dict is None else state_dict
        )
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | Future | None:
        """
        Pushes the model and its report, `PUBLISHED`, and no other files in the output directory. (Trainer's own method
        pushes everything except checkpoints, including logs that name this machine.)

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait until everything is pushed.
            token, revision, private: Override `hub_token`, `hub_revision` and `hub_private_repo`.

        Returns:
            The commit, or a future of it if not `blocking`; None in every process except the main one.
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return HfApi(token=token).upload_folder(  # type: ignore[call-overload]  # `blocking` decides which
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            allow_patterns=list(PUBLISHED),
            ignore_patterns=["*/*"],
            commit_message=commit_message,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
        )


# ---- Methods of Trainer that are overridden or called here ----
# Most of them are private, and may change in any release.

TESTED = ("5.23.0", "5.24.0")  # the lowest version that pyproject.toml allows, and the one that requirements.txt pins
# method -> (digests of its source in these versions, what is relied on)
RELIED_ON: dict[str, tuple[str, str]] = {
    "train": ("0bc847a1e101", "the override locks the folder and chooses the checkpoint first; `True`: the newest"),
    "_inner_training_loop": (
        "3b8b7359ad08",
        "the order: loaders, _init_training_state, _prepare_for_training, on_train_begin, epochs, _finalize_training",
    ),
    "_init_training_state": (
        "4104b60f5233",
        "called before on_train_begin; it drops a best checkpoint that is not at the path in the state",
    ),
    "_prepare_for_training": (
        "7196fc64ea53 5d0572e9918e",
        "the weights of a checkpoint are loaded before, optimizer and scheduler during it; it wraps the optimizer",
    ),
    "_run_epoch": (
        "20e0f3da0199",
        "clipping, _get_grad_norm, step, global_step + 1, on_step_end, _maybe_log_save_evaluate, and at its end "
        "on_epoch_end and once more _maybe_log_save_evaluate; on resuming it skips the first batches of the sampler",
    ),
    "_maybe_log_save_evaluate": ("7d857f309968", "everything that is logged, evaluated and saved goes through it"),
    "_finalize_training": (
        "ad949f4af42f",
        "it loads the best weights, and deletes checkpoints only if save_total_limit is 1",
    ),
    "training_step": ("caa7e68f3335", "it returns the loss of one small batch, detached"),
    "_prepare_inputs": (
        "b28ea48b3290",
        "training_step and prediction_step call it, and it leaves tensors on the device",
    ),
    "prediction_step": (
        "5433a8a13df0 e42ba4bb5c3e",
        "evaluation and prediction pass each batch through it",
    ),
    "compute_loss": ("30eb16e597ad", "without label_smoother and compute_loss_func it is the model's own loss"),
    "_clip_grad_norm": ("df0a0246dbcb", "its norm goes to _get_grad_norm"),
    "_get_grad_norm": (
        "27e2667f3741",
        "called at every update between backward and step, and its norm is that of all processes",
    ),
    "create_optimizer": ("72027ca5f62c", "called without a model except under FSDP1, and only for its side effect"),
    "get_train_dataloader": ("db950023cc90", "what it prepares with accelerate, since the override does the same"),
    "get_eval_dataloader": ("7eb9fa5663b4", "evaluate takes its loader from it"),
    "get_test_dataloader": ("600e812d9657", "predict takes its loader from it"),
    "_get_train_sampler": (
        "f3d15b81f2b0",
        "without grouping by length it is a RandomSampler that accelerate makes seedable",
    ),
    "_get_eval_sampler": ("e3c9847a0000", "one process reads in order, and several have no sampler"),
    "_remove_unused_columns": ("0e09f6fa84f9", "it returns the data set without them"),
    "_get_collator_with_removed_columns": ("df0633f183e6", "it returns the collator, wrapped or not"),
    "evaluation_loop": (
        "0e78695b50b6",
        "evaluate and predict go through it; its loss is a mean over padded batches, and its predictions are gathered",
    ),
    "_save_checkpoint": (
        "4638fc7aeef9",
        "the parts that it calls, since the override calls the same ones, and neither pushes nor rotates",
    ),
    "_save_optimizer_and_scheduler": ("bc4e124e0996", "the folder is its first argument, and it writes into it"),
    "_save_scaler": ("a7e078f7afec", "the folder is its argument"),
    "_save_rng_state": ("87f4e3c83b0f", "each process writes a file rng_state_N.pth of its own"),
    "_save": ("d7432eef4d5f", "what it writes in addition to model, processor and the pickled arguments"),
    "save_model": ("482f6c2c688c", "everything is saved through _save"),
    "_load_from_checkpoint": ("1fa7425d1ea7", "weights come from model.safetensors, and nothing is unpickled"),
    "_load_best_model": ("27a2385b6ad1", "weights come from model.safetensors, and nothing is unpickled"),
    "_load_optimizer_and_scheduler": ("d8b86ea0410f", "nothing is unpickled: weights_only=True"),
    "_load_rng_state": ("5d66257d34a3", "nothing is unpickled: weights_only=True"),
    "_load_scaler": ("66f98be0205e", "nothing is unpickled: weights_only=True"),
    "_load_callback_state": ("5f5e2dede16b", "callbacks are replaced by new ones, built from what state() returned"),
    "_get_output_dir": ("a0570e0382da", "the folder of checkpoints"),
    "_determine_best_metric": ("a895fcc6f2d1", "it sets best_global_step before the checkpoint of that step is saved"),
    "push_to_hub": ("35ab3316b4f2", "save_model(_internal_call=False) calls it; the override pushes fewer files"),
    "init_hf_repo": ("f82787ce9b9c", "it sets hub_model_id"),
    "log": ("24a8b511d38d", "it appends to log_history, and receives the learning rate once per update"),
    "floating_point_ops": ("40091c767aed", "called at every step"),
    "store_flos": ("69b97771644e", "called before a checkpoint's state is written"),
}


def digest(name: str) -> str | None:
    """Returns a digest of the source of a method of the installed Trainer, or `None` if there is no such method."""
    method = getattr(Trainer, name, None)
    return None if method is None else _source_digest(method)


@cache
def _source_digest(method: Callable) -> str:
    source = textwrap.dedent(inspect.getsource(method))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def changed_methods() -> list[str]:
    """Returns the names of the methods whose source in the installed transformers differs from all tested versions."""
    return [name for name, (digests, _) in RELIED_ON.items() if digest(name) not in digests.split()]


def warn_of_changed_methods() -> None:
    """Warns, once in a process, if training relies on methods of Trainer in an untested form."""
    if changed := changed_methods():
        logger.warning_once(
            f"Training was not tested with transformers {transformers.__version__}, whose Trainer differs from that "
            f"of {' and '.join(TESTED)} in {', '.join(changed)}. If a run behaves unexpectedly, install a tested "
            f"version: pip install transformers=={TESTED[-1]}"
        )
