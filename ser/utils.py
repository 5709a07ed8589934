"""Errors that a user can mend, the environment of a command, and the exit codes of all commands."""

import os
import sys
import traceback
from collections.abc import Callable

# ---- Errors ----


class DataError(ValueError):
    """Something about the data, or about what was asked of it, that its user can mend; the message says how."""


class UsageError(Exception):
    """What the user has to change before anything can be predicted."""


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is not finite, more often than was to be tolerated."""


# ---- Environment ----


def wait_passively() -> None:
    """
    Has OpenMP's threads sleep at a barrier instead of spinning on a core that the one they wait for may need: beside
    one busy process a step of training is 1.6 times as fast, beside eight 2.9 times. On an idle machine the demo's
    tiny model, whose steps are hundreds of barriers, loses 2 to 16 % by it (`python -m benchmarks.busy_machine`). What
    the user has set is left as it is.
    """
    if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


# ---- Ends of commands ----

FAILED, NOT_STARTED, INTERRUPTED = 1, 2, 130
NO_READER = 141  # 128 + SIGPIPE, as of any program whose output nothing reads on


def exit_code(main: Callable[[], int | None], interrupted: str, debug_flag: str | None = None) -> int:
    """
    Runs a command to its end.

    Args:
        main (`Callable`): The command; what it returns is the exit code, None is 0.
        interrupted (`str`): What to say after Ctrl+C.
        debug_flag (`str`, *optional*): The flag that shows where an error came from. A command that has one also
            answers what the libraries under it refuse (`ValueError`, `OSError`) in a line; others show the traceback.

    Returns:
        `int`: The command's own, [`FAILED`], [`INTERRUPTED`], or [`NO_READER`] where what reads the standard output
            (`| head`) has ended.
    """
    if sys.stderr is None:  # closed by the shell (2>&-); print would write to the standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes the standard output once more as it ends, and would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, UsageError, NonFiniteLossError) as error:
        # Not imported before they are needed: help and mistyped flags are answered without them.
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
