"""Prediction by several processes: how files are divided, tables joined, and interrupted runs continued."""

import errno
import io
import json
import os
import signal
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
from accelerate import PartialState

from ser.commands import evaluate, train
from ser.commands import predict as predict_ser
from ser.inference import shards
from ser.inference.predictions import Item, Table
from ser.inference.shards import Share, connect_processes, join_parts, parts_folder
from ser.utils import RANK_VARIABLES, UsageError
from tests.helpers.predictions import LABELS, read_rows, save_checkpoint
from tests.helpers.processes import exit_codes, start_group
from tests.helpers.tiny import voice

COLUMNS = ["file", "prediction", *LABELS]
ITEMS = [Item(f"{number}.wav") for number in range(7)]


class State:
    """The state of one of several processes that run one after the other, so that none waits for another."""

    def __init__(self, process_index: int, num_processes: int):
        self.process_index, self.num_processes = process_index, num_processes
        self.is_main_process = process_index == 0

    def wait_for_everyone(self) -> None:
        pass

    @contextmanager
    def split_between_processes(self, inputs: Sequence[Any]):
        real: Any = PartialState.__new__(PartialState)
        real.__dict__ = {"num_processes": self.num_processes, "process_index": self.process_index}
        with PartialState.split_between_processes(real, inputs) as part:
            yield part


@pytest.fixture
def one_by_one(monkeypatch):
    """Gathers the failed files of processes that run one after the other, in the order in which they end."""
    gathered: list[str] = []

    def gather(failed: list[str]) -> list[str]:
        gathered.extend(failed)
        return list(gathered)

    monkeypatch.setattr(shards, "gather_object", gather)


def prediction_of(item: Item) -> list[dict]:
    best = int(item.file[0]) % len(LABELS)
    return [{"label": LABELS[(best + k) % 4], "score": score} for k, score in enumerate((0.4, 0.3, 0.2, 0.1))]


def open_at(path: str, model: str = "m") -> Table:
    return Table(path, COLUMNS, LABELS, {"model": model})


def started(output: Path, count: int, items=ITEMS, table=open_at) -> list[tuple[Share, Table, list[Item]]]:
    processes = [Share(State(index, count), str(output), items, table) for index in range(count)]
    return [(share, *share.begin()) for share in processes]


def end(share: Share, table: Table, todo: list[Item], failed: Sequence[str] = ()):
    for item in todo:
        if item.file not in failed:
            table.add(item, prediction_of(item))
    table.close()
    return share.end([item.file for item in todo if item.file in failed])


def files_of(processes) -> list[list[str]]:
    return [[item.file[0] for item in todo] for _, _, todo in processes]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_first_process_joins_all_parts_in_the_order_of_the_input(one_by_one, tmp_path, suffix):
    alone, output = tmp_path / f"alone{suffix}", tmp_path / f"out{suffix}"
    table = open_at(str(alone))
    for item in ITEMS:
        table.add(item, prediction_of(item))
    table.close()
    first, *others = started(output, 3)
    assert files_of([first, *others]) == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert [end(*process) for process in reversed(others)] == [None, None]
    joined, failed = end(*first)
    assert output.read_bytes() == alone.read_bytes()
    assert Path(f"{output}.origin.json").read_text() == Path(f"{alone}.origin.json").read_text()
    assert joined.done == {item.file: prediction_of(item)[0]["label"] for item in ITEMS} and failed == []
    assert not parts_folder(str(output)).exists()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_that_cannot_be_joined_on_a_full_disk_keep_every_prediction(
    one_by_one, tmp_path, suffix, reason, monkeypatch
):
    output = tmp_path / f"out{suffix}"
    processes = started(output, 2)
    end(*processes[1])

    def no_room(path: Path) -> None:
        raise OSError(reason, os.strerror(reason), str(path))

    with monkeypatch.context() as full:
        full.setattr("ser.files.sync", no_room)
        with pytest.raises(UsageError, match=f"out{suffix} cannot be written: .* rows are kept"):
            end(*processes[0])
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") and path.suffix != ".lock"]
    join_parts(str(output), ITEMS, open_at)
    assert [*open_at(str(output)).done] == [item.file for item in ITEMS]


def killed(output: Path) -> None:
    """Leaves the tables of one process that stopped after two files, then of three that were killed, one of them while
    it wrote its second row."""
    first = open_at(str(output))
    for item in ITEMS[:2]:
        first.add(item, prediction_of(item))
    first.file.close()
    processes = started(output, 3)
    assert files_of(processes) == [["2", "3"], ["4", "5"], ["6"]]
    _, table, todo = processes[1]
    table.add(todo[0], prediction_of(todo[0]))
    table.file.write("5.wav,sad,0.4")
    for share, table, _ in processes:
        table.file.close()
        share.lock.release()


