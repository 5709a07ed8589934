"""The training engine: `transformers.Trainer` with an algorithm per branch, checkpoints that are whole and ranked, and
runs whose process can be killed at any moment and that go on as if nothing had happened."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, SaveStrategy, SchedulerType, TrainOutput
from transformers.utils import logging

from ser.losses import ClassificationLoss, class_weights
from ser.optimizer import ALGORITHMS, BranchOptimizer, branch_modules, branch_parameter_groups

logger = logging.get_logger(__name__)

BRANCHES = ("cqt", "mel", "head")
PLATEAU = {"factor": 0.1, "patience": 2, "min_lr": 1e-6}
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "tmp-"
CHECKPOINT_LIST = "checkpoints.json"
FINISHED = "FINISHED"


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is not finite, more often than was to be tolerated."""


@dataclass
class SERTrainingArguments(TrainingArguments):
    """
    `transformers.TrainingArguments` with the defaults of the reference and what this engine adds; each field is a flag
    of the command. `load_best_model_at_end`, `reduce_lr_on_plateau` and early stopping all follow
    `metric_for_best_model`, and its direction where none is given.
    """

    per_device_train_batch_size: int = field(default=16, metadata={"help": "Clips per device and training step."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Clips per device and evaluation step."})
    num_train_epochs: float = field(default=50, metadata={"help": "Epochs at most; early stopping may end sooner."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Learning rate of every branch not given its own."})
    lr_scheduler_type: SchedulerType | str = field(
        default="reduce_lr_on_plateau", metadata={"help": "The scheduler type to use."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the scheduler, as JSON. For reduce_lr_on_plateau these go over factor 0.1, "
            "patience 2, min_lr 1e-6 and the mode that fits the metric."
        },
    )
    logging_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to log."})
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(
        default=3, metadata={"help": "How many of the best checkpoints are kept. The newest is kept besides."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best weights are the result."})
    metric_for_best_model: str | None = field(
        default="UA", metadata={"help": "The validation metric that best model, plateau and early stopping follow."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Whether a resumed run goes on counting towards early stopping."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Whether non-finite losses go unlogged."})
    report_to: None | str | list[str] = field(default="tensorboard", metadata={"help": "Where to report."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Whether the collator sees only the columns that the model's forward names."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DDP looks for parameters without a gradient."}
    )

    early_stopping_patience: int = field(
        default=5, metadata={"help": "Evaluations without improvement after which training stops; 0 never stops."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to start over in an output directory that holds a run."}
    )
    cqt_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the CQT backbone."})
    mel_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the Mel backbone."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the head."})
    cqt_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the CQT backbone."})
    mel_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the Mel backbone."})
    head_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the head."})
    cqt_optimizer: str = field(default="adam", metadata={"help": f"CQT backbone: one of {', '.join(ALGORITHMS)}."})
    mel_optimizer: str = field(default="radam", metadata={"help": "Optimizer of the Mel backbone, likewise."})
    head_optimizer: str = field(default="adam", metadata={"help": "Optimizer of the head, likewise."})
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor between the learning rates of a backbone stage and the one before it."}
    )
    freeze_backbones: bool = field(default=False, metadata={"help": "Whether only the head is trained."})
    unfreeze_epoch: int | None = field(
        default=None, metadata={"help": "Epoch (from 0) from which frozen backbones are trained too."}
    )
    skip_nonfinite_steps: int = field(
        default=0, metadata={"help": "Steps with a non-finite loss that are left out before the run stops."}
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Whether the CQT backbone computes in the channels_last memory format."}
    )
    sync_batchnorm: bool = field(
        default=False, metadata={"help": "Whether batch statistics are shared by all GPUs of a distributed run."}
    )
    specaugment_masks: int = field(default=0, metadata={"help": "SpecAugment: masks per clip and axis; 0 for none."})
    specaugment_time: float = field(default=0.1, metadata={"help": "SpecAugment: widest time mask, as a share."})
    specaugment_frequency: float = field(default=0.15, metadata={"help": "SpecAugment: widest band, as a share."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Mixup: Beta(alpha, alpha) of the shares; 0 for none."})
    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "Whether rare classes weigh more in the loss."}
    )
    focal_gamma: float = field(default=0.0, metadata={"help": "Focal loss: its exponent; 0 for cross-entropy."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for branch, algorithm in self.by_branch("optimizer").items():
            if algorithm not in ALGORITHMS:
                raise ValueError(
                    f"--{branch}_optimizer {algorithm} is unknown: choose one of {', '.join(ALGORITHMS)}."
                )
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"--save_total_limit {self.save_total_limit} keeps no checkpoint: it must be 1 or more.")
        if self.save_only_model:
            raise ValueError("--save_only_model makes checkpoints that no run can go on from: leave it out.")
        if (
            self.load_best_model_at_end
            and self.save_strategy == SaveStrategy.STEPS
            and self.save_steps != self.eval_steps
        ):
            raise ValueError(
                "--load_best_model_at_end needs a checkpoint of every evaluation: set --save_steps "
                f"{self.save_steps:g} and --eval_steps {self.eval_steps:g} to the same number."
            )
        if self.unfreeze_epoch is not None:
            if not self.freeze_backbones:
                raise ValueError("--unfreeze_epoch needs --freeze_backbones: nothing is frozen without it.")
            self.ddp_find_unused_parameters = True
        if self.skip_nonfinite_steps:
            self.logging_nan_inf_filter = True
        if self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **PLATEAU, **(self.lr_scheduler_kwargs or {})}
            if self.lr_scheduler_kwargs["mode"] != mode:
                raise ValueError(f"For {self.metric_for_best_model} the plateau's mode must be {mode!r}.")
            if self.warmup_steps:
                raise ValueError("reduce_lr_on_plateau has no warm-up: choose another --lr_scheduler_type for it.")
        if self.n_gpu > 1:
            logger.warning(f"Only one of {self.n_gpu} GPUs is used: start with `accelerate launch` to use them all.")
            self._n_gpu = 1
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False

    def by_branch(self, setting: Literal["optimizer", "learning_rate", "weight_decay"]) -> dict[str, Any]:
        """What each branch uses: its own `setting` or, where it has none, the one given for all."""
        own = {branch: getattr(self, f"{branch}_{setting}") for branch in BRANCHES}
        return {branch: getattr(self, setting) if value is None else value for branch, value in own.items()}


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


class SERTrainer(Trainer):
    """
    `transformers.Trainer` for MaxMViT classifiers.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, compute_metrics, ...:
            As in [`~transformers.Trainer`]; `args` are [`SERTrainingArguments`].
        train_collator (`Callable`, *optional*, defaults to `data_collator`):
            Collates training batches, augmentation included. Its random numbers (torch's CPU generator) depend on the
            seed and on the clips of the batch alone: not on the number of workers, nor on where a run was resumed.

    The last short batch of an epoch is left out of training (BatchNorm cannot take a single clip), never out of
    evaluation or prediction. Gradient accumulation averages over equal batches, so it gives the gradient of the large
    batch up to what BatchNorm makes of the smaller ones: its statistics stay those of each small batch.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: SERTrainingArguments | None = None,
        *,
        train_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        if args.freeze_backbones:
            for backbone in branch_modules(model).values():
                backbone.requires_grad_(args.unfreeze_epoch is not None)
        if args.channels_last:
            model.maxmvit.cqt_backbone.to(memory_format=torch.channels_last)
        if args.sync_batchnorm and args.world_size > 1:
            if args.device.type != "cuda":
                raise ValueError("--sync_batchnorm needs GPUs: torch has no SyncBatchNorm for the CPU.")
            model = convert_sync_batchnorm(model)
        if args.activation_checkpointing:
            _count_batches_once(model)
        callbacks = [NonFiniteSteps(), *(callbacks or [])]
        if args.early_stopping_patience > 0 and args.eval_strategy != IntervalStrategy.NO:
            callbacks.append(EarlyStopping(args.early_stopping_patience))
        super().__init__(model=model, args=args, callbacks=callbacks, **kwargs)
        self.train_collator = train_collator or self.data_collator
        self.model_accepts_loss_kwargs = False
        self.label_smoother = None
        self.loss = self._make_loss()
        self._frozen = args.freeze_backbones
        self._loss_is_finite = True
        self._batchnorm_before: list[torch.Tensor] | None = None

    # ---- what is trained, by what and on what

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Adam, RAdam or whatever `args` name, by branch, as one optimizer."""
        if self.optimizer is None:
            args = self.args
            groups = branch_parameter_groups(
                self.accelerator.unwrap_model(self.model if model is None else model),
                args.by_branch("optimizer"),
                args.by_branch("learning_rate"),
                args.by_branch("weight_decay"),
                args.layer_decay,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
            self.optimizer = BranchOptimizer(groups)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Shuffled whole batches, each augmented by a generator of its own."""
        dataset, collator = self.train_dataset, self.train_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="training")
        if len(dataset) < self._train_batch_size * self.args.world_size:
            raise ValueError(
                f"{len(dataset)} training clips do not fill one batch of {self._train_batch_size} on each of "
                f"{self.args.world_size} process(es): lower --per_device_train_batch_size."
            )
        loader = DataLoader(
            _Numbered(dataset),
            batch_size=self._train_batch_size,
            sampler=self._get_train_sampler(dataset),
            drop_last=True,
            collate_fn=_SeededCollator(collator, self.args.seed),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # Left at None, the order would hang on whoever seeded torch last.
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.accelerator.dataloader_config.data_seed = seed
        return self.accelerator.prepare(loader)

    def _make_loss(self) -> ClassificationLoss | None:
        args, weights = self.args, None
        if args.class_weights == "balanced":
            column = "label" if "label" in self.train_dataset.column_names else "labels"
            labels = torch.as_tensor(self.train_dataset[column][:])
            weights = class_weights(labels, self.model.config.num_labels)
        if weights is None and not args.label_smoothing_factor and not args.focal_gamma:
            return None
        return ClassificationLoss(weights, args.label_smoothing_factor, args.focal_gamma)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss that `args` ask for in training; the model's plain cross-entropy in evaluation."""
        if self._frozen:
            for backbone in branch_modules(self.model).values():
                backbone.eval()
        if self.loss is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self.loss(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        if self.control.should_training_stop:
            return
        if self.args.unfreeze_epoch is not None:
            self._frozen = epoch < self.args.unfreeze_epoch
            for backbone in branch_modules(self.model).values():
                backbone.requires_grad_(not self._frozen)
        super()._run_epoch(epoch=epoch, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the rule of thumb that Trainer has is one for text, and walks over all parameters at every step."""
        return 0

    # ---- losses that are not finite

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.args.skip_nonfinite_steps and self._batchnorm_before is None:
            self._batchnorm_before = [buffer.clone() for buffer in self._batchnorm_buffers()]
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._loss_is_finite = torch.isfinite(loss) & self._loss_is_finite
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        # The one place between backward and update that sees gradients of all processes.
        norm = super()._get_grad_norm(model, grad_norm)
        finite, self._loss_is_finite = self._loss_is_finite, True
        if self.accelerator.scaler is None:
            finite = finite & torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not self.accelerator.gather(finite.reshape(1)).all():
            self._skip_or_stop(model)
        self._batchnorm_before = None
        return norm

    def _skip_or_stop(self, model: nn.Module) -> None:
        step = self.state.global_step + 1
        rates = ", ".join(f"{branch} {rate:g}" for branch, rate in self.branch_learning_rates().items())
        # Not kept in an attribute: a resumed run has another than the one that was made with the trainer.
        steps = next(each for each in self.callback_handler.callbacks if isinstance(each, NonFiniteSteps))
        steps.count += 1
        if steps.count > self.args.skip_nonfinite_steps:
            last = last_checkpoint(self.args.output_dir)
            raise NonFiniteLossError(
                f"Loss or gradient is not finite at step {step}; learning rates: {rates}. Last good checkpoint: "
                f"{last or 'none yet'}. Lower the learning rate, or tolerate N such steps by --skip_nonfinite_steps N."
            )
        logger.warning(
            f"Loss or gradient is not finite at step {step}; learning rates: {rates}. The step is left out."
        )
        for buffer, before in zip(self._batchnorm_buffers(), self._batchnorm_before, strict=True):
            buffer.copy_(before)
        if self.accelerator.scaler is None:  # which leaves out such a step by itself, and must see its gradients
            model.zero_grad(set_to_none=True)

    # ---- what is logged and evaluated

    def branch_learning_rates(self) -> dict[str, float]:
        """The present learning rate of every branch (of its last stage, where they differ by layer)."""
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            rates[group["branch"]] = max(float(group["lr"]), rates.get(group["branch"], 0.0))
        return rates

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "learning_rate" in logs:
            logs |= {f"{branch}_learning_rate": rate for branch, rate in self.branch_learning_rates().items()}
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # Every process has seen other batches since the last forward pass of DDP shared these.
        if self.args.world_size > 1:
            for buffer in self._batchnorm_buffers():
                torch.distributed.broadcast(buffer, src=0)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # Trainer's own mean counts the clips that the last batches were padded with; the gathered clips are exact.
        if output.predictions is not None and output.label_ids is not None:
            logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids)
            output.metrics[f"{metric_key_prefix}_loss"] = nn.functional.cross_entropy(logits.float(), labels).item()
        return output

    def _batchnorm_buffers(self) -> list[torch.Tensor]:
        return [b for module in self.model.modules() if isinstance(module, _BatchNorm) for b in module.buffers()]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the report writes the model card, and a push to the Hub must not replace it."""

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer's own writes file by file into the final folder, where a killed run leaves half a checkpoint.
        run_dir = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        folder = run_dir / (UNFINISHED + name)
        if self.args.should_save:
            _remove_leftovers(run_dir)
        self.accelerator.wait_for_everyone()

        self.store_flos()
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if best.name == name or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()

        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            _remove(run_dir / name)
            folder.rename(run_dir / name)
            self._keep_best_and_newest(run_dir)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))

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
        if self.args.load_best_model_at_end and self.state.best_global_step and not (best and os.path.isdir(best)):
            raise FileNotFoundError(
                f"checkpoint-{self.state.best_global_step}, the best so far, is missing in {self.args.output_dir}: "
                "put it back beside the others, start over by --overwrite_output_dir, or take the last weights by "
                "--no_load_best_model_at_end."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.is_fsdp_enabled:
            # FSDP2 trains a subclass that it makes in a module of torch's; a checkpoint names and holds this code.
            sharded = type(self.model)
            sharded.__name__, sharded.__module__ = sharded.__bases__[-1].__name__, sharded.__bases__[-1].__module__
        super()._save(output_dir, state_dict)

    def _keep_best_and_newest(self, run_dir: Path) -> None:
        metric = metric_name(self.args) if self.args.metric_for_best_model else None
        scores = {entry["step"]: entry[metric] for entry in self.state.log_history if metric in entry}
        kept = _checkpoints(run_dir)
        newest = max(kept)
        if self.args.save_total_limit is not None:
            scored = [step for step in kept if math.isfinite(scores.get(step, math.nan))]
            sign = -1 if self.args.greater_is_better else 1
            best = sorted(scored, key=lambda step: (sign * scores[step], step))[: self.args.save_total_limit]
            for step in set(kept) - {*best, newest}:
                _remove(kept.pop(step))
        listing = [{"checkpoint": kept[step].name, metric or "score": scores.get(step)} for step in sorted(kept)]
        partial = run_dir / (UNFINISHED + CHECKPOINT_LIST)
        partial.write_text(json.dumps({"newest": kept[newest].name, "kept": listing}, indent=2) + "\n")
        partial.replace(run_dir / CHECKPOINT_LIST)


def _count_batches_once(model: nn.Module) -> None:
    """
    Makes BatchNorm layers of the backbones' stages see each batch once, though checkpointing runs them twice: two
    updates by m' leave (1 - m') ** 2 of the running statistics, one by m leaves 1 - m.
    """
    for backbone in branch_modules(model).values():
        for module in getattr(backbone, "stages", nn.Identity()).modules():
            if isinstance(module, _BatchNorm) and module.momentum is not None:
                module.momentum = 1 - math.sqrt(1 - module.momentum)


class _Numbered(Dataset):
    """Each item of a dataset with its index before it."""

    def __init__(self, dataset: Sequence):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        whole_batch = getattr(self.dataset, "__getitems__", None)
        items = whole_batch(indices) if whole_batch else [self.dataset[index] for index in indices]
        return list(zip(indices, items, strict=True))


class _SeededCollator:
    """Collates items of [`_Numbered`], seeding torch's CPU generator for it by the seed and the items' indices."""

    def __init__(self, collator: Callable[[list], dict[str, torch.Tensor]], seed: int):
        self.collator = collator
        self.seed = seed

    def __call__(self, items: list[tuple[int, Any]]) -> dict[str, torch.Tensor]:
        indices, features = zip(*items, strict=True)
        digest = hashlib.blake2b(repr((self.seed, *map(int, indices))).encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs too, where dropout draws from.
            torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            return self.collator(list(features))


def _checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if (folder / "trainer_state.json").is_file()]
    return {int(match[1]): folder for folder in folders if (match := CHECKPOINT.fullmatch(folder.name))}


def _remove(folder: Path) -> None:
    """Deletes a checkpoint; a kill meanwhile leaves nothing that looks like one."""
    if folder.exists():
        doomed = folder.with_name(UNFINISHED + "removed-" + folder.name)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _remove_leftovers(run_dir: Path) -> None:
    for folder in run_dir.glob(UNFINISHED + "*checkpoint-*"):
        shutil.rmtree(folder)


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest complete checkpoint in a run's folder."""
    found = _checkpoints(output_dir)
    return str(found[max(found)]) if found else None


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
        (folder / FINISHED).unlink(missing_ok=True)
        _remove_leftovers(folder)
        for checkpoint in _checkpoints(folder).values():
            _remove(checkpoint)
        (folder / CHECKPOINT_LIST).unlink(missing_ok=True)
    checkpoint = last_checkpoint(folder)
    if (folder / FINISHED).exists():
        return "finished", checkpoint
    return ("resume", checkpoint) if checkpoint else ("fresh", None)


def mark_finished(output_dir: str | os.PathLike) -> None:
    """Says that a run is complete. To be called last, by the main process, when everything else has been written."""
    (Path(output_dir) / FINISHED).touch()
