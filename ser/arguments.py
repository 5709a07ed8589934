"""Every flag of the training command: one field is one flag is one line of help.

`--help` is made from this text (see `ser/flags.py`), after that of `ser/data_arguments.py`: the classes that have
fields of their own are its groups, in this order, under their docstrings. What `TrainingArguments` has besides is
behind `--help_all`.
"""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.utils import logging
from transformers.utils.versions import require_version

from ser.optimizer import ALGORITHMS
from ser.unheard import refuse_unheard

logger = logging.get_logger(__name__)

LESS_IS_BETTER = ("KL", "JS")  # besides losses, of which transformers knows
PLATEAU = {"factor": 0.1, "patience": 2, "min_lr": 1e-6}


@dataclass
class ModelArguments:
    """Model: what is trained, and from where it starts"""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from."})
    cqt_backbone: str = field(default="maxvit_base_tf_224", metadata={"help": "timm model for the CQT, or none."})
    mel_backbone: str = field(default="mvitv2_base", metadata={"help": "timm model for the Mel spectrogram, or none."})
    cqt_backbone_kwargs: str | None = field(default=None, metadata={"help": "JSON: changes to it."})
    mel_backbone_kwargs: str | None = field(default=None, metadata={"help": "JSON: changes to it."})
    filter_bank: str = field(default="fixed", metadata={"help": "Mel filters: fixed, or learnable, within the model."})
    speech_encoder: str | None = field(
        default=None,
        metadata={"help": "wav2vec 2.0, HuBERT, WavLM, data2vec or Whisper that hears the waveform: name or folder."},
    )
    speech_pooling: str = field(
        default="attention",
        metadata={"help": "Pooling of its frames over time: attention, mean, statistics or attentive_statistics."},
    )
    speech_layers: str = field(
        default="weighted_sum", metadata={"help": "How its pooled layers are joined: weighted_sum or concat."}
    )
    fusion: str = field(default="concat", metadata={"help": "concat, gated, attention or bilinear."})
    fusion_size: int = field(default=256, metadata={"help": "Width of attention and bilinear."})
    head: str = field(default="mlp", metadata={"help": "mlp, linear, or decoder (a query for each class)."})
    head_layers: int = field(default=1, metadata={"help": "Hidden layers of the MLP, or layers of the decoder."})
    image_size: list[int] | None = field(
        default=None, metadata={"help": "What the backbones see: one number, or height and width (default: 224)."}
    )
    hidden_size: int = field(default=512, metadata={"help": "Width of the head's hidden layer."})
    feature_dropout: float = field(default=0.0, metadata={"help": "Dropout of the fused features, before the head."})
    hidden_dropout: float = field(default=0.2, metadata={"help": "Dropout of the head."})
    feature_extractor_kwargs: str | None = field(
        default=None, metadata={"help": 'JSON: changes to the feature extractor, such as {"image_size": 128}.'}
    )
    imagenet_weights: bool = field(default=True, metadata={"help": "Start from timm's ImageNet weights."})
    cqt_weights: str | None = field(default=None, metadata={"help": "Local file of those of the CQT backbone."})
    mel_weights: str | None = field(default=None, metadata={"help": "Local file of those of the Mel backbone."})

    def __post_init__(self) -> None:
        for name in ("cqt_backbone_kwargs", "mel_backbone_kwargs", "feature_extractor_kwargs"):
            if text := getattr(self, name):
                try:
                    setattr(self, name, json.loads(text))
                except json.JSONDecodeError as error:
                    raise ValueError(f"--{name} {text!r} is not JSON: {error}.") from error
                if not isinstance(getattr(self, name), dict):
                    raise ValueError(f'--{name} {text!r} is no JSON object, such as {{"image_size": 128}}.')
        if weights := [f"--{name}" for name in ("cqt_weights", "mel_weights") if getattr(self, name)]:
            if self.model_name_or_path:
                raise ValueError(f"--model_name_or_path brings its own weights: leave out {' and '.join(weights)}.")
            if not self.imagenet_weights:
                raise ValueError(
                    f"--imagenet_weights false starts at random: leave it out, or leave out {' and '.join(weights)}."
                )


