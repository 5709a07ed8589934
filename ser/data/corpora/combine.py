"""Reads several corpora into one table of clips with common classes, and corpora that are only tested."""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ser.data.corpora.corpus import Corpus, keep_one_of_equal_sound
from ser.data.corpora.label_map import LabelMap, read_label_map
from ser.data.corpora.loading import Chosen, check_classes, choose_rows, clips_of, find_corpus, load_corpus, name_rows
from ser.data.corpora.names import warn_of_almost_equal_speakers
from ser.utils import DataError

NO_FOLDER = "none"
FOR_ONE = "is for a single corpus: leave it out, and map classes with --label_map"


@dataclass
class _Part:
    """One of several corpora: its chosen rows, and spelling -> class."""

    chosen: Chosen
    classes: dict[str, str | None]

    @property
    def name(self) -> str:
        return self.chosen.name


def load_corpora(
    dataset_name: Sequence[str],
    data_dir: Sequence[str] | None = None,
    *,
    test_dataset_name: Sequence[str] | None = None,
    test_data_dir: Sequence[str] | None = None,
    label_map: str | None = None,
    labels: Sequence[str] | None = None,
    drop_duplicates: bool = False,
    cache_dir: str | None = None,
    model_classes: Sequence[str] = (),
    **choices: Any,
) -> Corpus:
    """Reads one corpus or several into one table.

    A single corpus is read by [`load_corpus`], with its own classes, unless a map is given. With several corpora,
    files, speakers and sessions are prefixed by the corpus ("ravdess/01"), classes are unified by the map, and a
    column `corpus` names the corpus of each clip.

    Args:
        dataset_name: corpora to train on, each as in [`load_corpus`].
        data_dir: a folder for each, in the same order; "none" for a corpus without one.
        test_dataset_name: corpora that are only tested; their clips have the split "test". Clips of classes that are
            not trained on are left out, and `shared_labels` of the table are the remaining classes.
        test_data_dir: a folder for each test corpus, as in `data_dir`.
        label_map: YAML file of classes and their spellings (see `ser/data/corpora/label_map.py`), or "default".
        labels: classes to keep, in this order, with their names in the map (default: all).
        drop_duplicates: keep one of several clips with equal audio, also across corpora (a tested one, if any).
        cache_dir: see [`load_corpus`].
        model_classes: classes of the model to be tested: the map may contain them as well, and only classes to which
            it maps a class of the model are kept.
        choices: other arguments of [`load_corpus`], for a single corpus without a map.

    Raises:
        DataError: as in [`load_corpus`]; or folders do not match the corpora, a corpus is named twice, the map does
            not fit, or fewer than two classes are shared.
    """
    places = _places(dataset_name, data_dir, "data_dir")
    tested = _places(test_dataset_name or (), test_data_dir, "test_data_dir")
    if len(places) == 1 and not tested and label_map is None:
        return load_corpus(*places[0], labels=labels, drop_duplicates=drop_duplicates, cache_dir=cache_dir, **choices)
    for name, value in choices.items():
        if value != inspect.signature(choose_rows).parameters[name].default:
            if name in ("target", "dimensions", "dimension_range"):
                raise DataError(f"--{name} is for a single corpus without --label_map: put several into one list.")
            raise DataError(f"--{name} {FOR_ONE}.")
    names = [find_corpus(*place)[2] for place in (*places, *tested)]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"The corpus {twice[0]} is named twice: leave out one of them.")
    mapping = read_label_map(label_map)
    parts = [_read(*place, mapping, cache_dir) for place in (*places, *tested)]
    if mapping.is_given:
        known = {part.name: {*part.chosen.known, *part.classes} for part in parts}
        mapping.check(known | ({"the model": {*model_classes}} if model_classes else {}))
    model_names = {*mapping.of("the model", model_classes).values()} if model_classes else None
    corpus = _join(parts, len(places), mapping, labels, model_names)
    corpus.options["drop_duplicates"] = drop_duplicates
    check_classes(corpus)
    if drop_duplicates:
        keep_one_of_equal_sound(corpus)
        check_classes(corpus)
    warn_of_almost_equal_speakers(corpus.speakers, corpus.source)
    return corpus


def _places(names: Sequence[str], folders: Sequence[str] | None, flag: str) -> list[tuple[str, str | None]]:
    """Returns pairs of a corpus and its folder."""
    if folders is None:
        return [(name, None) for name in names]
    if len(folders) != len(names):
        raise DataError(
            f"--{flag} names {len(folders)} folder(s) for {len(names)} corpora: give one for each, in the same order, "
            f"and {NO_FOLDER} for a corpus without one."
        )
    return [(name, None if folder == NO_FOLDER else folder) for name, folder in zip(names, folders, strict=True)]


def _read(dataset_name: str, data_dir: str | None, mapping: LabelMap, cache_dir: str | None) -> _Part:
    """Reads the rows of one corpus; a map from a file also determines which of a record's classes are read."""
    record = find_corpus(dataset_name, data_dir)[0]
    if record is None:
        chosen = choose_rows(dataset_name, data_dir, cache_dir=cache_dir)
        wanted: Sequence[str] = chosen.label_names
    else:
        named = [name for name in dict.fromkeys(record.aliases.values()) if name in mapping.classes]
        wanted = [*record.labels, *(name for name in named if name not in record.labels and mapping.is_given)]
        chosen = choose_rows(dataset_name, data_dir, cache_dir=cache_dir, labels=wanted)
    return _Part(chosen, mapping.of(chosen.name, wanted))


