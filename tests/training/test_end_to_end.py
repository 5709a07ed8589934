"""Runs the training command from recipe to report, and loads its files with plain transformers."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.cli import find_recipe, parse_arguments
from ser.commands import evaluate as evaluate_ser
from ser.commands.train import main
from ser.data.corpora import RECORDS
from ser.data.corpora.iemocap import IEMOCAP_VOTES
from ser.evaluation.soft_labels import DISTRIBUTION_SCORES
from ser.models import load_pipeline
from ser.training.checkpoints import last_checkpoint
from ser.training.ema import UNAVERAGED
from ser.training.trainer import SERTrainer
from ser.utils import DataError
from tests.helpers.clips import write_parquet
from tests.helpers.commands import ROOT, read_predictions, run
from tests.helpers.corpora import write_emodb, write_iemocap, write_ravdess
from tests.helpers.soft_labels import recomputed

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def data_flags(corpus: Path, cache: Path) -> tuple:
    return "--data_dir", corpus, "--cache_dir", cache


@pytest.fixture(scope="module")
def trained(demo_corpus, feature_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(*data_flags(demo_corpus, feature_cache), "--output_dir", folder, "--calibrate", "--num_train_epochs", "4")
    return folder


@pytest.mark.slow
def test_all_files_of_a_run_exist_and_agree(trained, demo_corpus):
    for name in ("model.safetensors", "preprocessor_config.json", "confusion_matrix.png", "training_curves.png",
                 "README.md", "modeling_maxmvit.py", "pipeline_maxmvit.py", "checkpoints.json"):  # fmt: skip
        assert (trained / name).stat().st_size > 0, name
    rows, metrics = read_predictions(trained), json.loads((trained / "metrics.json").read_text())
    splits = json.loads((trained / "splits.json").read_text())["clips"]
    test_files = {clip["file"] for clip in splits if clip["part"] == "test"}
    assert {row["file"] for row in rows} == test_files
    assert metrics["UA"] == pytest.approx(
        balanced_accuracy_score([row["label"] for row in rows], [row["prediction"] for row in rows]), abs=1e-9
    )
    for row in rows:
        probabilities = {name[2:]: float(value) for name, value in row.items() if name.startswith("p_")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert max(probabilities, key=probabilities.get) == row["prediction"]
    validation_files = {clip["file"] for clip in splits if clip["part"] == "validation"}
    assert {row["file"] for row in read_predictions(trained, "validation_predictions.csv")} == validation_files
    trained_on = {clip["speaker"] for clip in splits if clip["part"] != "test"}
    assert trained_on.isdisjoint({row["speaker"] for row in rows})


@pytest.mark.slow
def test_evaluation_repeats_the_predictions_of_training(trained, demo_corpus, feature_cache, tmp_path):
    flags = ["--data_dir", str(demo_corpus), "--cache_dir", str(feature_cache), "--protocol", "speaker"]
    evaluate_ser.main([str(trained), *flags, "--output_dir", str(tmp_path / "out")])
    for row, expected in zip(read_predictions(tmp_path / "out"), read_predictions(trained), strict=True):
        for name, value in expected.items():
            if name.startswith("p_"):  # the saved last layer is divided by the temperature, in float32
                row[name], expected[name] = float(row[name]), pytest.approx(float(value), abs=1e-6)
        assert row == expected
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, tmp_path / "out"))
    for name in ("protocol", "speaker_disjoint", "UA", "WA", "confusion_matrix", "intervals", "test_speakers"):
        assert after[name] == before[name], name
    assert after["heard_in_training"] == {"speakers": [], "clips": []}
    with pytest.raises(DataError, match="trained or validated on .* of the speakers to be tested, such as voice_"):
        evaluate_ser.main([str(trained), *flags, "--fold", "2", "--output_dir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


PLAIN_TRANSFORMERS = """
import json
import sys
from transformers import pipeline
classify = pipeline("audio-classification", model=sys.argv[1], trust_remote_code=True, top_k=None)
for path in sys.argv[2:]:
    print(json.dumps({row["label"]: row["score"] for row in classify(path)}))