@dataclass
class ScheduleArguments:
    """Training: how long, how fast"""

    num_train_epochs: float = field(default=50, metadata={"help": "Epochs at most; early stopping may end sooner."})
    max_steps: int = field(default=-1, metadata={"help": "Updates at most, instead of num_train_epochs."})
    early_stopping_patience: int = field(
        default=5, metadata={"help": "Evaluations without improvement after which training stops; 0 never stops."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Clips per device and training step."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches that make one update."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Learning rate of every branch not given its own."})
    warmup_steps: float = field(
        default=0, metadata={"help": "Updates (below 1: share of all) in which the learning rate rises from 0."}
    )
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
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of every branch not given its own."})
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights, in which each update leaves this "
            "share of what was averaged before, such as 0.999; 0 for the last weights alone."
        },
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm to which gradients are clipped; 0 for none."})
    seed: int = field(default=42, metadata={"help": "Of all that is random."})


@dataclass
class BranchArguments:
    """Training by branch"""

    cqt_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the CQT backbone."})
    mel_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the Mel backbone."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the head."})
    speech_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the speech encoder (default: learning_rate/10) or its adapters (learning_rate)."
        },
    )
    filter_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of learnable Mel filters."}
    )
    cqt_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the CQT backbone."})
    mel_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the Mel backbone."})
    head_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the head."})
    speech_weight_decay: float | None = field(default=None, metadata={"help": "Weight decay of the speech encoder."})
    filter_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of learnable Mel filters, towards where they began."}
    )
    cqt_optimizer: str = field(
        default="adam", metadata={"help": "CQT backbone: adam, adamw, radam, nadam, adamax, rmsprop or sgd."}
    )
    mel_optimizer: str = field(default="radam", metadata={"help": "Optimizer of the Mel backbone, likewise."})
    head_optimizer: str = field(default="adam", metadata={"help": "Optimizer of the head, likewise."})
    speech_optimizer: str = field(default="adamw", metadata={"help": "Optimizer of the speech encoder, likewise."})
    filter_optimizer: str | None = field(
        default=None, metadata={"help": "Optimizer of learnable Mel filters (default: the Mel backbone's)."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Factor between the learning rates of a stage (or layer) and the one before it."},
    )
    freeze_backbones: bool = field(default=False, metadata={"help": "Whether only the head is trained."})
    unfreeze_epoch: int | None = field(
        default=None, metadata={"help": "Epoch (from 0) from which frozen backbones are trained too."}
    )
    freeze_speech_encoder: bool = field(
        default=False,
        metadata={"help": "Whether the speech encoder stays as it is; what joins its layers is trained."},
    )
    speech_frozen_layers: int | None = field(
        default=None, metadata={"help": "Its lowest layers that stay as they are, with all that is below them."}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Rank of adapters (LoRA) that are trained in place of the speech encoder; needs peft."},
    )


@dataclass
class LossArguments:
    """Loss"""

    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "Whether rare classes weigh more in the loss."}
    )
    label_smoothing_factor: float = field(
        default=0.0, metadata={"help": "Share of the target that is spread over all classes."}
    )
    focal_gamma: float = field(default=0.0, metadata={"help": "Focal loss: its exponent; 0 for cross-entropy."})
    skip_nonfinite_steps: int = field(
        default=0, metadata={"help": "Steps with a non-finite loss that are left out before the run stops."}
    )


