"""Checks for names of classes and speakers that are almost equal, or reserved in tables of predictions."""

import re
import unicodedata
from collections.abc import Iterable

from transformers.utils import logging

from ser.data.tables import RESERVED
from ser.utils import DataError

logger = logging.get_logger(__name__)
MAX_NAMED = 5


def _alike(name: str) -> str:
    """Returns a key that is equal for names that differ only in case, spaces or Unicode normalization."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted({*names}):
        groups.setdefault(_alike(name), []).append(name)
    return groups


def check_classes_differ(names: Iterable[str], where: str) -> None:
    """Raises `DataError` if two classes differ only in case, spaces or Unicode normalization."""
    for alike in _groups(names).values():
        if len(alike) > 1:
            one, other = (ascii(name) if alike[0].isascii() is False else repr(name) for name in alike[:2])
            raise DataError(
                f"{where} has the classes {one} and {other}, which are almost equal: merge them with "
                f'--merge_labels "{alike[0]}={alike[1]}", or rename one of them.'
            )


def check_not_reserved(names: Iterable[str]) -> None:
    """Raises `DataError` if a class has the name of a column of tables of predictions, or of a prediction that is not
    a class."""
    if taken := [name for name in names if _alike(name) in RESERVED]:
        raise DataError(
            f"A class cannot be called {taken[0]!r}, which is reserved in tables of predictions: rename it, for "
            f'example with --merge_labels "{taken[0]}={taken[0]} class".'
        )


def warn_of_almost_equal_speakers(speakers: Iterable[str | None], where: str) -> None:
    """Warns of speakers that may be one person ("1" and "01"), since speakers are told apart by their exact names."""
    groups: dict[str, list[str]] = {}
    for speaker in sorted({speaker for speaker in speakers if speaker is not None}):
        plain = re.sub(r"(?<![\d.])(\d+)\.0+$", r"\1", _alike(speaker))
        groups.setdefault(re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", plain), []).append(speaker)
    if alike := [" = ".join(map(repr, group)) for group in groups.values() if len(group) > 1]:
        more = f" and {len(alike) - MAX_NAMED} more" if len(alike) > MAX_NAMED else ""
        logger.warning(
            f"{where} has speakers with almost equal names, which count as different and may be in two parts: "
            f"{'; '.join(alike[:MAX_NAMED])}{more}. Spell each speaker in one way."
        )
