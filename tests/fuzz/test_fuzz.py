"""Runs a sample of the fuzz cases and all that once failed, and tests the detection of failures."""

import contextlib
import random
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import watch
from tests.fuzz.__main__ import KEPT, run_case, warm_up
from tests.fuzz.kinds import Case, make_case
from tests.fuzz.mutations import valid_files


@pytest.fixture(scope="module", autouse=True)
def _warm():
    warm_up()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damaged_inputs_are_read_or_refused_by_name_within_the_limits(seed):
    ends = set()
    for number in range(100):
        case = make_case(seed, number)
        outcome = run_case(case)
        assert not outcome.failed, (
            f"python -m tests.fuzz --seed {seed} --only {number}: {outcome.end}: {outcome.message}"
        )
        ends.add((case.kind, outcome.end))
    assert {kind for kind, _ in ends} == {
        "reading", "container", "integers", "pipeline", "corpus", "tables", "answers", "arguments", "url",
        "checkpoint", "segments",
    }  # fmt: skip
    assert {("reading", "accepted"), ("reading", "AudioError"), ("corpus", "DataError")} <= ends


@pytest.mark.parametrize("kept", sorted(KEPT.glob("*.json")), ids=lambda path: path.stem)
def test_cases_that_once_failed_pass(kept):
    outcome = run_case(Case.from_json(kept.read_text()))
    assert not outcome.failed, f"{outcome.end}: {outcome.message}"


@pytest.mark.slow
def test_a_case_is_reproduced_from_its_seed_and_from_its_file():
    files = valid_files()
    time.sleep(1.1)  # some containers contain the second in which they were written
    assert valid_files.__wrapped__() == files
    for number in range(50):
        case = make_case(0, number)
        assert make_case(0, number) == case == Case.from_json(case.to_json())
    assert make_case(1, 0) != make_case(0, 0)


def _raise() -> str:
    raise ValueError("not an error of the project")


def _hang() -> str:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def _allocate() -> str:
    np.ones(20 * 2**20)
    return "accepted"


def _write_outside() -> str:
    Path("../outside").write_text("x")
    return "accepted"


def _write_inside() -> str:
    Path("inside").write_text("x")
    return "accepted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "end"),
    [
        (_raise, "crash ValueError"),
        (_hang, "too slow"),
        (_allocate, "too large"),
        (_write_outside, "wrote"),
        (_write_inside, "accepted"),
    ],
)
def test_every_kind_of_failure_is_detected(run, end, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LIMIT_S", 0.5 if run is _hang else 10)
    monkeypatch.setattr(watch, "LIMIT_MIB", 100)
    (tmp_path / "case").mkdir()
    outcome = watch.watched(run, tmp_path / "case")
    assert (outcome.end, outcome.failed) == (end, end != "accepted")


def test_mutations_leave_few_files_undamaged():
    from tests.fuzz.mutations import audio_file

    whole = set(valid_files().values())
    rng = random.Random(0)
    assert sum(audio_file(rng)[1] in whole for _ in range(300)) < 60
