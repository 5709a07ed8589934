"""A Trainer whose process can be killed at any moment: its checkpoints are whole and ranked, and a run goes on from
them as if nothing had happened."""

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ser.callbacks import metric_name
from ser.checkpoints import (
    UNFINISHED,
    complete,
    damage_of,
    keep_best_and_newest,
    last_checkpoint,
    remove_leftovers,
    sound_checkpoint,
)
from ser.errors import DataError
from ser.files import sync
from ser.processes import checkpoint_of_first, run_lock
from ser.training_arguments import SERTrainingArguments

logger = logging.get_logger(__name__)

# What is pushed to the Hub, of the files that lie in a run's folder itself.
PUBLISHED = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "preprocessor_config.json", "*_maxmvit.py",
    "README.md", "metrics.json", "splits.json", "predictions.csv", "*.png",
)  # fmt: skip


class ResumableTrainer(Trainer):
    """`transformers.Trainer` with checkpoints that are whole, synced and ranked, and that a moved run finds again."""

    args: SERTrainingArguments
    model: PreTrainedModel

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        As [`~transformers.Trainer.train`], with the output directory locked meanwhile, and from where the first
        process goes on.

        Raises:
            DataError: if another run is training in the output directory, if there is no checkpoint where one is
                asked for, or if one of several processes does not find it.
        """
        with run_lock(self.args):
            checkpoint = resume_from_checkpoint or None
            if checkpoint is True:
                find = sound_checkpoint if self.args.process_index == 0 else last_checkpoint  # the first one decides
                checkpoint = find(self.args.output_dir)
                if checkpoint is None:
                    raise DataError(f"{self.args.output_dir} holds no checkpoint to go on from.")
            checkpoint = checkpoint_of_first(self.args, checkpoint)
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer's own writes file by file into the final folder, where a killed run leaves half a checkpoint.
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
        if not self.args.should_save:  # on a disk that other machines share, each can but sync what it wrote itself
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

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None and self.state.best_global_step:
            # The state names the path that the best checkpoint had before the run's folder was moved or copied.
            best = Path(resume_from_checkpoint).with_name(f"checkpoint-{self.state.best_global_step}")
            if best.is_dir() and str(best) != self.state.best_model_checkpoint:
                logger.warning(f"The best checkpoint so far is taken from {best}.")
                self.state.best_model_checkpoint = str(best)
            self._require_best_checkpoint()
        return progress

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._require_best_checkpoint()
        # Given a limit of 1, Trainer's own deletes the newest checkpoint, which a run would go on from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _require_best_checkpoint(self) -> None:
        # Without it, Trainer's own goes on with a warning, and the last weights pass for the best.
        best = self.state.best_model_checkpoint
        if not (self.args.load_best_model_at_end and self.state.best_global_step):
            return
        is_there = best and os.path.isdir(best)
        if problem := damage_of(Path(best)) if is_there else f"it is missing in {self.args.output_dir}":
            raise FileNotFoundError(
                f"checkpoint-{self.state.best_global_step}, the best so far, is needed at the end, and {problem}: put "
                "it back beside the others, start over by --overwrite_output_dir, or take the last weights by "
                "--no_load_best_model_at_end."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Trainer's own would add the training arguments, as a pickle that names this machine's folders.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        if self.is_fsdp_enabled:
            # FSDP2 trains a subclass that it makes in a module of torch's; a checkpoint names and holds this code.
            sharded = type(self.model)
            sharded.__name__, sharded.__module__ = sharded.__bases__[-1].__name__, sharded.__bases__[-1].__module__
        self.model.save_pretrained(folder, state_dict=state_dict)
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
        Pushes the model and its report: `PUBLISHED`, and nothing else that lies in the output directory (Trainer's own
        takes all of it but checkpoints, logs that name this machine included).

        Args:
            commit_message: What the commit is called.
            blocking: Whether to wait until all is pushed.
            token, revision, private: As `hub_token`, `hub_revision` and `hub_private_repo`, over which they go.

        Returns:
            The commit, or a future of it if not `blocking`; None in every process but the main one.
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
