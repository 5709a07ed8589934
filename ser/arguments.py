"""Options of the training command about the model, its training and the clips; one field is one option.

This module does not import torch. `ser/training/arguments.py` joins the options with `transformers.TrainingArguments`.
The first line of a class's docstring is the title of its group in `--help`. Besides `help`, the metadata of a field
may hold what `ser/cli.py` checks: bounds (`at_least`, `above`, `at_most`, `below`), and what the option `needs` for
an effect.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal


def option(default: Any, text: str, **metadata: Any) -> Any:
    """Returns a dataclass field with a default, a help text, and the metadata described above."""
    return field(default=default, metadata={"help": text, **metadata})


def default_of(each: Any) -> Any:
    """Returns the default of a dataclass field."""
    return each.default if each.default_factory is MISSING else each.default_factory()


def check_bounds(arguments: Any, others: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """
    Checks the numbers of a dataclass against the bounds in the metadata of its fields.

    Args:
        arguments: The dataclass.
        others (`Mapping`, *optional*): Bounds of fields that have none in their metadata, by name.

    Raises:
        ValueError: A number is out of bounds or not finite; the message names the option.
    """
    checks = {
        "at_least": lambda value, bound: value >= bound,
        "above": lambda value, bound: value > bound,
        "at_most": lambda value, bound: value <= bound,
        "below": lambda value, bound: value < bound,
    }
    for each in fields(arguments):
        given = {**each.metadata, **(others or {}).get(each.name, {})}
        bounds = {name: given[name] for name in checks if name in given}
        value = getattr(arguments, each.name, None)
        if not bounds or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value) or not all(checks[name](value, bound) for name, bound in bounds.items()):
            wanted = " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
            raise ValueError(f"--{each.name} {value} does not work: it must be a number {wanted}.")


# ---- The model and its training ----

TRAINED_BACKBONES = "no freeze_backbones or unfreeze_epoch"
CQT, MEL, SPEECH = ["cqt_backbone"], ["mel_backbone"], ["speech_encoder"]
FILTERS = ["filter_bank=learnable"]
WITH_DIMENSIONS, WITH_CLASSES, ONLY_CLASSES = ["no target=emotion"], ["no target=dimensions"], ["target=emotion"]
TRAINED_CQT, TRAINED_MEL, TRAINED_FILTERS = ([*needs, TRAINED_BACKBONES] for needs in (CQT, MEL, FILTERS))
TRAINED_SPEECH = [*SPEECH, TRAINED_BACKBONES, "no freeze_speech_encoder"]


@dataclass
class ModelArguments:
    """Model"""

    model_name_or_path: str | None = option(None, "Checkpoint to start from.")
    cqt_backbone: str = option("maxvit_base_tf_224", "timm model for the CQT image, convnet or none.")
    mel_backbone: str = option("mvitv2_base", "timm model for the Mel image, convnet or none.")
    cqt_backbone_kwargs: str | None = option(None, "Arguments of the CQT backbone, as JSON.", needs=CQT)
    mel_backbone_kwargs: str | None = option(None, "Arguments of the Mel backbone, as JSON.", needs=MEL)
    filter_bank: str = option("fixed", "Mel filters, fixed or learnable.")
    speech_encoder: str | None = option(
        None, "wav2vec 2.0, HuBERT, WavLM, data2vec or Whisper for the waveform: name or folder."
    )
    speech_pooling: str = option(
        "attention",
        "Pooling of the speech encoder over time: attention, mean, statistics or attentive_statistics.",
        needs=SPEECH,
    )
    speech_layers: str = option(
        "weighted_sum", "Combination of the speech encoder's layers: weighted_sum or concat.", needs=SPEECH
    )
    fusion: str = option("concat", "Fusion of the branches: concat, gated, attention, bilinear or late.")
    speech_share: float = option(
        0.5, "Weight of the speech classifier in late fusion.", at_least=0, at_most=1, needs=["fusion=late"]
    )
    fusion_size: int = option(
        256, "Width of attention and bilinear fusion.", needs=["fusion=attention or fusion=bilinear"]
    )
    head: str = option("mlp", "Head: mlp, linear or decoder (with one query per class).")
    head_layers: int = option(1, "Hidden layers of the MLP, or layers of the decoder.")
    image_size: list[int] | None = option(None, "Size of the images: one number, or height and width (default: 224).")
    hidden_size: int = option(512, "Width of the head's layers.")
    feature_dropout: float = option(0.0, "Dropout of the fused features before the head.")
    hidden_dropout: float = option(0.2, "Dropout in the head.")
    feature_extractor_kwargs: str | None = option(
        None, 'Parameters of the feature extractor, as JSON, such as {"image_size": 128}.'
    )
    imagenet_weights: bool = option(True, "Whether to start from timm's ImageNet weights.")
    cqt_weights: str | None = option(None, "File of ImageNet weights for the CQT backbone.", needs=CQT)
    mel_weights: str | None = option(None, "File of ImageNet weights for the Mel backbone.", needs=MEL)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("cqt_backbone_kwargs", "mel_backbone_kwargs", "feature_extractor_kwargs"):
            if text := getattr(self, name):
                try:
                    setattr(self, name, json.loads(text))
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ValueError(f"--{name} {text[:200]!r} is not JSON: {error}.") from error
                if not isinstance(getattr(self, name), dict):
                    raise ValueError(f'--{name} {text!r} is not a JSON object, such as {{"image_size": 128}}.')
        if weights := [f"--{name}" for name in ("cqt_weights", "mel_weights") if getattr(self, name)]:
            if self.model_name_or_path:
                raise ValueError(f"--model_name_or_path has its own weights: leave out {' and '.join(weights)}.")
            if not self.imagenet_weights:
                raise ValueError(
                    f"--imagenet_weights false starts from random weights: leave out it, or {' and '.join(weights)}."
                )
        for name in ("cqt_weights", "mel_weights"):
            if (path := getattr(self, name)) and not Path(path).is_file():
                raise ValueError(f"--{name}: there is no file {path}.")


@dataclass
class ScheduleArguments:
    """Training"""

    num_train_epochs: float = option(50, "Maximum number of epochs.", above=0)
    max_steps: int = option(-1, "Maximum number of updates, instead of num_train_epochs.", at_least=-1)
    early_stopping_patience: int = option(
        5,
        "Number of evaluations without improvement after which training stops; 0: never.",
        at_least=0,
        needs=["eval_strategy=epoch or eval_strategy=steps"],
    )
    per_device_train_batch_size: int = option(16, "Clips per device and step.", at_least=1)
    gradient_accumulation_steps: int = option(1, "Batches per update.", at_least=1)
    learning_rate: float = option(2e-4, "Learning rate of branches without one of their own.", at_least=0)
    optim: str | None = option(
        None, "Optimizer of branches without one of their own: adam, adamw, radam, nadam, adamax, rmsprop or sgd."
    )
    warmup_steps: float = option(
        0,
        "Updates of linear warm-up; below 1: share of all updates.",
        aliases=["--warmup_ratio"],
        at_least=0,
        needs=["no lr_scheduler_type=constant"],
    )
    lr_scheduler_type: str = option(
        "reduce_lr_on_plateau",
        "Learning rate schedule: reduce_lr_on_plateau, linear, cosine, constant, constant_with_warmup or another of "
        "transformers; with warm-up the default is linear.",
    )
    lr_scheduler_kwargs: dict | str | None = option(
        None,
        "Arguments of the schedule, as JSON. Defaults of reduce_lr_on_plateau: factor 0.1, patience 2, min_lr 1e-6, "
        "and the mode for the metric.",
    )
    weight_decay: float = option(0.0, "Weight decay of branches without their own.", at_least=0)
    ema_decay: float = option(
        0.0,
        "Decay of the exponential moving average of the weights that is evaluated and saved, such as 0.999; 0: none.",
        at_least=0,
        below=1,
    )
    max_grad_norm: float = option(1.0, "Norm to which gradients are clipped; 0: no clipping.", at_least=0)
    seed: int = option(42, "Random seed.", at_least=0, below=2**32)


@dataclass
class BranchArguments:
    """Training of individual branches"""

    cqt_learning_rate: float | None = option(None, "Learning rate of the CQT backbone.", at_least=0, needs=TRAINED_CQT)
    mel_learning_rate: float | None = option(None, "Learning rate of the Mel backbone.", at_least=0, needs=TRAINED_MEL)
    head_learning_rate: float | None = option(None, "Learning rate of the head.", at_least=0)
    speech_learning_rate: float | None = option(
        None,
        "Learning rate of the speech encoder (default: learning_rate/10) or its adapters (learning_rate).",
        at_least=0,
        needs=TRAINED_SPEECH,
    )
    filter_learning_rate: float | None = option(
        None, "Learning rate of learnable Mel filters.", at_least=0, needs=TRAINED_FILTERS
    )
    cqt_weight_decay: float | None = option(None, "Weight decay of the CQT backbone.", at_least=0, needs=TRAINED_CQT)
    mel_weight_decay: float | None = option(None, "Weight decay of the Mel backbone.", at_least=0, needs=TRAINED_MEL)
    head_weight_decay: float | None = option(None, "Weight decay of the head.", at_least=0)
    speech_weight_decay: float | None = option(
        None, "Weight decay of the speech encoder.", at_least=0, needs=TRAINED_SPEECH
    )
    filter_weight_decay: float | None = option(
        None,
        "Weight decay of learnable Mel filters, towards their initial values.",
        at_least=0,
        needs=TRAINED_FILTERS,
    )
    cqt_optimizer: str | None = option(
        None, "Optimizer of the CQT backbone (default: --optim, else adam).", needs=TRAINED_CQT
    )
    mel_optimizer: str | None = option(
        None, "Optimizer of the Mel backbone (default: --optim, else radam).", needs=TRAINED_MEL
    )
    head_optimizer: str | None = option(None, "Optimizer of the head (default: --optim, else adam).")
    speech_optimizer: str | None = option(
        None, "Optimizer of the speech encoder (default: --optim, else adamw).", needs=TRAINED_SPEECH
    )
    filter_optimizer: str | None = option(
        None,
        "Optimizer of learnable Mel filters (default: --optim, else that of the Mel backbone).",
        needs=TRAINED_FILTERS,
    )
    layer_decay: float = option(
        1.0,
        "Factor between the learning rates of a stage (or layer) and the next.",
        above=0,
        needs=[TRAINED_BACKBONES],
    )
    freeze_backbones: bool = option(False, "Whether to train only the head.")
    unfreeze_epoch: int | None = option(
        None, "Epoch, counted from 0, from which frozen backbones are trained.", at_least=0, needs=["freeze_backbones"]
    )
    freeze_speech_encoder: bool = option(
        False,
        "Whether to freeze the speech encoder; the combination of its layers is trained.",
        needs=["speech_encoder"],
    )
    closed_form_classifier: bool = option(
        False,
        "Whether to fit the linear classifier of a frozen speech encoder by shrunk LDA (or ridge, for dimensions).",
        needs=["freeze_speech_encoder"],
    )
    speech_frozen_layers: int | None = option(
        None,
        "Number of lowest layers of the speech encoder to freeze, with everything below them.",
        at_least=0,
        needs=["no freeze_speech_encoder", "no lora_rank", *SPEECH],
    )
    lora_rank: int | None = option(
        None,
        "Rank of LoRA adapters, which are trained instead of the speech encoder; needs peft.",
        at_least=1,
        needs=["speech_encoder", "no freeze_speech_encoder", TRAINED_BACKBONES],
    )


@dataclass
class LossArguments:
    """Loss"""

    class_weights: Literal["none", "balanced"] = option(
        "none", "Weights of the classes in the loss; balanced: inverse to their frequency.", needs=WITH_CLASSES
    )
    label_smoothing_factor: float = option(
        0.0, "Share of the target that is spread evenly over all classes.", at_least=0, below=1, needs=WITH_CLASSES
    )
    focal_gamma: float = option(0.0, "Exponent of the focal loss; 0: cross-entropy.", at_least=0, needs=WITH_CLASSES)
    dimension_loss: Literal["ccc", "mse", "mae"] = option(
        "ccc",
        "Loss of dimensions: 1 - CCC, squared or absolute error.",
        needs=WITH_DIMENSIONS,
    )
    dimension_weight: float = option(1.0, "Weight of the dimensions.", above=0, needs=["target=both"])
    skip_nonfinite_steps: int = option(
        0, "Number of steps with a non-finite loss that are skipped before the run stops.", at_least=0
    )


@dataclass
class AugmentationArguments:
    """Augmentation of the training clips"""

    specaugment_masks: int = option(
        0, "SpecAugment: masks per clip and axis; not for images of learnable filters.", at_least=0
    )
    specaugment_time: float = option(
        0.1,
        "SpecAugment: widest mask in time, as a share of the image.",
        at_least=0,
        at_most=1,
        needs=["specaugment_masks"],
    )
    specaugment_frequency: float = option(
        0.15,
        "SpecAugment: widest mask in frequency, as a share of the image.",
        at_least=0,
        at_most=1,
        needs=["specaugment_masks"],
    )
    mixup_alpha: float = option(0.0, "Mixup: parameter of the Beta distribution; 0: none.", at_least=0)


@dataclass
class ClipAugmentationArguments:
    """Augmentation of the training clips before their images are computed"""

    training_window: float | None = option(
        None,
        "Length in seconds of the random window of each clip that each epoch trains on.",
        aliases=["--max_length_seconds"],
        above=0,
    )
    whole_clip_share: float = option(
        0.0, "Share of clips not reduced to a window.", at_least=0, at_most=1, needs=["training_window"]
    )
    time_stretch: float = option(
        0.0, "Maximum random change of tempo, as a share.", at_least=0, needs=["training_window"]
    )
    gain_db: float = option(0.0, "Maximum random gain in dB; needs the extractor's level=full_scale.", at_least=0)


@dataclass
class CopyArguments:
    """Altered copies of the training clips"""

    waveform_copies: int = option(0, "Altered copies per clip; each epoch uses a random one, or the clip.", at_least=0)
    waveform_chain: Literal["all", "voice", "recording"] = option(
        "all",
        "Alterations: voice (speed, pitch), recording (room, noise, gain, codecs, ...) or all.",
        needs=["waveform_copies"],
    )


@dataclass
class MachineArguments:
    """Precision, memory and machines"""

    use_cpu: bool = option(False, "Whether to compute on the CPU.")
    bf16: bool = option(False, "Whether to use bfloat16 mixed precision.")
    activation_checkpointing: bool | None = option(
        None, "Whether to recompute activations in the backward pass to save memory."
    )
    torch_compile: bool = option(False, "Whether to compile the model.")
    channels_last: bool = option(False, "Whether to use the channels_last memory format, except for MViTv2.")
    sync_batchnorm: bool = option(False, "Whether BatchNorm uses the statistics of all GPUs in a distributed run.")
    per_device_eval_batch_size: int = option(16, "Clips per device and evaluation step.", at_least=1)
    dataloader_num_workers: int = option(0, "Number of processes that prepare batches.", at_least=0)
    ddp_find_unused_parameters: bool | None = option(False, "Whether DDP looks for parameters without a gradient.")


@dataclass
class ReportArguments:
    """Checkpoints and report"""

    output_dir: str = option("trainer_output", "Folder of the run, for model, checkpoints and report.")
    overwrite_output_dir: bool = option(False, "Whether to start over if the output directory holds a run.")
    metric_for_best_model: str | None = option(
        "UA",
        "Validation metric for best model, plateau and early stopping: UA, WA (accuracy), macro_f1, weighted_f1, "
        "loss; of soft labels KL, JS, soft_macro_f1; of dimensions CCC, pearson, MAE.",
    )
    load_best_model_at_end: bool = option(True, "Whether the result is the best checkpoint instead of the last one.")
    eval_strategy: Literal["no", "steps", "epoch"] = option("epoch", "When to evaluate.")
    eval_steps: float | None = option(None, "Updates between evaluations.", above=0, needs=["eval_strategy=steps"])
    save_strategy: Literal["no", "steps", "epoch", "best"] = option(
        "epoch", "When to save a checkpoint; by default like a given eval_strategy."
    )
    save_steps: float = option(500, "Updates between checkpoints.", above=0, needs=["save_strategy=steps"])
    save_total_limit: int | None = option(
        3, "Number of best checkpoints to keep, in addition to the newest.", at_least=1
    )
    restore_callback_states_from_checkpoint: bool = option(
        True, "Whether a resumed run keeps its counter of early stopping."
    )
    logging_strategy: Literal["no", "steps", "epoch"] = option(
        "epoch", "When to log; steps if logging_steps is given."
    )
    logging_steps: float = option(
        500, "Updates between logs.", above=0, needs=["logging_strategy=steps or eval_strategy=steps"]
    )
    logging_nan_inf_filter: bool = option(False, "Whether to omit non-finite losses from logs.")
    test_window: float | None = option(
        None, "Seconds; test clips are also scored by the mean over windows this long.", above=0, needs=ONLY_CLASSES
    )
    test_hop: float | None = option(
        None,
        "Seconds between the starts of test windows (default: --test_window).",
        above=0,
        needs=["test_window"],
    )
    calibrate: bool = option(
        False, "Whether to calibrate probabilities by temperature scaling on the validation set.", needs=ONLY_CLASSES
    )
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Trackers, such as tensorboard or wandb; all: all that are installed; none: no tracker."},
    )
    run_name: str | None = option(None, "Name of the run in trackers (default: that of the output directory).")
    log_level: str = option("passive", "Log level: debug, info, warning, error or passive.")
    push_to_hub: bool = option(False, "Whether to push the finished model to the Hub.")
    hub_model_id: str | None = option(None, "Name of the model on the Hub.")


@dataclass
class TrainingOptions(
    ReportArguments,
    MachineArguments,
    CopyArguments,
    ClipAugmentationArguments,
    AugmentationArguments,
    LossArguments,
    BranchArguments,
    ScheduleArguments,
):
    """Options that this project adds to `transformers.TrainingArguments`, or whose defaults it changes."""


INHERITED_NEEDS = {
    "hub_": ["push_to_hub"],
    "adam_beta": ["an optimizer with betas"],
    "adam_epsilon": ["an optimizer with eps"],
}
"""Needs of options of `transformers.TrainingArguments`, by the beginning of their names."""


def values_of(group: type, arguments: Any) -> dict[str, Any]:
    """Returns the values of a group's fields (a dataclass above) in arguments that have them."""
    return {each.name: getattr(arguments, each.name) for each in fields(group)}


