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


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (2, 2)])
def test_what_a_command_returns_is_its_exit_code(answer, code):
    assert exit_code(lambda: answer, "") == code


@pytest.mark.parametrize("error", [DataError, AudioError, UsageError, NonFiniteLossError])
def test_what_the_user_can_mend_is_one_line(error, capsys):
    assert exit_code(raising(error("mend this")), "") == FAILED
    assert capsys.readouterr().err == "error: mend this\n"


def test_what_a_library_refuses_is_one_line_and_its_origin_where_it_is_asked_for(capsys):
    refused = raising(ValueError("no such device"))
    with pytest.raises(ValueError):
        exit_code(refused, "")
    line = "error: no such device (--log_level debug shows where it came from.)\n"
    level = logging.get_verbosity()
    try:
        for verbosity in (logging.WARNING, logging.DEBUG):
            logging.set_verbosity(verbosity)
            assert exit_code(refused, "", debug_flag="--log_level debug") == FAILED
            said = capsys.readouterr().err
            assert said.endswith(line)
            assert ("in main" in said) == (verbosity == logging.DEBUG)
    finally:
        logging.set_verbosity(level)


def test_an_interrupted_command_says_how_to_go_on(capsys):
    assert exit_code(raising(KeyboardInterrupt()), "Give it again.") == INTERRUPTED
    assert "Give it again." in capsys.readouterr().err


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
    ("streams", "code", "said"),
    [
        ("| head -1", 141, "line 0\n"),
        ("| head -c 3", 141, "lin"),
        (">&-", 0, ""),
        ("2>&- | tail -1", 0, "line 99999\n"),
    ],
)
def test_a_stream_that_is_closed_ends_a_command_without_a_trace(streams, code, said):
    command = f"set -o pipefail; '{sys.executable}' -c '{COMMAND}' {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, said)
    assert "Error" not in done.stderr and "Exception" not in done.stderr


AT_THE_IMPORT_OF_TORCH = """
import os, runpy, sys

class Tell:
    def find_spec(self, name, *args):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit

sys.meta_path.insert(0, Tell())
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
def test_commands_have_openmp_wait_passively_before_torch_is_there(command, chosen, expected):
    if command == "app.py":
        pytest.importorskip("gradio")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_IMPORT_OF_TORCH, command],
        env=own | chosen, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr
