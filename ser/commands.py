"""How every command ends: in an exit code and, where its user has something to mend, one line that says what."""

import sys
import traceback
from collections.abc import Callable

from ser.errors import DataError, NonFiniteLossError, UsageError

FAILED, NOT_STARTED, INTERRUPTED = 1, 2, 130


def exit_code(main: Callable[[], int | None], interrupted: str, debug_flag: str | None = None) -> int:
    """
    Runs a command to its end.

    Args:
        main (`Callable`): The command; what it returns is the exit code, None is 0.
        interrupted (`str`): What to say after Ctrl+C.
        debug_flag (`str`, *optional*): The flag that shows where an error came from. A command that has one also
            answers what the libraries under it refuse (`ValueError`, `OSError`) in a line; others show the traceback.

    Returns:
        `int`: The command's own, [`FAILED`] or [`INTERRUPTED`].
    """
    try:
        return main() or 0
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
