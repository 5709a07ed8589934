"""Predictions by several processes, as `accelerate launch` starts them.

Beside `answers.csv`, the folder `answers.csv.parts` holds a table of every process while they are at work. At the end
the first process joins them. What an earlier start left there, however it ended and however many processes it had, is
joined at the beginning and not answered again. The processes may be on any number of machines that share the folder.
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

TIMEOUT = timedelta(days=30)  # of those that wait for the slowest


def connect_processes() -> PartialState | None:
    """
    Connects the processes that `accelerate launch` or `torchrun` has started; None where there is only this one. They
    exchange only a few words, so they are connected by gloo and not by the accelerators.

    Raises:
        UsageError: The environment variables that number them make no sense.
    """
    return PartialState(cpu=True, timeout=TIMEOUT) if count_processes() > 1 else None


def parts_folder(output: str) -> Path:
    """Where the tables of the processes lie while `output` is made."""
    return Path(f"{output}.parts")


def join_parts(output: str, items: Sequence[Item], open_table: Callable[[str], Table]) -> None:
    """
    Joins `output` and the tables of all processes beside it: every recording stands once, in the order of the input.

    Raises:
        UsageError: A table is of something else, or cannot be read or written.
    """
    folder = parts_folder(output)
    if not folder.is_dir():
        return
    table = open_table(output)
    rows = table.recordings_at(output)
    for path in sorted(folder.glob(f"*-of-*{Path(output).suffix}")):
        if "." in path.stem:  # what stands beside a table
            continue
        for file, own in table.recordings_at(str(path)).items():
            rows.setdefault(file, own)
    table.file.close()
    ordered = [rows.pop(item.file) for item in items if item.file in rows]
    table.write_rows(output, [row for group in (*ordered, *rows.values()) for row in group])
    shutil.rmtree(folder)


class Share:
    """
    What one of several processes answers.

    Args:
        state: Of the processes.
        output: The table in which all answers end.
        items: All recordings, the same in every process.
        open_table: Path -> a table of these recordings.
    """

    def __init__(self, state: PartialState, output: str, items: Sequence[Item], open_table: Callable[[str], Table]):
        self.state, self.output, self.items, self.open_table = state, output, items, open_table
        self.lock = FileLock(Path(output).with_name(f".{Path(output).name}.lock"))

    def begin(self) -> tuple[Table, list[Item]]:
        """
        Returns:
            The table of this process, and which recordings it has to answer into it.

        Raises:
            UsageError: A table is of something else or cannot be written, others are writing it, or the processes do
                not share its folder.
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
                f"{folder}, which the first process has made, is not on this machine: let --output lie on a disk that "
                "all machines share."
            )
        place = f"{state.process_index + 1}-of-{state.num_processes}{Path(self.output).suffix}"
        table = self.open_table(str(folder / place))
        answered = table.recordings_at(self.output)
        todo = [item for item in self.items if item.file not in answered]
        with state.split_between_processes(todo) as own:
            return table, own

    def end(self, failed: list[str]) -> tuple[Table, list[str]] | None:
        """
        Waits until every process has closed its table, and joins them.

        Args:
            failed: Files of this share that could not be answered.

        Returns:
            In the first process the whole table, closed, and what could not be answered of all shares; None in others.
        """
        failed = gather_object(failed)
        if not self.state.is_main_process:
            return None
        join_parts(self.output, self.items, self.open_table)
        self.lock.release()
        whole = self.open_table(self.output)
        whole.close()
        return whole, failed
