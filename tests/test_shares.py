"""Predictions by several processes. Run as a program by `accelerate launch`, this file is one of three."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import soundfile

import predict_ser
from ser import shares
from ser.answers import Item, Table
from ser.errors import UsageError
from ser.shares import Share, parts_folder
from tests.test_predict import LABELS, read_rows, save_checkpoint
from tests.tiny import voice

REPOSITORY = Path(__file__).parents[1]
COLUMNS = ["file", "prediction", *LABELS]
ITEMS = [Item(f"{number}.wav") for number in range(7)]


@pytest.fixture
def one_by_one(monkeypatch):
    """Processes that are played one after the other, so that none waits for the next."""
    monkeypatch.setattr(shares, "_all_have_started", lambda index, count: None)


def answer_of(item: Item) -> list[dict]:
    best = int(item.file[0]) % len(LABELS)
    return [{"label": LABELS[(best + k) % 4], "score": score} for k, score in enumerate((0.4, 0.3, 0.2, 0.1))]


def open_at(path: str, model: str = "m") -> Table:
    return Table(path, COLUMNS, LABELS, {"model": model})


def started(output: Path, count: int, items=ITEMS, table=open_at) -> list[tuple[Share, list[Item]]]:
    processes = [Share(str(output), index, count) for index in range(count)]
    return [(share, share.begin(items, table)) for share in processes]


def end(share: Share, todo: list[Item], failed: list[str] = ()) -> tuple[Table, list[str]] | None:
    for item in todo:
        if item.file not in failed:
            share.table.add(item, answer_of(item))
    share.table.close()
    return share.end(list(failed))


def test_nobody_begins_before_all_have_started(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    children = []
    for index in (1, 0, 2):  # the first of them keeps the store, and has nothing else to do
        if (child := os.fork()) == 0:
            (tmp_path / f"here {index}").touch()
            shares._all_have_started(index, 3)
            os._exit(len(list(tmp_path.glob("here *"))))
        children.append(child)
        time.sleep(0.5)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [3, 3, 3]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_the_last_to_end_joins_the_shares_in_the_order_of_the_input(one_by_one, tmp_path, suffix):
    alone, output = tmp_path / f"alone{suffix}", tmp_path / f"out{suffix}"
    table = open_at(str(alone))
    for item in ITEMS:
        table.add(item, answer_of(item))
    table.close()
    processes = started(output, 3)
    assert [[item.file[0] for item in todo] for _, todo in processes] == [["0", "3", "6"], ["1", "4"], ["2", "5"]]
    assert end(*processes[2]) is None and end(*processes[0]) is None
    joined, failed = end(*processes[1])
    assert output.read_bytes() == alone.read_bytes()
    assert Path(f"{output}.origin.json").read_text() == Path(f"{alone}.origin.json").read_text()
    assert joined.done == {item.file: answer_of(item)[0]["label"] for item in ITEMS} and failed == []
    assert not parts_folder(str(output)).exists()


def test_what_earlier_starts_left_is_answered_already_however_many_they_were(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    first = open_at(str(output))  # a process alone, broken off after two
    for item in ITEMS[:2]:
        first.add(item, answer_of(item))
    first.file.close()
    (share, todo), *_ = started(output, 3)
    assert [item.file for item in todo] == ["3.wav", "6.wav"]
    share.table.add(todo[0], answer_of(todo[0]))
    share.table.file.write("6.wav,sad,0.4")  # killed amid a row, as the others before their first
    share.table.file.close()
    share.lock.release()
    processes = started(output, 2)
    assert [[item.file[0] for item in todo] for _, todo in processes] == [["2", "4", "6"], ["5"]]
    assert end(*processes[0]) is None
    joined, _ = end(*processes[1])
    assert [row["file"] for row in read_rows(output)] == [item.file for item in ITEMS] == [*joined.done]


def test_an_end_of_an_earlier_start_is_none_of_this_one(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    for share, todo in started(output, 2)[:1]:
        assert end(share, todo) is None
    processes = started(output, 2)
    assert [len(todo) for _, todo in processes] == [0, 3]
    assert end(*processes[1]) is None  # the other one has not ended, though in the first start it had
    assert end(*processes[0]) is not None


def test_what_one_process_could_not_answer_is_counted_by_the_last_and_tried_again(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    processes = started(output, 2)
    end(*processes[0], failed=["2.wav"])
    joined, failed = end(*processes[1], failed=["5.wav"])
    assert failed == ["2.wav", "5.wav"] and len(joined.done) == 5
    processes = started(output, 2)
    assert [[item.file for item in todo] for _, todo in processes] == [["2.wav"], ["5.wav"]]
    end(*processes[0])
    end(*processes[1])
    assert [row["file"] for row in read_rows(output)] == [item.file for item in ITEMS]


def test_rows_of_another_model_or_a_share_that_is_being_written_are_refused(one_by_one, tmp_path):
    output = tmp_path / "out.csv"
    share, todo = started(output, 2)[0]
    with pytest.raises(UsageError, match="Another process is writing .*1-of-2.csv: wait until it has ended"):
        Share(str(output), 0, 2).begin(ITEMS, open_at)
    end(share, todo)
    with pytest.raises(UsageError, match="1-of-2.csv holds rows made with another model"):
        Share(str(output), 1, 2).begin(ITEMS, partial(open_at, model="another"))
    with pytest.raises(UsageError, match="nowhere.out.csv cannot be written"):
        Share(str(tmp_path / "nowhere" / "out.csv"), 0, 2).begin(ITEMS, open_at)


def test_several_processes_need_a_table(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert predict_ser.main(["a.wav"]) == 2
    assert "error: 3 processes cannot all write to the standard output: give --output." in capsys.readouterr().err


# --- three real ones ---


def launch(*arguments: str | Path) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]
    command += ["--num_processes", "3", "--main_process_port", str(port), "-m", "tests.test_shares"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_three_processes_of_which_one_is_killed_answer_every_file_once(tmp_path):
    clips, output, log = tmp_path / "clips", tmp_path / "out.csv", tmp_path / "asked"
    checkpoint = save_checkpoint(tmp_path / "model")
    for number in range(12):
        (clips / LABELS[number % 2]).mkdir(parents=True, exist_ok=True)
        path = clips / LABELS[number % 2] / f"{number:02d}.wav"
        soundfile.write(path, voice(0.3, f0=80 + 10 * number, sampling_rate=16_000), 16_000)
    (clips / "angry" / "99.wav").write_bytes(b"no clip")
    flags = ["--model", checkpoint, clips, "--device", "cpu", "--batch_size", "1"]
    log.mkdir()
    killed = launch("kill", log, *flags, "--output", output)
    assert killed.returncode != 0 and not output.exists()
    kept = {row["file"] for part in parts_folder(str(output)).glob("*-of-3.csv") for row in read_rows(part)}
    assert 2 <= len(kept) < 12
    for each in log.iterdir():
        each.unlink()

    finished = launch("go on", log, *flags, "--output", output)
    said = finished.stderr
    asked = [file for each in sorted(log.iterdir()) for file in json.loads(each.read_text())]
    broken = str(clips / "angry" / "99.wav")
    assert len(asked) == len({*asked}) and {*asked} | kept == {*map(str, clips.rglob("*.wav"))}
    assert not {*asked} & kept
    assert "13 files: 12 answered, 1 failed." in said and "on 12 labelled files" in said, said
    assert finished.returncode == 1 and broken in said
    assert not parts_folder(str(output)).exists()

    alone = tmp_path / "alone.csv"
    assert predict_ser.main([*map(str, flags), "--output", str(alone)]) == 1
    assert output.read_text() == alone.read_text()


def worker(task: str, log: str, arguments: list[str]) -> int:
    """Predicts, noting what is asked for; in the second process, to be killed after two rows."""
    asked: list[str] = []
    predict, add = predict_ser.predict, Table.add

    def noting(classify, todo, table, **kwargs):
        asked.extend(item.file for item in todo)
        return predict(classify, todo, table, **kwargs)

    def killing(table, item, answer):
        add(table, item, answer)
        if task == "kill" and os.environ["RANK"] == "1" and len(table.done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    predict_ser.predict, Table.add = noting, killing
    code = predict_ser.main(arguments)
    Path(log, os.environ["RANK"]).write_text(json.dumps(asked))
    return code


if __name__ == "__main__":
    sys.exit(worker(sys.argv[1], sys.argv[2], sys.argv[3:]))
