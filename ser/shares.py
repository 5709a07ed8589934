"""Predictions by several processes: each answers its share of the recordings, and the last to end joins them.

Beside `answers.csv`, the folder `answers.csv.parts` holds a table of every process while they are at work. What an
earlier start left there, however it ended and however many they were, is answered already. The processes settle one
thing, that all have started; after that they say nothing to each other but by files, so that one which is killed
keeps nobody waiting. They may be on any number of machines that have the folder in common.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from torch import distributed

from ser.answers import Item, Table
from ser.errors import UsageError

PATIENCE = timedelta(minutes=30)  # in which all processes have to start


def place_among_processes() -> tuple[int, int]:
    """Which process this is, counted from 0, and of how many, as `accelerate launch` and `torchrun` say."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def parts_folder(output: str) -> Path:
    """Where the tables of the processes lie while `output` is made."""
    return Path(f"{output}.parts")


class Share:
    """
    What one of several processes answers.

    Args:
        output: The table in which all answers end.
        index: Which process this is, counted from 0.
        count: How many there are.

    Raises:
        UsageError: Nothing can be written beside `output`.
    """

    def __init__(self, output: str, index: int, count: int):
        self.output, self.index, self.count = output, index, count
        self.folder, suffix = parts_folder(output), Path(output).suffix
        self.path = self.folder / f"{index + 1}-of-{count}{suffix}"
        self.lock = FileLock(f"{self.path}.lock")
        # Not in the folder, which goes when all is done.
        self.all_locked = FileLock(Path(output).with_name(f".{Path(output).name}.lock"))
        try:
            self.folder.mkdir(exist_ok=True)
            self._ended(index).unlink(missing_ok=True)
            if count > 1:
                _all_have_started(index, count)
        except OSError as error:
            raise UsageError(f"{output} cannot be written: {error.strerror}.") from error

    def begin(self, items: Sequence[Item], open_table: Callable[[str], Table]) -> list[Item]:
        """
        Opens this process's table.

        Args:
            items: All recordings, the same in every process.
            open_table: Path -> a table of these recordings.

        Returns:
            Those of this process's share that nobody has answered yet.

        Raises:
            UsageError: A table is of something else or cannot be written, or another process works on this share.
        """
        self.items, self.open_table = items, open_table
        try:
            with self.all_locked:
                try:
                    self.lock.acquire(timeout=0)
                except Timeout as error:
                    raise UsageError(
                        f"Another process is writing {self.path}: wait until it has ended, or end it."
                    ) from error
                self.table = open_table(str(self.path))
                answered = {file for path in self._tables() for file in self.table.recordings_at(path)}
        except OSError as error:
            raise UsageError(f"{self.output} cannot be written: {error.strerror}.") from error
        return [item for item in items[self.index :: self.count] if item.file not in answered]

    def end(self, failed: Sequence[str]) -> tuple[Table, list[str]] | None:
        """
        Says that this process has closed its table and, where it is the last to do so, joins all of them: in
        `output` every recording stands once, in the order of the input.

        Args:
            failed: Files of this share that could not be answered.

        Returns:
            The whole table, closed, and what could not be answered of all shares; None where others are at work.
        """
        self.lock.release()
        with self.all_locked:
            self._ended(self.index).write_text(json.dumps(failed))
            ended = [self._ended(index) for index in range(self.count)]
            if not all(path.exists() for path in ended):
                return None
            failed = [file for path in ended for file in json.loads(path.read_text())]
            known: dict[str, list[dict]] = {}
            for path in self._tables():
                for file, rows in self.table.recordings_at(path).items():
                    known.setdefault(file, rows)
            ordered = [known.pop(item.file) for item in self.items if item.file in known]
            self.table.write_rows(self.output, [row for rows in (*ordered, *known.values()) for row in rows])
            shutil.rmtree(self.folder)
        whole = self.open_table(self.output)
        whole.close()
        return whole, failed

    def _ended(self, index: int) -> Path:
        """The file that says that a process of this start has come to its end."""
        return self.folder / f"{index + 1}-of-{self.count}.failed.json"

    def _tables(self) -> list[str]:
        """All there are: the whole one, then those of this and earlier starts."""
        parts = [path for path in self.folder.glob(f"*-of-*{self.path.suffix}") if "." not in path.stem]
        return [self.output, *map(str, sorted(parts))]


def _all_have_started(index: int, count: int) -> None:
    """Waits for all processes, so that none takes what an earlier start left for a sign that another has ended."""
    store, _, _ = next(distributed.rendezvous("env://", index, count, timeout=PATIENCE))
    store.set(f"started {index}", "")
    store.wait([f"started {other}" for other in range(count)], PATIENCE)
    store.set(f"heard of it {index}", "")
    if index == 0:  # in whose process the store may lie
        store.wait([f"heard of it {other}" for other in range(count)], PATIENCE)
