"""evaluate_ser.py: scores any checkpoint on any corpus, matches classes by name, and refuses speakers of training."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import ser.evaluation.evaluate
from ser.commands import evaluate as evaluate_ser
from ser.data.corpora.demo import write_demo_corpus
from ser.evaluation.evaluate import training_overlap
from ser.utils import DataError, UsageError
from tests.helpers.clips import corpus_of
from tests.helpers.tiny import convnet_model, save_tiny

NAMES = ["sad", "happy", "calm", "angry", "neutral"]  # not in the order of the corpus, and with one more class


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_demo_corpus(folder, n_voices=5, clips_per_emotion=1)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def checkpoint(folder, trained_on=(), protocol="demo/speaker-fold1", names=NAMES):
    model = convnet_model(len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    with torch.no_grad():
        model.classifier.out_proj.bias[names.index("angry")] = 100.0  # it always predicts angry
    save_tiny(folder, model)
    clips = [{"file": "x.wav", "part": "train", "speaker": speaker, "label": "sad"} for speaker in trained_on]
    (folder / "splits.json").write_text(json.dumps({"protocol": protocol, "clips": clips}))
    return folder


@pytest.fixture
def evaluate(corpus, cache, tmp_path):
    def evaluate(folder, *flags):
        output = tmp_path / "out"
        where = ["--data_dir", corpus, "--cache_dir", cache, "--output_dir", output, "--use_cpu", "true"]
        evaluate_ser.main([str(flag) for flag in (folder, *where, *flags)])
        with open(output / "predictions.csv", newline="") as file:
            return json.loads((output / "metrics.json").read_text()), list(csv.DictReader(file))

    return evaluate


@pytest.mark.slow
def test_all_clips_are_scored_with_the_models_classes_by_name(evaluate, tmp_path):
    metrics, rows = evaluate(checkpoint(tmp_path / "model", ["somebody"]))
    assert (metrics["protocol"], metrics["n_clips"], len(rows)) == ("demo/all", 20, 20)
    assert metrics["label_names"] == ["neutral", "happy", "angry", "sad", "calm"] and metrics["speaker_disjoint"]
    assert metrics["per_class"]["calm"]["recall"] is None and metrics["per_class"]["angry"]["recall"] == 1
    assert metrics["UA"] == metrics["WA"] == 0.25
    assert {row["label"] for row in rows} == {"sad", "happy", "angry", "neutral"}
    assert all(row["label"] in row["file"] and row["prediction"] == "angry" for row in rows)
    assert np.diag(metrics["confusion_matrix"]).tolist() == [0, 0, 5, 0, 0]
    assert (tmp_path / "out" / "confusion_matrix.png").exists() and not (tmp_path / "out" / "README.md").exists()


@pytest.mark.slow
def test_a_fold_and_named_speakers(evaluate, tmp_path):
    folder = checkpoint(tmp_path / "model", ["voice_01", "voice_02"])
    metrics, rows = evaluate(folder, "--test_speakers", "voice_03", "voice_04")
    assert {row["speaker"] for row in rows} == {"voice_03", "voice_04"} and metrics["n_clips"] == 8
    shutil.rmtree(tmp_path / "out")
    assert evaluate(folder, "--protocol", "loso", "--fold", "4")[0]["protocol"] == "demo/loso-fold4"


@pytest.mark.slow
def test_features_can_be_computed_without_the_cache(evaluate, tmp_path):
    metrics, _ = evaluate(checkpoint(tmp_path / "model"), "--test_speakers", "voice_03", "--cache_features", "false")
    assert metrics["n_clips"] == 4 and metrics["per_class"]["angry"]["recall"] == 1


@pytest.mark.slow
def test_speakers_of_training_are_refused_unless_allowed(evaluate, tmp_path):
    folder = checkpoint(tmp_path / "model", ["voice_02"])
    with pytest.raises(DataError, match="trained or validated on 1 of the speakers to be tested, such as voice_02"):
        evaluate(folder)
    metrics, _ = evaluate(folder, "--allow_training_clips")
    assert metrics["heard_in_training"]["speakers"] == ["voice_02"] and not metrics["speaker_disjoint"]


def test_a_checkpoint_of_a_run_uses_the_splits_of_the_run(evaluate, tmp_path):
    run = tmp_path / "run"
    checkpoint(run / "checkpoint-7", ["voice_02"])
    (run / "checkpoint-7" / "splits.json").rename(run / "splits.json")
    with pytest.raises(DataError, match="such as voice_02"):
        evaluate(run / "checkpoint-7")


@pytest.mark.slow
def test_a_checkpoint_without_splits_is_refused(evaluate, tmp_path):
    folder = checkpoint(tmp_path / "model")
    (folder / "splits.json").unlink()
    with pytest.raises(DataError, match="has no splits.json.* --allow_training_clips"):
        evaluate(folder)
    metrics, _ = evaluate(folder, "--allow_training_clips")
    assert metrics["heard_in_training"] is None and not metrics["speaker_disjoint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--fold", "2"], "--fold needs --protocol"),
        (["--protocol", "loso", "--fold", "all"], "a checkpoint is scored on one fold"),
        (["--protocol", "everything"], "has no test set: leave it out to score all clips"),
        (["--protocol", "loso", "--fold", "9"], "a number from 1 to 5, not 9"),
        (["--merge_labels", "sad=upset"], "has no class 'upset'; it has sad, .*--labels.*--merge_labels upset=sad"),
    ],
)
def test_options_that_cannot_be_scored_are_refused(evaluate, tmp_path, flags, message):
    with pytest.raises(DataError, match=message):
        evaluate(checkpoint(tmp_path / "model"), *flags)


@pytest.mark.slow
def test_no_report_or_model_is_overwritten(evaluate, corpus, cache, tmp_path):
    folder = checkpoint(tmp_path / "model")
    with pytest.raises(DataError, match="already holds a config.json"):
        evaluate_ser.main([str(folder), "--data_dir", str(corpus), "--output_dir", str(folder)])
    evaluate(folder)
    with pytest.raises(DataError, match="already holds a metrics.json"):
        evaluate(folder)


def test_clips_of_another_corpus_match_by_file_speaker_and_class():
    corpus = corpus_of([0, 1, 0], speakers=["a", "b", None], name="other")
    known = [
        {"file": "0000.wav", "part": "validation", "speaker": "a", "label": "class0"},
        {"file": "0001.wav", "part": "train", "speaker": "a", "label": "class1"},
        {"file": "0002.wav", "part": "test", "speaker": None, "label": "class0"},
    ]
    elsewhere = training_overlap(corpus, [0, 1, 2], {"protocol": "mine/random", "clips": known})
    assert elsewhere == {"speakers": [], "clips": ["0000.wav"]}
    here = training_overlap(corpus, [0, 1, 2], {"protocol": "other/random", "clips": known})
    assert here == {"speakers": ["a"], "clips": ["0000.wav", "0001.wav"]}


@pytest.mark.parametrize("place", ["note/report", "note/deep/report", "note", "x" * 300])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_read(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ser.evaluation.evaluate, "load_model", None)
    (tmp_path / "note").touch()
    with pytest.raises(UsageError, match=f"{place}.* cannot be written: "):
        evaluate_ser.main(["out/model", "--dataset_name", "demo", "--output_dir", str(tmp_path / place)])
