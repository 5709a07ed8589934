"""What the trainer counts besides its steps, so that a resumed run goes on counting."""

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState


class EarlyStopping(EarlyStoppingCallback):
    """`transformers.EarlyStoppingCallback` that stays stopped when a run that it had stopped is resumed."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if metric_name(args) in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class NonFiniteSteps(TrainerCallback, ExportableState):
    """How many steps with a loss that is not finite a run has left out; a resumed run goes on counting."""

    def __init__(self, count: int = 0):
        self.count = count

    def state(self) -> dict:
        return {"args": {"count": self.count}, "attributes": {}}


def metric_name(args: TrainingArguments) -> str:
    """`metric_for_best_model` as evaluation reports it."""
    return "eval_" + args.metric_for_best_model.removeprefix("eval_")
