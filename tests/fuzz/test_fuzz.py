"""A share of the broken inputs of tests/fuzz, all that once failed, and the watchman himself."""

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
def test_broken_inputs_are_answered_or_refused_by_name_in_time_and_without_a_trace(seed):
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
    assert {("reading", "answer"), ("reading", "AudioError"), ("corpus", "DataError")} <= ends


@pytest.mark.parametrize("kept", sorted(KEPT.glob("*.json")), ids=lambda path: path.stem)
def test_what_failed_once_does_not_again(kept):
    outcome = run_case(Case.from_json(kept.read_text()))
    assert not outcome.failed, f"{outcome.end}: {outcome.message}"


@pytest.mark.slow
def test_a_case_is_the_same_by_its_seed_and_as_a_file():
    files = valid_files()
    time.sleep(1.1)  # some containers note the second in which they are written
    assert valid_files.__wrapped__() == files
    for number in range(50):
        case = make_case(0, number)
        assert make_case(0, number) == case == Case.from_json(case.to_json())
    assert make_case(1, 0) != make_case(0, 0)


def _raise() -> str:
    raise ValueError("of no kind that is the project's")


def _hang() -> str:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def _swell() -> str:
    np.ones(20 * 2**20)
    return "answer"


def _litter() -> str:
    Path("../outside").write_text("x")
    return "answer"


def _tidy() -> str:
    Path("inside").write_text("x")
    return "answer"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "end"),
    [(_raise, "crash ValueError"), (_hang, "too slow"), (_swell, "too large"), (_litter, "wrote"), (_tidy, "answer")],
)
def test_the_watchdog_finds_every_failure(run, end, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LIMIT_S", 0.5 if run is _hang else 10)
    monkeypatch.setattr(watch, "LIMIT_MIB", 100)
    (tmp_path / "case").mkdir()
    outcome = watch.watched(run, tmp_path / "case")
    assert (outcome.end, outcome.failed) == (end, end != "answer")


def test_mutations_leave_few_files_whole():
    from tests.fuzz.mutations import audio_file

    whole = set(valid_files().values())
    rng = random.Random(0)
    assert sum(audio_file(rng)[1] in whole for _ in range(300)) < 60