def test_predictions_of_earlier_runs_are_reused_whatever_their_number_of_processes(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    killed(output)
    first, second = started(output, 2)
    assert files_of([first, second]) == [["2", "3"], ["5", "6"]]
    assert end(*second) is None
    joined, _ = end(*first)
    assert [row["file"] for row in read_rows(output)] == [item.file for item in ITEMS] == [*joined.done]


def test_a_single_process_continues_the_tables_of_several(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    killed(output)
    table, todo = predict_ser.begin(str(output), ITEMS, open_at)
    assert [item.file[0] for item in todo] == ["2", "3", "5", "6"]
    assert [*table.done] == ["0.wav", "1.wav", "4.wav"] and not parts_folder(str(output)).exists()
    join_parts(str(output), ITEMS, open_at)  # nothing is left to join
    assert [row["file"] for row in read_rows(output)] == ["0.wav", "1.wav", "4.wav"]


def test_failed_files_of_all_processes_are_counted_by_the_first_and_tried_again(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    first, second = started(output, 2)
    end(*second, failed=["5.wav"])
    joined, failed = end(*first, failed=["2.wav"])
    assert sorted(failed) == ["2.wav", "5.wav"] and len(joined.done) == 5
    first, second = started(output, 2)
    assert files_of([first, second]) == [["2"], ["5"]]
    end(*second)
    end(*first)
    assert [row["file"] for row in read_rows(output)] == [item.file for item in ITEMS]


def test_tables_of_another_model_and_tables_in_use_are_refused(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    first, second = started(output, 2)
    with pytest.raises(UsageError, match="Other processes are writing .*out.csv: wait until they have ended"):
        Share(State(0, 2), str(output), ITEMS, open_at).begin()
    end(*second)
    end(*first)
    with pytest.raises(UsageError, match="out.csv holds rows made with another model"):
        Share(State(0, 2), str(output), ITEMS, partial(open_at, model="another")).begin()


def test_machines_that_do_not_share_the_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is not on this machine: put --output on a disk that all machines share"):
        Share(State(1, 2), str(tmp_path / "out.csv"), ITEMS, open_at).begin()


def test_several_processes_need_a_table(monkeypatch, capsys):
    monkeypatch.setattr(predict_ser, "connect_processes", lambda: State(0, 3))
    assert predict_ser.main(["a.wav"]) == 2
    assert "error: 3 processes cannot all write to the standard output: give --output." in capsys.readouterr().err


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "x"}, {"WORLD_SIZE": "0"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "4"},
        {"WORLD_SIZE": "1.5"}, {"LOCAL_RANK": ""}, {"RANK": "1"},
    ],
)  # fmt: skip
def test_invalid_rank_variables_are_named(variables, monkeypatch, capsys):
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert connect_processes() is None
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert predict_ser.main(["a.wav"]) == 2
    stderr = capsys.readouterr().err
    assert all(f"{name}={text!r}" in stderr for name, text in variables.items()) and "unset these variables" in stderr
    for main in (train.main, evaluate.main):
        with pytest.raises(UsageError, match="unset these variables"):
            main(["somewhere"])


# --- two real processes ---


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_of_which_one_is_killed_classify_every_file_once(tmp_path):
    clips, output, log = tmp_path / "clips", tmp_path / "out.csv", tmp_path / "log"
    checkpoint = save_checkpoint(tmp_path / "model")
    for number in range(12):
        (clips / LABELS[number % 2]).mkdir(parents=True, exist_ok=True)
        path = clips / LABELS[number % 2] / f"{number:02d}.wav"
        soundfile.write(path, voice(0.3, f0=80 + 10 * number, sampling_rate=16_000), 16_000)
    (clips / "angry" / "99.wav").write_bytes(b"no clip")
    flags = ["--model", checkpoint, clips, "--device", "cpu", "--batch_size", "1"]
    log.mkdir()
    arguments = [*map(str, flags), "--output", str(output)]
    assert exit_codes(start_group(2, worker, "kill", log, arguments))[1] == -signal.SIGKILL and not output.exists()
    kept = {row["file"] for part in parts_folder(str(output)).glob("*-of-2.csv") for row in read_rows(part)}
    assert 2 <= len(kept) < 12
    for each in log.iterdir():
        each.unlink()

    assert exit_codes(start_group(2, worker, "continue", log, arguments)) == [0, 0]
    notes = [json.loads((log / f"{rank}.json").read_text()) for rank in (0, 1)]
    attempted = [file for note in notes for file in note["attempted"]]
    stderr = "".join(note["stderr"] for note in notes)
    broken = str(clips / "angry" / "99.wav")
    assert len(attempted) == len({*attempted}) and {*attempted} | kept == {*map(str, clips.rglob("*.wav"))}
    assert not {*attempted} & kept
    assert "13 files: 12 classified, 1 failed." in stderr and "on 12 labelled files" in stderr, stderr
    assert notes[0]["code"] == 1 and broken in stderr
    assert not parts_folder(str(output)).exists()

    alone = tmp_path / "alone.csv"
    assert predict_ser.main([*map(str, flags), "--output", str(alone)]) == 1
    assert output.read_text() == alone.read_text()


def worker(task: str, log: Path, arguments: list[str]) -> None:
    """Predicts, and notes the files that are attempted; the task "kill" kills the second process after two rows."""
    attempted: list[str] = []
    predict, add = predict_ser.predict, Table.add

    def predict_and_note(classify, todo, *others):
        attempted.extend(item.file for item in todo)
        return predict(classify, todo, *others)

    def add_and_kill(table, item, answer):
        add(table, item, answer)
        if task == "kill" and os.environ["RANK"] == "1" and len(table.done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    predict_ser.predict, Table.add = predict_and_note, add_and_kill
    with redirect_stderr(io.StringIO()) as stderr:
        code = predict_ser.main(arguments)
    note = {"attempted": attempted, "code": code, "stderr": stderr.getvalue()}
    (log / f"{os.environ['RANK']}.json").write_text(json.dumps(note))
