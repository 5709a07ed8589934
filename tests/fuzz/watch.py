"""Runs one case and reports its end, its time, its memory, and what it wrote outside its folder."""

import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

LIMIT_S, LIMIT_MIB = 10.0, 1024.0
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


@dataclass
class Outcome:
    """The end of a case: `accepted`, the name of the error that refused it, or a failure with its reason."""

    end: str
    message: str = ""
    failed: bool = False
    seconds: float = 0.0
    mib: float = 0.0
    where: TracebackType | None = None


class TooSlowError(BaseException):
    """Derives from `BaseException`, so that the code under test does not catch it."""


class _Writes:
    """Records what is opened for writing or changed outside `folder`, if that is not None."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, args: tuple) -> None:
        if self.folder is None or not (event == "open" or event in CHANGES):
            return
        if event == "open":
            _, mode, flags = args
            writes = flags & WRITING if mode is None else set(mode) & set("wax+")
            if not writes:
                return
        path = args[0]
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(path))
            if not path.startswith((self.folder, "/dev/null", "/proc/self/")):
                self.outside.append(f"{event} {path}")


_writes = _Writes()


def _clock() -> float:
    """Returns seconds without those in which this thread waited for a core, which the case did not cause."""
    try:
        without_a_core = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # the system does not count them
        without_a_core = 0.0
    return time.perf_counter() - without_a_core


@contextmanager
def _time_limit(start: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        left = LIMIT_S - (_clock() - start)
        if left <= 0:
            raise TooSlowError
        signal.setitimer(signal.ITIMER_REAL, left)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory_mib(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak stays that of the whole process, so only new peaks are found
        resource.getrusage(resource.RUSAGE_SELF)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Makes a folder the working directory and that of temporary files."""
    before, temporary, bytecode = os.getcwd(), tempfile.tempdir, sys.dont_write_bytecode
    os.chdir(folder)
    tempfile.tempdir, sys.dont_write_bytecode = str(folder), True
    _writes.folder, _writes.outside = os.path.abspath(folder), []
    try:
        yield
    finally:
        _writes.folder = None
        tempfile.tempdir, sys.dont_write_bytecode = temporary, bytecode
        os.chdir(before)


def watched(run: Callable[[], str], folder: Path) -> Outcome:
    """
    Runs a case within the limits and returns its outcome.

    Args:
        run: Runs the case and returns the name of its end; any exception is a failure.
        folder: Folder in which the case may write.
    """
    _forget_peak()
    memory, start = _memory_mib("VmRSS"), _clock()
    with _inside(folder):
        try:
            with _time_limit(start):
                outcome = Outcome(run())
        except TooSlowError:
            outcome = Outcome("too slow", f"over {LIMIT_S:g} s", failed=True)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = Outcome(f"crash {type(error).__name__}", str(error), failed=True)
            outcome.where = error.__traceback__
        outside = _writes.outside
    outcome.seconds, outcome.mib = _clock() - start, _memory_mib("VmHWM") - memory
    if not outcome.failed:
        if outside:
            outcome = Outcome("wrote", outside[0], True, outcome.seconds, outcome.mib)
        elif outcome.seconds > LIMIT_S:
            outcome = Outcome("too slow", f"{outcome.seconds:.1f} s", True, outcome.seconds, outcome.mib)
        elif outcome.mib > LIMIT_MIB:
            outcome = Outcome("too large", f"{outcome.mib:.0f} MiB", True, outcome.seconds, outcome.mib)
    return outcome
