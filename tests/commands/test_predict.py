"""predict_ser.py: the rows of clips, windows and lists, tables that are continued, and errors."""

import argparse
import csv
import errno
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser.commands import predict as predict_ser
from ser.inference.predictions import Item, Table, find_items, open_table
from ser.utils import DataError, UsageError
from tests.helpers.marks import first_fast
from tests.helpers.predictions import LABELS, read_rows, save_checkpoint
from tests.helpers.processes import start
from tests.helpers.servers import Folder, serving
from tests.helpers.tiny import voice


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Writes six clips in folders named after their labels, and a text file."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(6):
        path = folder / LABELS[index % 2] / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, voice(0.3 + 0.2 * index, f0=90 + 20 * index, sampling_rate=16_000), 16_000)
    (folder / "angry" / "readme.txt").write_text("not a clip")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_folder_gives_a_row_for_each_clip_and_scores_by_its_subfolders(checkpoint, clips, tmp_path, suffix, capsys):
    output = tmp_path / f"out{suffix}"
    assert predict_ser.main(["--model", checkpoint, str(clips), "--output", str(output), "--batch_size", "4"]) == 0
    rows = read_rows(output)
    assert [row["file"] for row in rows] == sorted(map(str, clips.rglob("*.wav")))
    for row in rows:
        assert row["label"] == Path(row["file"]).parent.name
        scores = [float(row[label]) for label in LABELS]
        assert sum(scores) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == LABELS[int(np.argmax(scores))]
    accuracy = np.mean([row["label"] == row["prediction"] for row in rows])
    messages = capsys.readouterr().err
    assert "6 files: 6 classified, 0 failed." in messages
    assert f"WA {accuracy:.4f}  UA {accuracy:.4f} on 6 labelled files" in messages


def test_without_an_output_rows_go_to_the_standard_output(checkpoint, clips, capsys):
    clip = str(clips / "angry" / "0.wav")
    assert predict_ser.main(["--model", checkpoint, clip, clip]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["file"] for row in rows] == [clip]
    assert "label" not in rows[0]


def test_a_model_among_the_inputs_is_refused_with_the_right_option(checkpoint, clips, capsys):
    for inputs in ([checkpoint, str(clips)], [checkpoint]):
        with pytest.raises(SystemExit) as stopped:
            predict_ser.main(inputs)
        assert stopped.value.code == 2
        assert f"{checkpoint} is a checkpoint: give the model with --model, as --model" in capsys.readouterr().err


def test_windows_give_rows_with_times_and_their_mean_is_scored(checkpoint, clips, tmp_path, capsys):
    output = tmp_path / "out.csv"
    arguments = ["--model", checkpoint, str(clips), "--window", "0.5", "--hop", "0.25", "--output", str(output)]
    assert predict_ser.main(arguments) == 0
    rows = read_rows(output)
    assert {row["file"]: int(row["windows"]) for row in rows} == {
        file: sum(row["file"] == file for row in rows) for file in map(str, clips.rglob("*.wav"))
    }
    last = [row for row in rows if row["file"].endswith("5.wav")]
    assert [float(row["start"]) for row in last] == [0, 0.25, 0.5, 0.75, 0.8]
    assert [float(row["end"]) for row in last] == [0.5, 0.75, 1, 1.25, 1.3]
    correct = []
    for file in {row["file"] for row in rows}:
        mean = np.mean([[float(row[label]) for label in LABELS] for row in rows if row["file"] == file], axis=0)
        correct.append(LABELS[int(mean.argmax())] == Path(file).parent.name)
    assert f"WA {np.mean(correct):.4f}" in capsys.readouterr().err


