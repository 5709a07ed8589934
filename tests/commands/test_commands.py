"""Exit codes and error output that all commands share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import logging

from audio_maxmvit import AudioError
from ser.utils import FAILED, INTERRUPTED, DataError, NonFiniteLossError, UsageError, exit_code

ROOT = Path(__file__).parents[2]


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (2, 2)])
def test_the_return_value_of_a_command_is_its_exit_code(result, code):
    assert exit_code(lambda: result, "") == code


@pytest.mark.parametrize("error", [DataError, AudioError, UsageError, NonFiniteLossError])
def test_an_error_of_the_user_is_one_line(error, capsys):
    assert exit_code(raising(error("fix this")), "") == FAILED
    assert capsys.readouterr().err == "error: fix this\n"


def test_an_error_of_a_library_is_one_line_with_its_traceback_at_debug_level(capsys):
    refused = raising(ValueError("no such device"))
    with pytest.raises(ValueError):
        exit_code(refused, "")
    line = "error: no such device (--log_level debug shows where it came from.)\n"
    level = logging.get_verbosity()
    try:
        for verbosity in (logging.WARNING, logging.DEBUG):
            logging.set_verbosity(verbosity)
            assert exit_code(refused, "", debug_flag="--log_level debug") == FAILED
            stderr = capsys.readouterr().err
            assert stderr.endswith(line)
            assert ("in main" in stderr) == (verbosity == logging.DEBUG)
    finally:
        logging.set_verbosity(level)


def test_an_interrupted_command_prints_how_to_continue(capsys):
    assert exit_code(raising(KeyboardInterrupt()), "Run it again.") == INTERRUPTED
    assert "Run it again." in capsys.readouterr().err


COMMAND = """
import sys
from ser.utils import exit_code

def main():
    for number in range(100_000):
        print(f"line {number}")
    print("done", file=sys.stderr)

sys.exit(exit_code(main, ""))
"""


@pytest.mark.parametrize(
    ("streams", "code", "stdout"),
    [
        ("| head -1", 141, "line 0\n"),
        ("| head -c 3", 141, "lin"),
        (">&-", 0, ""),
        ("2>&- | tail -1", 0, "line 99999\n"),
    ],
)
def test_a_closed_stream_ends_a_command_without_a_traceback(streams, code, stdout):
    command = f"set -o pipefail; '{sys.executable}' -c '{COMMAND}' {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, stdout)
    assert "Error" not in done.stderr and "Exception" not in done.stderr


AT_THE_IMPORT_OF_TORCH = """
import os, runpy, sys

class PrintWaitPolicy:
    def find_spec(self, name, *args):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit

sys.meta_path.insert(0, PrintWaitPolicy())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "chosen", "expected"),
    [
        ("run_ser.py", {}, "PASSIVE 1000"),
        ("predict_ser.py", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ("predict_ser.py", {}, "PASSIVE 1000"),
        ("evaluate_ser.py", {"GOMP_SPINCOUNT": "5"}, "PASSIVE 5"),
        ("evaluate_ser.py", {}, "PASSIVE 1000"),
        ("app.py", {}, "PASSIVE 1000"),
    ],
)
def test_commands_make_openmp_wait_passively_before_torch_is_imported(command, chosen, expected):
    if command == "app.py":
        pytest.importorskip("gradio")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_IMPORT_OF_TORCH, command],
        env=environment | chosen, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr
