"""predict_ser.py with given segments, with annotation files as output, and restricted to some labels."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from praatio import textgrid

from modeling_maxmvit import FeatureStatistics
from ser.commands import predict as predict_ser
from ser.models import load_pipeline
from tests.helpers.marks import first_fast
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

LABELS = ["angry", "happy", "neutral", "sad"]
RATE = 16_000
TURNS = "start,end,speaker,text\n0.2,1.4,anna,well\n1.2,2.0,ben,no\n2.1,2.3,anna,ah\n2.5,5.5,ben,\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    model = convnet_model()
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    model.config.max_clip_s, model.config.window_s = 2.0, 1.5
    statistics = FeatureStatistics(model.base_model.num_features)
    statistics.mean.copy_(torch.randn(len(statistics.mean), generator=torch.Generator().manual_seed(3)) / 10)
    model.base_model.set_feature_statistics(statistics)
    with torch.no_grad():
        model.classifier.out_proj.weight *= 15
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def talk(tmp_path) -> Path:
    """Writes six seconds of changing pitch, and a list of speaker turns next to them."""
    sound = np.concatenate([voice(0.5, f0=80.0 + 25 * k, sampling_rate=RATE, seed=k) for k in range(12)])
    soundfile.write(tmp_path / "talk.wav", sound, RATE, subtype="FLOAT")
    (tmp_path / "talk.csv").write_text(TURNS)
    return tmp_path / "talk.wav"


def read_rows(path) -> list[dict]:
    text = Path(path).read_text()
    if str(path).endswith(".csv"):
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", first_fast([".csv", ".jsonl"]))
def test_each_segment_gets_a_row_and_each_speaker_a_total(checkpoint, talk, tmp_path, suffix, capsys):
    output = tmp_path / f"out{suffix}"
    arguments = ["--model", checkpoint, str(talk), "--segments_from", str(tmp_path / "talk.csv"), "--output"]
    assert predict_ser.main([*arguments, str(output)]) == 0
    rows = read_rows(output)
    assert list(rows[0]) == ["file", "segment", "start", "end", "speaker", "text", "rows", "prediction", *LABELS]
    assert [(row["speaker"], row["text"] or "", float(row["start"])) for row in rows] == [
        ("anna", "well", 0.2), ("ben", "no", 1.2), ("anna", "ah", 2.1), ("ben", "", 2.5)
    ]  # fmt: skip
    assert [row["prediction"] == "too short" for row in rows] == [False, False, True, False]
    classify = load_pipeline(checkpoint, "cpu")
    sound, _ = soundfile.read(talk)
    for row in rows:
        clip = sound[round(float(row["start"]) * RATE) : round(float(row["end"]) * RATE)]
        for each in classify({"array": clip, "sampling_rate": RATE}):
            assert float(row[each["label"]]) == pytest.approx(each["score"], abs=1e-3)
    stderr = capsys.readouterr().err
    assert "speaker  segments  seconds" in stderr and "anna     2         1.4" in stderr
    totals = read_rows(tmp_path / "out.speakers.csv")
    assert [(row["speaker"], float(row["seconds"])) for row in totals] == [("anna", 1.4), ("ben", 3.8)]
    before = output.read_bytes()
    assert predict_ser.main([*arguments, str(output)]) == 0  # nothing is left to do
    assert output.read_bytes() == before and "1 files already; 0 remain" in capsys.readouterr().err
    (tmp_path / "talk.csv").write_text(TURNS.replace("0.2,1.4", "0.3,1.4"))
    assert predict_ser.main([*arguments, str(output)]) == 2
    assert "holds rows made with another segments" in capsys.readouterr().err


def test_each_window_of_a_long_segment_gets_a_row(checkpoint, talk, tmp_path, capsys):
    arguments = ["--model", checkpoint, str(talk), "--segments_from", str(tmp_path / "talk.csv"), "--window", "1"]
    assert predict_ser.main([*arguments, "--hop", "0.5", "--output", str(tmp_path / "out.csv")]) == 0
    rows = read_rows(tmp_path / "out.csv")
    assert [(row["segment"], float(row["start"]), float(row["end"])) for row in rows] == [
        ("1", 0.2, 1.2), ("1", 0.4, 1.4), ("2", 1.2, 2.0), ("3", 2.1, 2.3),
        ("4", 2.5, 3.5), ("4", 3.0, 4.0), ("4", 3.5, 4.5), ("4", 4.0, 5.0), ("4", 4.5, 5.5),
    ]  # fmt: skip
    assert "ben      2         3.8" in capsys.readouterr().err  # windows that overlap count once


@pytest.mark.slow
def test_each_speaker_of_the_segments_is_enrolled(checkpoint, talk, tmp_path):
    arguments = ["--model", checkpoint, str(talk), "--segments_from", str(tmp_path / "talk.csv")]
    assert predict_ser.main([*arguments, "--adapt", "speaker", "--output", str(tmp_path / "out.jsonl")]) == 0
    classify = load_pipeline(checkpoint, "cpu")
    turns = {"anna": [(0.2, 1.4)], "ben": [(1.2, 2.0), (2.5, 5.5)]}
    profiles = {name: classify.enroll(str(talk), segments=spans) for name, spans in turns.items()}
    given = [(0.2, 1.4, "anna"), (1.2, 2.0, "ben"), (2.1, 2.3, "anna"), (2.5, 5.5, "ben")]
    expected = classify(str(talk), segments=given, speaker=profiles)
    for row, answer in zip(read_rows(tmp_path / "out.jsonl"), expected, strict=True):
        assert all(row[label] == pytest.approx(answer["scores"][label], abs=1e-4) for label in LABELS)
    plain = classify(str(talk), segments=given)
    assert max(abs(plain[0]["scores"][label] - expected[0]["scores"][label]) for label in LABELS) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turns", "code", "message"),
    [
        (TURNS + "5.0,7.0,ben,x\n", 1, "talk.csv, line 6: the segment ends at 7 s, but .*talk.wav at 6 s"),
        (TURNS + "5.0,4.0,ben,x\n", 2, "talk.csv, line 6: not a segment"),
        (TURNS.replace("ben", ""), 2, "needs the speaker of every segment, which .*talk.csv, line 3 does not have"),
    ],
)
def test_invalid_segments_are_named_by_their_line(checkpoint, talk, tmp_path, turns, code, message, capsys):
    (tmp_path / "talk.csv").write_text(turns)
    arguments = ["--model", checkpoint, str(talk), "--segments_from", str(tmp_path / "talk.csv"), "--adapt", "speaker"]
    assert predict_ser.main(arguments) == code

    assert re.search(message, capsys.readouterr().err)


def test_a_missing_file_of_segments_is_named_before_the_model_is_loaded(talk, capsys):
    assert predict_ser.main([str(talk), "--segments_from", "none.csv", "--model", "none"]) == 2
    assert "--segments_from: there is no none.csv." in capsys.readouterr().err


@pytest.mark.slow
def test_one_recording_is_written_as_annotations(checkpoint, talk, tmp_path, capsys):
    output = tmp_path / "answers.TextGrid"
    assert predict_ser.main(["--model", checkpoint, str(talk), "--output", str(output)]) == 0
    grid = textgrid.openTextgrid(str(output), includeEmptyIntervals=False)
    assert grid.tierNames == ("emotion", "score") and grid.maxTimestamp == 6
    assert {entry.label for entry in grid.getTier("emotion").entries} <= {*LABELS}
    assert capsys.readouterr().out == ""
    assert predict_ser.main(["--model", checkpoint, str(talk), "--output", str(output)]) == 2
    assert "exists, and may be annotated by hand" in capsys.readouterr().err
    arguments = ["--model", checkpoint, str(talk), str(tmp_path), "--output", str(tmp_path / "a.srt")]
    soundfile.write(tmp_path / "other.wav", voice(0.5, sampling_rate=RATE), RATE)
    assert predict_ser.main(arguments) == 2
    assert "is for one recording, and there are 2: give a folder with --output_dir" in capsys.readouterr().err


@pytest.mark.slow
def test_several_recordings_are_written_to_a_folder(checkpoint, talk, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "talk.mp3").write_bytes(b"broken")
    out, turns = tmp_path / "out", tmp_path / "turns"
    turns.mkdir()
    (turns / "talk.csv").write_text(TURNS)
    arguments = ["--model", checkpoint, str(talk), str(tmp_path / "b"), "--segments_from", str(turns), "--output_dir",
                 str(out), "--output_format", "textgrid", "srt"]  # fmt: skip
    for _ in range(2):
        assert predict_ser.main(arguments) == 1  # one recording is broken
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
            "predictions.csv", "predictions.csv.origin.json", "predictions.speakers.csv", "talk.TextGrid", "talk.srt"
        ]  # fmt: skip
    assert "anna: [" in (out / "talk.srt").read_text()
    (out / "predictions.csv").unlink()
    assert predict_ser.main(arguments) == 2
    assert "talk.TextGrid exists" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("only", first_fast([["happy", "sad"], ["sad", "neutral", "angry"]]))
def test_predictions_among_some_labels_name_these_labels(checkpoint, talk, tmp_path, only, capsys):
    arguments = ["--model", checkpoint, str(talk), "--output"]
    assert predict_ser.main([*arguments, str(tmp_path / "a.csv")]) == 0
    assert predict_ser.main([*arguments, str(tmp_path / "b.csv"), "--only", *only]) == 0
    kept = [label for label in LABELS if label in only]
    assert f"Scores are divided by their sum over {', '.join(kept)} (--only)." in capsys.readouterr().err
    (whole,), (row,) = read_rows(tmp_path / "a.csv"), read_rows(tmp_path / "b.csv")
    assert list(row) == ["file", "prediction", *kept, "only"] and row["only"] == " ".join(kept)
    assert sum(float(row[label]) for label in kept) == pytest.approx(1, abs=1e-5)
    assert float(row[kept[0]]) / float(row[kept[1]]) == pytest.approx(
        float(whole[kept[0]]) / float(whole[kept[1]]), rel=0.02, abs=1e-3
    )
    assert predict_ser.main([*arguments, str(tmp_path / "b.csv")]) == 2
    assert predict_ser.main([*arguments, str(tmp_path / "c.csv"), "--only", "happy", "glad"]) == 2
    assert "no label 'glad'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiers", "x"], "--tiers needs --segments_from"),
        (["--output_dir", "x"], "needs --output_format"),
        (["--output_format", "srt"], "needs --output_dir"),
        (["--output_dir", "x", "--output_format", "doc"], "--output_format .doc: must be one of TextGrid"),
        (["--output", "x.doc"], "--output must end in .csv, .jsonl, .TextGrid"),
        (["--output_dir", "x", "--output_format", "srt", "--output", "y.csv"], "leave out --output"),
        (["--window", "1", "--segments", "a.csv", "--segments_from", "b.csv"], "leave out one of the two"),
    ],
)
def test_incompatible_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        predict_ser.parse_arguments(["talk.wav", *options])
    assert message in capsys.readouterr().err
