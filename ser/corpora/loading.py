"""A name and a few choices -> one table of clips."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Literal

import datasets
import numpy as np

from ser.corpora.demo import make_demo_corpus
from ser.corpora.duplicates import keep_one_of_equal_sound
from ser.corpora.known import RECORDS
from ser.corpora.readers import (
    TABLE_SUFFIXES,
    Rows,
    audio_from_paths,
    distinct_labels,
    holds_tables,
    open_tables,
    read_class_folders,
    read_csv,
    rows_of_tables,
    visible_files,
)
from ser.corpora.records import VOTES_TIE, Record
from ser.corpora.table import CLIP_FEATURES, Corpus
from ser.errors import DataError


def load_corpus(
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
    drop_duplicates: bool = False,
    soft_labels: Literal["none", "votes"] = "none",
) -> Corpus:
    """Reads a corpus into one table of clips.

    Args:
        dataset_name: a corpus (`python run_ser.py --list_corpora` names all), the Hub id of one of its copies, or a
            data set of one's own: a Hub id, a folder of parquet files, a folder with one sub-folder per class
            (optionally below train/validation/test; also as `audiofolder` with `data_dir`), or a CSV of
            `file,label[,speaker][,split]`.
        data_dir: where the data of `dataset_name` lies locally: the original folder tree of a corpus, or a folder of
            parquet files in the form of its copy on the Hub. Files named in a CSV are relative to it (default: to
            the CSV's own folder).
        dataset_config_name: configuration of a Hub data set.
        dataset_revision: Hub revision: branch, tag or commit.
        cache_dir: where `datasets` keeps what it downloads and converts; the demo corpus is written there too.
        train_split_name: in a data set of one's own, the split that is trained on.
        eval_split_name: its validation split.
        test_split_name: its test split.
        audio_column_name: its audio column (default: "audio"; in a CSV "file").
        label_column_name: its class column (default: "label").
        speaker_column_name: its speaker column (default: "speaker" where there is one).
        labels: classes to keep, in this order (default: the corpus's own).
        merge_labels: pairs such as `"excited=happy"`: clips of the first class become clips of the second.
        unique_vote: keep only clips for which one emotion got more votes than any other.
        drop_duplicates: of clips with equal sound keep one (the one nearest to the test split); of such clips under
            different labels keep none.
        soft_labels: "votes" for a column `votes`, those of the annotators for each class that is kept; a clip's label
            is the class with most, and clips on which annotators do not agree are kept too.

    Raises:
        DataError: a source, column, file or class that was asked for is missing, or nothing is left; says which.
    """
    record, hub_id, name = _find(dataset_name, data_dir)
    merge = _parse_merge(merge_labels)
    load = {"name": dataset_config_name, "cache_dir": cache_dir, "revision": dataset_revision}
    if data_dir is not None and not Path(data_dir).exists():
        raise DataError(f"data_dir {data_dir} does not exist.")

    columns = (audio_column_name, label_column_name or "label", speaker_column_name)
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
    _refuse_unheard({flag for flag, value in given.items() if value is not None}, record, dataset_name, data_dir)
    if name == "demo" and data_dir is None:
        data_dir = make_demo_corpus(cache_dir)
    if record:
        found = _read_record(record, hub_id, name, data_dir, load)
        known = set(record.aliases.values())
        if len(record.languages) == 1:
            found.rows[:] = [{"language": record.languages[0]} | row for row in found.rows]
    else:
        found = _read_own(dataset_name, data_dir, columns, splits, load)
        known = set(found.labels)
    if unique_vote and soft_labels != "none":
        raise DataError("unique_vote leaves out the clips that soft_labels has a use for: give one of the two.")
    for choice, is_made in (("unique_vote", unique_vote), ("soft_labels", soft_labels != "none")):
        if is_made and not any("votes" in row for row in found.rows):
            raise DataError(
                f"{choice} needs the annotators' votes, which {found.location} does not have; leave it out."
            )
    for choice in {*merge, *(labels or ())} - known - set(merge.values()):
        raise DataError(f"{name} has no class {choice!r}; its classes are {', '.join(sorted(known))}.")

    names = list(dict.fromkeys(labels or (merge.get(label, label) for label in found.labels)))
    if lost := {*merge.values()} - {*names}:
        raise DataError(f"merge_labels makes clips {lost.pop()!r}, which is not among the classes {', '.join(names)}.")
    seen: set[str] = set()
    aliases, voted_for = (record.aliases, record.votes) if record else (None, ())
    for row in found.rows:
        if soft_labels == "votes":
            drop = None if row.get("drop") == VOTES_TIE else row.get("drop")
            row["drop"] = drop or _settle_votes(row, names, merge, voted_for)
        else:
            row["drop"] = row.get("drop") or _settle(row, names, aliases, merge, unique_vote)
        key = row.get("key")
        if not row["drop"] and key in seen:
            row["drop"] = "second file of the same name"
        elif not row["drop"] and "audio" in row and not row["audio"].is_file():
            raise DataError(f"{row['audio']} does not exist, so {found.location} is incomplete.")
        if key is not None:
            seen.add(key)
    options: dict[str, object] = {"schema": found.schema, "merge_labels": merge, "unique_vote": unique_vote}
    clips = _clips(found.audio, found.rows)
    if soft_labels == "votes":
        clips = clips.add_column("votes", [row["votes"] for row in found.rows if not row["drop"]])
        options["soft_labels"] = soft_labels
    corpus = Corpus(
        name=name,
        source=found.location,
        revision=found.revision or _files_digest(Path(found.location)),
        label_names=names,
        clips=clips,
        dropped=found.dropped | Counter(row["drop"] for row in found.rows if row["drop"]),
        options=options | {"drop_duplicates": drop_duplicates},
        speaker_hint=record.with_speaker if record else "a data set with such a column, named by speaker_column_name",
    )
    _check_classes(corpus)
    if drop_duplicates:
        keep_one_of_equal_sound(corpus)
        _check_classes(corpus)
    return corpus


def _find(dataset_name: str, data_dir: str | None) -> tuple[Record | None, str | None, str]:
    """(record, Hub id, short name) of a corpus, or (None, None, short name) for a data set of one's own."""
    for name, record in RECORDS.items():
        if dataset_name.lower() == name:
            return record, None, name
        for hub_id in record.hub:
            if dataset_name.lower() == hub_id.lower():
                return record, hub_id, name
    path = Path(data_dir if data_dir and dataset_name == "audiofolder" else dataset_name).absolute()
    name = path.stem if path.suffix in {".csv", ".tsv", *TABLE_SUFFIXES} else path.name
    # A corpus's published folds go by its name, and are not those of somebody's own table of that name.
    return None, None, f"own-{name}" if name.lower() in RECORDS else name


def _refuse_unheard(given: set[str], record: Record | None, dataset_name: str, data_dir: str | None) -> None:
    """Raises if flags were given that the form in which the data lies has no use for."""
    path = Path(data_dir or dataset_name)
    hub, tables = {"dataset_config_name", "dataset_revision"}, {flag for flag in given if flag.endswith("_split_name")}
    columns = {flag for flag in given if flag.endswith("_column_name")}
    if record:
        form, unheard = f"{dataset_name} is known, with its columns and splits", columns | tables
        if data_dir or not record.hub:
            form, unheard = f"{form}, and {path} is no Hub data set", unheard | hub
    elif Path(dataset_name).suffix.lower() in {".csv", ".tsv"} or (path / "metadata.csv").is_file():
        form, unheard = f"{dataset_name} is a list of files, whose splits are its column split", tables | hub
    elif path.is_dir() and not holds_tables(path):
        form, unheard = f"{path} is a folder of class folders", columns | tables | hub
    else:
        form, unheard = f"{path} is no Hub data set", {"dataset_revision"} if path.exists() else set()
    if idle := sorted(given & unheard):
        raise DataError(f"{form}: leave out {', '.join(f'--{flag}' for flag in idle)}.")


def _parse_merge(pairs: Sequence[str] | None) -> dict[str, str]:
    merge = {}
    for pair in pairs or ():
        old, _, new = (part.strip() for part in pair.partition("="))
        if not (old and new):
            raise DataError(f"merge_labels takes pairs such as excited=happy, not {pair!r}.")
        merge[old] = new
    return merge


def _settle(
    row: dict, names: list[str], aliases: Mapping[str, str] | None, merge: Mapping[str, str], unique_vote: bool
) -> str | None:
    """Sets the row's class index, or returns why the row is left out."""
    raw = "" if row["label"] is None else str(row["label"]).strip()
    if not raw:
        return "no label"
    label = aliases.get(raw.lower()) if aliases else raw
    if label is None:
        return f"unknown label {raw!r}"
    label = merge.get(label, label)
    if label not in names:
        return f"class {label!r} not among those kept"
    if unique_vote:
        if not all(isinstance(vote, int | float) and isfinite(vote) for vote in row["votes"]):
            return "annotators' votes are incomplete"
        if row["votes"].count(max(row["votes"])) > 1:
            return VOTES_TIE
    row["class"] = names.index(label)
    return None


def _settle_votes(row: dict, names: list[str], merge: Mapping[str, str], voted_for: Sequence[str]) -> str | None:
    """Sets the row's votes for each class that is kept and, as its class, the one with most of them (of several the
    first), or returns why the row is left out."""
    votes = row.get("votes") or ()
    known = all(isinstance(vote, int | float) and isfinite(vote) and vote >= 0 for vote in votes)
    if not known or len(votes) != len(voted_for):
        return "annotators' votes are incomplete"
    counts = dict.fromkeys(names, 0.0)
    for label, vote in zip(voted_for, votes, strict=True):
        if (label := merge.get(label, label)) in counts:
            counts[label] += vote
    row["votes"] = list(counts.values())
    row["class"] = int(np.argmax(row["votes"]))
    return None if any(row["votes"]) else "no vote for a class that is kept"


def _clips(audio: datasets.Dataset, rows: list[dict]) -> datasets.Dataset:
    """The table of clips: the audio column beside what the rows say, without the rows that are left out."""
    for index, row in enumerate(rows):
        row["file"] = row["file"] or f"{row.get('split') or 'clip'}-{index:06d}"
    often = {file for file, n in Counter(row["file"] for row in rows).items() if n > 1}
    facts = {
        "file": [f"{row['file']}#{i}" if row["file"] in often else row["file"] for i, row in enumerate(rows)],
        "label": [row.get("class", -1) for row in rows],
        **{key: [row.get(key) for row in rows] for key in CLIP_FEATURES if key not in ("file", "label")},
    }
    table = datasets.Dataset.from_dict(facts, features=CLIP_FEATURES)
    clips = datasets.concatenate_datasets([table, audio], axis=1).select_columns(["file", "audio", *list(facts)[1:]])
    return clips.select([i for i, row in enumerate(rows) if not row["drop"]])


def _check_classes(corpus: Corpus) -> None:
    """Every class needs a clip."""
    left_out = "; ".join(f"{reason}: {n}" for reason, n in corpus.dropped.items()) or "nothing"
    counts = Counter(corpus.labels)
    empty = [name for index, name in enumerate(corpus.label_names) if not counts[index]]
    if not counts:
        raise DataError(f"No clip is left of {corpus.source}. Left out: {left_out}.")
    if empty:
        raise DataError(
            f"No clip of class {', '.join(map(repr, empty))} in {corpus.source}. Choose classes with labels. "
            f"Left out: {left_out}."
        )


def _files_digest(path: Path) -> str | None:
    """Stands for a revision where there is none: a digest of the names and sizes of the files."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else visible_files(path, "**/*")
    facts = "\n".join(f"{p.relative_to(path.parent).as_posix()} {p.stat().st_size}" for p in files)
    return f"files-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _read_record(record: Record, hub_id: str | None, name: str, data_dir: str | None, load: dict) -> Rows:
    """A corpus of the registry: its original tree, or one of its copies on the Hub (or local tables in that form)."""
    if data_dir:
        rows = list(record.tree(Path(data_dir)))
        tables = record.hub and holds_tables(Path(data_dir))
        if any("label" in row for row in rows) or (rows and not tables):
            return Rows(audio_from_paths(rows), rows, record.labels, data_dir, schema="original tree")
        if not tables:
            raise DataError(f"{data_dir} holds neither the original folder tree of {name} nor parquet files.")
        table, revision = open_tables(data_dir, load | {"revision": None})
        hub_id = hub_id or _recognise(record, table, data_dir)
    elif not record.hub:
        raise DataError(f"{name} has no copy on the Hub that is known here: name its folder by data_dir.")
    else:
        hub_id = hub_id or next(iter(record.hub))
        table, revision = open_tables(hub_id, load | {"revision": load["revision"] or record.hub[hub_id].revision})
    source, where = record.hub[hub_id], data_dir or hub_id
    splits = [split for split in source.splits if split in table] or list(table)
    if source.splits and len(splits) > 1 and not set(splits) <= set(source.splits):
        raise DataError(f"{where} has the splits {', '.join(splits)}; expected {', '.join(source.splits)}.")
    votes = [v for v in source.votes if v in table[splits[0]].column_names]
    audio, raw = rows_of_tables(table, splits, "audio", (*source.columns, *votes), where)
    rows = []
    for index, row in enumerate(raw):
        try:
            read = source.read(row)
        except (TypeError, ValueError, OverflowError) as error:
            facts = ", ".join(f"{name} {row[name]!r}" for name in source.columns)
            raise DataError(f"Row {index} of {where} is not as in {hub_id} ({facts}): {error}.") from error
        rows.append(
            read | {"drop": row["drop"] or read.get("drop")} | ({"votes": [row[v] for v in votes]} if votes else {})
        )
    return Rows(audio, rows, record.labels, where, revision, schema=hub_id)


def _recognise(record: Record, table: datasets.DatasetDict, where: str) -> str:
    """The copy on the Hub whose columns a local folder of tables has; of several, the one that asks for most."""
    have = {name for split in table.values() for name in split.column_names}
    fits = [hub_id for hub_id, source in record.hub.items() if have >= {"audio", *source.columns}]
    if not fits:
        forms = "; ".join(f"{hub_id}: audio, {', '.join(source.columns)}" for hub_id, source in record.hub.items())
        raise DataError(f"The tables in {where} have the columns {', '.join(sorted(have))}; expected {forms}.")
    return max(fits, key=lambda hub_id: len(record.hub[hub_id].columns))


def _read_own(
    dataset_name: str,
    data_dir: str | None,
    columns: tuple[str | None, str, str | None],
    splits: Mapping[str, str],
    load: dict,
) -> Rows:
    """A data set of one's own: CSV, folder of class folders, tables, Hub id."""
    path = Path(dataset_name)
    if path.suffix.lower() in {".csv", ".tsv"}:
        return read_csv(path, Path(data_dir) if data_dir else path.parent, columns)
    path = Path(data_dir) if data_dir else path
    if (path / "metadata.csv").is_file():
        return read_csv(path / "metadata.csv", path, columns)
    if path.is_dir() and not holds_tables(path):
        return read_class_folders(path)
    if not path.exists() and (path.is_absolute() or len(path.parts) != 2 or path.parts[0] in {"..", "~"}):
        raise DataError(
            f"{dataset_name} is no corpus known here ({', '.join(RECORDS)}), no file or folder, and no Hub id."
        )
    where = str(path) if path.exists() else dataset_name
    table, revision = open_tables(where, load)
    if absent := [name for part, name in splits.items() if name not in (part, *table)]:
        raise DataError(f"{where} has no split {absent[0]!r}; it has {', '.join(table)}.")
    part_of = {name: part for part, name in splits.items()}
    used = [split for split in table if split in part_of] or list(table)
    audio_column, label_column, speaker_column = columns[0] or "audio", columns[1], columns[2]
    if speaker_column is None and all("speaker" in table[split].column_names for split in used):
        speaker_column = "speaker"
    audio, raw = rows_of_tables(table, used, audio_column, [c for c in (label_column, speaker_column) if c], where)
    rows = []
    for row in raw:
        speaker = row.get(speaker_column)
        split = part_of.get(row["split"])
        rows.append({"file": row["path"], "label": row[label_column], "split": split, "drop": row["drop"]})
        rows[-1]["speaker"] = None if speaker is None else str(speaker)
    feature = table[used[0]].features[label_column]
    labels = feature.names if isinstance(feature, datasets.ClassLabel) else distinct_labels(rows)
    unused = {f"split {split!r} not used": len(table[split]) for split in table if split not in used}
    return Rows(audio, rows, labels, where, revision, dropped=unused)