# ---- The clips ----


@dataclass
class CorpusArguments:
    """Data"""

    dataset_name: list[str] = field(
        default_factory=lambda: ["demo"],
        metadata={
            "help": "One or more corpora: a name of --list_corpora, the Hub id of a copy, or a data set of your own "
            "(Hub id, folder with a sub-folder per class, or CSV of file,label[,speaker][,split])."
        },
    )
    data_dir: list[str] | None = option(None, "Local folder of each corpus; none for a corpus without one.")
    dataset_config_name: str | None = option(None, "Configuration of the Hub data set.")
    dataset_revision: str | None = option(None, "Revision of the Hub data set.")
    cache_dir: str | None = option(None, "Folder for downloads and cached features.")
    train_split_name: str = option("train", "Training split of a data set of your own.")
    eval_split_name: str = option("validation", "Validation split of a data set of your own.")
    test_split_name: str = option("test", "Test split of a data set of your own.")
    audio_column_name: str | None = option(None, "Audio column of a data set of your own.")
    label_column_name: str | None = option(None, "Class column of a data set of your own.")
    speaker_column_name: str | None = option(None, "Speaker column of a data set of your own.")
    label_map: str | None = option(None, "YAML file that maps classes to their spellings in the corpora, or default.")
    labels: list[str] | None = option(None, "Classes to keep, in this order.", needs=WITH_CLASSES)
    merge_labels: list[str] | None = option(
        None, "Pairs of classes to merge, such as excited=happy.", needs=WITH_CLASSES
    )
    unique_vote: bool = option(
        False, "Whether to keep only clips whose votes have a single maximum (IEMOCAP).", needs=WITH_CLASSES
    )
    soft_labels: Literal["none", "votes"] = option(
        "none", "votes: train on the annotators' votes, even if they do not agree.", needs=ONLY_CLASSES
    )
    drop_duplicates: bool = option(False, "Whether to keep only one of several clips with equal audio.")
    dimension_range: list[float] | None = option(None, "Ends of your own scale (default: 0 1).", needs=WITH_DIMENSIONS)