def test_a_recording_of_silence_has_rows_and_is_not_scored(checkpoint, tmp_path, capsys):
    (tmp_path / "sad").mkdir()
    soundfile.write(tmp_path / "sad" / "nothing.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "sad" / "voice.wav", voice(0.5, sampling_rate=16_000), 16_000)
    output = tmp_path / "out.jsonl"
    arguments = [str(tmp_path / "sad"), "--window", "0.5", "--output", str(output)]
    assert predict_ser.main(["--model", checkpoint, *arguments]) == 0
    assert [row["prediction"] == "silence" for row in read_rows(output)] == [True, True, False]
    assert "on 1 labelled files (1 silent ones left out)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("window", first_fast([[], ["--window", "0.5"]]))
def test_uncertain_predictions_are_counted_apart_and_keep_their_scores(checkpoint, clips, tmp_path, capsys, window):
    plain, output = tmp_path / "plain.csv", tmp_path / "out.csv"
    arguments = ["--model", checkpoint, str(clips), *window, "--output"]
    assert predict_ser.main([*arguments, str(plain)]) == 0
    best = sorted(max(float(row[label]) for label in LABELS) for row in read_rows(plain))
    bounded = [*arguments, str(output), "--min_score", str(best[len(best) // 2] - 1e-5)]
    capsys.readouterr()
    for _ in range(2):  # from the start, and from the finished table
        assert predict_ser.main(bounded) == 0
        stderr = capsys.readouterr().err
        if not window:
            assert "on 3 labelled files (3 uncertain ones left out)" in stderr
    for row, before in zip(read_rows(output), read_rows(plain), strict=True):
        sure = max(float(row[label]) for label in LABELS) >= float(bounded[-1])
        assert row == before | {"prediction": before["prediction"] if sure else "uncertain"}
    assert predict_ser.main([*arguments, str(output)]) == 2
    assert "holds rows made with another min_score" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict_ser.main([*arguments, str(output), "--min_score", "1.5"])


@pytest.fixture
def talks(clips, tmp_path) -> tuple[Path, Path]:
    """Writes recordings of 1.2 and 0.8 s, the second half of the latter silent, and their true segments as RTTM."""
    sound = voice(1.2, sampling_rate=16_000)
    soundfile.write(tmp_path / "one.wav", sound, 16_000)
    soundfile.write(tmp_path / "two.wav", np.concatenate([sound[:6_400], np.zeros(6_400)]), 16_000)
    segments = tmp_path / "true.rttm"
    lines = [("one", 0.0, 0.6, "sad"), ("one", 0.6, 0.6, "happy"), ("two", 0.2, 0.6, "angry")]
    segments.write_text("".join(f"SPEAKER {n} 1 {s} {d} <NA> <NA> {x} <NA> <NA>\n" for n, s, d, x in lines))
    return tmp_path, segments


def shares_of_time(rows: list[dict], truth: list[tuple[float, float, str]]) -> dict[str, float]:
    """Returns the shares of missed, false and confused time, counted every 10 ms; windows must not overlap."""
    kinds = {"missed": 0, "false": 0, "confused": 0}
    times = np.arange(0.005, float(rows[-1]["end"]), 0.01)
    for time_s in times:
        true = next((label for start, end, label in truth if start <= time_s < end), "silence")
        predicted = next(row["prediction"] for row in rows if float(row["start"]) <= time_s < float(row["end"]))
        if true != predicted:
            kinds["missed" if predicted == "silence" else "false" if true == "silence" else "confused"] += 1
    return {name: count / len(times) for name, count in kinds.items()}


@pytest.mark.slow
def test_windows_are_scored_by_reference_segments_even_if_the_table_is_finished(checkpoint, talks, capsys):
    folder, segments = talks
    output = folder / "out.csv"
    arguments = ["--model", checkpoint, str(folder), "--window", "0.2", "--segments", str(segments)]
    assert predict_ser.main([*arguments, "--output", str(output)]) == 0
    scores = [line for line in capsys.readouterr().err.splitlines() if "EDER" in line]
    truth = {"one": [(0.0, 0.6, "sad"), (0.6, 1.2, "happy")], "two": [(0.2, 0.8, "angry")]}
    for name, line in zip(("one", "two"), scores[:2], strict=True):
        expected = shares_of_time([row for row in read_rows(output) if Path(row["file"]).stem == name], truth[name])
        parts = ", ".join(f"{kind} {share:.3f}" for kind, share in expected.items())
        assert line.startswith(
            f"{folder / name}.wav: EDER {sum(expected.values()):.3f} ({parts}), time labelled right "
        )
    assert scores[2].startswith("2 recordings: EDER ") and len(scores) == 3
    rows = output.read_text().splitlines(keepends=True)
    for kept in (rows, rows[:-1], rows[:1]):  # a finished table, one with half of a recording, one without any
        output.write_text("".join(kept))
        assert predict_ser.main([*arguments, "--output", str(output)]) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if "EDER" in line] == scores
    assert predict_ser.main(arguments) == 0  # the table on the standard output
    assert [line for line in capsys.readouterr().err.splitlines() if "EDER" in line] == scores


def test_segments_with_unknown_labels_are_refused_first_and_those_past_the_end_named_last(checkpoint, talks, capsys):
    folder, segments = talks
    whole = segments.read_text()
    arguments = ["--model", checkpoint, str(folder), "--window", "0.2", "--segments", str(segments)]
    segments.write_text(whole.replace("happy", "bored"))
    assert predict_ser.main(arguments) == 2
    streams = capsys.readouterr()
    assert f"error: {segments}, line 2: the model has no label 'bored'" in streams.err and not streams.out
    segments.write_text(whole.replace("0.2 0.6", "0.2 0.9"))
    with pytest.raises(DataError, match="line 3: the segment ends at 1.1 s, but .*two.wav at 0.8 s"):
        predict_ser.main(arguments)
    assert "two.wav,0.6,0.8,4,silence" in capsys.readouterr().out  # the predictions are printed nevertheless


def test_a_list_of_segments_names_recordings_without_labels(checkpoint, talks, capsys):
    folder, _ = talks
    listed = folder / "true.csv"
    listed.write_text("file,start,end,label\none.wav,0,1,sad\none.wav,1,1.2,silence\n")
    arguments = ["--model", checkpoint, str(listed), "--window", "0.2", "--segments", str(listed)]
    assert predict_ser.main(arguments) == 0
    stderr = capsys.readouterr().err
    assert "1 files: 1 classified" in stderr and f"{folder / 'one.wav'}: EDER" in stderr and "WA" not in stderr


def test_a_list_names_files_relative_to_its_folder_and_their_labels(checkpoint, clips, capsys):
    listed = clips / "list.csv"
    listed.write_text("file,label\nangry/0.wav,sad\nhappy/1.wav,happy\nhappy/3.wav,\n")
    assert predict_ser.main(["--model", checkpoint, str(listed)]) == 0
    streams = capsys.readouterr()
    rows = list(csv.DictReader(streams.out.splitlines()))
    labels = {Path(row["file"]).name: row["label"] for row in rows}
    assert labels == {"0.wav": "sad", "1.wav": "happy", "3.wav": ""}
    assert "on 2 labelled files" in streams.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.CSV", "Label;File \nsad;angry/0.wav\nsad;angry/0.wav\n;happy/1.wav\n"),
        ("x.tsv", "file_name\tLABEL\nangry/0.wav\tsad\nhappy/1.wav\t\n"),
        ("x.jsonl", '{"FILE": "angry/0.wav", "label": "sad"}\n{"FILE": "happy/1.wav", "label": null}\n'),
    ],
)
def test_a_list_is_read_in_every_dialect(clips, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    expected = [Item(str(tmp_path / "angry/0.wav"), "sad"), Item(str(tmp_path / "happy/1.wav"), None)]
    assert find_items([str(tmp_path / name)], LABELS) == expected


def test_two_labels_of_one_file_are_refused(clips, tmp_path):
    (tmp_path / "x.csv").write_text("file,label\na.wav,sad\nb.wav,sad\na.wav,happy\n")
    with pytest.raises(DataError, match="x.csv: a.wav has two labels, in lines 2 and 4"):
        find_items([str(tmp_path / "x.csv")], LABELS)
    (tmp_path / "y.csv").write_text(f"file,label\n{clips}/angry/0.wav,sad\n")
    with pytest.raises(UsageError, match="0.wav has two labels, angry and sad .in .*y.csv"):
        find_items([str(clips), str(tmp_path / "y.csv")], LABELS)
    (tmp_path / "z.csv").write_text(f"file,label\n{clips}/angry/0.wav,angry\n")
    items = find_items([str(clips / "angry" / "0.wav"), str(tmp_path / "z.csv")], LABELS)
    assert items == [Item(str(clips / "angry" / "0.wav"), "angry")]


def test_files_of_a_folder_that_are_not_recordings_are_counted_in_one_line(clips, tmp_path, capsys):
    for name in ("a.wav", "b.WAV", "c.txt", "deep/d.TXT", "deep/e.xyz", "f", ".hidden", "g.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [Path(item.file).name for item in find_items([str(tmp_path)], LABELS)] == ["a.wav", "b.WAV", "g.flac"]
    assert capsys.readouterr().err == f"{tmp_path}: left out by their suffix: 2 .txt, 1 .xyz, 1 without a suffix.\n"


@pytest.mark.parametrize("name", ["a\u2028b.wav", "a\x85b.wav", "a\rb.wav", 'q"\n,.wav', "s\udce9.wav"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_of_predictions_keeps_any_file_name(tmp_path, name, suffix):
    path, columns = str(tmp_path / f"out{suffix}"), ["file", "prediction", *LABELS]
    prediction = [{"label": label, "score": 0.25} for label in LABELS]
    for names in ([name], [name, "b.wav"], [name, "b.wav", "c.wav"]):  # the next run reads what the last one wrote
        table = Table(path, columns, LABELS, {"model": "x"})
        assert list(table.done) == names[:-1]
        table.add(Item(names[-1]), prediction)
        table.close()
    assert list(Table(path, columns, LABELS, {"model": "x"}).recordings_at(path)) == [name, "b.wav", "c.wav"]


@pytest.mark.parametrize("label", ["file", "prediction", "silence", "Uncertain", "Unfamiliar"])
def test_a_model_with_a_label_that_the_table_uses_is_refused(label):
    args = argparse.Namespace(window=None, min_score=None, min_familiarity=None, only=None)
    with pytest.raises(UsageError, match=f"The model has a label '{label.lower()}'.*rename it in id2label"):
        open_table(args, [], ["sad", label], None, None)


def test_broken_files_are_counted_named_and_have_no_row(checkpoint, clips, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    whole = (clips / "angry" / "4.wav").read_bytes()
    contents = {"a.wav": whole, "b.mp3": b"text", "c.flac": b"", "d.wav": whole[:5_000], "e.wav": whole, "f.m4a": b"?"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "g.wav").symlink_to(tmp_path / "gone.wav")
    output = tmp_path / "out.csv"
    missing = str(tmp_path / "missing.wav")
    arguments = [str(folder), missing, "http://[bad/x.wav", "--output", str(output)]
    assert predict_ser.main(["--model", checkpoint, *arguments]) == 1
    assert [Path(row["file"]).name for row in read_rows(output)] == ["a.wav", "e.wav"]
    messages = capsys.readouterr().err
    assert "9 files: 2 classified, 7 failed." in messages
    assert all(name in messages for name in ("b.mp3", "c.flac", "d.wav", "f.m4a", "g.wav", missing, "[bad"))


def test_a_url_of_the_local_network_needs_permission(checkpoint, clips, capsys):
    with serving(functools.partial(Folder, directory=clips)) as base:
        assert predict_ser.main(["--model", checkpoint, f"{base}/angry/0.wav"]) == 1
        assert "own network; allow_private_urls permits that" in capsys.readouterr().err
        assert predict_ser.main(["--model", checkpoint, f"{base}/angry/0.wav", "--allow_private_urls"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "window"),
    first_fast([(".csv", []), (".jsonl", []), (".csv", ["--window", "0.3"]), (".jsonl", ["--window", "0.3"])]),
)
def test_a_run_interrupted_anywhere_is_finished_by_the_next(checkpoint, clips, tmp_path, suffix, window, monkeypatch):
    output = tmp_path / f"out{suffix}"
    arguments = ["--model", checkpoint, str(clips), "--output", str(output), *window]
    windows = {"window_s": float(window[1])} if window else {}
    loaded = predict_ser.load_pipeline(checkpoint, "cpu", on_error="skip", **windows)
    monkeypatch.setattr(predict_ser, "load_pipeline", lambda *args, **kwargs: loaded)
    assert predict_ser.main(arguments) == 0
    whole = output.read_bytes()
    expected = read_rows(output)
    for cut in [0, 3, *np.linspace(len(whole) / 3, len(whole) - 1, 4).astype(int)]:
        output.write_bytes(whole[:cut])
        assert predict_ser.main(arguments) == 0
        assert [(row["file"], row["prediction"]) for row in read_rows(output)] == [
            (row["file"], row["prediction"]) for row in expected
        ]
    finished = output.read_bytes()
    monkeypatch.setattr(loaded, "_forward", None)  # nothing is left to do
    assert predict_ser.main(arguments) == 0
    assert output.read_bytes() == finished


@pytest.mark.slow
def test_a_killed_run_leaves_complete_rows_and_the_next_adds_the_missing_ones(checkpoint, tmp_path, capsys):
    folder, output = tmp_path / "clips", tmp_path / "out.csv"
    folder.mkdir()
    for index in range(20):
        soundfile.write(folder / f"{index:02d}.wav", voice(0.5, f0=80 + index, sampling_rate=16_000), 16_000)
    arguments = [str(folder), "--model", checkpoint, "--output", str(output), "--batch_size", "1", "--device", "cpu"]
    process = start(predict_ser.main, arguments)
    while process.is_alive() and (not output.exists() or output.read_text().count("\n") < 3):
        time.sleep(0.01)
    process.kill()
    process.join()
    first = output.read_text()
    assert 3 <= first.count("\n") < 21
    assert predict_ser.main(arguments) == 0
    done = first.count("\n") - 1
    assert f"holds {done} files already; {20 - done} remain." in capsys.readouterr().err
    assert output.read_text().startswith(first[: first.rfind("\n") + 1])
    assert [Path(row["file"]).stem for row in read_rows(output)] == [f"{index:02d}" for index in range(20)]


@pytest.mark.slow
def test_a_table_of_another_model_or_of_other_windows_is_not_continued(checkpoint, clips, tmp_path, capsys):
    retrained = save_checkpoint(tmp_path / "retrained", seed=1)
    moved = str(shutil.copytree(checkpoint, tmp_path / "moved"))
    output = tmp_path / "out.csv"

    def run(model: str, *flags: str) -> tuple[int, str]:
        code = predict_ser.main(["--model", model, str(clips), "--output", str(output), *flags])
        return code, capsys.readouterr().err

    assert run(checkpoint)[0] == 0
    whole = output.read_text()
    code, message = run(retrained)
    assert code == 2
    assert f"{output} holds rows made with another model; give another --output, or remove {output}" in message
    assert output.read_text() == whole
    code, message = run(moved)
    assert code == 0
    assert "holds 6 files already; 0 remain." in message
    output.unlink()
    assert run(retrained)[0] == 0
    assert output.read_text() != whole

    output.unlink()
    assert run(checkpoint, "--window", "0.5")[0] == 0
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:4]))
    others = {"window and hop": ["0.3"], "hop": ["0.5", "--hop", "0.2"], "smooth": ["0.5", "--smooth", "3"]}
    for differing, flags in others.items():
        code, message = run(checkpoint, "--window", *flags)
        assert code == 2
        assert f"made with another {differing};" in message
    assert run(checkpoint, "--window", "0.5", "--hop", "0.5")[0] == 0  # the same windows, with an explicit hop


@pytest.mark.slow
@pytest.mark.parametrize("origin", [None, "", "3", '{"model": "'])
def test_a_table_without_a_valid_origin_file_is_not_continued(checkpoint, clips, tmp_path, capsys, origin):
    output = tmp_path / "out.jsonl"
    arguments = ["--model", checkpoint, str(clips / "angry" / "0.wav"), "--output", str(output)]
    assert predict_ser.main(arguments) == 0
    whole = output.read_text()
    origin_file = Path(f"{output}.origin.json")
    origin_file.unlink() if origin is None else origin_file.write_text(origin)
    assert predict_ser.main(arguments) == 2
    assert (
        f"{origin_file}, which records how they were made, is missing or broken; give another"
        in capsys.readouterr().err
    )
    assert output.read_text() == whole


@pytest.mark.slow
def test_an_interrupted_run_prints_how_to_continue_and_ends_with_130(checkpoint, tmp_path):
    clip, output = voice(0.5, sampling_rate=16_000), tmp_path / "out.csv"
    (tmp_path / "clips").mkdir()
    for index in range(100):
        soundfile.write(tmp_path / "clips" / f"{index:02d}.wav", clip, 16_000)
    flags = ["--model", checkpoint, "--output", str(output), "--batch_size", "1"]
    command = [sys.executable, "predict_ser.py", str(tmp_path / "clips"), *flags]
    root = Path(predict_ser.__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in background processes
    ) as process:  # fmt: skip
        while process.poll() is None and (not output.exists() or output.read_text().count("\n") < 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate()
    assert process.returncode == 130
    assert "Stopped. With --output, the same command continues from here." in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_invalid_inputs_and_outputs_are_named(checkpoint, clips, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("name,age\nx,3\n")
    numberless = tmp_path / "numberless.csv"
    numberless.write_text(f"file,prediction,{','.join(LABELS)}\n0.wav,sad,0.1,much,0.2,0.3\n")
    incomplete = tmp_path / "incomplete.csv"
    incomplete.write_text(f"file,prediction,{','.join(LABELS)}\n0.wav,sad,0.1,,0.2,0.3\n")
    overlong = tmp_path / "overlong.csv"
    overlong.write_text(f"file,prediction,{','.join(LABELS)}\n0.wav,sad,0.1,0.4,0.2,0.3,0.5\n")
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("file,label\na.wav,bored\n")
    headless = tmp_path / "headless.csv"
    headless.write_text("a.wav\nb.wav\n")
    disordered = tmp_path / "disordered.csv"
    lines = "".join(f"0.wav,{start},{start + 1},2,sad,0.1,0.4,0.2,0.3\n" for start in (1, 0))
    disordered.write_text(f"file,start,end,windows,prediction,{','.join(LABELS)}\n{lines}")
    timeless = tmp_path / "timeless.csv"
    timeless.write_text(disordered.read_text().replace("0,1,2", "nan,1,2"))
    short = tmp_path / "short.csv"
    short.write_text("label,file\nsad,a.wav\nsad,\n\nhappy,\n")
    (tmp_path / "empty").mkdir()
    clip = str(clips / "angry" / "0.wav")
    wrong = {
        "is not a table of this kind": [clip, "--output", str(other)],
        f"{numberless} exists and is not a table of this kind": [clip, "--output", str(numberless)],
        f"{incomplete} exists and is not a table of this kind": [clip, "--output", str(incomplete)],
        f"{overlong} exists and is not a table of this kind": [clip, "--output", str(overlong)],
        f"{disordered} exists and is not a table of this kind": [clip, "--window", "1", "--output", str(disordered)],
        f"{timeless} exists and is not a table of this kind": [clip, "--window", "1", "--output", str(timeless)],
        "the model does not have the label 'bored'": [str(unknown)],
        "has no column 'file'": [str(headless)],
        f"{short} names no file in line 3, 5": [str(short)],
        "holds no audio files": [str(tmp_path / "empty")],
        "empty holds no config.json": [clip, "--model", str(tmp_path / "empty")],
        "cannot be written": [clip, "--output", str(tmp_path / "nowhere" / "out.csv")],
    }
    for expected, arguments in wrong.items():
        assert predict_ser.main(["--model", checkpoint, *arguments]) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert "Traceback" not in message
    assert other.read_text() == "name,age\nx,3\n"
    wrong_flags = (
        "--hop 1", "--window 1 --hop 2", "--window 1 --hop 0", "--window 1 --hop 1e-9", "--window nan", "--window 601",
        "--output out.doc", "--smooth 2", "--segments true.csv",
    )  # fmt: skip
    for flags in map(str.split, wrong_flags):
        with pytest.raises(SystemExit) as stopped:
            predict_ser.main(["--model", checkpoint, clip, *flags])
        assert stopped.value.code == 2


@pytest.mark.slow
def test_file_names_that_are_not_valid_text_are_kept(checkpoint, clips, tmp_path):
    name = os.fsdecode(b'caf\xe9, "1".wav')
    (tmp_path / name).write_bytes((clips / "angry" / "0.wav").read_bytes())
    output = tmp_path / "out.csv"
    for _ in range(2):
        assert predict_ser.main(["--model", checkpoint, str(tmp_path), "--output", str(output)]) == 0
        with open(output, errors="surrogateescape", newline="") as file:
            assert [row["file"] for row in csv.DictReader(file)] == [str(tmp_path / name)]


# --- where predictions are written ---


def in_a_terminal(monkeypatch, *arguments: str) -> str:
    """Returns what a terminal shows of the command's standard output."""
    terminal, end = os.openpty()
    with os.fdopen(end, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert predict_ser.main(list(arguments)) == 0
        output.flush()
        shown = b""
        while select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65_536)
    monkeypatch.undo()
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_terminal_gets_a_readable_table(checkpoint, clips, tmp_path, monkeypatch):
    evil = tmp_path / ("x" * 60 + "\x1b[2J.wav")
    shutil.copy(clips / "angry" / "0.wav", evil)
    output = tmp_path / "out.csv"
    arguments = ["--model", checkpoint, str(clips), str(evil)]
    assert predict_ser.main([*arguments, "--output", str(output)]) == 0
    head, *lines = in_a_terminal(monkeypatch, *arguments).splitlines()
    assert head.split() == ["file", "label", "emotion", "score", "next"]
    rows = read_rows(output)
    assert len(lines) == len(rows) == 7
    for line, row in zip(lines, rows, strict=True):
        best = sorted(LABELS, key=lambda label: -float(row[label]))
        written = [best[0], f"{float(row[best[0]]):.2f}", best[1], f"{float(row[best[1]]):.2f},", best[2]]
        assert line.split()[-6:-1] == written
        assert len(line.partition(best[0])[0]) <= 60 and "\x1b" not in line
    assert all(Path(row["file"]).name in line for line, row in zip(lines[:6], rows[:6], strict=True))


def test_a_terminal_gets_a_line_for_each_window(checkpoint, clips, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "nothing.wav", np.zeros(8_000), 16_000)
    arguments = ["--model", checkpoint, str(clips / "happy" / "5.wav"), str(tmp_path / "nothing.wav")]
    head, *lines = in_a_terminal(monkeypatch, *arguments, "--window", "0.5").splitlines()
    assert head.split() == ["file", "seconds", "emotion", "score", "next"]
    assert [line.split()[1] for line in lines] == ["0.0-0.5", "0.5-1.0", "0.8-1.3", "0.0-0.5"]
    assert lines[-1].split()[2:] == ["silence"]


def test_an_uncertain_prediction_is_shown_with_its_best_score(checkpoint, clips, monkeypatch):
    arguments = ["--model", checkpoint, str(clips / "happy" / "5.wav"), "--min_score", "0.99"]
    _, line = in_a_terminal(monkeypatch, *arguments).splitlines()
    _, emotion, best, first, score, second, _ = line.split()
    assert emotion == "uncertain" and f"{best}," == score and {first, second} < {*LABELS}


@pytest.mark.parametrize("place", ["x" * 246 + ".csv", "note/out.csv", "nowhere/out.jsonl", "folder.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict_ser, "load_pipeline", None)
    (tmp_path / "note").touch()
    (tmp_path / "folder.csv").mkdir()
    assert predict_ser.main(["a.wav", "--output", str(tmp_path / place)]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and f"{place} cannot be written: " in stderr and len(stderr.splitlines()) == 1


class Full:
    """A file on a disk that is full after `left` characters."""

    def __init__(self, file, left: int):
        self.file, self.left = file, left

    def write(self, text: str) -> None:
        self.file.write(text[: self.left])
        self.left -= len(text)

    def flush(self) -> None:
        self.file.flush()
        if self.left < 0:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("suffix", first_fast([".csv", ".jsonl"]))
@pytest.mark.parametrize("left", first_fast([200, 10, 330]))
def test_a_table_that_cannot_grow_keeps_complete_rows(suffix, left, checkpoint, clips, tmp_path, monkeypatch, capsys):
    output = tmp_path / f"out{suffix}"
    arguments = ["--model", checkpoint, str(clips), "--output", str(output)]
    start = Table._start

    def full(table):
        start(table)
        table.file = Full(table.file, left)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "_start", full)
        patch.setattr(sys, "argv", ["predict_ser.py", *arguments])
        assert predict_ser.command() == 1
    stderr = capsys.readouterr().err
    assert f"error: {output} cannot be written any further: File too large. Its complete rows are kept" in stderr
    assert predict_ser.main(arguments) == 0
    assert [row["file"] for row in read_rows(output)] == sorted(map(str, clips.rglob("*.wav")))


def test_a_standard_output_that_is_closed_is_refused_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(predict_ser, "load_pipeline", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert predict_ser.main(["a.wav"]) == 2
    monkeypatch.undo()
    assert "error: the standard output is closed: open it, or give --output." in capsys.readouterr().err
