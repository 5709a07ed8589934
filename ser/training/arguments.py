"""Training arguments: those of transformers with this project's options and defaults."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import logging
from transformers.utils.versions import require_version

from ser.arguments import TrainingOptions, check_bounds, default_of
from ser.training.optimizer import ALGORITHMS

logger = logging.get_logger(__name__)

LOWER_IS_BETTER = ("KL", "JS", "MAE")  # besides losses, which transformers recognises
PLATEAU = {"factor": 0.1, "patience": 2, "min_lr": 1e-6}
REFERENCE = {"cqt": "adam", "mel": "radam", "head": "adam", "speech": "adamw"}
"""Optimizer of each branch, as in the paper."""
NAMES_OF_TRANSFORMERS = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}
BOUNDS = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), {"at_least": 0, "below": 1}),
    **{"adam_epsilon": {"above": 0}, "data_seed": {"at_least": 0, "below": 2**32}},
}
TEXT_ONLY = "it is for language models only"
UNUSED = {
    "activation_checkpointing_kwargs": "timm's checkpointing has no settings",
    "gradient_checkpointing_kwargs": "timm's checkpointing has no settings",
    "average_tokens_across_devices": "there are no tokens: the loss is the mean over clips",
    **dict.fromkeys(("use_cache", "use_liger_kernel", "liger_kernel_config"), TEXT_ONLY),
    "include_num_input_tokens_seen": TEXT_ONLY,
    "length_column_name": "the length of a clip is always its seconds",
    "label_names": "the labels are always called labels",
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics"), "the scores need all predictions at once"),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches"), "the scores need all predictions at once"),
    "dataloader_drop_last": "training always leaves out the last short batch, and every clip is tested",
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_in_order"), "the order of batches is fixed"),
    **dict.fromkeys(("hub_strategy", "hub_always_push"), "the finished model is pushed once, with its report"),
    "save_only_model": "a run must be able to resume from its checkpoints",
}
"""Fields of `TrainingArguments` without effect here, and why: they are reset with a warning."""
REFUSED = {
    **dict.fromkeys(("optim_args", "optim_target_modules"), "the branches' optimizers have no such settings"),
    "neftune_noise_alpha": TEXT_ONLY,
}
"""Fields of `TrainingArguments` that are not supported, and why: they would change the result of training."""


def algorithms_of(values: Mapping[str, Any]) -> dict[str, type[torch.optim.Optimizer]]:
    """Returns the optimizer class of each branch under the options `values`, unless its name is unknown."""
    chosen = values.get("optim")
    chosen = NAMES_OF_TRANSFORMERS.get(str(chosen), chosen)
    names = {branch: values.get(f"{branch}_optimizer") or chosen or usual for branch, usual in REFERENCE.items()}
    return {branch: ALGORITHMS[name] for branch, name in names.items() if name in ALGORITHMS}


@dataclass
class SERTrainingArguments(TrainingOptions, TrainingArguments):
    """
    `transformers.TrainingArguments` with the defaults of the paper and the options of this project. The best model,
    `reduce_lr_on_plateau` and early stopping all follow `metric_for_best_model`, in its usual direction unless
    `greater_is_better` is given.

    Raises:
        ValueError: A value is out of range, or options contradict each other.
    """

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
        self._reset_unused()
        self._resolve_optimizers()
        self._check_packages()
        self._resolve_metric()
        try:
            super().__post_init__()
        except TypeError as error:  # JSON with an unknown name
            raise ValueError(
                f"an option given as JSON, such as --accelerator_config, does not fit: {error}."
            ) from error
        self._check_training()
        self._check_checkpoints()
        self._resolve_plateau()
        if self.unfreeze_epoch is not None:
            self.ddp_find_unused_parameters = True
        if self.skip_nonfinite_steps:
            self.logging_nan_inf_filter = True
        if self.n_gpu > 1:
            logger.warning(f"Only one of {self.n_gpu} GPUs is used: start with `accelerate launch` to use them all.")
            self._n_gpu = 1
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False

    def _reset_unused(self) -> None:
        self.remove_unused_columns = False  # images are computed from columns that the model's forward lacks
        if str(getattr(self, "resume_from_checkpoint", None)).lower() in ("true", "false", "yes", "no", "1", "0"):
            self.resume_from_checkpoint = None  # a run always resumes from its newest checkpoint
        own = {each.name: each for each in fields(self)}
        for name, reason in UNUSED.items():
            value = getattr(self, name)
            if name in own and value not in (usual := default_of(own[name]), None):
                if (name, str(getattr(value, "value", value))) != ("hub_strategy", "end"):  # the only strategy here
                    logger.warning_once(f"--{name} has no effect: {reason}.")
                setattr(self, name, usual)
        for name, reason in REFUSED.items():
            if name in own and getattr(self, name) != default_of(own[name]):
                raise ValueError(f"--{name} does not work here: {reason}. Leave it out.")
        if self.train_sampling_strategy == "batch_rebalance":
            raise ValueError("--train_sampling_strategy batch_rebalance counts tokens: use group_by_length.")

    def _resolve_optimizers(self) -> None:
        """Sets the optimizer of each branch without its own to `optim` or, if that is not given, to the paper's."""
        chosen = NAMES_OF_TRANSFORMERS.get(str(getattr(self.optim, "value", self.optim)), self.optim)
        given = {f"{branch}_optimizer": getattr(self, f"{branch}_optimizer") for branch in (*REFERENCE, "filter")}
        for option, name in {"optim": chosen, **given}.items():
            if name is not None and name not in ALGORITHMS:
                raise ValueError(f"--{option} {name} is unknown: choose one of {', '.join(ALGORITHMS)}.")
        for branch, usual in REFERENCE.items():
            if given[f"{branch}_optimizer"] is None:
                setattr(self, f"{branch}_optimizer", chosen or usual)
        # In a copy of arguments these are already set: filters without an optimizer follow the Mel backbone.
        is_copy = self.optim is OptimizerNames.ADAMW_TORCH and all(
            given[f"{branch}_optimizer"] for branch in REFERENCE
        )
        if not is_copy:
            self.filter_optimizer = self.filter_optimizer or chosen
        self.optim = OptimizerNames.ADAMW_TORCH  # Trainer's own optimizer, which is never created

    def _check_packages(self) -> None:
        """Refuses options whose packages are missing, which Trainer would only check after features are extracted."""
        trackers = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or ())
        for name in trackers:
            if name in ("all", "none"):
                if len(trackers) > 1:
                    raise ValueError(f"--report_to {' '.join(trackers)} contradicts itself: give {name} alone.")
                continue
            if name not in INTEGRATION_TO_CALLBACK:
                raise ValueError(
                    f"--report_to {name} is unknown: choose from {', '.join(INTEGRATION_TO_CALLBACK)}, none."
                )
            if name not in get_available_reporting_integrations() and name != "flyte":
                raise ValueError(f"--report_to {name} needs a package that is not installed: pip install {name}")
        if self.deepspeed:
            if importlib.util.find_spec("deepspeed") is None:
                raise ValueError("--deepspeed needs a package that is not installed: pip install deepspeed")
            if (
                isinstance(self.deepspeed, str)
                and self.deepspeed.lstrip()[:1] != "{"
                and not os.path.isfile(self.deepspeed)
            ):
                raise ValueError(f"--deepspeed: there is no file {self.deepspeed}.")
        if self.lora_rank:
            try:
                require_version("peft>=0.18")
            except ImportError as error:
                raise ValueError("--lora_rank needs peft 0.18 or newer: pip install -U peft") from error

    def _resolve_metric(self) -> None:
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric == "accuracy":
            metric = self.metric_for_best_model = "WA"  # the usual name of the accuracy in this field
        if metric in LOWER_IS_BETTER and getattr(self, "greater_is_better", None) is None:
            self.greater_is_better = False

    def _check_training(self) -> None:
        if self.max_steps == 0:
            raise ValueError("--max_steps 0 trains nothing: it must be 1 or more, or -1 for whole epochs.")
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("--fp16 needs a GPU, and this run is on the CPU: leave it out, or use --bf16.")
        if self.test_window is not None and not 0 < (self.test_hop or self.test_window) <= self.test_window:
            raise ValueError(
                "--test_window and --test_hop must be above 0, and the hop at most as long as the window."
            )

    def _check_checkpoints(self) -> None:
        if (
            self.load_best_model_at_end
            and self.save_strategy == SaveStrategy.STEPS
            and self.save_steps != self.eval_steps
        ):
            raise ValueError(
                "--load_best_model_at_end needs a checkpoint at every evaluation: set --save_steps "
                f"{self.save_steps:g} and --eval_steps {self.eval_steps:g} to the same number."
            )

    def _resolve_plateau(self) -> None:
        if self.lr_scheduler_type != SchedulerType.REDUCE_ON_PLATEAU:
            return
        mode = "max" if self.greater_is_better else "min"
        given: Any = self.lr_scheduler_kwargs or {}  # TrainingArguments has read JSON by now
        self.lr_scheduler_kwargs = plateau = {"mode": mode, **PLATEAU, **given}
        if plateau["mode"] != mode:
            raise ValueError(f"--lr_scheduler_kwargs: with {self.metric_for_best_model}, mode must be {mode!r}.")
        if self.warmup_steps:
            raise ValueError("--warmup_steps needs another --lr_scheduler_type: reduce_lr_on_plateau has no warm-up.")

    def by_branch(self, setting: Literal["optimizer", "learning_rate", "weight_decay"]) -> dict[str, Any]:
        """Returns the `setting` of each branch: its own or, if it has none, that of all branches."""
        branches = [each.name.removesuffix("_optimizer") for each in fields(self) if each.name.endswith("_optimizer")]
        own = {branch: getattr(self, f"{branch}_{setting}") for branch in branches}
        if setting == "learning_rate" and own["speech"] is None:
            own["speech"] = self.learning_rate / (1 if self.lora_rank else 10)
        if setting == "optimizer" and own["filter"] is None:
            own["filter"] = own["mel"]
        return {branch: getattr(self, setting) if value is None else value for branch, value in own.items()}
