"""Options of the training command about the model and its training, readable without torch: one field is one option.

`ser/arguments.py` has those about the clips, `ser/training/arguments.py` joins these with
`transformers.TrainingArguments`. The first line of a class's docstring is the title of its group in `--help`. Besides
`help`, the metadata of a field may hold what `ser/cli.py` checks: its bounds (`at_least`, `above`, `at_most`, `below`)
and what it `needs` to have an effect.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ser.cli import check_bounds

# ---- The model and its training ----

TRAINED_BACKBONES = "no freeze_backbones or unfreeze_epoch"


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
    fusion: str = field(default="concat", metadata={"help": "concat, gated, attention, bilinear or late."})
    speech_share: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the speech classifier in late fusion, 0 to 1.",
            "needs": ["fusion=late"],
        },
    )
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
                raise ValueError(f"--model_name_or_path brings its own weights: leave out {' and '.join(weights)}.")
            if not self.imagenet_weights:
                raise ValueError(
                    f"--imagenet_weights false starts at random: leave it out, or leave out {' and '.join(weights)}."
                )
        for name in ("cqt_weights", "mel_weights"):
            if (path := getattr(self, name)) and not Path(path).is_file():
                raise ValueError(f"--{name}: there is no file {path}.")


@dataclass
class ScheduleArguments:
    """Training: how long, how fast"""

    num_train_epochs: float = field(
        default=50, metadata={"help": "Epochs at most; early stopping may end sooner.", "above": 0}
    )
    max_steps: int = field(
        default=-1, metadata={"help": "Updates at most, instead of num_train_epochs.", "at_least": -1}
    )
    early_stopping_patience: int = field(
        default=5,
        metadata={
            "help": "Evaluations without improvement after which training stops; 0 never stops.",
            "at_least": 0,
            "needs": ["eval_strategy=epoch or eval_strategy=steps"],
        },
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Clips per device and training step.", "at_least": 1}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches that make one update.", "at_least": 1}
    )
    learning_rate: float = field(
        default=2e-4, metadata={"help": "Learning rate of every branch not given its own.", "at_least": 0}
    )
    optim: str | None = field(
        default=None,
        metadata={
            "help": "Optimizer of every branch not given its own: adam, adamw, radam, nadam, adamax, rmsprop, sgd."
        },
    )
    warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Updates (below 1: share of all) in which the learning rate rises from 0.",
            "aliases": ["--warmup_ratio"],
            "at_least": 0,
            "needs": ["no lr_scheduler_type=constant"],
        },
    )
    lr_scheduler_type: str = field(
        default="reduce_lr_on_plateau",
        metadata={
            "help": "Schedule of the learning rate: reduce_lr_on_plateau, linear, cosine, constant, "
            "constant_with_warmup or another of transformers; with warm-up it is linear unless given."
        },
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the scheduler, as JSON. For reduce_lr_on_plateau these go over factor 0.1, "
            "patience 2, min_lr 1e-6 and the mode that fits the metric."
        },
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "Weight decay of every branch not given its own.", "at_least": 0}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights, in which each update leaves this "
            "share of what was averaged before, such as 0.999; 0 for the last weights alone.",
            "at_least": 0,
            "below": 1,
        },
    )
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Norm to which gradients are clipped; 0 for none.", "at_least": 0}
    )
    seed: int = field(default=42, metadata={"help": "Random seed.", "at_least": 0, "below": 2**32})


@dataclass
class BranchArguments:
    """Training by branch"""

    cqt_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the CQT backbone.", "at_least": 0}
    )
    mel_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the Mel backbone.", "at_least": 0}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the head.", "at_least": 0}
    )
    speech_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the speech encoder (default: learning_rate/10) or its adapters (learning_rate).",
            "at_least": 0,
        },
    )
    filter_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of learnable Mel filters.", "at_least": 0}
    )
    cqt_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the CQT backbone.", "at_least": 0}
    )
    mel_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the Mel backbone.", "at_least": 0}
    )
    head_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the head.", "at_least": 0}
    )
    speech_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the speech encoder.", "at_least": 0}
    )
    filter_weight_decay: float | None = field(
        default=None,
        metadata={"help": "Weight decay of learnable Mel filters, towards where they began.", "at_least": 0},
    )
    cqt_optimizer: str | None = field(
        default=None, metadata={"help": "Optimizer of the CQT backbone (default: --optim, else adam)."}
    )
    mel_optimizer: str | None = field(
        default=None, metadata={"help": "Optimizer of the Mel backbone (default: --optim, else radam)."}
    )
    head_optimizer: str | None = field(
        default=None, metadata={"help": "Optimizer of the head (default: --optim, else adam)."}
    )
    speech_optimizer: str | None = field(
        default=None, metadata={"help": "Optimizer of the speech encoder (default: --optim, else adamw)."}
    )
    filter_optimizer: str | None = field(
        default=None, metadata={"help": "Optimizer of learnable Mel filters (default: --optim, else that of Mel)."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor between the learning rates of a stage (or layer) and the one before it.",
            "above": 0,
            "needs": [TRAINED_BACKBONES],
        },
    )
    freeze_backbones: bool = field(default=False, metadata={"help": "Whether only the head is trained."})
    unfreeze_epoch: int | None = field(
        default=None,
        metadata={
            "help": "Epoch (from 0) from which frozen backbones are trained too.",
            "at_least": 0,
            "needs": ["freeze_backbones"],
        },
    )
    freeze_speech_encoder: bool = field(
        default=False,
        metadata={
            "help": "Whether the speech encoder stays as it is; what joins its layers is trained.",
            "needs": ["speech_encoder"],
        },
    )
    closed_form_classifier: bool = field(
        default=False,
        metadata={
            "help": "Fit the linear classifier on a frozen speech encoder by shrunk linear discriminant analysis.",
            "needs": ["freeze_speech_encoder"],
        },
    )
    speech_frozen_layers: int | None = field(
        default=None,
        metadata={
            "help": "Its lowest layers that stay as they are, with all that is below them.",
            "at_least": 0,
            "needs": ["no freeze_speech_encoder", "no lora_rank"],
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Rank of adapters (LoRA) that are trained instead of the speech encoder; needs peft.",
            "at_least": 1,
            "needs": ["speech_encoder", "no freeze_speech_encoder", TRAINED_BACKBONES],
        },
    )


@dataclass
class LossArguments:
    """Loss"""

    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "Whether rare classes weigh more in the loss."}
    )
    label_smoothing_factor: float = field(
        default=0.0,
        metadata={"help": "Share of the target that is spread over all classes.", "at_least": 0, "below": 1},
    )
    focal_gamma: float = field(
        default=0.0, metadata={"help": "Focal loss: its exponent; 0 for cross-entropy.", "at_least": 0}
    )
    skip_nonfinite_steps: int = field(
        default=0,
        metadata={"help": "Steps with a non-finite loss that are left out before the run stops.", "at_least": 0},
    )


@dataclass
class AugmentationArguments:
    """Augmentation of the training clips"""

    specaugment_masks: int = field(
        default=0,
        metadata={
            "help": "SpecAugment: masks per clip and axis; 0 for none. What learnable filters draw has none.",
            "at_least": 0,
        },
    )
    specaugment_time: float = field(
        default=0.1,
        metadata={
            "help": "SpecAugment: widest time mask, as a share.",
            "at_least": 0,
            "at_most": 1,
            "needs": ["specaugment_masks"],
        },
    )
    specaugment_frequency: float = field(
        default=0.15,
        metadata={
            "help": "SpecAugment: widest band, as a share.",
            "at_least": 0,
            "at_most": 1,
            "needs": ["specaugment_masks"],
        },
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Mixup: Beta(alpha, alpha) of the shares; 0 for none.", "at_least": 0}
    )


@dataclass
class ClipAugmentationArguments:
    """Augmentation of the training clips before their images are computed"""

    training_window: float | None = field(
        default=None,
        metadata={
            "help": "Seconds of a random part of each clip, drawn in every epoch.",
            "aliases": ["--max_length_seconds"],
            "above": 0,
        },
    )
    whole_clip_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of clips that stay whole all the same.",
            "at_least": 0,
            "at_most": 1,
            "needs": ["training_window"],
        },
    )
    time_stretch: float = field(
        default=0.0,
        metadata={"help": "Windows up to this share faster or slower.", "at_least": 0, "needs": ["training_window"]},
    )
    gain_db: float = field(
        default=0.0, metadata={"help": "Random gain, up to so many dB; for level=full_scale.", "at_least": 0}
    )


@dataclass
class CopyArguments:
    """Altered copies of the training clips"""

    waveform_copies: int = field(
        default=0, metadata={"help": "Copies per clip; batches draw one, or the clip.", "at_least": 0}
    )
    waveform_chain: Literal["all", "voice", "recording"] = field(
        default="all",
        metadata={
            "help": "What alters them: voice (speed, pitch), recording (room, noise, gain, codecs, ...) or all.",
            "needs": ["waveform_copies"],
        },
    )


@dataclass
class MachineArguments:
    """Precision, memory and machines"""

    use_cpu: bool = field(default=False, metadata={"help": "Whether to compute on the CPU."})
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
    per_device_eval_batch_size: int = field(
        default=16, metadata={"help": "Clips per device and evaluation step.", "at_least": 1}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that make batches.", "at_least": 0})
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
        default="UA",
        metadata={
            "help": "The validation metric that best model, plateau and early stopping follow: UA, WA (accuracy), "
            "macro_f1, weighted_f1, loss; with soft labels also KL, JS, soft_macro_f1."
        },
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best weights are the result."})
    eval_strategy: Literal["no", "steps", "epoch"] = field(default="epoch", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(
        default=None,
        metadata={"help": "Updates between evaluations by steps.", "above": 0, "needs": ["eval_strategy=steps"]},
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = field(
        default="epoch", metadata={"help": "When to save a checkpoint; as eval_strategy where only that is given."}
    )
    save_steps: float = field(
        default=500,
        metadata={"help": "Updates between checkpoints by steps.", "above": 0, "needs": ["save_strategy=steps"]},
    )
    save_total_limit: int | None = field(
        default=3,
        metadata={"help": "How many of the best checkpoints are kept. The newest is kept besides.", "at_least": 1},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Whether a resumed run goes on counting towards early stopping."}
    )
    logging_strategy: Literal["no", "steps", "epoch"] = field(
        default="epoch", metadata={"help": "When to log; by steps where logging_steps is given."}
    )
    logging_steps: float = field(
        default=500,
        metadata={
            "help": "Updates between logs by steps.",
            "above": 0,
            "needs": ["logging_strategy=steps or eval_strategy=steps"],
        },
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Whether non-finite losses go unlogged."})
    test_window: float | None = field(
        default=None,
        metadata={"help": "Seconds: test clips are also scored by the mean over such windows of them.", "above": 0},
    )
    test_hop: float | None = field(
        default=None,
        metadata={
            "help": "Seconds from one test window's start to the next (default: --test_window).",
            "above": 0,
            "needs": ["test_window"],
        },
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "Calibrate probabilities by temperature scaling on the validation set."},
    )
    report_to: None | str | list[str] = field(default="tensorboard", metadata={"help": "Where to report."})
    log_level: str = field(default="passive", metadata={"help": "debug, info, warning, error or passive."})
    push_to_hub: bool = field(default=False, metadata={"help": "Whether the model goes to the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Its name there."})


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
    """What this project adds to `transformers.TrainingArguments`, or has other defaults for."""


OWN = ("learning_rate", "weight_decay", "optimizer")
NEEDS = {
    "cqt_": ["cqt_backbone"],
    "mel_": ["mel_backbone"],
    "speech_": ["speech_encoder"],
    "filter_": ["filter_bank=learnable"],
    "fusion_size": ["fusion=attention or fusion=bilinear"],
    "hub_": ["push_to_hub"],
    "adam_beta": ["an optimizer with betas"],
    "adam_epsilon": ["an optimizer with eps"],
    **{f"{branch}_{setting}": [TRAINED_BACKBONES] for branch in ("cqt", "mel", "filter") for setting in OWN},
    **{f"speech_{setting}": [TRAINED_BACKBONES, "no freeze_speech_encoder"] for setting in OWN},
}
"""What options need to have an effect, by the beginning of their names, besides the `needs` of their fields."""


def values_of(group: type, arguments: Any) -> dict[str, Any]:
    """What the fields of a group (a dataclass above) are in arguments that have them."""
    return {each.name: getattr(arguments, each.name) for each in fields(group)}


# ---- The clips ----
# Options of the training command about the clips; `ser/arguments.py` has those about the model and its training.


@dataclass
class CorpusArguments:
    """Data: which clips, of which classes"""

    dataset_name: list[str] = field(
        default_factory=lambda: ["demo"],
        metadata={
            "help": "A corpus (--list_corpora names them); the Hub id of a copy; or a data set of your own: Hub id, "
            "folder with a sub-folder per class, CSV of file,label[,speaker][,split]. Or several."
        },
    )
    data_dir: list[str] | None = field(
        default=None, metadata={"help": "Folder where the data of dataset_name lies; of several, one each, or none."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of the Hub data set."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and features are kept."})
    train_split_name: str = field(default="train", metadata={"help": "Training split of your own data set."})
    eval_split_name: str = field(default="validation", metadata={"help": "Its validation split."})
    test_split_name: str = field(default="test", metadata={"help": "Its test split."})
    audio_column_name: str | None = field(default=None, metadata={"help": "Its column of audio."})
    label_column_name: str | None = field(default=None, metadata={"help": "Its column of classes."})
    speaker_column_name: str | None = field(default=None, metadata={"help": "Its column of speakers."})
    label_map: str | None = field(
        default=None, metadata={"help": "YAML file of classes and their spellings in the corpora, or default."}
    )
    labels: list[str] | None = field(default=None, metadata={"help": "Classes to keep, in this order."})
    merge_labels: list[str] | None = field(default=None, metadata={"help": "Such as excited=happy."})
    unique_vote: bool = field(default=False, metadata={"help": "IEMOCAP: keep clips whose highest vote is unique."})
    soft_labels: Literal["none", "votes"] = field(
        default="none",
        metadata={"help": "Train on the annotators' votes, also for clips on which they do not agree."},
    )
    drop_duplicates: bool = field(default=False, metadata={"help": "Keep one of several clips of equal sound."})


@dataclass
class ProtocolArguments:
    """Protocol: who is tested"""

    protocol: str | None = field(
        default=None,
        metadata={
            "help": "predefined, random, speaker, loso, published folds (emobox, luna-jimenez, sessions), sentence "
            "(speakers and sentences that are not trained on), everything (no test part). Default: the data set's "
            "test split if it has one, else speaker folds, else random."
        },
    )
    fold: str = field(default="1", metadata={"help": "Which fold of the protocol, counted from 1; or all."})
    test_speakers: list[str] | None = field(default=None, metadata={"help": "Test these, instead of a protocol."})

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.test_speakers and self.protocol:
            raise ValueError("--test_speakers names who is tested, and so does --protocol: leave out one of the two.")


@dataclass
class SeveralCorporaArguments:
    """Several corpora: who else tests, how often each is heard"""

    test_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "Corpora that test, instead of a part of those that are trained on."}
    )
    test_data_dir: list[str] | None = field(
        default=None, metadata={"help": "A folder for each of them, or none.", "needs": ["test_dataset_name"]}
    )
    corpus_sampling: Literal["natural", "balanced"] = field(
        default="natural",
        metadata={
            "help": "Each clip once an epoch, or each corpus as often as the largest.",
            "needs": ["several corpora"],
        },
    )


@dataclass
class StreamingArguments:
    """Streaming: a corpus larger than memory and disk"""

    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read parquet shards, on the Hub or in a folder, as they lie, in every epoch; keep no sound."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "Clips that wait, not decoded, for a batch to draw from, in each process.",
            "at_least": 1,
            "needs": ["streaming"],
        },
    )


@dataclass
class TrainingPartArguments:
    """Training part: what chooses the checkpoint, what is learnt, whose scores are quoted"""

    validation_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of training clips or speakers that validates; 0: none (default: 0.15).",
            "at_least": 0,
            "below": 1,
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on so many clips at most, drawn at random, to try something out.", "at_least": 2},
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate on so many clips at most, likewise.", "at_least": 1}
    )
    shuffle_training_labels: bool = field(
        default=False, metadata={"help": "A control: what is learnt from shuffled labels must score at chance."}
    )
    scores_from: list[str] | None = field(
        default=None,
        metadata={
            "help": "For everything: folders of --fold all, whose scores it quotes.",
            "needs": ["protocol=everything"],
        },
    )


@dataclass
class FeatureArguments:
    """Features: how clips become images"""

    on_bad_audio: Literal["error", "skip"] = field(
        default="error", metadata={"help": "Stop at a clip that cannot be read, or leave it out and count it."}
    )
    cache_features: bool = field(
        default=True, metadata={"help": "Extract once and keep on disk, or compute in the loader's workers each time."}
    )
    feature_cache_gib: float = field(
        default=50.0,
        metadata={"help": "GiB that all kept spectrograms may take.", "at_least": 0, "needs": ["cache_features"]},
    )
    preprocessing_num_workers: int = field(
        default=1, metadata={"help": "Processes that extract features.", "at_least": 1}
    )


@dataclass
class ClipArguments(FeatureArguments, ProtocolArguments, CorpusArguments):
    """Which clips, as training and evaluation take them."""


@dataclass
class DataArguments(TrainingPartArguments, SeveralCorporaArguments, StreamingArguments, ClipArguments):
    """All about the clips of a training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_dataset_name and (self.protocol or self.test_speakers):
            flag = "protocol" if self.protocol else "test_speakers"
            raise ValueError(f"--test_dataset_name tests another corpus: leave out --{flag}.")
        if self.streaming:
            self._check_streaming()

    def _check_streaming(self) -> None:
        self.cache_features = False  # a stream keeps no spectrograms
        if self.on_bad_audio == "skip":
            raise ValueError("--on_bad_audio skip needs spectrograms that are kept: leave it out, or --streaming.")
        if len(self.dataset_name) > 1 or self.test_dataset_name or self.label_map:
            raise ValueError(
                "--streaming reads one corpus, under its own classes: leave it out, or make one folder of tables."
            )
