"""Describes a corpus: its published copies, original folder tree, classes and folds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

VOTES_TIE = "annotators' votes tie"  # reason to leave out a row if a clip needs a single label


@dataclass(frozen=True)
class Source:
    """One copy of a corpus on the Hub.

    Args:
        read: a row without its audio bytes (plus `path`, the name stored with the audio, and `split`) -> a dict with
            `file`, `label` and, if the source states them, `speaker`, `sex` ("female" or "male"), `language`
            (ISO 639-1), `session`, `sentence` (an identifier of the text), `split` ("train", "validation", "test") and
            `dimensions` (name -> raw value). `drop` is a reason to leave out the row, and `no_class` a reason why it
            has no single class.
        columns: columns that `read` needs.
        splits: splits to read; empty for all.
        votes: columns with the annotators' votes, in the order of the record's `votes`.
        dimensions: dimension -> its column.
        revision: Hub revision read by default.
    """

    read: Callable[[dict], dict]
    columns: tuple[str, ...]
    splits: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    dimensions: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None


@dataclass(frozen=True)
class Record:
    """One corpus.

    Args:
        labels: default classes in order.
        aliases: spelling in some source (lower case) -> emotion.
        hub: Hub id -> [`Source`]; the first is read by default.
        tree: reads the original local folder: yields dicts like `Source.read`, plus `audio` (a path); a row with
            `drop` is left out and counted under that reason.
        votes: emotions that annotators could choose, if a source has the number of votes for each; a row's `votes` are
            in this order.
        dimensions: dimension -> ends of the scale on which it was rated.
        with_speaker: sources that state the speaker, for the error message of other sources.
        folds: name of published folds -> what is tested in fold 1, 2, ...: speakers, or sessions if the name is
            "sessions". The first entry is the corpus's "speaker" protocol.
        validated: name of such folds -> the validation speakers of fold 1, 2, ..., if they are published too.
        has_parts: whether the original form has training, validation and test parts.
        speech: speakers, speech and language, and the source of the labels; for the model card.
        licence: licence of the recordings, and so of weights trained on them.
        languages: ISO 639-1 codes; if there is only one, it is that of every clip.
        clips: number of clips in the whole corpus, of all classes; None if it depends on the release.
        speakers: number of speakers, likewise.
        citation: the paper that describes the corpus.
    """

    labels: tuple[str, ...]
    aliases: Mapping[str, str]
    hub: Mapping[str, Source]
    tree: Callable[[Path], Iterator[dict]]
    votes: tuple[str, ...] = ()
    dimensions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    with_speaker: str = ""
    folds: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    validated: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    has_parts: bool = False
    speech: str = ""
    licence: str = ""
    languages: tuple[str, ...] = ()
    clips: int | None = None
    speakers: int | None = None
    citation: str = ""
