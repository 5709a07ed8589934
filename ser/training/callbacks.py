"""Callbacks of the Trainer. The counters of some are stored in checkpoints, so that a resumed run continues them."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState


class EarlyStopping(EarlyStoppingCallback):
    """`transformers.EarlyStoppingCallback` that stops a resumed run at once if the run had been stopped before."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if metric_name(args) in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class NonFiniteSteps(TrainerCallback, ExportableState):
    """Counts the steps with a non-finite loss that a run has left out; a resumed run continues to count."""

    def __init__(self, count: int = 0):
        self.count = count

    def state(self) -> dict:
        return {"args": {"count": self.count}, "attributes": {}}


class TrainerEvents(TrainerCallback):
    """
    Calls methods of a trainer during its training: `begin_training` once the model, the optimizer and the state
    are ready, and `end_step` after each update and each epoch, before anything is logged, evaluated or saved.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_training()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_step()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer.end_step()


def metric_name(args: TrainingArguments) -> str:
    """Returns the name of `metric_for_best_model` in the results of an evaluation."""
    return "eval_" + args.metric_for_best_model.removeprefix("eval_")
