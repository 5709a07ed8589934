"""Parameters of a test, of which all are tried in CI, and some in the fast tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_fast(parameters: Iterable[Any], fast: int = 1) -> list[Any]:
    """The parameters, those after the first `fast` marked as slow: for tests that do the same for each of many."""
    values = [each if isinstance(each, tuple) else (each,) for each in parameters]
    return [pytest.param(*each, marks=pytest.mark.slow if place >= fast else ()) for place, each in enumerate(values)]
