"""What processes have to settle: which goes first, who does which share of some work, from where all go on, and that
no other run is in the folder."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import distributed
from transformers import TrainingArguments

from ser.checkpoints import CHECKPOINT, is_complete
from ser.errors import DataError

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
    done = not first
    try:
        if first:
            yield
            done = True
    finally:
        all_done = all_agree(args, done)
    if not all_done:
        raise DataError(f"Another process could not finish {work}; its own message says why.")
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


class Crew:
    """
    Processes of a run that share work in one folder: all of them where they all see it, else those of each machine.
    Its methods are called by all of them, in the same order.

    Args:
        args: of the run, of more than one process.
        folder: where the work is written; it is made.

    Attributes:
        index: which of them this process is, from 0, the one that leads.
        count: how many they are.
    """

    def __init__(self, args: TrainingArguments, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        sign = folder / f".seen-{as_first_says(args, secrets.randbelow(2**62))}"
        if args.process_index == 0:
            sign.touch()
        all_agree(args, True)  # it is there now
        is_seen_by_all = all_agree(args, sign.exists())
        if args.process_index == 0:
            sign.unlink()
        world = _patient_group(distributed.group.WORLD)
        places = [0] * args.world_size
        distributed.all_gather_object(places, args.distributed_state.local_process_index, group=world)
        starts = [0] if is_seen_by_all else [rank for rank, place in enumerate(places) if place == 0]
        machines = [[*range(*ends)] for ends in pairwise([*starts, args.world_size])]
        groups = [distributed.new_group(ranks, backend="gloo", timeout=PATIENCE) for ranks in machines]
        self._ranks, self._group = next(
            (ranks, group) for ranks, group in zip(machines, groups, strict=True) if args.process_index in ranks
        )
        self.index, self.count = self._ranks.index(args.process_index), len(self._ranks)

    def share(self, work: list) -> list:
        """This process's stretch of it."""
        return work[len(work) * self.index // self.count : len(work) * (self.index + 1) // self.count]

    def hear(self, said: Any = None) -> Any:
        """What the one that leads says; of all others `said` is not heard."""
        heard = [said]
        distributed.broadcast_object_list(heard, src=self._ranks[0], group=self._group)
        return heard[0]

    def agree(self, agreed: bool) -> bool:
        """Whether `agreed` is true in all of them; waits for the slowest."""
        votes = torch.tensor([agreed], dtype=torch.int64)
        distributed.all_reduce(votes, distributed.ReduceOp.MIN, group=self._group)
        return bool(votes)


@cache
def _patient_group(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    # NCCL ends a process that waits longer than the timeout of the whole run; gloo takes one for each group.
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def checkpoint_of_first(args: TrainingArguments, checkpoint: str | None) -> str | None:
    """
    The checkpoint from which all processes go on: the one that the first has found.

    Args:
        args: of the run.
        checkpoint: what this process has found, if anything.

    Raises:
        DataError: in every process if one of them does not find it on its disk.
    """
    if args.world_size == 1:
        return checkpoint
    match = CHECKPOINT.fullmatch(Path(checkpoint).name) if checkpoint else None
    step = as_first_says(args, int(match[1]) if match else -1)
    if step < 0:
        return None
    folder = Path(checkpoint).parent if checkpoint else Path(args.output_dir)
    mine = folder / f"checkpoint-{step}"
    found = is_complete(mine)
    if not all_agree(args, found):
        who = "Another process does not find it" if found else f"Process {args.process_index} does not find it"
        raise DataError(
            f"The first process goes on from {mine}. {who} on its disk: let --output_dir lie on a disk that all "
            "machines share, or start over by --overwrite_output_dir."
        )
    return str(mine)


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
