"""What processes have to settle: which goes first, who does which share of some work, from where all go on, and that
no other run is in the folder."""

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
PATIENCE = timedelta(days=30)


@contextmanager
def first_process_first(args: TrainingArguments, work: str, local: bool = True) -> Iterator[None]:
    """
    Lets one process do some work while the others wait, and then lets those do it, who find it done.

    Unlike `args.main_process_first`, the others wait as long as it takes, not `--ddp_timeout` at most, and they do not
    start on work at which the first has failed.

    Args:
        args: of the run.
        work: what is done, for the error.
        local (`bool`, defaults to True): whether a process of each machine goes first, or one of all.

    Raises:
        DataError: in every process if it failed in one that went first, which raises its own error.
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


def all_agree(args: TrainingArguments, agreed: bool) -> bool:
    """Whether `agreed` is true in every process; waits for the slowest of them."""
    if args.world_size == 1:
        return agreed
    votes = torch.tensor([agreed], dtype=torch.int64)
    distributed.all_reduce(votes, distributed.ReduceOp.MIN, group=_patient_group(distributed.group.WORLD))
    return bool(votes)


def as_first_says(args: TrainingArguments, number: int) -> int:
    """The number that the first process gives, in every process."""
    if args.world_size == 1:
        return number
    said = torch.tensor([number], dtype=torch.int64)
    distributed.broadcast(said, src=0, group=_patient_group(distributed.group.WORLD))
    return int(said)


@contextmanager
def all_or_none(args: TrainingArguments, work: str) -> Iterator[None]:
    """
    Work of which each process does its part; all wait until the slowest has done it.

    Raises:
        DataError: in every process if another failed, which raises its own error.
    """
    done = False
    try:
        yield
        done = True
    finally:
        all_done = all_agree(args, done)
    if not all_done:
        raise DataError(f"Another process could not finish {work}; its own message says why.")


def places(args: TrainingArguments) -> list[tuple[int, int]]:
    """The number of this process and how many there are: among all, and among those of its machine."""
    if args.world_size == 1:
        return [(0, 1)]
    local = [0] * args.world_size
    mine = args.distributed_state.local_process_index
    distributed.all_gather_object(local, mine, group=_patient_group(distributed.group.WORLD))
    others = local[args.process_index - mine + 1 :]
    return [(args.process_index, args.world_size), (mine, 1 + len(list(takewhile(bool, others))))]


@cache
def _patient_group(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    # NCCL ends a process that waits longer than the timeout of the whole run; gloo takes one for each group.
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, distributed.ProcessGroup)  # every process is in it
    return group


@contextmanager
def run_lock(args: TrainingArguments) -> Iterator[None]:
    """
    Keeps other runs out of the output directory, which would delete each other's half checkpoints. A process may take
    it again while it holds it; the processes of one run hold it together. It ends with the process, however that ends.

    Raises:
        DataError: in every process, if another run holds it.
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
        if not all_agree(args, free):
            raise DataError(
                f"Another process is training in {args.output_dir}: wait until it has finished, or name another "
                "--output_dir."
            )
        yield
    finally:
        if lock is not None and free:
            lock.release()
