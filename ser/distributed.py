"""Coordination of processes: order, division of work, common decisions, and the lock of the output directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import takewhile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import distributed
from transformers import TrainingArguments

from ser.utils import DataError

LOCK = ".lock"
GROUP_TIMEOUT = timedelta(days=30)


@contextmanager
def first_process_first(args: TrainingArguments, work: str, local: bool = True) -> Iterator[None]:
    """
    Runs some work in one process while the others wait, and then in the others, which find its result.

    Unlike with `args.main_process_first`, the others wait as long as necessary, not at most `--ddp_timeout`, and they
    do not start work in which the first process has failed.

    Args:
        args: arguments of the run.
        work: description of the work, for the error.
        local (`bool`, defaults to True): whether one process of each machine goes first, rather than one of all.

    Raises:
        DataError: the work failed in a process that went first, which raises its own error; raised in all others.
    """
    if args.world_size == 1:
        yield
        return
    state = args.distributed_state
    first = state.is_local_main_process if local else state.is_main_process
    with all_or_none(args, work):
        if first:
            yield
    if not first:
        yield


def all_true(args: TrainingArguments, value: bool) -> bool:
    """Returns whether `value` is true in every process; waits for the slowest of them."""
    if args.world_size == 1:
        return value
    values = torch.tensor([value], dtype=torch.int64)
    distributed.all_reduce(values, distributed.ReduceOp.MIN, group=_gloo_group(distributed.group.WORLD))
    return bool(values)


def broadcast_from_first(args: TrainingArguments, number: int) -> int:
    """Returns, in every process, the number that the first process passes."""
    if args.world_size == 1:
        return number
    sent = torch.tensor([number], dtype=torch.int64)
    distributed.broadcast(sent, src=0, group=_gloo_group(distributed.group.WORLD))
    return int(sent)


@contextmanager
def all_or_none(args: TrainingArguments, work: str) -> Iterator[None]:
    """
    Runs work that is divided among processes; all wait until the slowest has finished.

    Raises:
        DataError: work failed in another process, which raises its own error; raised in all others.
    """
    done = False
    try:
        yield
        done = True
    finally:
        all_done = all_true(args, done)
    if not all_done:
        raise DataError(f"Another process failed while {work}: see its own error message.")


def process_ranks(args: TrainingArguments) -> list[tuple[int, int]]:
    """Returns (rank, number of processes) of this process among all, and among those of its machine."""
    if args.world_size == 1:
        return [(0, 1)]
    local = [0] * args.world_size
    mine = args.distributed_state.local_process_index
    distributed.all_gather_object(local, mine, group=_gloo_group(distributed.group.WORLD))
    others = local[args.process_index - mine + 1 :]
    return [(args.process_index, args.world_size), (mine, 1 + len(list(takewhile(bool, others))))]


@cache
def _gloo_group(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    # NCCL ends a process that waits longer than the timeout of the run; with gloo, each group has its own.
    group = distributed.new_group(backend="gloo", timeout=GROUP_TIMEOUT)
    assert isinstance(group, distributed.ProcessGroup)  # every process is in it
    return group


@contextmanager
def run_lock(args: TrainingArguments) -> Iterator[None]:
    """
    Locks the output directory, since two runs would delete each other's incomplete checkpoints. The lock is reentrant,
    is held for all processes of a run, and is released when the process ends for whatever reason.

    Raises:
        DataError: another run holds the lock; raised in every process.
    """
    folder = Path(args.output_dir).resolve()
    lock, free = None, True
    if args.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            free = False
    try:
        if not all_true(args, free):
            raise DataError(
                f"Another process is training in {args.output_dir}: wait until it has finished, or name another "
                "--output_dir."
            )
        yield
    finally:
        if lock is not None and free:
            lock.release()
