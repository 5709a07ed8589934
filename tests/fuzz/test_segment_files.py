"""Tests two hundred segment files of each format, most of them damaged."""

import random
from collections import Counter

import pytest

from tests.fuzz.segment_files import NAMES, make, run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused_or_read_as_the_undamaged_one(name, tmp_path):
    ends: Counter[str] = Counter()
    for number in range(200):
        case = make(random.Random(f"{name}:{number}"), name)
        folder = tmp_path / str(number)
        case.write(folder)
        ends[run(case, folder)] += 1
    assert ends["accepted"] > 40 and ends["DataError"] > 60, ends
