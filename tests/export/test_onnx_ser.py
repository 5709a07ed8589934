"""onnx_ser.py, which classifies recordings by an ONNX file without PyTorch; here with a tiny graph, not a model."""

import ast
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper

import onnx_ser
from ser.inference.predictions import find_items
from ser.utils import DataError, UsageError

ROOT = Path(__file__).parents[2]
RATE = 8_000
LABELS = ["loud", "soft"]


def write_model(path: Path, samples: int | None = None, **changes: str) -> str:
    """Writes a graph whose scores are the mean square of a waveform, and 1 minus that."""
    nodes = [
        helper.make_node("Mul", ["waveform", "waveform"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axis"], ["power"], keepdims=1),
        helper.make_node("Sub", ["one", "power"], ["rest"]),
        helper.make_node("Concat", ["power", "rest"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.array([[1.0]], np.float32), "one"),
    ]
    inputs = [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", samples or "samples"])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(nodes, "loudness", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    about = {
        "labels": json.dumps(LABELS), "sampling_rate": str(RATE), "min_length": "400", "samples": str(samples or ""),
    }  # fmt: skip
    helper.set_model_props(model, about | changes)
    onnx.save(model, path)
    return str(path)


@pytest.fixture
def model(tmp_path) -> str:
    return write_model(tmp_path / "any.onnx")


def level(path: Path, amplitude: float, seconds: float, rate: int = RATE) -> Path:
    """Writes a square wave, whose mean square is the square of its amplitude."""
    path.parent.mkdir(exist_ok=True, parents=True)
    signs = np.where(np.arange(round(seconds * rate)) // 20 % 2, -1, 1)
    soundfile.write(path, amplitude * signs, rate, subtype="FLOAT")
    return path


def table(capsys) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_folder_gives_a_row_for_each_file_and_its_accuracy(model, tmp_path, capsys):
    for name, amplitude in {"loud/a": 0.75, "loud/b": 0.25, "soft/a": 0.25, "SOFT/c": 0.125, "other/a": 0.5}.items():
        level(tmp_path / "clips" / f"{name}.wav", amplitude, 0.5)
    (tmp_path / "clips" / "loud" / "notes.txt").write_text("no clip")
    assert onnx_ser.main([model, str(tmp_path / "clips")]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert list(rows[0]) == ["file", "label", "prediction", "loud", "soft"]
    predictions = {row["file"][len(str(tmp_path / "clips")) + 1 :]: (row["label"], row["prediction"]) for row in rows}
    assert predictions == {
        "SOFT/c.wav": ("soft", "soft"), "loud/a.wav": ("loud", "loud"), "loud/b.wav": ("loud", "soft"),
        "other/a.wav": ("", "soft"), "soft/a.wav": ("soft", "soft"),
    }  # fmt: skip
    assert rows[1]["loud"] == "0.5625"
    assert "5 files: 5 classified, 0 failed.\nWA 0.7500  UA 0.7500 on 4 labelled files\n" in printed.err


def test_predictions_below_min_score_are_uncertain_and_counted_separately(model, tmp_path, capsys):
    for name, amplitude in {"loud/a": 0.75, "soft/a": 0.25, "soft/b": 0.7}.items():
        level(tmp_path / "clips" / f"{name}.wav", amplitude, 0.5)
    assert onnx_ser.main([model, str(tmp_path / "clips"), "--min_score", "0.5625"]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["prediction"] for row in rows] == ["loud", "soft", "uncertain"]
    assert float(rows[2]["soft"]) == pytest.approx(0.51, abs=1e-5)
    assert "WA 1.0000  UA 1.0000 on 2 labelled files (1 uncertain ones left out)" in printed.err


def test_windows_are_smoothed_and_silence_is_left_out(model, tmp_path, capsys):
    parts = [(0.75, 1.0), (0.0, 1.0), (0.5, 1.5)]
    sound = np.concatenate([np.full(round(seconds * RATE), amplitude) for amplitude, seconds in parts])
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    assert onnx_ser.main([model, str(tmp_path / "a.wav"), "--window", "1", "--smooth", "3"]) == 0
    rows = table(capsys)
    assert [(row["start"], row["end"], row["windows"], row["prediction"]) for row in rows] == [
        ("0.0", "1.0", "4", "loud"), ("1.0", "2.0", "4", "silence"),
        ("2.0", "3.0", "4", "soft"), ("2.5", "3.5", "4", "soft"),
    ]  # fmt: skip
    assert [row["loud"] for row in rows] == ["0.5625", "", "0.25", "0.25"]


# Seconds of 0.75 and of 0.25, and the mean square over the windows: by default, of 3 s for recordings from 6 s on.
@pytest.mark.parametrize(
    "about, seconds, mean",
    [
        ({}, (3, 4), (0.5625 + 2 * 0.0625) / 3),
        ({}, (4.5, 1.5), (4.5 * 0.5625 + 1.5 * 0.0625) / 6),
        ({}, (39, 6), (13 * 0.5625 + 2 * 0.0625) / 15),
        ({"max_clip_s": "2.5", "window_s": "2.0"}, (2, 1), (0.5625 + (0.5625 + 0.0625) / 2) / 2),
        ({"max_clip_s": "40.5", "window_s": "1.0"}, (30, 10), (3 * 0.5625 + 0.0625) / 4),
    ],
)
def test_a_recording_longer_than_the_training_clips_is_the_mean_of_windows(tmp_path, capsys, about, seconds, mean):
    model = write_model(tmp_path / "any.onnx", **about)
    sound = np.concatenate([np.full(round(seconds[0] * RATE), 0.75), np.full(round(seconds[1] * RATE), 0.25)])
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    assert onnx_ser.main([model, str(tmp_path / "a.wav")]) == 0
    (row,) = table(capsys)
    assert float(row["loud"]) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("seconds", [0.5, 4, 45])
def test_silence_alone_gets_no_label_of_the_model(model, tmp_path, capsys, seconds):
    level(tmp_path / "loud" / "a.wav", 1e-5, seconds)
    assert onnx_ser.main([model, str(tmp_path / "loud")]) == 0
    (row,) = table(capsys)
    assert (row["prediction"], row["loud"]) == ("silence", "")


def test_other_rates_channels_and_short_clips(model, tmp_path, capsys):
    stereo = np.stack([np.full(22_050, 0.6), np.full(22_050, 0.2)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="FLOAT")
    level(tmp_path / "b.wav", 0.5, 0.025)  # 200 samples, padded to 401
    assert onnx_ser.main([model, str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]) == 0
    resampled, short = table(capsys)
    assert float(resampled["loud"]) == pytest.approx(0.16, abs=2e-3)  # except at the ends, where the filter rings
    assert float(short["loud"]) == pytest.approx(0.25 * 200 / 401, abs=1e-5)


@pytest.mark.parametrize("gain, is_refused", [(-1.0, True), (-0.98, True), (-0.5, False), (0.0, False)])
def test_channels_that_cancel_are_refused(model, tmp_path, capsys, gain, is_refused):
    sound = np.tile([0.75, -0.75], RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([sound, gain * sound], axis=1), RATE, subtype="FLOAT")
    assert onnx_ser.main([model, str(tmp_path / "a.wav")]) == int(is_refused)
    assert ("a.wav has channels that cancel each other" in capsys.readouterr().err) == is_refused


def test_a_file_for_windows_takes_windows_only(tmp_path, capsys):
    model = write_model(tmp_path / "second.onnx", samples=RATE)
    long, short = level(tmp_path / "long.wav", 0.75, 2.4), level(tmp_path / "short.wav", 0.75, 0.5)
    assert onnx_ser.main([model, str(long), str(short)]) == 1
    printed = capsys.readouterr()
    assert (
        printed.out.count("\n") == 2 and "short.wav lasts 0.50 s, but this model takes windows of 1 s" in printed.err
    )
    assert onnx_ser.main([model, str(long), "--window", "2"]) == 2
    assert "takes windows of 1 s" in capsys.readouterr().err
    assert onnx_ser.main([model, str(long), "--window", "1", "--hop", "0.7"]) == 0
    assert [row["start"] for row in table(capsys)] == ["0.0", "0.7", "1.4"]


def test_a_list_of_files(model, tmp_path, capsys):
    level(tmp_path / "a.wav", 0.75, 0.5)
    (tmp_path / "list.csv").write_text("file,label\na.wav,soft\n")
    assert onnx_ser.main([model, str(tmp_path / "list.csv")]) == 0
    assert [(row["label"], row["prediction"]) for row in table(capsys)] == [("soft", "loud")]
    (tmp_path / "list.csv").write_text("file,label\na.wav,furious\n")
    assert onnx_ser.main([model, str(tmp_path / "list.csv")]) == 2
    assert "line 2: the model does not have the label 'furious'" in capsys.readouterr().err


LISTS = {
    "semicolons.csv": "file;label\na.wav;soft\n",
    "tabs.tsv": "file\tlabel\na.wav\tsoft\n",
    "lines.JSONL": '{"file": "a.wav", "label": "soft"}\n\n{"FILE": "b.wav", "label": null}\n',
    "numbers.jsonl": '{"file": 1.0}\n{"file": 2}\n',
    "capitals.CSV": "File, Label \na.wav, soft\n",
    "datasets.csv": "file_name,label\na.wav,soft\n",
    "missing.csv": "file,label\na.wav,nan\nb.wav,\n",
    "blank.csv": "file,label\na.wav,soft\n\n , \nb.wav,loud\n",
    "quoted.csv": 'file,label\n"a, b.wav",loud\n',
    "segments.csv": "file,start,end,label\na.wav,0,1,furious\na.wav,1,2,soft\n",
    "address.csv": "file\nhttps://x.y/a.wav\n",
    "separator.csv": "file\nname\u2028of.wav\n",
    # refused
    "wide.csv": "file,label\na.wav,soft,more\n",
    "short.csv": "file,label\na.wav\n",
    "twice.csv": "file,File\na.wav,b.wav\n",
    "labels.csv": "file,label\na.wav,soft\na.wav,loud\n",
    "unlabelled.csv": "file,label\na.wav,soft\na.wav,\n",
    "unknown.tsv": "file\tlabel\na.wav\tSoft\n",
    "nameless.csv": "file,label\n,soft\n",
    "no_file.csv": "path,label\na.wav,soft\n",
    "open.csv": 'file,label\n"a.wav,soft\n',
    "quote.csv": 'file,label\nmy "a.wav",soft\n"b.wav,soft\nc.wav,soft"\n',
    "empty.csv": "",
    "only_names.tsv": "file\tlabel\n",
    "broken.jsonl": '{"file":\n',
    "array.jsonl": '["a.wav"]\n',
    "nested.jsonl": '{"file": {"path": "a.wav"}}\n',
    "truth.jsonl": '{"file": true}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_read_as_by_predict_ser(name, tmp_path):
    path = tmp_path / name
    path.write_text(LISTS[name], encoding="utf-8")
    try:
        expected = {item.file: item.label for item in find_items([str(path)], LABELS)}
    except (DataError, UsageError):
        with pytest.raises(onnx_ser.InputError, match=f"{name}.*[.]$"):
            onnx_ser.find([str(path)], LABELS)
    else:
        assert [*LISTS].index(name) < [*LISTS].index("wide.csv")
        assert onnx_ser.find([str(path)], LABELS) == expected


def test_a_recording_with_two_labels_is_refused_and_other_files_of_a_folder_are_counted(tmp_path, capsys):
    clip = level(tmp_path / "loud" / "a.wav", 0.75, 0.5)
    (tmp_path / "loud" / "notes.TXT").write_text("no sound")
    (tmp_path / "list.csv").write_text("file,label\nloud/a.wav,soft\n")
    assert onnx_ser.find([str(tmp_path / "loud"), str(clip)], LABELS) == {str(clip): "loud"}
    assert onnx_ser.find([str(clip), str(tmp_path / "loud")], LABELS) == {str(clip): "loud"}
    assert "left out by their suffix: 1 .txt." in capsys.readouterr().err
    with pytest.raises(onnx_ser.InputError, match="a.wav has two labels, loud and soft"):
        onnx_ser.find([str(tmp_path / "loud"), str(tmp_path / "list.csv")], LABELS)


def run(model: str, clip: Path, **streams: int) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "onnx_ser.py"), model, str(clip)]
    return subprocess.run(command, stderr=subprocess.PIPE, **streams, text=True)


@pytest.mark.slow
def test_predictions_that_cannot_be_written_get_one_error(model, tmp_path):
    clip = level(tmp_path / "a.wav", 0.75, 0.5)
    with open("/dev/full", "w") as full:
        done = run(model, clip, stdout=full.fileno())
    assert done.returncode == 1 and done.stderr.startswith("error: the standard output cannot be written: No space")
    assert done.stderr.count("\n") == 1
    reading, writing = os.pipe()
    os.close(reading)
    done = run(model, clip, stdout=writing)
    os.close(writing)
    assert done.returncode == 141 and "Traceback" not in done.stderr


def test_a_file_name_that_is_not_valid_text_is_written_unchanged(model, tmp_path):
    clip = level(tmp_path / "a.wav", 0.75, 0.5)
    odd = os.fsencode(tmp_path) + b"/v\xe9rit\xe9.wav"
    os.rename(clip, odd)
    done = subprocess.run([sys.executable, ROOT / "onnx_ser.py", model, odd], capture_output=True)
    assert done.returncode == 0 and odd + b",loud," in done.stdout


@pytest.mark.parametrize("broken", ["nothing", "text", "no samples", "NaN"])
def test_files_that_cannot_be_read_are_named_and_the_others_classified(model, tmp_path, capsys, broken):
    path = tmp_path / "broken.wav"
    if broken == "text":
        path.write_text("this is not audio")
    elif broken != "nothing":
        soundfile.write(path, np.full(0 if broken == "no samples" else 900, np.nan), RATE, subtype="FLOAT")
    assert onnx_ser.main([model, str(path), str(level(tmp_path / "a.wav", 0.75, 0.5))]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(str(path)) and "2 files: 1 classified, 1 failed." in printed.err
    assert printed.out.count("\n") == 2


def test_files_that_are_not_models_are_refused(tmp_path, capsys):
    clip = str(level(tmp_path / "a.wav", 0.75, 0.5))
    (tmp_path / "text.onnx").write_text("no graph")
    of_images = write_model(tmp_path / "other.onnx", labels="")
    other = onnx.load(of_images)
    del other.metadata_props[:]
    onnx.save(other, of_images)
    for path, message in [
        ("missing.onnx", "cannot be used"),
        ("text.onnx", "cannot be used"),
        ("other.onnx", "does not take waveforms"),
    ]:
        assert onnx_ser.main([str(tmp_path / path), clip]) == 2
        assert message in capsys.readouterr().err
    assert onnx_ser.main([write_model(tmp_path / "any.onnx"), str(tmp_path / "list.csv")]) == 2


def test_onnx_ser_needs_no_other_file_of_the_project(model, tmp_path):
    tree = ast.parse((ROOT / "onnx_ser.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"numpy", "soundfile", "soxr", "onnxruntime"}
    clip = level(tmp_path / "clip.wav", 0.75, 0.5)
    copy = tmp_path / "alone" / "onnx_ser.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "onnx_ser.py").read_text())
    done = subprocess.run([sys.executable, copy, model, clip], cwd=copy.parent, capture_output=True, text=True)
    assert done.returncode == 0 and f"{clip},loud,0.5625,0.4375" in done.stdout, done.stderr
