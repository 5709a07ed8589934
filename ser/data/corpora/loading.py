"""Reads a corpus into a table of clips, by its name and options."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from ser.data.corpora.corpus import CLIP_FEATURES, Corpus, keep_one_of_equal_sound
from ser.data.corpora.demo import make_demo_corpus
from ser.data.corpora.dimensions import COLUMNS, DIMENSIONS, set_dimensions
from ser.data.corpora.formats import read_own, read_record, refuse_unused_options
from ser.data.corpora.names import check_classes_differ, check_not_reserved, warn_of_almost_equal_speakers
from ser.data.corpora.readers import TABLE_SUFFIXES, Rows, visible_files
from ser.data.corpora.records import VOTES_TIE, Record
from ser.data.corpora.registry import RECORDS
from ser.data.tables import LIST_SUFFIXES, text_of
from ser.utils import DataError


def load_corpus(
    dataset_name: str, data_dir: str | None = None, *, drop_duplicates: bool = False, **choices: Any
) -> Corpus:
    """Reads a corpus into one table of clips.

    Args:
        dataset_name, data_dir: see [`choose_rows`].
        drop_duplicates: keep one of several clips with equal audio (from the test split if one is there, else from
            validation), and none if their labels differ.
        choices: other arguments of [`choose_rows`]: classes, columns, splits, revision, and whether to stream.

    Raises:
        DataError: a source, column, file or class is missing, or no clip is left; the message names it.
    """
    chosen = choose_rows(dataset_name, data_dir, **choices)
    check_classes_differ({chosen.merge.get(name, name) for name in chosen.known}, chosen.location)
    name_rows(chosen.rows)
    options: dict[str, object] = {"schema": chosen.schema, "merge_labels": chosen.merge}
    options["unique_vote"] = choices.get("unique_vote", False)
    clips = clips_of(chosen.audio, chosen.rows)
    if (soft_labels := choices.get("soft_labels", "none")) == "votes":
        clips = clips.add_column("votes", [row["votes"] for row in chosen.rows if not row["drop"]])
        options["soft_labels"] = soft_labels
    if chosen.dimensions:
        unknown = [math.nan] * len(chosen.dimensions)
        clips = clips.add_column(DIMENSIONS, [row[DIMENSIONS] or unknown for row in chosen.rows if not row["drop"]])
        options["target"] = choices["target"]
    corpus = Corpus(
        name=chosen.name,
        source=chosen.location,
        revision=chosen.revision,
        label_names=chosen.label_names,
        clips=clips,
        dropped=chosen.dropped | Counter(row["drop"] for row in chosen.rows if row["drop"]),
        options=options | {"drop_duplicates": drop_duplicates},
        speaker_hint=chosen.speaker_hint,
        shards=chosen.shards,
        dimensions=chosen.dimensions,
    )
    check_classes(corpus)
    if drop_duplicates:
        keep_one_of_equal_sound(corpus)
        check_classes(corpus)
    warn_of_almost_equal_speakers(corpus.speakers, corpus.source)
    return corpus


@dataclass
class Chosen(Rows):
    """Rows of a corpus, each with its `class`, an index into `label_names`, or a reason to `drop` it.

    Args:
        name: short name of the corpus.
        label_names: classes in the order of the indices.
        known: all classes of the corpus, kept or not.
        merge: class -> class into which its clips are merged.
        speaker_hint: sources that state the speaker.
        dimensions: name -> ends of the scale of each dimension, whose values the rows then have in `dimensions`.
    """

    name: str = ""
    label_names: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    merge: dict[str, str] = field(default_factory=dict)
    speaker_hint: str = ""
    dimensions: dict[str, list[float]] = field(default_factory=dict)


def choose_rows(
    dataset_name: str,
    data_dir: str | None = None,
    *,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    cache_dir: str | None = None,
    train_split_name: str = "train",
    eval_split_name: str = "validation",
    test_split_name: str = "test",
    audio_column_name: str | None = None,
    label_column_name: str | None = None,
    speaker_column_name: str | None = None,
    labels: Sequence[str] | None = None,
    merge_labels: Sequence[str] | None = None,
    unique_vote: bool = False,
    soft_labels: Literal["none", "votes"] = "none",
    streaming: bool = False,
    target: Literal["emotion", "dimensions", "both"] = "emotion",
    dimensions: Sequence[str] | None = None,
    dimension_range: Sequence[float] | None = None,
) -> Chosen:
    """Reads the rows of a corpus and chooses among them; [`load_corpus`] makes a table of the result.

    Args:
        dataset_name: a corpus (`python run_ser.py --list_corpora` lists them), the Hub id of one of its copies, or a
            user's own data set: a Hub id, a folder of parquet files, a folder with one sub-folder per class
            (optionally below train/validation/test; also as `audiofolder` with `data_dir`), or a list (.csv, .tsv or
            .jsonl) of `file,label[,speaker][,split][,sentence]`.
        data_dir: local folder of `dataset_name`: the original tree of a corpus, or parquet files in the form of its
            copy on the Hub. Files in a list are relative to it (default: to the folder of the list).
        dataset_config_name: configuration of a Hub data set.
        dataset_revision: Hub revision: branch, tag or commit.
        cache_dir: cache folder of `datasets`; the demo corpus is written there too.
        train_split_name: training split of a user's own data set.
        eval_split_name: its validation split.
        test_split_name: its test split.
        audio_column_name: its audio column (default: "audio"; in a CSV "file").
        label_column_name: its class column (default: "label").
        speaker_column_name: its speaker column (default: "speaker" if there is one).
        labels: classes to keep, in this order (default: the corpus's own).
        merge_labels: pairs such as `"excited=happy"`: clips of the first class become clips of the second.
        unique_vote: keep only clips for which one emotion got more votes than any other.
        soft_labels: "votes" for a column `votes` with the annotators' votes for each class that is kept; the label is
            the class with the most votes, and clips on which annotators do not agree are kept too.
        streaming: read tables, on the Hub or in a folder, shard by shard, once for everything except the audio; see
            [`Shards`].
        target: "dimensions" for the values of dimensions instead of classes, and "both" for both; then, clips that
            have only a class, or only dimensions, are kept too.
        dimensions: dimensions to read, in this order: of a known corpus, names of its dimensions (default: all); of a
            user's own data set, names of columns (default: arousal, valence and dominance, as far as it has them).
        dimension_range: ends of the scale in a user's own data set (default: 0 and 1).

    Raises:
        DataError: as in [`load_corpus`].
    """
    record, hub_id, name = find_corpus(dataset_name, data_dir)
    merge = _parse_merge(merge_labels)
    load = {"name": dataset_config_name, "cache_dir": cache_dir, "revision": dataset_revision, "streaming": streaming}
    if data_dir is not None and not Path(data_dir).exists():
        raise DataError(f"--data_dir {data_dir} does not exist.")

    columns = (audio_column_name, label_column_name, speaker_column_name)
    splits = {"train": train_split_name, "validation": eval_split_name, "test": test_split_name}
    given = {
        "audio_column_name": audio_column_name,
        "label_column_name": label_column_name,
        "speaker_column_name": speaker_column_name,
        "train_split_name": None if train_split_name == "train" else train_split_name,
        "eval_split_name": None if eval_split_name == "validation" else eval_split_name,
        "test_split_name": None if test_split_name == "test" else test_split_name,
        "dataset_config_name": dataset_config_name,
        "dataset_revision": dataset_revision,
    }
    refuse_unused_options({flag for flag, value in given.items() if value is not None}, record, dataset_name, data_dir)
    if name == "demo" and data_dir is None:
        data_dir = make_demo_corpus(cache_dir)
    wanted = () if target == "emotion" else dimensions or COLUMNS
    if record:
        found = read_record(record, hub_id, name, data_dir, load, with_dimensions=target != "emotion")
        known = set(record.aliases.values())
        if len(record.languages) == 1:
            found.rows[:] = [{"language": record.languages[0]} | row for row in found.rows]
    else:
        found = read_own(dataset_name, data_dir, columns, splits, load, wanted, needs_label=target != "dimensions")
        known = set(found.labels)
    if streaming and found.shards is None:
        raise DataError(
            f"--streaming reads shards, such as a folder of parquet files or a copy on the Hub, and {found.location} "
            "has none: leave it out; --no_cache_features keeps only the names of clips in memory."
        )
    _check_votes(found, unique_vote, soft_labels)
    scales, ends = record.dimensions if record else None, dict[str, list[float]]()
    if target != "emotion":
        ends = set_dimensions(found.rows, found.location, scales, dimensions, dimension_range)
    names = [] if target == "dimensions" else _class_names(found, name, known, merge, labels)
    _set_targets(found, names, merge, record, unique_vote, soft_labels, [*ends])
    return Chosen(
        **vars(found) | {"revision": found.revision or _files_digest(Path(found.location))},
        name=name,
        label_names=names,
        known=known,
        merge=merge,
        speaker_hint=record.with_speaker if record else "a data set with such a column (--speaker_column_name)",
        dimensions=ends,
    )


def _check_votes(found: Rows, unique_vote: bool, soft_labels: str) -> None:
    """Raises if votes are needed that the source does not have."""
    if unique_vote and soft_labels != "none":
        raise DataError("--unique_vote leaves out the clips that --soft_labels keeps: leave out one of the two.")
    for choice, is_made in (("unique_vote", unique_vote), ("soft_labels", soft_labels != "none")):
        if is_made and not any("votes" in row for row in found.rows):
            raise DataError(
                f"--{choice} needs the annotators' votes, which {found.location} does not have: leave it out."
            )


def _class_names(
    found: Rows, name: str, known: set[str], merge: Mapping[str, str], labels: Sequence[str] | None
) -> list[str]:
    """Returns the classes to keep, in their order; raises if a chosen class is unknown."""
    for choice in {*merge, *(labels or ())} - known - set(merge.values()):
        raise DataError(f"{name} has no class {choice!r}; its classes are {', '.join(sorted(known))}.")
    names = list(dict.fromkeys(labels or (merge.get(label, label) for label in found.labels)))
    if lost := {*merge.values()} - {*names}:
        raise DataError(
            f"--merge_labels makes clips {lost.pop()!r}, which is not among the classes {', '.join(names)}: add it to "
            "--labels."
        )
    return names


def _set_targets(
    found: Rows,
    names: list[str],
    merge: Mapping[str, str],
    record: Record | None,
    unique_vote: bool,
    soft_labels: str,
    dimensions: Sequence[str],
) -> None:
    """Sets the class index of each row, or the reason to drop it; a second file with the same name is dropped, too. A
    row without a class is kept if it has dimensions."""
    keys: set[str] = set()
    aliases, voted_for = (record.aliases, record.votes) if record else (None, ())
    for row in found.rows:
        drop = row.get("drop")
        if dimensions and not drop:
            no_value = None if row[DIMENSIONS] else f"no value of {', '.join(dimensions)}"
            no_class = row.get("no_class") or (names and _set_class(row, names, aliases, merge, unique_vote))
            row["drop"] = no_value and (no_class if names else no_value)
        elif soft_labels == "votes":
            row["drop"] = drop or _set_votes(row, names, merge, voted_for)
        else:
            row["drop"] = row.get("no_class") or drop or _set_class(row, names, aliases, merge, unique_vote)
        key = row.get("key")
        if not row["drop"] and key in keys:
            row["drop"] = "second file of the same name"
        elif not row["drop"] and "audio" in row and not row["audio"].is_file():
            raise DataError(f"{row['audio']} does not exist, so {found.location} is incomplete.")
        if key is not None:
            keys.add(key)


def find_corpus(dataset_name: str, data_dir: str | None) -> tuple[Record | None, str | None, str]:
    """Returns (record, Hub id, short name) of a corpus, or (None, None, short name) for a user's own data set."""
    for name, record in RECORDS.items():
        if dataset_name.lower() == name:
            return record, None, name
        for hub_id in record.hub:
            if dataset_name.lower() == hub_id.lower():
                return record, hub_id, name
    path = Path(data_dir if data_dir and dataset_name == "audiofolder" else dataset_name).absolute()
    name = path.stem if path.suffix.lower() in {*LIST_SUFFIXES, *TABLE_SUFFIXES} else path.name
    # The published folds of a corpus are found by its name, and do not apply to a user's table of the same name.
    return None, None, f"own-{name}" if name.lower() in RECORDS else name


def _parse_merge(pairs: Sequence[str] | None) -> dict[str, str]:
    merge = {}
    for pair in pairs or ():
        old, _, new = (part.strip() for part in pair.partition("="))
        if not (old and new):
            raise DataError(f"--merge_labels takes pairs such as excited=happy, not {pair!r}.")
        merge[old] = new
    return merge


def _set_class(
    row: dict, names: list[str], aliases: Mapping[str, str] | None, merge: Mapping[str, str], unique_vote: bool
) -> str | None:
    """Sets the row's class index, or returns why the row is left out."""
    raw = (text_of(row["label"]) or "").strip()
    if not raw:
        return "no label"
    label = aliases.get(raw.lower()) if aliases else raw
    if label is None:
        return f"unknown label {raw!r}"
    label = merge.get(label, label)
    if label not in names:
        return f"class {label!r} not among those kept"
    if unique_vote:
        if not all(isinstance(vote, int | float) and math.isfinite(vote) for vote in row["votes"]):
            return "annotators' votes are incomplete"
        if row["votes"].count(max(row["votes"])) > 1:
            return VOTES_TIE
    row["class"] = names.index(label)
    return None


def _set_votes(row: dict, names: list[str], merge: Mapping[str, str], voted_for: Sequence[str]) -> str | None:
    """Sets the row's votes for each class that is kept and, as its class, the one with the most votes (the first if
    several tie), or returns why the row is left out."""
    votes = row.get("votes") or ()
    known = all(isinstance(vote, int | float) and math.isfinite(vote) and vote >= 0 for vote in votes)
    if not known or len(votes) != len(voted_for):
        return "annotators' votes are incomplete"
    counts = dict.fromkeys(names, 0.0)
    for label, vote in zip(voted_for, votes, strict=True):
        if (label := merge.get(label, label)) in counts:
            counts[label] += vote
    row["votes"] = list(counts.values())
    row["class"] = int(np.argmax(row["votes"]))
    return None if any(row["votes"]) else "no vote for a class that is kept"


def name_rows(rows: list[dict]) -> None:
    """Gives every row a unique file name."""
    for index, row in enumerate(rows):
        row["file"] = row["file"] or f"{row.get('split') or 'clip'}-{index:06d}"
    often = {file for file, n in Counter(row["file"] for row in rows).items() if n > 1}
    for index, row in enumerate(rows):
        row["file"] += f"#{index}" if row["file"] in often else ""


def clips_of(audio: datasets.Dataset, rows: list[dict]) -> datasets.Dataset:
    """Returns the table of clips: the audio column and the facts of the rows, without the rows that are dropped."""
    features = CLIP_FEATURES | ({"corpus": datasets.Value("string")} if "corpus" in rows[0] else {})
    facts = {key: [row.get(key) for row in rows] for key in features} | {
        "label": [row.get("class", -1) for row in rows]
    }
    table = datasets.Dataset.from_dict(facts, features=datasets.Features(features))
    others = [key for key in features if key != "file"]
    clips = datasets.concatenate_datasets([table, audio], axis=1).select_columns(
        ["file", *audio.column_names, *others]
    )
    return clips.select([i for i, row in enumerate(rows) if not row["drop"]])


def check_classes(corpus: Corpus) -> None:
    """Raises `DataError` if a class has no clip, or a name that is reserved in tables of predictions."""
    check_not_reserved([*corpus.label_names, *corpus.dimensions])
    if both := {*corpus.label_names} & {*corpus.dimensions}:
        raise DataError(f"{corpus.source} has {both.pop()!r} as a class and as a dimension: rename one of them.")
    left_out = "; ".join(f"{reason}: {n}" for reason, n in corpus.dropped.items()) or "nothing"
    counts = Counter(corpus.labels)
    empty = [name for index, name in enumerate(corpus.label_names) if not counts[index]]
    if not counts:
        raise DataError(f"No clips are left in {corpus.source}. Left out: {left_out}.")
    if empty:
        raise DataError(
            f"No clip of class {', '.join(map(repr, empty))} in {corpus.source}. Choose classes with --labels. "
            f"Left out: {left_out}."
        )


def _files_digest(path: Path) -> str | None:
    """Returns a digest of the names and sizes of local files, used as the revision; None if there are none."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else visible_files(path, "**/*")
    facts = "\n".join(f"{p.relative_to(path.parent).as_posix()} {p.stat().st_size}" for p in files)
    return f"files-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
