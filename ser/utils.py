"""Errors that a user can correct, the environment of a command, and the exit codes of all commands."""

import os
import sys
import traceback
from collections.abc import Callable

# ---- Errors ----


class DataError(ValueError):
    """Raised for a fault of the data or of the request that a user can correct; the message says how."""


class UsageError(Exception):
    """Raised for a mistake that a user must correct before a command can start."""


class NonFiniteLossError(FloatingPointError):
    """Raised if the loss or its gradient is non-finite more often than tolerated."""


# ---- Environment ----


def wait_passively() -> None:
    """
    Makes OpenMP's threads sleep at a barrier instead of spinning, which may occupy the core that the thread they wait
    for needs: beside one busy process, a training step is 1.6 times as fast, beside eight 2.9 times. On an idle
    machine the demo's tiny model, whose steps have hundreds of barriers, is 2 to 16 % slower
    (`python -m benchmarks.training openmp`). Variables that the user has set are kept.
    """
    if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def count_processes() -> int:
    """
    Returns how many processes `accelerate launch` or `torchrun` has started.

    Raises:
        UsageError: The environment variables that number them are invalid.
    """
    given = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    numbers = {name: int(text) if text.strip().isdecimal() else -1 for name, text in given.items()}
    count = numbers.get("WORLD_SIZE", 1)
    if -1 in numbers.values() or count < 1 or numbers.get("RANK", 0) >= count:
        shown = ", ".join(f"{name}={text!r}" for name, text in given.items())
        raise UsageError(
            f"the environment has {shown}, which is not a valid numbering of processes: unset these variables, or "
            "start with `accelerate launch`, which sets them."
        )
    return count


# ---- Ends of commands ----

FAILED, NOT_STARTED, INTERRUPTED = 1, 2, 130
NO_READER = 141  # 128 + SIGPIPE: the program that read the output has ended


def exit_code(main: Callable[[], int | None], interrupted: str, debug_flag: str | None = None) -> int:
    """
    Runs a command and returns its exit code.

    Args:
        main (`Callable`): The command; it returns its exit code, where None is 0.
        interrupted (`str`): Message after Ctrl+C.
        debug_flag (`str`, *optional*): The option that shows where an error came from. A command that has one prints
            errors of libraries (`ValueError`, `OSError`) in one line, too; other commands show the traceback.

    Returns:
        `int`: The command's own code, [`FAILED`], [`INTERRUPTED`], or [`NO_READER`] if the program that read the
            standard output (`| head`) has ended.
    """
    if sys.stderr is None:  # closed by the shell (2>&-); print would write to the standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes the standard output once more as it exits, and would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, UsageError, NonFiniteLossError) as error:
        # Imported here, since help and misspelt options do not need them.
        from transformers.utils import logging

        from audio_maxmvit import AudioError

        if isinstance(error, DataError | AudioError | UsageError | NonFiniteLossError):
            print(f"error: {error}", file=sys.stderr)
            return FAILED
        if debug_flag is None:
            raise
        if logging.get_verbosity() <= logging.DEBUG:
            traceback.print_exc()
        print(f"error: {error} ({debug_flag} shows where it came from.)", file=sys.stderr)
        return FAILED
