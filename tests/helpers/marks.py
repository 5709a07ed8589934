"""Selects the parameters of a test that the fast tests run; CI runs all."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_fast(parameters: Iterable[Any], fast: int = 1) -> list[Any]:
    """Marks the parameters after the first `fast` ones as slow, for tests that repeat the same for many parameters."""
    values = [each if isinstance(each, tuple) else (each,) for each in parameters]
    return [pytest.param(*each, marks=pytest.mark.slow if place >= fast else ()) for place, each in enumerate(values)]
