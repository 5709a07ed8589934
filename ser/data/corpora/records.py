"""What is known of a corpus: its published copies, its original tree, its classes and folds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

VOTES_TIE = "annotators' votes tie"  # why a row is left out, where a clip needs one label


@dataclass(frozen=True)
class Source:
    """One copy of a corpus on the Hub.

    Args:
        read: a row without its audio bytes (plus `path`, the name kept with the audio, and `split`) -> a dict with
            `file`, `label` and, where the source tells, `speaker`, `sex` ("female" or "male"), `language` (ISO 639-1),
            `session`, `sentence` (which text is spoken) and `split` ("train", "validation", "test"); with `drop`, the
            row is left out for that reason.
        columns: columns that `read` needs.
        splits: splits to read; empty for all.
        votes: columns with the annotators' votes, in the order of the record's.
        revision: Hub revision read by default.
    """

    read: Callable[[dict], dict]
    columns: tuple[str, ...]
    splits: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True)
class Record:
    """One corpus.

    Args:
        labels: default classes in order.
        aliases: spelling in some source (lower case) -> emotion.
        hub: Hub id -> [`Source`]; the first is read when no source is named.
        tree: reads the original local folder: yields dicts as `Source.read` does, plus `audio` (a path); a row with
            `drop` is left out and counted under that reason.
        votes: the emotions that the annotators of each clip chose from, where some source tells how many chose which;
            a row's `votes` are in this order.
        with_speaker: sources that tell the speaker, named when another source is asked for one.
        folds: name of published folds -> who is tested in fold 1, 2, ...: speakers, or sessions where the name is
            "sessions". The first entry is the corpus's "speaker" protocol.
        validated: name of such folds -> who validates in fold 1, 2, ..., where that is published too.
        has_parts: whether its original form says which clips train, validate and test.
        speech: who speaks how in which language, and whose word the labels are; for the model card.
        licence: of the recordings, and so of weights trained on them.
        languages: ISO 639-1; of every clip, where there is one.
        clips: how many the whole corpus has, all classes; None where it depends on the release.
        speakers: how many speak, likewise.
        citation: the paper that describes the corpus.
    """

    labels: tuple[str, ...]
    aliases: Mapping[str, str]
    hub: Mapping[str, Source]
    tree: Callable[[Path], Iterator[dict]]
    votes: tuple[str, ...] = ()
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
