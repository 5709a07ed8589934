"""
Logs facts about a run, its scores on the test part and its confusion matrix to the trackers of `--report_to`.

transformers logs the options, the model's configuration, the losses and the scores on the validation part. Its runs
end with the training, before the test part is scored; so they are opened again here, and then closed, since the next
fold is a separate run.
"""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, default_logdir

from ser.evaluation.metrics import SCORES

IMAGE = "test/confusion_matrix"


class RunTracking(TrainerCallback):
    """
    Logs facts about a run when its training begins, and its scores by [`RunTracking.log_report`], to TensorBoard,
    Trackio, Weights & Biases and MLflow. Other trackers only get what transformers logs.

    Args:
        facts (`dict`): Facts about the run, such as its protocol and fold: name -> number or text.
    """

    def __init__(self, facts: Mapping[str, int | str]):
        self.facts = dict(facts)
        self.mlflow_run: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._log_facts(args.report_to)

    def _log_facts(self, trackers: list[str]) -> None:
        if "wandb" in trackers:
            import wandb

            wandb.config.update(self.facts, allow_val_change=True)
        if "trackio" in trackers:
            import trackio

            trackio.config.update(self.facts, allow_val_change=True)
        if "mlflow" in trackers:
            import mlflow

            mlflow.log_params(self.facts)
            self.mlflow_run = mlflow.active_run().info.run_id

    def log_report(self, trainer: Trainer, report: Mapping[str, Any], image: Path) -> None:
        """
        Logs the scores of a finished run, and closes its runs; to be called by the main process.

        Args:
            trainer: The trainer of the run.
            report: The content of `metrics.json`; without scores if nothing was tested.
            image: The plot of the confusion matrix, which exists if something was tested.
        """
        args, state = trainer.args, trainer.state
        scores = {f"test/{name}": report[name] for name in SCORES if name in report}
        callbacks = {type(each): each for each in trainer.callback_handler.callbacks}
        for tracker in args.report_to:
            callback: Any = callbacks.get(INTEGRATION_TO_CALLBACK[tracker])
            if tracker == "tensorboard":
                folder = callback.logging_dir or os.path.join(args.output_dir, default_logdir())
                self._log_to_tensorboard(folder, state.global_step, scores, image)
            elif tracker in ("trackio", "wandb"):
                callback.setup(args, state, trainer.model)  # continues the run, or starts one if nothing was trained
                self._log_facts([tracker])
                module = importlib.import_module(tracker)
                module.log(scores | ({IMAGE: module.Image(str(image))} if scores else {}))
                module.finish()
            elif tracker == "mlflow":
                import mlflow

                if self.mlflow_run is None:
                    callback.setup(args, state, trainer.model)
                else:
                    mlflow.start_run(run_id=self.mlflow_run)
                self._log_facts([tracker])
                mlflow.log_metrics(scores, step=state.global_step)
                if scores:
                    mlflow.log_artifact(str(image))
                mlflow.end_run()

    def _log_to_tensorboard(self, folder: str, step: int, scores: Mapping[str, float], image: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(folder) as writer:
            writer.add_text("run", "\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
            for name, value in scores.items():
                writer.add_scalar(name, value, step)
            if scores:
                writer.add_image(IMAGE, imread(image)[..., :3], step, dataformats="HWC")
