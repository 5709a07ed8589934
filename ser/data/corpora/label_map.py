"""Maps the classes of several corpora to common names, by default (happiness is happy) or by a YAML file.

A file maps each class to its spellings, and null to the spellings whose clips are left out:

    neutral: [neutral, calm]
    happy: [happy, happiness, excited]
    null: [boredom, other]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ser.utils import DataError

DEFAULT = "default"
DEFAULT_NAME = "the default map"
DEFAULT_MAP = {
    "neutral": ("neutral",),
    "calm": ("calm",),
    "happy": ("happy", "happiness", "joy"),
    "sad": ("sad", "sadness"),
    "angry": ("angry", "anger"),
    "fear": ("fear", "fearful"),
    "disgust": ("disgust",),
    "surprise": ("surprise", "surprised"),
    **{name: (name,) for name in ("boredom", "contempt", "excited", "frustrated", "other")},
    **{name: (name,) for name in ("pleasure", "pain", "disappointment", "breath")},
}


@dataclass(frozen=True)
class LabelMap:
    """Mapping from spellings to classes.

    Args:
        where: the file, or the name of the default map.
        classes: spelling -> class, or None if its clips are left out.
    """

    where: str
    classes: Mapping[str, str | None]

    @property
    def is_given(self) -> bool:
        """Whether the map comes from a user's file."""
        return self.where != DEFAULT_NAME

    @property
    def names(self) -> list[str]:
        """The classes, in their order."""
        return list(dict.fromkeys(name for name in self.classes.values() if name is not None))

    def of(self, whose: str, spellings: Iterable[str]) -> dict[str, str | None]:
        """Returns spelling -> class for all classes of a corpus (or model).

        Raises:
            DataError: the map lacks a class.
        """
        for spelling in spellings:
            if spelling not in self.classes:
                raise DataError(
                    f"{self.where} lacks the class {spelling!r} of {whose}: map it to a class, or to null to leave it "
                    "out, in a file given with --label_map."
                )
        return {spelling: self.classes[spelling] for spelling in spellings}

    def check(self, known: Mapping[str, Iterable[str]]) -> None:
        """Checks that every spelling in the map is a class of a corpus.

        Args:
            known: corpus -> all of its classes.

        Raises:
            DataError: the map has a spelling that no corpus has.
        """
        have = {spelling for spellings in known.values() for spelling in spellings}
        for spelling in self.classes:
            if spelling not in have:
                raise DataError(
                    f"{self.where} has {spelling!r}, which is not a class of {' or '.join(known)}; they have "
                    f"{', '.join(sorted(have))}."
                )


def read_label_map(path: str | None) -> LabelMap:
    """Reads a map from a YAML file; without a path, or under the name "default", returns the default map.

    Raises:
        DataError: the file is not a map, maps a spelling to two classes, or maps nothing to a class.
    """
    if path in (None, DEFAULT):
        return LabelMap(DEFAULT_NAME, {s: name for name, spellings in DEFAULT_MAP.items() for s in spellings})
    where = f"--label_map {path}"
    classes: dict[str, str | None] = {}
    names: set[str | None] = set()
    for name, spellings in _entries(Path(str(path)), where):
        if name in names:
            raise DataError(f"{where} names the class {name!r} twice: give its spellings in one list.")
        if not spellings:
            raise DataError(f"{where} maps nothing to {name!r}: leave it out.")
        names.add(name)
        for spelling in spellings:
            if spelling in classes:
                raise DataError(
                    f"{where} maps {spelling!r} to both {classes[spelling]!r} and {name!r}: leave out one of them."
                )
            classes[spelling] = name
    return LabelMap(where, classes)


def _entries(path: Path, where: str) -> list[tuple[str | None, list[str]]]:
    """Returns (class, spellings) in the file's order. (If a name occurs twice, YAML itself would keep the last.)"""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    refusal = DataError(f"{where} is not a map of classes to lists of spellings, such as `happy: [happy, joy]`.")
    if not isinstance(root, yaml.MappingNode):
        raise refusal
    entries = []
    for key, value in root.value:
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(node, yaml.ScalarNode) for node in (key, *nodes)):
            raise refusal
        name = None if key.tag.endswith(":null") else key.value
        entries.append((name, [node.value for node in nodes]))
    return entries


def format_label_map(classes: Mapping[str, Mapping[str, str | None]], names: Sequence[str]) -> str:
    """Formats a map with one line for each class.

    Args:
        classes: corpus -> spelling -> class.
        names: classes in their order; others were left out.
    """
    lines = []
    for name in names:
        spelt = [f"{s} ({corpus})" for corpus, own in classes.items() for s, target in own.items() if target == name]
        lines.append(f"Class {name}: {', '.join(spelt)}")
    rest = [f"{s} ({corpus})" for corpus, own in classes.items() for s, name in own.items() if name not in names]
    return "\n".join([*lines, *([f"No class: {', '.join(rest)}"] if rest else [])])
