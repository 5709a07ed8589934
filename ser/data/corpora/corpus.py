"""The table of clips into which every corpus is read."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets.utils import tqdm
from numpy.typing import ArrayLike

from audio_maxmvit import LONGEST_CLIP_S, AudioError, decode_audio

if TYPE_CHECKING:
    from ser.data.corpora.streamed import Shards


# ---- The table of clips ----

UNREADABLE = "unreadable"
CLIP_FEATURES = datasets.Features(
    {
        "file": datasets.Value("string"),
        "label": datasets.Value("int64"),
        "speaker": datasets.Value("string"),
        "sex": datasets.Value("string"),
        "language": datasets.Value("string"),
        "session": datasets.Value("string"),
        "sentence": datasets.Value("string"),
        "split": datasets.Value("string"),
    }
)


@dataclass
class Corpus:
    """Clips of a corpus, and how they were chosen.

    Args:
        name: short name, the first part of every protocol's name ("ravdess").
        source: Hub id or local path from which the clips were read.
        revision: Hub commit if known, else a digest of the names and sizes of the local files.
        label_names: classes in the order of the label indices.
        clips: `datasets.Dataset` with the columns `file`, `audio`, `label`, `speaker`, `sex` ("female" or "male"),
            `language` (ISO 639-1), `session`, `sentence` (an identifier of the text), `split`; `votes` if the labels
            are soft; `dimensions` if they are to be estimated, a list of their values from 0 to 1, NaN if unknown;
            `corpus` if there are several; and for streamed clips `place` in `shards`, `content` and `seconds` instead
            of `audio`.
        dropped: reason -> number of rows left out.
        options: choices that affected the table (merged classes, vote rule, ...).
        recordings: the rows of `clips` with their `audio`, if `clips` has spectrograms instead.
        shared_labels: if other corpora are tested than trained on (their clips have the split "test"), the classes
            that both have, on which the test is scored.
        shards: the audio of streamed clips.
        speaker_hint: sources that state the speaker, for the error message of a source that does not.
        dimensions: name -> ends of the scale of each dimension to estimate. Clips without a class then have the label
            -1, and there may be no classes.
    """

    name: str
    source: str
    revision: str | None
    label_names: list[str]
    clips: datasets.Dataset
    dropped: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    speaker_hint: str = ""
    recordings: datasets.Dataset | None = None
    shared_labels: list[str] | None = None
    shards: "Shards | None" = None
    dimensions: dict[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def files(self) -> list[str]:
        return self.clips["file"][:]

    @property
    def labels(self) -> list[int]:
        return self.clips["label"][:]

    @property
    def classes(self) -> list[str | None]:
        """The class of each clip, None for a clip without one."""
        return [None if label < 0 else self.label_names[label] for label in self.labels]

    @property
    def speakers(self) -> list[str | None]:
        return self.clips["speaker"][:]

    @property
    def sessions(self) -> list[str | None]:
        return self.clips["session"][:]

    @property
    def sentences(self) -> list[str | None]:
        return self.clips["sentence"][:]

    @cached_property
    def contents(self) -> list[str]:
        """Digest of each clip's decoded samples, averaged over channels: equal for equal audio in any file format."""
        if "content" in self.clips.column_names:  # every clip has been read already
            return self.clips["content"][:]
        audio = tqdm(self.clips["audio"], total=len(self), desc="Comparing clips", unit="clip")
        return [sound_facts(file, item)[0] for file, item in zip(self.files, audio, strict=True)]


def sound_facts(file: str, audio: dict) -> tuple[str, float]:
    """Returns a digest of a clip's decoded samples, averaged over channels, and their length in seconds; for a clip
    that cannot be decoded, its name and 0."""
    length = 0
    try:
        pieces, sampling_rate = decode_audio(audio, max_s=LONGEST_CLIP_S)
        digest = hashlib.sha1(f"{sampling_rate} ".encode(), usedforsecurity=False)
        for piece in pieces:
            digest.update(piece.data)
            length += len(piece)
    except AudioError:
        return f"{UNREADABLE} {file}", 0.0  # the extraction of features reports or counts it
    return digest.hexdigest(), length / sampling_rate


# ---- Clips with equal audio ----


def keep_one_of_equal_sound(corpus: Corpus) -> None:
    """Keeps one of several clips with equal audio, preferably from the test split, then from validation; none if their
    labels or dimensions differ."""
    groups = defaultdict(list)
    for index, content in enumerate(corpus.contents):
        groups[content].append(index)
    splits = corpus.clips["split"][:]
    values = corpus.clips["dimensions"][:] if corpus.dimensions else [None] * len(corpus)
    labels = [
        f"{label} {value}" for label, value in zip(corpus.labels, values, strict=True)
    ]  # as text, since NaN does not equal NaN
    order = {"test": 0, "validation": 1, "train": 2, None: 3}
    keep, conflicts = [], 0
    for group in groups.values():
        if len({labels[i] for i in group}) > 1:
            conflicts += len(group)
        else:
            keep.append(min(group, key=lambda i: (order[splits[i]], i)))
    keep.sort()
    repeats = len(corpus) - len(keep) - conflicts
    reasons = {"equal sound as another clip": repeats, "equal sound under different labels": conflicts}
    corpus.dropped |= {reason: n for reason, n in reasons.items() if n}
    contents = [corpus.contents[i] for i in keep]
    corpus.clips = corpus.clips.select(keep)
    corpus.contents = contents


# ---- Votes of annotators ----

VOTES = "votes"


def shares_of(votes: ArrayLike) -> np.ndarray:
    """
    Converts votes `(clips, C)`, at least one for each clip, to the share of each class.

    Raises:
        ValueError: A vote is negative or not finite, or a clip has no votes.
    """
    votes = np.asarray(votes, dtype=np.float64)
    if votes.ndim != 2 or not np.isfinite(votes).all() or (votes < 0).any() or not (votes.sum(1) > 0).all():
        raise ValueError("Votes must be numbers of at least 0 for each class of each clip, and not all 0.")
    return votes / votes.sum(1, keepdims=True)


def agreed(votes: ArrayLike) -> np.ndarray:
    """Returns whether one class got more votes than any other, `(clips,)`."""
    votes = np.asarray(votes, dtype=np.float64)
    return (votes == votes.max(1, keepdims=True)).sum(1) == 1


def with_one_label(clips: datasets.Dataset) -> np.ndarray:
    """Returns which rows of a table have a single label: those with a class or, with votes, those without a tie."""
    table = clips.with_format(None)
    return agreed(table[VOTES][:]) if VOTES in clips.column_names else np.asarray(table["label"][:]) >= 0
