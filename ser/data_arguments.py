"""Options of the training command about the clips; `ser/arguments.py` has those about the model and its training."""

from dataclasses import dataclass, field
from typing import Literal

from ser.cli import check_bounds


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
