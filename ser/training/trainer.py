"""The project's Trainer: it resumes, has one optimizer algorithm per branch, and stops at a non-finite loss."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.layers import convert_sync_batchnorm
from timm.models.mvitv2 import MultiScaleVit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from torch.utils.hooks import RemovableHandle
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, TrainOutput
from transformers.utils import logging

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.data.batches import LengthGroupedSampler, Numbered, SeededCollator
from ser.training.arguments import SERTrainingArguments
from ser.training.callbacks import EarlyStopping, NonFiniteSteps
from ser.training.checkpoints import ResumableTrainer, last_checkpoint, warn_of_changed_methods
from ser.training.ema import UNAVERAGED, AveragedWeights
from ser.training.finetuning import choose_trainable, set_trained
from ser.training.losses import ClassificationLoss, DimensionLoss, class_weights
from ser.training.optimizer import BranchOptimizer, branch_parameter_groups
from ser.utils import DataError, NonFiniteLossError

logger = logging.get_logger(__name__)

CHECK_EVERY = 32  # updates after which a non-finite loss is noticed at the latest
NO_STEP = torch.iinfo(torch.int64).max


class SERTrainer(ResumableTrainer):
    """
    `transformers.Trainer` for MaxMViT classifiers.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, compute_metrics, ...:
            As in [`~transformers.Trainer`]; `args` are [`SERTrainingArguments`].
        train_collator (`Callable`, *optional*, defaults to `data_collator`):
            Collates training batches, including augmentation. Its random numbers (torch's CPU generator) depend only
            on the seed and on the clips of the batch, not on the number of workers or on where a run was resumed.

    The last short batch of an epoch is left out of training (BatchNorm cannot handle a single clip), but not of
    evaluation or prediction. Gradient accumulation averages over equal batches, so it gives the gradient of the large
    batch, except that BatchNorm and the concordance correlation coefficient use the statistics of each small batch.
    """

    model: MaxMViTForAudioClassification
    optimizer: Any  # a BranchOptimizer, in accelerate's wrapper once training has begun

    def __init__(
        self,
        model: MaxMViTForAudioClassification,
        args: SERTrainingArguments,
        *,
        train_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        self._trainable, self._adapters = choose_trainable(model, args)
        if args.freeze_backbones:
            set_trained(model, self._trainable, args.unfreeze_epoch is not None)
        if args.channels_last:
            for backbone in model.branches().values():
                if not isinstance(backbone, MultiScaleVit):
                    backbone.to(memory_format=torch.channels_last)
        if args.sync_batchnorm and args.world_size > 1:
            if args.device.type != "cuda":
                raise ValueError("--sync_batchnorm needs GPUs, since torch has no SyncBatchNorm for the CPU.")
            model = convert_sync_batchnorm(model)
        if args.should_log:
            warn_of_changed_methods()
        callbacks = [NonFiniteSteps(), *(callbacks or [])]
        if args.early_stopping_patience > 0 and args.eval_strategy != IntervalStrategy.NO:
            callbacks.append(EarlyStopping(args.early_stopping_patience))
        super().__init__(model=model, args=args, callbacks=callbacks, **kwargs)
        self.train_collator = train_collator or self.data_collator
        self.model_accepts_loss_kwargs = False
        self.label_smoother = None
        self.loss = self._make_loss()
        self._frozen = args.freeze_backbones
        self._grouped: LengthGroupedSampler | None = None
        self._loss_is_finite: torch.Tensor | bool = True
        self._first_bad_step: torch.Tensor = torch.tensor(NO_STEP)
        self._batchnorm_before: list[torch.Tensor] | None = None
        self._left_out = False
        self._average: AveragedWeights | None = None
        self._after_update: RemovableHandle | None = None
        for name, does in (("ema_decay", "averages"), ("lora_rank", "merges")):
            if getattr(args, name) and self.is_fsdp_enabled:
                raise ValueError(f"--{name} {does} whole weights, which FSDP shards: use DDP, or leave it out.")

    # ---- what is trained, by what and on what

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates a single optimizer with the algorithms that `args` name for each branch."""
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
        """Returns a loader of shuffled whole batches, each with its own seed for augmentation."""
        self._check_one_batch()
        dataset, collator = self.train_dataset, self.train_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="training")
        loader = DataLoader(
            Numbered(dataset),
            batch_size=self._train_batch_size,
            sampler=self._training_order(dataset),
            drop_last=True,
            collate_fn=SeededCollator(collator, self.args.seed),
            **self._loader_settings(),
        )
        # With None, the order would depend on the state of torch's global generator.
        self.accelerator.dataloader_config.data_seed = self._order_seed
        return self.accelerator.prepare(loader)

    def _training_order(self, dataset: Any) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return self._get_train_sampler(dataset)
        together = self._train_batch_size * self.args.gradient_accumulation_steps
        self._grouped = LengthGroupedSampler(self.train_dataset["seconds"][:], together, self._order_seed)
        return self._grouped

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # Trainer's own method would group clips by length here, too, but predictions must be in the table's order.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _check_one_batch(self) -> None:
        count = len(self.train_dataset)
        if count < self._train_batch_size * self.args.world_size:
            raise ValueError(
                f"{count} training clips do not fill one batch of {self._train_batch_size} on each of "
                f"{self.args.world_size} process(es): lower --per_device_train_batch_size."
            )

    def _loader_settings(self) -> dict[str, Any]:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }

    @property
    def _order_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def normalized(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns a batch whose `images` are normalised, on the device, and named as arguments of the model."""
        if "images" not in inputs:
            return inputs
        images = {branch: values.to(self.args.device) for branch, values in inputs["images"].items()}
        values = {f"{name}_values": self.processing_class.normalize(image, name) for name, image in images.items()}
        return values | {name: value for name, value in inputs.items() if name != "images"}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        return super().prediction_step(model, self.normalized(inputs), prediction_loss_only, ignore_keys)

    def _make_loss(self) -> ClassificationLoss | DimensionLoss | None:
        args, config, weights = self.args, self.model.config, None
        if args.class_weights == "balanced":
            column = "label" if "label" in self.train_dataset.column_names else "labels"
            labels = torch.as_tensor(self.train_dataset[column][:])
            weights = class_weights(labels[labels >= 0], config.num_classes)
        loss = None
        if weights is not None or args.label_smoothing_factor or args.focal_gamma:
            loss = ClassificationLoss(weights, args.label_smoothing_factor, args.focal_gamma)
        if config.dimensions:
            return DimensionLoss(args.dimension_loss, config.num_classes, args.dimension_weight, loss)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Computes the loss that `args` specify in training, and the model's own in evaluation."""
        for name, part in self.model.pretrained_parts().items():
            if self._frozen or name == "speech" and self.args.freeze_speech_encoder:
                part.eval()
        if self.args.closed_form_classifier:
            self.model.branches()["speech"].eval()
        if self.loss is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        losses = [
            self.loss(logits, inputs["labels"]) for logits in outputs.get("branch_logits") or [outputs["logits"]]
        ]
        loss = torch.stack(losses).sum()
        return (loss, outputs) if return_outputs else loss

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        if self.control.should_training_stop:
            return
        if self.args.unfreeze_epoch is not None:
            self._frozen = epoch < self.args.unfreeze_epoch
            set_trained(self.model, self._trainable, not self._frozen)
        if self._grouped is not None:  # accelerate does not set its epoch in a resumed run of several processes
            self._grouped.epoch = epoch
        super()._run_epoch(epoch=epoch, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0, since Trainer's estimate is meant for text, and iterates over all parameters at every step."""
        return 0

    # ---- losses that are not finite

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_if_not_finite()
        super()._save_checkpoint(model, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._stop_if_not_finite()
        self._keep_average()
        output = super()._finalize_training(*args, **kwargs)
        if self._adapters is not None:  # the best weights are already loaded, if requested
            self._adapters.merge_and_unload()
            self._adapters = None
        return output

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.args.skip_nonfinite_steps and self._batchnorm_before is None:
            self._batchnorm_before = [buffer.clone() for buffer in self._batchnorm_buffers()]
        loss = super().training_step(model, self.normalized(inputs), *args, **kwargs)
        self._loss_is_finite = torch.isfinite(loss) & self._loss_is_finite
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        # The only hook between backward and update with the gradients of all processes.
        norm = super()._get_grad_norm(model, grad_norm)
        finite, self._loss_is_finite = torch.as_tensor(self._loss_is_finite, device=self.args.device), True
        self._left_out = False
        if self.accelerator.scaler is None:
            finite = finite & torch.isfinite(norm.to_local() if hasattr(norm, "to_local") else norm)
        if self.args.skip_nonfinite_steps:
            if not self.accelerator.gather(finite.reshape(1)).all():
                self._skip_or_stop(model)
            self._batchnorm_before = None
        else:
            # Kept on the device, and read by `_stop_if_not_finite`: waiting for it here would stall every update.
            first = self._first_bad_step.clamp(max=self.state.global_step + 1)
            self._first_bad_step = torch.where(finite, self._first_bad_step, first)
        return norm

    def end_step(self) -> None:
        control, step = self.control, self.state.global_step
        if control.should_log or control.should_evaluate or control.should_save or step % CHECK_EVERY == 0:
            self._stop_if_not_finite()

    def _stop_if_not_finite(self) -> None:
        if self.args.skip_nonfinite_steps:
            return
        step = int(self.accelerator.gather(self._first_bad_step.reshape(1)).min())
        if step != NO_STEP:
            self._stop(step)

    def _stop(self, step: int) -> None:
        last, now = last_checkpoint(self.args.output_dir), self.state.global_step
        noticed = f" (noticed at step {now})" if now > step else ""
        raise NonFiniteLossError(
            f"Loss or gradient is not finite at step {step}{noticed}; learning rates: {self._rates()}. "
            f"Last good checkpoint: {last or 'none yet'}. Lower the learning rate, or skip up to N such steps with "
            "--skip_nonfinite_steps N."
        )

    def _rates(self) -> str:
        return ", ".join(f"{branch} {rate:g}" for branch, rate in self.branch_learning_rates().items())

    def _skip_or_stop(self, model: nn.Module) -> None:
        step = self.state.global_step + 1
        # It is not an attribute, since resuming replaces the callback that was created with the trainer.
        steps = next(each for each in self.callback_handler.callbacks if isinstance(each, NonFiniteSteps))
        steps.count += 1
        if steps.count > self.args.skip_nonfinite_steps:
            self._stop(step)
        logger.warning(
            f"Loss or gradient is not finite at step {step}; learning rates: {self._rates()}. The step is left out."
        )
        self._left_out = True
        for buffer, before in zip(self._batchnorm_buffers(), self._batchnorm_before or (), strict=True):
            buffer.copy_(before)
        if self.accelerator.scaler is None:  # a scaler skips such a step itself, and needs its gradients
            model.zero_grad(set_to_none=True)

    # ---- what is logged and evaluated

    def branch_learning_rates(self) -> dict[str, float]:
        """Returns the current learning rate of every branch (of its last stage, if they differ by layer)."""
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
        with self._averaged():
            # The buffers differ between processes, since DDP synchronises them only in its forward pass.
            if self.args.world_size > 1:
                for buffer in self._batchnorm_buffers():
                    torch.distributed.broadcast(buffer, src=0)
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        # Trainer's own mean includes the clips that pad the last batches; the gathered clips are exact.
        if output.predictions is not None and output.label_ids is not None:
            logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids)
            loss = self.loss if isinstance(self.loss, DimensionLoss) else nn.functional.cross_entropy
            output.metrics[f"{metric_key_prefix}_loss"] = loss(logits.float(), labels).item()
        return output

    def _batchnorm_buffers(self) -> list[torch.Tensor]:
        return [b for module in self.model.modules() if isinstance(module, _BatchNorm) for b in module.buffers()]

    # ---- averaged weights, which are evaluated and saved while the last ones are trained

    def _averaged(self) -> AbstractContextManager[None]:
        return self._average.applied() if self._average else nullcontext()

    def begin_training(self) -> None:
        super().begin_training()
        self._loss_is_finite = True
        self._first_bad_step = torch.tensor(NO_STEP, device=self.args.device)
        if self.model.base_model.gradient_checkpointing:  # enabled by Trainer or by the caller
            _count_batches_once(self.model)
        elif self.args.activation_checkpointing:
            raise ValueError(
                f"Trainer of transformers {transformers.__version__} has not enabled --activation_checkpointing: "
                "leave it out, or pip install -U 'transformers>=5.23'."
            )
        trained = None if self._resumed_from is None else Path(self._resumed_from) / UNAVERAGED
        begun = trained is not None and trained.is_file()
        if begun and not self.args.ema_decay:
            raise DataError(f"{self._resumed_from} holds averaged weights: add --ema_decay, or start over.")
        if self._average and self._after_update:  # from an interrupted run of this trainer
            self._after_update.remove()
        if self.args.ema_decay:
            self._average = AveragedWeights(self.model, self.args.ema_decay, begun)
            if begun:
                self.model.load_state_dict(load_file(str(trained)))
            # A hook after the update is not called if a gradient scaler skips the update.
            self._after_update = self.optimizer.optimizer.register_step_post_hook(self._update_average)

    def _update_average(self, *_: Any) -> None:
        if self._average and not self._left_out:
            self._average.update()

    def save_progress(self, folder: Path) -> None:
        super().save_progress(folder)
        if self._average and self.args.should_save:
            weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
            save_file(weights, folder / UNAVERAGED)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self._averaged():
            super()._save(output_dir, state_dict)

    def _keep_average(self) -> None:
        if self._average and self._after_update:
            self._after_update.remove()
            self._average.exchange()
            self._average = None


def _count_batches_once(model: MaxMViTForAudioClassification) -> None:
    """
    Corrects the momentum of BatchNorm layers in the backbones' stages, which checkpointing runs twice for each batch:
    two updates with m' keep (1 - m') ** 2 of the running statistics, one with m keeps 1 - m.
    """
    for backbone in model.branches().values():
        if getattr(backbone, "counts_batches_once", False):  # corrected by an earlier trainer of the same model
            continue
        backbone.counts_batches_once = True
        for module in getattr(backbone, "stages", nn.Identity()).modules():
            if isinstance(module, _BatchNorm) and module.momentum is not None:
                module.momentum = 1 - math.sqrt(1 - module.momentum)
