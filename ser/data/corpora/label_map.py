"""One name for each class of several corpora: happiness is happy, fearful is fear, and what a YAML file says.

A file maps each class to its spellings, and to null what is to be left out:

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
    """Which class each spelling is.

    Args:
        where: the file, or what the default map is called.
        classes: spelling -> class; None where its clips are left out.
    """

    where: str
    classes: Mapping[str, str | None]

    @property
    def is_given(self) -> bool:
        """Whether a user wrote it."""
        return self.where != DEFAULT_NAME

    @property
    def names(self) -> list[str]:
        """The classes, in their order."""
        return list(dict.fromkeys(name for name in self.classes.values() if name is not None))

    def of(self, whose: str, spellings: Iterable[str]) -> dict[str, str | None]:
        """Spelling -> class for all that a corpus (or model) has.

        Raises:
            DataError: the map loses one of them.
        """
        for spelling in spellings:
            if spelling not in self.classes:
                raise DataError(
                    f"{self.where} loses the class {spelling!r} of {whose}: map it to a class, or to null to leave it "
                    "out, in a file that --label_map names."
                )
        return {spelling: self.classes[spelling] for spelling in spellings}

    def check(self, known: Mapping[str, Iterable[str]]) -> None:
        """
        Args:
            known: corpus -> all classes that it knows.

        Raises:
            DataError: the map names a class that no corpus has.
        """
        have = {spelling for spellings in known.values() for spelling in spellings}
        for spelling in self.classes:
            if spelling not in have:
                raise DataError(
                    f"{self.where} names {spelling!r}, which is a class of none of {', '.join(known)}; they have "
                    f"{', '.join(sorted(have))}."
                )


def read_label_map(path: str | None) -> LabelMap:
    """The map in a YAML file; the default one without a path, or under the name "default".

    Raises:
        DataError: the file is none, maps a class two ways, or maps nothing to one.
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
                raise DataError(f"{where} maps {spelling!r} two ways, to {classes[spelling]!r} and to {name!r}.")
            classes[spelling] = name
    return LabelMap(where, classes)


def _entries(path: Path, where: str) -> list[tuple[str | None, list[str]]]:
    """(class, spellings) in the file's order. Of one name given twice YAML itself would keep the last."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    refusal = DataError(f"{where} is no map of classes to lists of spellings, such as `happy: [happy, joy]`.")
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


def in_words(classes: Mapping[str, Mapping[str, str | None]], names: Sequence[str]) -> str:
    """The map as it was used, a line a class.

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
