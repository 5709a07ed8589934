"""Tests how processes agree, wait for one another and lock an output directory."""

import json
import os
import signal
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import distributed

from ser.distributed import LOCK, all_true, broadcast_from_first, first_process_first, run_lock
from ser.utils import DataError
from tests.helpers.processes import SERVER, exit_codes, start

TIMEOUT = 4.0  # seconds after which a collective operation fails


def arguments(folder: Path, rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    """Imitates the fields of TrainingArguments that identify a process."""
    state = SimpleNamespace(is_main_process=rank == 0, is_local_main_process=rank == 0)
    return SimpleNamespace(output_dir=str(folder), process_index=rank, world_size=world_size, distributed_state=state)


def worker(rank: int, folder: Path) -> None:
    init = {"init_method": f"file://{folder / 'meeting'}", "timeout": timedelta(seconds=TIMEOUT)}
    distributed.init_process_group("gloo", rank=rank, world_size=2, **init)
    args = arguments(folder / "run", rank, 2)
    report = {"agreed": all_true(args, rank == 0), "received": broadcast_from_first(args, 5 + rank)}
    with first_process_first(args, "sleeping"):
        if rank == 0:
            time.sleep(2 * TIMEOUT)
            (folder / "slept").touch()
        report["slept"] = (folder / "slept").exists()
    try:
        with first_process_first(args, "dividing by zero"):
            report["entered"] = True
            raise ZeroDivisionError
    except (ZeroDivisionError, DataError) as error:
        report["failure"] = repr(error)
    with run_lock(args):
        report["locked"] = True
    (folder / f"{rank}.json").write_text(json.dumps(report))


def hold(folder: Path, children: Connection) -> None:
    with run_lock(arguments(folder)):
        child = os.fork()  # like a worker of the data loader
        if child == 0:
            time.sleep(600)
        children.send(child)
        time.sleep(600)


@pytest.mark.slow
def test_other_processes_wait_as_long_as_necessary_and_fail_with_the_first(tmp_path):
    assert exit_codes([start(worker, rank, tmp_path) for rank in (0, 1)]) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for report in (first, second):
        assert (report["agreed"], report["received"], report["slept"], report["locked"]) == (False, 5, True, True)
    assert first["failure"] == "ZeroDivisionError()" and "entered" not in second
    assert "Another process failed while dividing by zero" in second["failure"]


def try_lock(folder: Path) -> str:
    try:
        with run_lock(arguments(folder)):
            return "free"
    except DataError as error:
        return str(error)


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    children, sender = SERVER.Pipe(duplex=False)
    holder = start(hold, tmp_path, sender)
    assert children.poll(120)
    child = children.recv()
    try:
        assert f"Another process is training in {tmp_path}: wait" in try_lock(tmp_path)
        assert try_lock(tmp_path / "other") == "free"
        holder.kill()
        holder.join(60)
        assert try_lock(tmp_path) == "free"
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_process_can_take_its_own_lock_repeatedly(tmp_path):
    with run_lock(arguments(tmp_path)):
        with (
            run_lock(arguments(tmp_path / ".." / tmp_path.name)),
            pytest.raises(KeyError),
            run_lock(arguments(tmp_path)),
        ):
            raise KeyError
        with SERVER.Pool(1) as pool:
            assert "Another process is training" in pool.apply(try_lock, (tmp_path,))
    assert try_lock(tmp_path) == "free" and {path.name for path in tmp_path.iterdir()} == {LOCK}
