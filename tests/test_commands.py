import pytest
from transformers.utils import logging

from audio_maxmvit import AudioError
from ser.commands import FAILED, INTERRUPTED, exit_code
from ser.errors import DataError, NonFiniteLossError, UsageError


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