@dataclass
class AugmentationArguments:
    """Augmentation of the training clips"""

    specaugment_masks: int = field(
        default=0,
        metadata={"help": "SpecAugment: masks per clip and axis; 0 for none. What learnable filters draw has none."},
    )
    specaugment_time: float = field(default=0.1, metadata={"help": "SpecAugment: widest time mask, as a share."})
    specaugment_frequency: float = field(default=0.15, metadata={"help": "SpecAugment: widest band, as a share."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Mixup: Beta(alpha, alpha) of the shares; 0 for none."})


@dataclass
class ClipAugmentationArguments:
    """Augmentation of clips, before a picture is drawn of them"""

    training_window: float | None = field(default=None, metadata={"help": "Seconds of a clip that each epoch sees."})
    whole_clip_share: float = field(default=0.0, metadata={"help": "Share of clips that stay whole all the same."})
    time_stretch: float = field(default=0.0, metadata={"help": "Windows up to this share faster or slower."})
    gain_db: float = field(default=0.0, metadata={"help": "Random gain, up to so many dB; for level=full_scale."})


@dataclass
class CopyArguments:
    """Altered copies of the training clips"""

    waveform_copies: int = field(default=0, metadata={"help": "Copies per clip; batches draw one, or the clip."})
    waveform_chain: Literal["all", "voice", "recording"] = field(
        default="all",
        metadata={
            "help": "What alters them: voice (speed, pitch), recording (room, noise, gain, codecs, ...) or all."
        },
    )


@dataclass
class MachineArguments:
    """Precision, memory and machines"""

    use_cpu: bool = field(default=False, metadata={"help": "Whether to leave accelerators alone."})
    bf16: bool = field(default=False, metadata={"help": "Whether to compute in bfloat16 where that is safe."})
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Whether to compute activations twice instead of keeping them in memory."}
    )
    torch_compile: bool = field(default=False, metadata={"help": "Whether to compile the model."})
    channels_last: bool = field(
        default=False,
        metadata={"help": "Whether all backbones but an MViTv2 compute in the channels_last memory format."},
    )
    sync_batchnorm: bool = field(
        default=False, metadata={"help": "Whether batch statistics are shared by all GPUs of a distributed run."}
    )
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Clips per device and evaluation step."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that make batches."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DDP looks for parameters without a gradient."}
    )


@dataclass
class ReportArguments:
    """Checkpoints and report"""

    output_dir: str = field(
        default="trainer_output", metadata={"help": "Folder of the run: model, checkpoints, report."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to start over in an output directory that holds a run."}
    )
    metric_for_best_model: str | None = field(
        default="UA", metadata={"help": "The validation metric that best model, plateau and early stopping follow."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best weights are the result."})
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(default=None, metadata={"help": "Updates between evaluations by steps."})
    save_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_steps: float = field(default=500, metadata={"help": "Updates between checkpoints by steps."})
    save_total_limit: int | None = field(
        default=3, metadata={"help": "How many of the best checkpoints are kept. The newest is kept besides."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Whether a resumed run goes on counting towards early stopping."}
    )
    logging_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to log."})
    logging_steps: float = field(default=500, metadata={"help": "Updates between logs by steps."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Whether non-finite losses go unlogged."})
    test_window: float | None = field(
        default=None, metadata={"help": "Seconds: test clips are also scored by the mean over such windows of them."}
    )
    test_hop: float | None = field(
        default=None, metadata={"help": "Seconds from one test window's start to the next (default: --test_window)."}
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "Fit a temperature on the validation part, by which probabilities are as often right."},
    )
    report_to: None | str | list[str] = field(default="tensorboard", metadata={"help": "Where to report."})
    log_level: str = field(default="passive", metadata={"help": "debug, info, warning, error or passive."})
    push_to_hub: bool = field(default=False, metadata={"help": "Whether the model goes to the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Its name there."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Whether the collator sees only the columns that the model's forward names."}
    )


@dataclass
class SERTrainingArguments(
    ReportArguments,
    MachineArguments,
    CopyArguments,
    ClipAugmentationArguments,
    AugmentationArguments,
    LossArguments,
    BranchArguments,
    ScheduleArguments,
    TrainingArguments,
):
    """
    `transformers.TrainingArguments` with the defaults of the reference and what this engine adds; each field is a flag
    of the command. `load_best_model_at_end`, `reduce_lr_on_plateau` and early stopping all follow
    `metric_for_best_model`, and its direction where none is given.
    """

    def __post_init__(self) -> None:
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        direction: bool | None = getattr(self, "greater_is_better", None)
        self.greater_is_better = False if direction is None and metric in LESS_IS_BETTER else direction
        try:
            super().__post_init__()
        except TypeError as error:  # JSON with a name that nothing knows
            raise ValueError(f"a flag given as JSON, such as --accelerator_config, does not fit: {error}.") from error
        for branch, algorithm in self.by_branch("optimizer").items():
            if algorithm not in ALGORITHMS:
                raise ValueError(
                    f"--{branch}_optimizer {algorithm} is unknown: choose one of {', '.join(ALGORITHMS)}."
                )
        refuse_unheard(self)
        if self.speech_frozen_layers is not None and self.speech_frozen_layers < 0:
            raise ValueError(
                f"--speech_frozen_layers {self.speech_frozen_layers} is no number of layers: 0 or more is."
            )
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"--lora_rank {self.lora_rank} is no rank: 1 or more is.")
        if self.lora_rank:
            try:
                require_version("peft>=0.18")
            except ImportError as error:
                raise ValueError("--lora_rank needs peft 0.18 or newer: pip install -U peft") from error
        if self.test_window is not None and not 0 < (self.test_hop or self.test_window) <= self.test_window:
            raise ValueError("--test_window and --test_hop are seconds above 0, the hop no longer than the window.")
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"--save_total_limit {self.save_total_limit} keeps no checkpoint: it must be 1 or more.")
        if (
            self.load_best_model_at_end
            and self.save_strategy == SaveStrategy.STEPS
            and self.save_steps != self.eval_steps
        ):
            raise ValueError(
                "--load_best_model_at_end needs a checkpoint of every evaluation: set --save_steps "
                f"{self.save_steps:g} and --eval_steps {self.eval_steps:g} to the same number."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay {self.ema_decay} must be from 0 (no average) to below 1.")
        if self.unfreeze_epoch is not None:
            self.ddp_find_unused_parameters = True
        if self.skip_nonfinite_steps:
            self.logging_nan_inf_filter = True
        if self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
            mode = "max" if self.greater_is_better else "min"
            given: Any = self.lr_scheduler_kwargs or {}  # TrainingArguments has read JSON by now
            self.lr_scheduler_kwargs = plateau = {"mode": mode, **PLATEAU, **given}
            if plateau["mode"] != mode:
                raise ValueError(f"For {self.metric_for_best_model} the plateau's mode must be {mode!r}.")
            if self.warmup_steps:
                raise ValueError("reduce_lr_on_plateau has no warm-up: choose another --lr_scheduler_type for it.")
        if self.n_gpu > 1:
            logger.warning(f"Only one of {self.n_gpu} GPUs is used: start with `accelerate launch` to use them all.")
            self._n_gpu = 1
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False

    def by_branch(self, setting: Literal["optimizer", "learning_rate", "weight_decay"]) -> dict[str, Any]:
        """What each branch that has flags uses: its own `setting` or, where it has none, the one given for all."""
        branches = [each.name.removesuffix("_optimizer") for each in fields(self) if each.name.endswith("_optimizer")]
        own = {branch: getattr(self, f"{branch}_{setting}") for branch in branches}
        if setting == "learning_rate" and own["speech"] is None:
            own["speech"] = self.learning_rate / (1 if self.lora_rank else 10)
        if setting == "optimizer" and own["filter"] is None:
            own["filter"] = own["mel"]
        return {branch: getattr(self, setting) if value is None else value for branch, value in own.items()}


def values_of(group: type, arguments: Any) -> dict[str, Any]:
    """What the fields of a group (a dataclass above) are in arguments that have them."""
    return {each.name: getattr(arguments, each.name) for each in fields(group)}
