"""Divides predictions among several processes, as `accelerate launch` starts them.

Each process writes a table of its own to the folder `out.csv.parts` beside `out.csv`, and the first process joins them
at the end. Tables that an interrupted run of any number of processes left there are joined at the start, and their
recordings are not classified again. The processes may run on several machines that share the folder.
"""

import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from ser.inference.predictions import Item, Table
from ser.utils import UsageError, count_processes

TIMEOUT = timedelta(days=30)  # for processes that wait for the slowest one


def connect_processes() -> PartialState | None:
    """
    Connects the processes that `accelerate launch` or `torchrun` started; returns None if there is only this one. They
    exchange little data, so that gloo is used rather than the accelerators.

    Raises:
        UsageError: The environment variables that number them are inconsistent.
    """
    return PartialState(cpu=True, timeout=TIMEOUT) if count_processes() > 1 else None


def parts_folder(output: str) -> Path:
    """Returns the folder of the processes' tables while `output` is written."""
    return Path(f"{output}.parts")


def join_parts(output: str, items: Sequence[Item], open_table: Callable[[str], Table]) -> None:
    """
    Joins `output` and the tables of all processes beside it, with every recording once and in the order of the input.

    Raises:
        UsageError: A table is of another kind or origin, or cannot be read or written.
    """
    folder = parts_folder(output)
    if not folder.is_dir():
        return
    table = open_table(output)
    rows = table.recordings_at(output)
    for path in sorted(folder.glob(f"*-of-*{Path(output).suffix}")):
        if "." in path.stem:  # a file beside a table
            continue
        for file, own in table.recordings_at(str(path)).items():
            rows.setdefault(file, own)
    table.file.close()
    ordered = [rows.pop(item.file) for item in items if item.file in rows]
    table.write_rows(output, [row for group in (*ordered, *rows.values()) for row in group])
    shutil.rmtree(folder)


class Share:
    """
    Divides recordings among processes; this is the share of one process.

    Args:
        state: State of the processes.
        output: The table for all predictions.
        items: All recordings, the same in every process.
        open_table: Path -> a table of these recordings.
    """

    def __init__(self, state: PartialState, output: str, items: Sequence[Item], open_table: Callable[[str], Table]):
        self.state, self.output, self.items, self.open_table = state, output, items, open_table
        self.lock = FileLock(Path(output).with_name(f".{Path(output).name}.lock"))

    def begin(self) -> tuple[Table, list[Item]]:
        """
        Opens the table of this process, once the first process has joined what an earlier run left.

        Returns:
            The table of this process, and the recordings that it has to classify.

        Raises:
            UsageError: A table is of another kind or origin or cannot be written, other processes are writing it, or
                the processes do not share its folder.
        """
        folder, state = parts_folder(self.output), self.state
        if state.is_main_process:
            try:
                self.lock.acquire(timeout=0)
            except Timeout as error:
                raise UsageError(
                    f"Other processes are writing {self.output}: wait until they have ended, or end them."
                ) from error
            join_parts(self.output, self.items, self.open_table)
            folder.mkdir()
        state.wait_for_everyone()
        if not folder.is_dir():
            raise UsageError(
                f"{folder}, which the first process has made, is not on this machine: put --output on a disk that "
                "all machines share."
            )
        place = f"{state.process_index + 1}-of-{state.num_processes}{Path(self.output).suffix}"
        table = self.open_table(str(folder / place))
        done = table.recordings_at(self.output)
        todo = [item for item in self.items if item.file not in done]
        with state.split_between_processes(todo) as own:
            return table, own

    def end(self, failed: list[str]) -> tuple[Table, list[str]] | None:
        """
        Waits until every process has closed its table, and joins them.

        Args:
            failed: Files of this process that could not be classified.

        Returns:
            In the first process the complete table, closed, and the failed files of all processes; in others None.
        """
        failed = gather_object(failed)
        if not self.state.is_main_process:
            return None
        join_parts(self.output, self.items, self.open_table)
        self.lock.release()
        whole = self.open_table(self.output)
        whole.close()
        return whole, failed