"""


@pytest.mark.slow
def test_plain_transformers_gets_the_same_probabilities_from_the_files(trained, demo_corpus, tmp_path):
    rows = read_predictions(trained)[:3]
    paths = [str(demo_corpus / row["file"]) for row in rows]
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, trained, *paths]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    for row, line in zip(rows, done.stdout.splitlines(), strict=True):
        for label, score in json.loads(line).items():
            # The command tests on cached features, which are stored in float16.
            assert score == pytest.approx(float(row[f"p_{label}"]), abs=2e-3)


@pytest.mark.slow
def test_a_finished_run_is_reported_and_not_repeated(trained, demo_corpus, feature_cache, capsys):
    before = (trained / "metrics.json").stat().st_mtime_ns
    flags = (*data_flags(demo_corpus, feature_cache), "--output_dir", trained, "--num_train_epochs", "4")
    run(*flags, "--calibrate")
    assert "holds a finished run" in capsys.readouterr().out
    assert (trained / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="calibrate: true -> false"):
        run(*flags)


@pytest.mark.slow
def test_the_temperature_is_fitted_on_the_validation_set_stored_and_reported(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    temperature = metrics["temperature"]
    assert temperature != 1
    assert MaxMViTForAudioClassification.from_pretrained(trained).config.temperature == 1  # it is in the last layer

    def nll(name: str, power: float) -> float:
        total = 0.0
        rows = read_predictions(trained, name)
        for row in rows:
            weights = {key[2:]: float(value) ** power for key, value in row.items() if key.startswith("p_")}
            total -= math.log(weights[row["label"]] / sum(weights.values()))
        return total / len(rows)

    # The probabilities are softmax(logits / temperature), so raising them to a power changes the temperature.
    assert nll("validation_predictions.csv", 1) <= nll("validation_predictions.csv", temperature)
    assert metrics["calibration"]["NLL"] == pytest.approx(nll("predictions.csv", 1), abs=1e-9)
    assert metrics["calibration"]["before"]["NLL"] == pytest.approx(nll("predictions.csv", temperature), abs=1e-9)
    assert set(metrics["calibration"]["before"]["intervals"]["by_clip"]) == {"ECE", "Brier", "NLL"}


@pytest.mark.slow
def test_training_can_start_from_a_checkpoint_with_new_classes(trained, demo_corpus, feature_cache, tmp_path):
    flags = ["--model_name_or_path", trained, "--labels", "sad", "happy", "angry", "neutral", "--learning_rate", "0"]
    run(*data_flags(demo_corpus, feature_cache), "--output_dir", tmp_path, *flags, own_backbones=True)
    models = [MaxMViTForAudioClassification.from_pretrained(folder) for folder in (trained, tmp_path)]
    assert models[1].config.id2label == {0: "sad", 1: "happy", 2: "angry", 3: "neutral"}
    first, second = (next(model.maxmvit.mel_backbone.parameters()) for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(*(model.classifier.out_proj.weight for model in models))
    assert models[1].config.temperature == 1


def write_voted_corpus(folder: Path, ties: Collection[int] = range(3, 40, 4)) -> None:
    """Writes five sessions of two speakers, four clips each, in the Hub's format; the votes on the `ties` tie."""
    emotions = ("neutral", "happy", "angry", "sad")
    names, rows = [], []
    for number in range(40):
        session, sex, own = number // 8 + 1, "FM"[number % 2], emotions[number // 2 % 4]
        names.append(f"Ses0{session}F_impro01_{sex}{number:03d}.wav")
        other = emotions[(number // 2 + 1) % 4]
        rows.append({own: 2.0, other: 2.0 if number in ties else 1.0, "frustrated": 1.0})
    columns = {"file": names, "major_emotion": [max(row, key=row.get) for row in rows]}
    columns |= {name: [row.get(name, 0.0) for row in rows] for name in IEMOCAP_VOTES}
    write_parquet(folder, "train", columns, names)


@pytest.mark.slow
def test_votes_are_trained_on_and_their_scores_equal_those_of_scipy_and_scikit_learn(feature_cache, tmp_path):
    write_voted_corpus(tmp_path / "data")
    data = ("--dataset_name", "AbstractTTS/IEMOCAP", "--data_dir", tmp_path / "data", "--cache_dir", feature_cache,
            "--soft_labels", "votes")  # fmt: skip
    out = tmp_path / "out"
    run(*data, "--output_dir", out, "--metric_for_best_model", "JS", "--mixup_alpha", "0.2")
    rows, metrics = read_predictions(out), json.loads((out / "metrics.json").read_text())
    names = metrics["label_names"]
    votes, probabilities = (np.array([[float(row[f"{k}_{name}"]) for name in names] for row in rows]) for k in "vp")
    assert len(rows) == 8 and metrics["distributions"]["n_clips"] == 8
    expected = recomputed(votes, probabilities)
    assert {name: metrics["distributions"][name] for name in expected} == pytest.approx(expected, abs=1e-9)
    sure = [row for row, own in zip(rows, votes, strict=True) if sorted(own)[-1] > sorted(own)[-2]]
    assert metrics["n_clips"] == len(sure) == 6 and metrics["distributions"]["n_without_agreement"] == 2
    assert "The votes of 2 test clips tie: only KL, JS, soft_macro_f1 count them." in metrics["remarks"]
    right = balanced_accuracy_score([row["label"] for row in sure], [row["prediction"] for row in sure])
    assert metrics["UA"] == pytest.approx(right, abs=1e-9)
    (checkpoint,) = out.glob("checkpoint-*")
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert {"eval_KL", "eval_JS", "eval_soft_macro_f1", "eval_UA"} <= {name for entry in history for name in entry}
    flags = map(str, (*data, "--protocol", "sessions", "--output_dir", tmp_path / "again"))
    evaluate_ser.main([str(out), *flags])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for name in DISTRIBUTION_SCORES:
        assert again["distributions"][name] == pytest.approx(metrics["distributions"][name], abs=1e-5)
    assert again["confusion_matrix"] == metrics["confusion_matrix"]


@pytest.mark.slow
def test_a_test_set_without_majority_labels_is_refused_before_training(feature_cache, tmp_path):
    write_voted_corpus(tmp_path / "data", ties=range(8))  # the whole first session, the test set
    data = ("--dataset_name", "AbstractTTS/IEMOCAP", "--data_dir", tmp_path / "data", "--cache_dir", feature_cache)
    with pytest.raises(DataError, match="No test clip has a majority label"):
        run(*data, "--soft_labels", "votes", "--output_dir", tmp_path / "out")


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_run_resumes_but_not_with_other_clips_or_another_model(
    demo_corpus, feature_cache, tmp_path, monkeypatch
):
    flags = (*data_flags(demo_corpus, feature_cache), "--output_dir", tmp_path, "--num_train_epochs", "2")

    def interrupt(*args, **kwargs):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("ser.training.run.write_report", interrupt)
        run(*flags)
    assert not (tmp_path / "metrics.json").exists()
    kept = json.loads((tmp_path / "run.json").read_text())
    for other, message in (
        (["--fold", "2"], 'protocol: "demo/speaker-fold1" -> "demo/speaker-fold2"; .*clips: 48 -> 48, '),
        (["--hidden_size", "32"], "hidden_size: 64 -> 32"),
        (["--labels", "sad", "happy", "angry", "neutral"], "id2label: "),
        (["--feature_extractor_kwargs", '{"image_size": 48}'], "image_size: 64 -> 48"),
        (["--shuffle_training_labels", "--learning_rate", "1"],
         "shuffle_training_labels: false -> true; learning_rate: 0.001 -> 1.0. Use the same settings"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"holds a run with other settings: .*{message}"):
            run(*flags, *other)
    assert json.loads((tmp_path / "run.json").read_text()) == kept
    (tmp_path / "duration.json").write_text('{"seconds": 1000.0}')
    run(*flags)
    log = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [entry["epoch"] for entry in log if "eval_UA" in entry] == [1, 2]
    assert 1000 < json.loads((tmp_path / "metrics.json").read_text())["duration_seconds"] < 1600
    with pytest.raises(ValueError, match="seed: 42 -> 7"):
        run(*flags, "--seed", "7")
    run(*flags, "--fold", "2", "--overwrite_output_dir")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"] == "demo/speaker-fold2" and metrics["duration_seconds"] < 900


def test_clips_of_one_class_are_refused_before_anything_is_extracted(demo_corpus, feature_cache, tmp_path):
    flags = (*data_flags(demo_corpus, feature_cache), "--output_dir", tmp_path / "out")
    with pytest.raises(DataError, match="All clips of .* are 'happy', and training needs two classes"):
        run(*flags, "--labels", "happy")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def all_folds(demo_corpus, feature_cache, tmp_path_factory) -> Path:
    """Trains one step in each fold."""
    folder = tmp_path_factory.mktemp("all_folds")
    flags = (*data_flags(demo_corpus, feature_cache), "--max_steps", "1", "--validation_share", "0")
    run(*flags, "--fold", "all", "--output_dir", folder)
    return folder


@pytest.mark.slow
def test_all_folds_are_summarised_and_finished_ones_are_not_trained_again(
    all_folds, demo_corpus, feature_cache, tmp_path, capsys
):
    shutil.copytree(all_folds, tmp_path, dirs_exist_ok=True)
    weights = (tmp_path / "fold_1" / "model.safetensors").stat().st_mtime_ns
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert len(summary["folds"]) == 5
    assert summary["pooled"]["n_clips"] == 48 == len(read_predictions(tmp_path))
    shutil.rmtree(tmp_path / "fold_5")
    flags = (*data_flags(demo_corpus, feature_cache), "--max_steps", "1", "--validation_share", "0")
    run(*flags, "--fold", "all", "--output_dir", tmp_path)
    assert (tmp_path / "fold_1" / "model.safetensors").stat().st_mtime_ns == weights
    assert (tmp_path / "fold_5" / "metrics.json").exists()
    output = capsys.readouterr().out
    assert "pooled" in output and "In every fold: No validation set" in output


@pytest.mark.slow
def test_an_interrupted_run_on_all_clips_resumes_to_the_same_weights(
    demo_corpus, feature_cache, tmp_path, monkeypatch
):
    flags = (*data_flags(demo_corpus, feature_cache), "--protocol", "everything",
             "--num_train_epochs", "2", "--ema_decay", "0.5", "--output_dir")  # fmt: skip
    run(*flags, tmp_path / "whole")
    save = SERTrainer._save_checkpoint

    def interrupt(*args, **kwargs):
        raise Interrupted

    def save_and_interrupt(*args):
        save(*args)
        interrupt()

    first = load_file(tmp_path / "whole" / "model.safetensors")
    for target, replacement in (("ser.training.trainer.SERTrainer._save_checkpoint", save_and_interrupt),
                                ("ser.training.run.write_report", interrupt)):  # fmt: skip
        stopped = tmp_path / replacement.__name__
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(target, replacement)
            run(*flags, stopped)
        run(*flags, stopped)
        second = load_file(stopped / "model.safetensors")
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    last = load_file(tmp_path / "whole" / "checkpoint-6" / UNAVERAGED)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert not names & {"predictions.csv", "validation_predictions.csv", "confusion_matrix.png"}
    assert len([name for name in names if name.startswith("checkpoint-")]) == 1
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["corpus"]["rows_used"] == {"train": 48, "validation": 0, "test": 0} and "UA" not in metrics
    clip = sorted(demo_corpus.glob("*/*.wav"))[0]
    assert {row["label"] for row in load_pipeline(str(tmp_path / "whole"))(str(clip))} == {*metrics["label_names"]}
    with pytest.raises(DataError, match="trained or validated on .* of the speakers to be tested"):
        evaluate_ser.main(
            [str(tmp_path / "whole"), "--data_dir", str(demo_corpus), "--output_dir", str(tmp_path / "x")]
        )


@pytest.mark.slow
def test_a_run_on_all_clips_quotes_only_scores_of_the_same_recipe(
    all_folds, demo_corpus, feature_cache, tmp_path, capsys
):
    flags = (*data_flags(demo_corpus, feature_cache), "--max_steps", "1", "--output_dir")
    summary = json.loads((all_folds / "metrics.json").read_text())
    everything = (*flags, tmp_path / "all", "--protocol", "everything", "--scores_from", all_folds)
    with pytest.raises(DataError, match="of another recipe, .*: validation_share: 0.0 -> 0.2; .*eval_strategy: "):
        run(*everything, "--validation_share", "0.2")
    assert not (tmp_path / "all" / "run.json").exists()
    run(*everything)
    (quoted,) = json.loads((tmp_path / "all" / "metrics.json").read_text())["quoted_scores"]
    assert quoted["protocol"] == "demo/speaker-all" and quoted["models"] == 5
    assert quoted["mean"] == summary["mean"] and quoted["pooled"]["intervals"] == summary["pooled"]["intervals"]
    text = (tmp_path / "all" / "metrics.json").read_text()
    assert str(tmp_path) not in text and str(all_folds) not in text
    assert "5 models trained with the same recipe" in (tmp_path / "all" / "README.md").read_text()
    assert "of 5 models trained with the same recipe" in capsys.readouterr().out


@pytest.mark.slow
def test_features_can_be_computed_in_the_workers(demo_corpus, tmp_path):
    empty = tmp_path / "cache"
    run("--data_dir", demo_corpus, "--cache_dir", empty, "--output_dir", tmp_path / "out", "--cache_features", "false",
        "--shuffle_training_labels")  # fmt: skip
    assert len(read_predictions(tmp_path / "out")) == 16
    assert not list(tmp_path.glob("cache/maxmvit_spectrograms/**"))


@pytest.mark.slow
def test_an_unreadable_clip_stops_the_run_or_is_left_out_and_counted(demo_corpus, feature_cache, tmp_path):
    broken = tmp_path / "corpus"
    shutil.copytree(demo_corpus, broken)
    clip = sorted(broken.glob("*/*.wav"))[0]
    clip.write_bytes(b"no audio")
    flags = ("--data_dir", broken, "--cache_dir", feature_cache, "--output_dir", tmp_path / "out")
    with pytest.raises(ValueError, match=clip.name):
        run(*flags)
    run(*flags, "--on_bad_audio", "skip")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert sum(metrics["corpus"]["rows_used"].values()) == 47
    assert metrics["corpus"]["rows_left_out"] == {"cannot be decoded": 1}


@pytest.mark.slow
def test_do_train_do_eval_do_predict_and_resume_from_checkpoint(demo_corpus, feature_cache, tmp_path):
    flags = (*data_flags(demo_corpus, feature_cache), "--num_train_epochs", "2",
             "--max_train_samples", "17", "--max_eval_samples", "5", "--per_device_train_batch_size", "8",
             "--save_total_limit", "2")  # fmt: skip
    run(*flags, "--output_dir", tmp_path / "trained", "--do_train", "--do_eval")
    metrics = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    used = metrics["corpus"]["rows_used"]
    assert (used["train"], used["validation"]) == (17, 5) and used["test"] > 0
    assert "UA" not in metrics and "not scored" in metrics["remarks"][0]
    assert not (tmp_path / "trained" / "predictions.csv").exists()
    assert "not scored" in (tmp_path / "trained" / "README.md").read_text()
    start = (*data_flags(demo_corpus, feature_cache), "--model_name_or_path", tmp_path / "trained")
    run(*start, "--output_dir", tmp_path / "tested", "--do_predict")
    tested = json.loads((tmp_path / "tested" / "metrics.json").read_text())
    splits = json.loads((tmp_path / "trained" / "splits.json").read_text())["clips"]
    rows = read_predictions(tmp_path / "tested")
    assert {row["file"] for row in rows} == {clip["file"] for clip in splits if clip["part"] == "test"}
    assert tested["heard_in_training"] == {"speakers": [], "clips": []}
    with pytest.raises(DataError, match="trained or validated on .* of the speakers to be tested"):
        run(*start, "--output_dir", tmp_path / "other", "--do_predict", "--fold", "2")
    first = sorted(tmp_path.glob("trained/checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))[0]
    run(*flags, "--output_dir", tmp_path / "again", "--resume_from_checkpoint", first)
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("trained", "again")]
    assert all(value.equal(ends[1][name]) for name, value in ends[0].items())
    assert read_predictions(tmp_path / "again") == rows
    with pytest.raises(DataError, match="is of a run with other settings: .*max_train_samples: 17 -> 16"):
        run(*flags, "--max_train_samples", "16", "--output_dir", tmp_path / "b", "--resume_from_checkpoint", first)


def command(*flags, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "run_ser.py"), *flags],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_an_unreachable_hub_is_reported_in_one_line(tmp_path):
    done = command("--dataset_name", "AbstractTTS/IEMOCAP", "--output_dir", str(tmp_path / "out"), HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "AbstractTTS/IEMOCAP" in last


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--fold", "9"], "from 1 to 5"),
        (["--protocol", "imaginary"], "has no protocol 'imaginary'"),
        (["--protocol", "everything", "--fold", "2"], "from 1 to 1"),
        (["--feature_extractor_kwargs", '{"imagesize": 64}'], "no parameter imagesize"),
        (["--cqt_backbone_kwargs", "[1]"], "is not a JSON object"),
        (["--cqt_backbone_kwargs", "{1"], "is not JSON"),
        (["--cqt_backbone_kwargs", '{"depht": [1]}'], "depht"),
        (["--cqt_backbone", "resnet18"], "cqt_backbone='resnet18' cannot be built"),
        (["--feature_extractor_kwargs", '{"top_db": "loud"}'], "--feature_extractor_kwargs .*loud.* does not work"),
        (["--mel_backbone_kwargs", '{"num_heads": "two", "depths": [1, 1, 1, 1]}'], "mel_backbone='mvitv2_base' cann"),
        (["--labels", "happy", "--merge_labels", "sad=happy", "angry=happy", "neutral=happy"], "needs two classes"),
        (["--image_size", "100"], "96 or 128"),
        (["--cache_features", "false", "--on_bad_audio", "skip"], "needs --cache_features"),
        (["--learning_rate", "2e-3", "--per_device_train_batch_size", "64"], "do not fill one batch"),
    ],
)
def test_invalid_options_are_refused(demo_corpus, feature_cache, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(*data_flags(demo_corpus, feature_cache), "--output_dir", tmp_path, *flags, own_backbones=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_parsed(recipe):
    _, data_args, args = parse_arguments([str(recipe)])
    assert {*data_args.dataset_name} <= {"demo", "iemocap", "ravdess", "emodb"} and args.output_dir


def test_shipped_recipes_are_found_from_any_folder_and_local_files_take_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("configs/demo.yaml") == ROOT / "configs" / "demo.yaml"
    for name in ("configs/nothing.yaml", "demo.yaml", "other/demo.yaml"):
        assert find_recipe(name) == Path(name)
    own = tmp_path / "configs" / "demo.yaml"
    own.parent.mkdir()
    own.write_text("dataset_name: demo")
    assert find_recipe("configs/demo.yaml") == Path("configs/demo.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_iemocap, write_ravdess, write_emodb], ids=["iemocap", "ravdess", "emodb"])
def test_recipes_run_on_a_local_copy_in_the_format_of_the_hub(write, tmp_path):
    """Only the backbones and the image size differ from the recipe: they are those of the demo."""
    protocol, tested = write(tmp_path / "corpus")
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    small = {name: demo[name] for name in ("cqt_backbone_kwargs", "mel_backbone_kwargs", "feature_extractor_kwargs")}
    flags = [f"--{name}={json.dumps(value)}" for name, value in small.items()]
    flags += ["--image_size=64", "--imagenet_weights=false", f"--cache_dir={tmp_path / 'feature_cache'}"]
    recipe = write.__name__.removeprefix("write_")
    run(*flags, "--data_dir", tmp_path / "corpus", "--output_dir", tmp_path / "out", recipe=recipe)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["protocol"], metrics["n_clips"]) == (protocol, tested)


@pytest.mark.slow
@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR is not set")
def test_a_recipe_runs_on_the_original_folders_of_ravdess(tmp_path):
    source = Path(os.environ["SER_RAVDESS_DIR"])
    tested = {int(actor) for actor in RECORDS["ravdess"].folds["emobox"][0]}
    for actor in (1, 11, 20, 21, 2, 3, 4):
        folder = tmp_path / "ravdess" / f"Actor_{actor:02d}"
        folder.mkdir(parents=True)
        for clip in sorted((source / folder.name).iterdir())[::5]:
            (folder / clip.name).symlink_to(clip)
    run("--data_dir", tmp_path / "ravdess", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out",
        recipe="ravdess_small")  # fmt: skip
    rows = read_predictions(tmp_path / "out")
    assert {int(row["speaker"]) for row in rows} == tested and len(rows) == 48
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"] == "ravdess/emobox-fold1"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the expected scores of the demo recipe were measured on a CPU")
def test_the_demo_learns_prosody_and_has_no_leak(trained_demo, tmp_path):
    """The demo recipe learns within four epochs, after which a run with shuffled labels is still at chance level."""
    epochs = 4
    flags = ["--report_to", "none", "--shuffle_training_labels", "true", "--output_dir", str(tmp_path)]
    flags += ["--num_train_epochs", str(epochs)]
    main([str(ROOT / "configs" / "demo.yaml"), "--cache_dir", str(trained_demo.parent / "cache"), *flags])
    learnt, shuffled = (json.loads((folder / "metrics.json").read_text()) for folder in (trained_demo, tmp_path))
    assert learnt["UA"] >= 0.8
    history = json.loads((Path(last_checkpoint(trained_demo)) / "trainer_state.json").read_text())["log_history"]
    (reached,) = (entry["eval_UA"] for entry in history if "eval_UA" in entry and entry["epoch"] == epochs)
    assert reached >= 0.5
    assert shuffled["corpus"]["options"]["shuffled_training_labels"] is True
    low, high = shuffled["intervals"]["by_clip"]["UA"]
    assert low <= 0.25 <= high