def _join(
    parts: Sequence[_Part],
    n_trained: int,
    mapping: LabelMap,
    labels: Sequence[str] | None,
    model_names: set[str | None] | None,
) -> Corpus:
    trained, tested = parts[:n_trained], parts[n_trained:]
    had = {name for part in trained for name in part.classes.values()}
    names = [name for name in mapping.names if name in (had if model_names is None else had & model_names)]
    if unknown := [label for label in labels or () if label not in names]:
        raise DataError(f"There is no class {unknown[0]!r} under {mapping.where}; the classes are {', '.join(names)}.")
    names = list(labels or names)
    with_parts = all(_has_parts(part) for part in parts) and not tested
    for part in parts:
        name_rows(part.chosen.rows)
        validates_only = not _has_parts(part)
        for row in part.chosen.rows:
            _set_class(row, part, names, "trained on" if part in tested or model_names is not None else "kept")
            if len(parts) > 1:
                _prefix(row, part.name)
                own = with_parts or (validates_only and row.get("split") == "validation")
                row["split"] = "test" if part in tested else row.get("split") if own else None
    shared = [name for i, name in enumerate(names) if any(_counts(part)[i] for part in tested)]
    if tested and len(shared) < 2:
        raise DataError(
            f"{_names(trained)} and {_names(tested)} share {len(shared)} class(es) under {mapping.where}, and a test "
            "needs two: map spellings to common classes with --label_map."
        )
    audio = datasets.concatenate_datasets(
        [part.chosen.audio.cast_column("audio", datasets.Audio(decode=False)) for part in parts]
    )
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.chosen.dropped)
        dropped.update(row["drop"] for row in part.chosen.rows if row["drop"])
    alone = parts[0].chosen
    return Corpus(
        name=_names(trained) + (f"->{_names(tested)}" if tested else ""),
        source=alone.location if len(parts) == 1 else " + ".join(part.name for part in parts),
        revision=alone.revision if len(parts) == 1 else ", ".join(f"{p.name} {p.chosen.revision}" for p in parts),
        label_names=names,
        clips=clips_of(audio, [row for part in parts for row in part.chosen.rows]),
        dropped=dict(dropped),
        options=_options(trained, tested, mapping),
        speaker_hint="; ".join(part.chosen.speaker_hint for part in parts),
        shared_labels=shared if tested else None,
    )


def _options(trained: Sequence[_Part], tested: Sequence[_Part], mapping: LabelMap) -> dict[str, object]:
    kept = {"corpora": trained, "tested_corpora": tested} if tested else {"corpora": trained}
    facts = {
        kind: {p.name: {"schema": p.chosen.schema, "revision": p.chosen.revision} for p in parts}
        for kind, parts in kept.items()
    }
    classes = {part.name: part.classes for part in (*trained, *tested)}
    return {**facts, "label_map": {"from": Path(mapping.where).name, "classes": classes}}


def _set_class(row: dict, part: _Part, names: Sequence[str], whose: str) -> None:
    """Sets the row's class index, or the reason why it is left out."""
    if row["drop"]:
        return
    spelling = part.chosen.label_names[row["class"]]
    name = part.classes[spelling]
    if name in names:
        row["class"] = names.index(name)
    else:
        row["drop"] = f"class {spelling!r} not among those {'kept' if name is None else whose}"


def _prefix(row: dict, name: str) -> None:
    row["corpus"] = name
    row["file"] = f"{name}/{row['file']}"
    speaker = row.get("speaker")
    session = row.get("session") or speaker  # what must not be divided between parts, in all corpora
    row["speaker"] = None if speaker is None else f"{name}/{speaker}"
    row["session"] = None if session is None else f"{name}/{session}"
    row["sentence"] = None if row.get("sentence") is None else f"{name}/{row['sentence']}"


def _has_parts(part: _Part) -> bool:
    return "test" in {row.get("split") for row in part.chosen.rows if not row["drop"]}


def _counts(part: _Part) -> Counter[int]:
    return Counter(row["class"] for row in part.chosen.rows if not row["drop"])


def _names(parts: Sequence[_Part]) -> str:
    return "+".join(part.name for part in parts)


def balanced_rows(corpora: Sequence[str], seed: int) -> list[int]:
    """Returns rows of a table such that each corpus has as many as the largest: all of its rows, repeated as often as
    needed, and a random choice of them in the last repetition.

    Args:
        corpora: the corpus of each row.
        seed: random seed of the choice.
    """
    rng = np.random.default_rng(seed)
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(corpora):
        rows_of.setdefault(name, []).append(row)
    most = max(map(len, rows_of.values()))
    chosen: list[int] = []
    for own in rows_of.values():
        rounds, left = divmod(most, len(own))
        chosen += own * rounds + rng.choice(own, left, replace=False).tolist()
    return sorted(chosen)
