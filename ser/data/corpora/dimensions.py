"""Reads and scales dimensions of emotion, such as arousal and valence.

The rows of a reader may have `dimensions`, the raw value of each dimension by its name. In the table of clips, values
are scaled so that 0 and 1 are the ends of the rating scale; unknown values are NaN.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from ser.data.tables import text_of
from ser.utils import DataError

DIMENSIONS = "dimensions"  # column of the table of clips
COLUMNS = ("arousal", "valence", "dominance")  # of a user's own data set, unless others are named
OWN_SCALE = (0.0, 1.0)


def set_dimensions(
    rows: Sequence[dict],
    where: str,
    scales: Mapping[str, Sequence[float]] | None,
    names: Sequence[str] | None,
    own_scale: Sequence[float] | None,
) -> dict[str, list[float]]:
    """
    Replaces the raw values in `dimensions` of rows by a list of scaled ones, in the order of the names.

    Args:
        rows: rows of a reader. Those without any value get None.
        where: the source, for messages.
        scales: name -> ends of the scale of the dimensions of a known corpus; None for a user's own data set.
        names: dimensions to read, in this order (default: all).
        own_scale: ends of the scale in a user's own data set (default: 0 and 1).

    Returns:
        The ends of the scale of each dimension.

    Raises:
        DataError: the source lacks a dimension, or a value is not a number or lies outside the scale.
    """
    found = {name: None for row in rows for name in row.get(DIMENSIONS) or ()}
    known = [name for name in scales or found if name in found]
    for name in names or ():
        if name not in known:
            raise DataError(f"{where} has no dimension {name!r}; it has {', '.join(known) or 'none'}.")
    if not known:
        raise DataError(
            f"{where} has no dimensions: name a source with columns such as {', '.join(COLUMNS)} (--dimensions names "
            "others), or leave out --target."
        )
    if scales is not None and own_scale is not None:
        raise DataError(f"The scale of {where} is known: leave out --dimension_range.")
    own = [float(end) for end in own_scale or OWN_SCALE]
    ends = {name: [*map(float, scales[name])] if scales else own for name in names or known}
    for row in rows:
        raw = (not row.get("drop") and row.get(DIMENSIONS)) or {}
        values = [_scaled(raw.get(name), ends[name], scales is None, f"{where}: {name} of {row.get('file')}")
                  for name in ends]  # fmt: skip
        row[DIMENSIONS] = None if np.isnan(values).all() else values
    return ends


def _scaled(value: Any, ends: Sequence[float], is_limited: bool, what: str) -> float:
    text = text_of(value)
    try:
        number = float(text) if text else math.nan
    except ValueError:
        number = math.inf
    if text is None or math.isinf(number):
        raise DataError(f"{what} is {value!r:.80}, which is not a number. Correct it, or leave the cell empty.")
    low, high = ends
    if is_limited and not (math.isnan(number) or low <= number <= high):
        raise DataError(
            f"{what} is {number:g}, outside the scale from {low:g} to {high:g}: give the ends of the scale, such "
            "as --dimension_range 1 5, or correct the value."
        )
    return (number - low) / (high - low)


def dimensions_of(clips: datasets.Dataset) -> np.ndarray:
    """Returns the scaled values of clips, `(clips, D)`, NaN if unknown."""
    return np.asarray(clips.with_format(None)[DIMENSIONS][:], dtype=np.float64)