@dataclass
class TargetArguments:
    """Target"""

    target: Literal["emotion", "dimensions", "both"] = option("emotion", "What to learn.")
    dimensions: list[str] | None = option(
        None,
        "Dimensions (default: all; for your own data arousal, valence, dominance).",
        needs=WITH_DIMENSIONS,
    )


@dataclass
class ProtocolArguments:
    """Protocol"""

    protocol: str | None = option(
        None,
        "predefined, random, speaker, loso, published folds (emobox, luna-jimenez, sessions), sentence (new speakers "
        "and sentences) or everything (no test part). Default: the data set's test split, else speaker folds, else "
        "random.",
    )
    fold: str = option("1", "Fold of the protocol, from 1, or all.")
    test_speakers: list[str] | None = option(None, "Speakers to test on, instead of a protocol.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.test_speakers and self.protocol:
            raise ValueError("--test_speakers and --protocol both determine the test part: leave out one of the two.")


@dataclass
class SeveralCorporaArguments:
    """Several corpora"""

    test_dataset_name: list[str] | None = option(None, "Corpora to test on, instead of part of the training corpora.")
    test_data_dir: list[str] | None = option(
        None, "Local folder of each test corpus; none for a corpus without one.", needs=["test_dataset_name"]
    )
    corpus_sampling: Literal["natural", "balanced"] = option(
        "natural",
        "natural: each clip once per epoch; balanced: each corpus as often as the largest.",
        needs=["several corpora"],
    )


@dataclass
class StreamingArguments:
    """Streaming"""

    streaming: bool = option(
        False, "Whether to read parquet shards, on the Hub or in a folder, in every epoch, without a cache."
    )
    shuffle_buffer_size: int = option(
        1000,
        "Number of undecoded clips in the shuffle buffer of each process.",
        at_least=1,
        needs=["streaming"],
    )


@dataclass
class TrainingPartArguments:
    """Training part"""

    validation_share: float | None = option(
        None, "Share of training clips or speakers for validation; 0: none (default: 0.15).", at_least=0, below=1
    )
    max_train_samples: int | None = option(None, "Maximum number of training clips, drawn at random.", at_least=2)
    max_eval_samples: int | None = option(None, "Maximum number of validation clips, drawn at random.", at_least=1)
    shuffle_training_labels: bool = option(
        False, "Whether to shuffle the training labels, as a control: scores must be at chance level."
    )
    scores_from: list[str] | None = option(
        None,
        "Output directories of --fold all, whose scores are quoted in the report of a model without a test part.",
        needs=["protocol=everything", *ONLY_CLASSES],
    )


@dataclass
class FeatureArguments:
    """Features"""

    on_bad_audio: Literal["error", "skip"] = option(
        "error", "error: stop at a clip that cannot be read; skip: leave it out."
    )
    cache_features: bool = option(
        True, "Whether to cache spectrograms on disk instead of computing them in every epoch."
    )
    feature_cache_gib: float = option(
        50.0, "Maximum size of the cache of spectrograms, in GiB.", at_least=0, needs=["cache_features"]
    )
    preprocessing_num_workers: int = option(1, "Number of processes that extract features.", at_least=1)


@dataclass
class ClipArguments(FeatureArguments, ProtocolArguments, CorpusArguments):
    """Options about clips, for training and evaluation."""


@dataclass
class DataArguments(
    TrainingPartArguments, SeveralCorporaArguments, StreamingArguments, TargetArguments, ClipArguments
):
    """All options about clips, for training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_dataset_name and (self.protocol or self.test_speakers):
            flag = "protocol" if self.protocol else "test_speakers"
            raise ValueError(f"--test_dataset_name determines the test part: leave out --{flag}.")
        if self.streaming:
            self._check_streaming()

    def _check_streaming(self) -> None:
        self.cache_features = False  # a stream keeps no spectrograms
        if self.on_bad_audio == "skip":
            raise ValueError("--on_bad_audio skip needs cached spectrograms, which --streaming lacks: leave one out.")
        if len(self.dataset_name) > 1 or self.test_dataset_name or self.label_map:
            raise ValueError(
                "--streaming reads one corpus with its own classes: leave it out, or put all tables into one folder."
            )
