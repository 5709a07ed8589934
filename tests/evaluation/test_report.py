"""Reports of runs: metrics, predictions, plots and model cards, of one fold and of all folds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
)

from ser.data.features import rearranged
from ser.data.protocols import make_split, n_folds
from ser.evaluation.calibration import CALIBRATION_SCORES, calibration_scores
from ser.evaluation.metrics import SCORES
from ser.evaluation.plots import plot_confusion_matrix, plot_training_curves
from ser.evaluation.report import format_report, splits_table, summarize_folds, write_predictions, write_report
from ser.files import atomic_write, write_json
from ser.utils import DataError
from tests.helpers.clips import corpus_of

HISTORY = [
    {"epoch": 1.0, "loss": 1.4, "cqt_learning_rate": 1e-3, "mel_learning_rate": 1e-3, "head_learning_rate": 1e-2},
    {"epoch": 1.0, "eval_loss": 1.5, "eval_UA": 0.3},
    {"epoch": 2.0, "loss": 1.0, "cqt_learning_rate": 1e-4, "mel_learning_rate": 1e-4, "head_learning_rate": 1e-3},
    {"epoch": 2.0, "eval_loss": 1.2, "eval_UA": 0.5},
    {"epoch": 2.0, "train_loss": 1.2, "train_runtime": 5.0},
]


def mine(known: bool = True, **kwargs):
    """Returns a corpus of 24 clips of 6 speakers and 4 classes, of which 3 rows were left out."""
    speakers = [f"s{k // 4}" for k in range(24)] if known else None
    corpus = corpus_of([0, 1, 2, 3] * 6, speakers, **kwargs)
    corpus.label_names = ["neutral", "happy", "angry", "sad"]
    corpus.dropped = {"unknown label 'bored'": 3}
    corpus.options = {"schema": None}
    return corpus


def run(
    folder: Path,
    corpus,
    protocol: str | None = None,
    fold: int = 1,
    seed: int = 0,
    share: float | None = None,
    **kwargs,
) -> dict:
    split = make_split(corpus, protocol, fold, share)
    parts = {part: corpus.clips.select(indices) for part, indices in split.parts.items()}
    logits = np.random.default_rng(seed + fold).normal(size=(len(split.test), 4)).astype(np.float32)
    logits = logits if split.test else None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "splits.json", splits_table(corpus, split, seed))
    return write_report(folder, corpus, split, parts, logits, seed=seed, duration=1.26, log_history=HISTORY, **kwargs)


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sklearn_scores(rows: list[dict]) -> dict[str, float]:
    labels, predictions = ([row[key] for row in rows] for key in ("label", "prediction"))
    return {
        "WA": accuracy_score(labels, predictions),
        "UA": balanced_accuracy_score(labels, predictions),
        "macro_f1": f1_score(labels, predictions, average="macro"),
        "weighted_f1": f1_score(labels, predictions, average="weighted"),
    }


@pytest.mark.slow
def test_the_effect_of_temperature_scaling_is_reported_for_a_run_and_for_all_folds(tmp_path):
    corpus = mine()
    folders = {kind: [tmp_path / kind / f"fold_{fold}" for fold in (1, 2)] for kind in ("raw", "calibrated")}
    for fold, temperature in ((1, 2.0), (2, 0.7)):
        raw = run(folders["raw"][fold - 1], corpus, "loso", fold)
        report = run(folders["calibrated"][fold - 1], corpus, "loso", fold, temperature=temperature)
        assert report["temperature"] == temperature and raw["temperature"] == 1 and "before" not in raw["calibration"]
        expected = {name: raw["calibration"][name] for name in (*CALIBRATION_SCORES, "intervals")}
        assert report["calibration"]["before"] == expected
        assert {name: report[name] for name in SCORES} == {name: raw[name] for name in SCORES}
        line = f"Temperature {temperature:.3f} (mine/loso-fold{fold}), before and after: ECE {expected['ECE']:.3f} -> "
        assert line in format_report(report) and "Temperature" not in format_report(raw)
        assert f"at temperature {temperature:.3f}" in (folders["calibrated"][fold - 1] / "README.md").read_text()
    pooled = {kind: summarize_folds(tmp_path / kind, of_kind)["pooled"] for kind, of_kind in folders.items()}
    assert "before" not in pooled["raw"]["calibration"]
    for name in CALIBRATION_SCORES:
        before = pooled["calibrated"]["calibration"]["before"][name]
        assert before == pytest.approx(pooled["raw"]["calibration"][name], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["random", "loso", "speaker"])
def test_scores_recomputed_from_the_predictions_equal_the_metrics(tmp_path, protocol):
    corpus = mine()
    run(tmp_path, corpus, protocol)
    report = json.loads((tmp_path / "metrics.json").read_text())
    rows = read_csv(tmp_path / "predictions.csv")
    assert {name: report[name] for name in SCORES} == pytest.approx(sklearn_scores(rows), abs=1e-9)
    counts = confusion_matrix([r["label"] for r in rows], [r["prediction"] for r in rows], labels=corpus.label_names)
    assert report["confusion_matrix"] == counts.tolist()


@pytest.mark.slow
def test_calibration_recomputed_from_the_predictions_equals_the_metrics(tmp_path):
    corpus = mine()
    folders = [tmp_path / f"fold_{k}" for k in (1, 2, 3)]
    reports = [run(folder, corpus, "loso", fold) for fold, folder in enumerate(folders, start=1)]
    pooled = summarize_folds(tmp_path, folders)["pooled"]
    for folder, report in [*zip(folders, reports, strict=True), (tmp_path, pooled)]:
        rows = read_csv(folder / "predictions.csv")
        labels = [corpus.label_names.index(row["label"]) for row in rows]
        probabilities = np.array([[float(row[f"p_{name}"]) for name in corpus.label_names] for row in rows])
        calibration, classes = report["calibration"], range(4)
        assert calibration["NLL"] == pytest.approx(log_loss(labels, probabilities, labels=classes), abs=1e-9)
        brier = brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
        assert calibration["Brier"] == pytest.approx(brier, abs=1e-9)
        assert calibration["ECE"] == pytest.approx(calibration_scores(labels, probabilities)["ECE"], abs=1e-9)
        assert set(calibration["intervals"]["by_clip"]) == set(CALIBRATION_SCORES)
        assert ("by_speaker" in calibration["intervals"]) == (report is pooled)
        assert report["selective"]["curve"][-1]["risk"] == pytest.approx(1 - report["WA"])
        assert border_is_blank(folder / "reliability.png")


@pytest.mark.slow
def test_everything_about_a_run_is_in_its_metrics(tmp_path):
    corpus = mine()
    corpus.dropped["cannot be decoded"] = 2
    report = run(tmp_path, corpus, "loso", remarks=["Of two clips."], extra={"epochs": 2})
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    assert report["protocol"] == "mine/loso-fold1" and report["speaker_disjoint"]
    assert report["corpus"] == {
        "name": "mine",
        "source": "mine",
        "revision": "r1",
        "options": {"schema": None},
        "rows_used": {"train": 16, "validation": 4, "test": 4},
        "rows_left_out": {"unknown label 'bored'": 3, "cannot be decoded": 2},
    }
    assert report["label_names"] == ["neutral", "happy", "angry", "sad"]
    assert (report["test_speakers"], report["seed"], report["duration_seconds"]) == (["s0"], 0, 1.3)
    assert {"python", "torch", "transformers", "timm", "datasets"} <= set(report["versions"])
    assert report["epochs"] == 2 and report["remarks"] == ["Of two clips."]
    assert set(report["intervals"]["by_clip"]) == set(SCORES)
    remark, *lines = format_report(report).splitlines()
    assert remark == "Of two clips."
    assert [line.split()[0] for line in lines] == [*SCORES, *CALIBRATION_SCORES]
    assert all("(mine/loso-fold1)" in line for line in lines)


@pytest.mark.slow
def test_published_files_do_not_name_local_folders(tmp_path):
    arguments = {
        "data_dir": "/home/me/mine",
        "nested": [{"weights": Path("/home/me/x.pth")}],
        "cache": "~/c",
        "rate": 1,
    }
    run(tmp_path, mine(), extra={"arguments": arguments | {"relative": "out/mine"}})
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["arguments"] == {
        "data_dir": "mine", "nested": [{"weights": "x.pth"}], "cache": "c", "rate": 1, "relative": "out/mine"
    }  # fmt: skip
    for name in ("metrics.json", "README.md"):
        assert not any(place in (tmp_path / name).read_text() for place in ("/home", "/data", str(tmp_path.parent)))


@pytest.mark.slow
def test_the_files_of_a_run(tmp_path):
    run(tmp_path, mine())
    names = {path.name for path in tmp_path.iterdir()}
    plots = {"confusion_matrix.png", "reliability.png", "training_curves.png"}
    assert names == {"splits.json", "predictions.csv", "metrics.json", "README.md", *plots}


def test_splits_name_the_part_speaker_and_class_of_every_clip(tmp_path):
    corpus = mine()
    split = make_split(corpus, "loso", 2)
    write_json(tmp_path / "splits.json", splits_table(corpus, split, seed=7))
    written = json.loads((tmp_path / "splits.json").read_text())
    assert (written["protocol"], written["speaker_disjoint"], written["seed"]) == ("mine/loso-fold2", True, 7)
    assert {clip["file"] for clip in written["clips"]} == set(corpus.files)
    tested = [clip for clip in written["clips"] if clip["part"] == "test"]
    assert tested[1] == {"file": "0005.wav", "part": "test", "speaker": "s1", "label": "happy"}
    assert len(tested) == 4


# --- no validation set, no test set ---


@pytest.mark.slow
def test_a_run_without_validation_has_a_remark_in_all_reports(tmp_path):
    corpus = mine()
    folders = [tmp_path / f"fold_{fold}" for fold in (1, 2)]
    reports = [run(folder, corpus, "loso", fold, share=0) for fold, folder in enumerate(folders, start=1)]
    remark = "No validation set: the model is the last state of the full training schedule."
    assert reports[0]["corpus"]["rows_used"] == {"train": 20, "validation": 0, "test": 4}
    assert reports[0]["remarks"] == [remark] and format_report(reports[0]).startswith(remark)
    assert remark in (folders[0] / "README.md").read_text()
    assert summarize_folds(tmp_path, folders)["remarks"] == [remark]
    usual = run(tmp_path / "usual", corpus, "loso")
    assert usual["remarks"] == [] and "No validation set" not in (tmp_path / "usual" / "README.md").read_text()


def test_a_run_on_all_clips_has_no_scores_and_a_remark(tmp_path):
    report = run(tmp_path, mine(), "everything")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"splits.json", "metrics.json", "README.md", "training_curves.png"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    assert (
        not {
            *SCORES,
            "calibration",
            "selective",
            "confusion_matrix",
            "intervals",
            "per_class",
            "n_clips",
            "test_speakers",
        }
        & report.keys()
    )
    assert report["protocol"] == "mine/everything" and report["speaker_disjoint"] is None
    assert format_report(report).splitlines() == report["remarks"] and len(report["remarks"]) == 2


QUOTED = {
    "protocol": "mine/loso-all",
    "seed": 7,
    "models": 6,
    "measured_on": "6 models trained with the same recipe, each tested on unseen speakers",
    "mean": {"UA": 0.512, "WA": 0.523},
    "std": {"UA": 0.031, "WA": 0.042},
    "pooled": {
        "n_clips": 24,
        "UA": 0.509,
        "WA": 0.521,
        "intervals": {"by_speaker": {"UA": [0.4, 0.6], "WA": [0.41, 0.61]}},
    },
}


def test_scores_of_other_models_are_quoted_as_theirs(tmp_path):
    other = QUOTED | {
        "protocol": "mine/halves-all",
        "models": 2,
        "measured_on": "2 models trained with the same recipe",
    }
    metadata, text = card(tmp_path, mine(), "everything", quoted=[QUOTED, other])
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["quoted_scores"] == [QUOTED, other] and "UA" not in report
    assert "model-index" not in metadata  # in which they would count as scores of this model
    rows = [line for line in text.splitlines() if line.startswith(("| 6 models", "| 2 models"))]
    assert len(rows) == 4
    assert rows[0] == (
        "| 6 models trained with the same recipe, each tested on unseen speakers | mine/loso-all, 7 | UA | "
        "0.512 ± 0.031 | 0.509 | 0.400 to 0.600 |"
    )
    assert "No test set: this model has no score of its own." in text
    assert "No number in this table is a score of this model." in text
    lines = format_report(report).splitlines()[2:]
    assert len(lines) == 4 and all("models trained with the same recipe" in each for each in lines)
    assert (
        lines[0].startswith("UA (mine/loso-all) of 6 models") and ", not of this model: 0.512 +- 0.031, " in lines[0]
    )


# --- predictions ---


def test_predictions_hold_a_probability_for_every_class(tmp_path):
    corpus = mine(known=False)
    logits = np.random.default_rng(0).normal(size=(24, 4), scale=300).astype(np.float32)
    write_predictions(tmp_path / "p.csv", corpus.clips, logits, corpus.label_names)
    rows = read_csv(tmp_path / "p.csv")
    assert list(rows[0]) == ["file", "speaker", "label", "prediction", "p_neutral", "p_happy", "p_angry", "p_sad"]
    assert rows[0]["speaker"] == ""
    for row, line in zip(rows, logits, strict=True):
        probabilities = [float(row[f"p_{name}"]) for name in corpus.label_names]
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)
        assert row["prediction"] == corpus.label_names[int(line.argmax())]


def test_predictions_do_not_depend_on_the_format_of_the_table(tmp_path):
    corpus = mine()
    logits = np.eye(4)[corpus.labels]
    plain, formatted = tmp_path / "plain.csv", tmp_path / "formatted.csv"
    write_predictions(plain, corpus.clips, logits, corpus.label_names)
    write_predictions(formatted, corpus.clips.with_format("torch"), logits, corpus.label_names)
    assert plain.read_text() == formatted.read_text()


def test_invalid_logits_are_refused(tmp_path):
    corpus = mine()
    with pytest.raises(ValueError, match=r"Logits of \(24, 3\) do not fit 24 clips and 4 classes"):
        write_predictions(tmp_path / "p.csv", corpus.clips, np.zeros((24, 3)), corpus.label_names)
    logits = np.zeros((24, 4))
    logits[5, 1] = np.nan
    with pytest.raises(ValueError, match="logits of 0005.wav are not finite"):
        write_predictions(tmp_path / "p.csv", corpus.clips, logits, corpus.label_names)
    assert not list(tmp_path.iterdir())


# --- atomic writing ---


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "metrics.json"
    with pytest.raises(RuntimeError), atomic_write(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write_json(path, {"a": np.float32(0.5), "b": np.arange(2)})
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [0, 1]}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text())["a"] == 0.5


# --- all folds ---


@pytest.mark.slow
def test_folds_are_averaged_and_pooled(tmp_path):
    corpus = mine()
    folders = [tmp_path / f"fold_{k}" for k in range(1, n_folds(corpus, "loso") + 1)]
    reports = [run(folder, corpus, "loso", fold) for fold, folder in enumerate(folders, start=1)]
    summary = summarize_folds(tmp_path, folders)
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert summary["protocol"] == "mine/loso-all"
    ua = [report["UA"] for report in reports]
    assert summary["mean"]["UA"] == pytest.approx(np.mean(ua))
    assert summary["std"]["UA"] == pytest.approx(np.std(ua, ddof=1))
    rows = read_csv(tmp_path / "predictions.csv")
    assert [row["fold"] for row in rows] == [str(k) for k in range(1, 7) for _ in range(4)]
    assert {row["file"] for row in rows} == set(corpus.files)
    assert {name: summary["pooled"][name] for name in SCORES} == pytest.approx(sklearn_scores(rows), abs=1e-9)
    assert set(summary["pooled"]["intervals"]) == {"by_clip", "by_speaker"}
    assert len(summary["folds"]) == 6 and summary["duration_seconds"] == pytest.approx(6 * 1.3)
    assert (tmp_path / "confusion_matrix.png").is_file()


@pytest.mark.slow
def test_folds_of_one_sex_each_are_scored_by_sex_together(tmp_path):
    corpus = mine()
    sexes = [None if speaker == "s5" else ("female", "male")[int(speaker[1]) % 2] for speaker in corpus.speakers]
    corpus.clips = rearranged(corpus.clips, range(24), sex=sexes)
    folders = [tmp_path / f"fold_{k}" for k in range(1, 7)]
    reports = [run(folder, corpus, "loso", fold) for fold, folder in enumerate(folders, start=1)]
    assert all(report["groups"] == {} for report in reports)
    assert (
        "sex" in read_csv(folders[0] / "predictions.csv")[0]
        and "sex" not in read_csv(folders[5] / "predictions.csv")[0]
    )
    groups = summarize_folds(tmp_path, folders)["pooled"]["groups"]
    rows = read_csv(tmp_path / "predictions.csv")
    assert set(groups) == {"sex"} and set(groups["sex"]) == {"female", "male"}
    for sex, found in groups["sex"].items():
        own = [row for row in rows if row["sex"] == sex]
        assert found.pop("n_clips") == len(own) > 0
        assert found == pytest.approx(sklearn_scores(own), abs=1e-9)


@pytest.mark.slow
def test_an_unfinished_fold_and_one_of_another_protocol_are_refused(tmp_path):
    run(tmp_path / "fold_1", mine(), "loso", 1)
    with pytest.raises(DataError, match="Fold 2 is not finished: .*fold_2.metrics.json does not exist"):
        summarize_folds(tmp_path, [tmp_path / "fold_1", tmp_path / "fold_2"])
    run(tmp_path / "fold_2", mine(), "speaker", 2)
    with pytest.raises(DataError, match="differ in protocol, classes"):
        summarize_folds(tmp_path, [tmp_path / "fold_1", tmp_path / "fold_2"])
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_one_fold_has_no_standard_deviation(tmp_path):
    run(tmp_path / "fold_1", mine(), "loso", 1)
    assert summarize_folds(tmp_path, [tmp_path / "fold_1"])["std"]["UA"] is None


# --- plots ---


def border_is_blank(path: Path) -> bool:
    """Returns whether nothing touches the edge of an image, so nothing is cut off."""
    pixels = np.asarray(Image.open(path).convert("L"))
    edges = np.concatenate([pixels[:4].ravel(), pixels[-4:].ravel(), pixels[:, :4].ravel(), pixels[:, -4:].ravel()])
    return bool((edges == 255).all()) and pixels.min() < 100


LONG = ["neutral", "calmness-and-serenity", "happiness/excitement", "sadness", "frustration (mild)", "fearfulness"]


@pytest.mark.slow
@pytest.mark.parametrize("names", [["no", "yes"], [*LONG, "disgust", "surprise (positive)"], [*"abcdefghij"]])
def test_nothing_is_cut_off_from_the_confusion_matrix(tmp_path, names):
    counts = np.arange(len(names) ** 2).reshape(len(names), -1) * 7
    counts[1] = 0
    heading = "an-organisation-with-a-long-name/a-data-set-with-a-long-name/luna-jimenez-fold5\nUA 0.312, WA 0.331"
    plot_confusion_matrix(tmp_path / "c.png", counts, names, heading)
    assert border_is_blank(tmp_path / "c.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        [entry for entry in HISTORY if "eval_UA" not in entry],
        [{"epoch": 1.0, "loss": float("nan"), "learning_rate": 0.02}],
        [{"epoch": 1, "learning_rate": 0.0}],
    ],
)
def test_training_curves(tmp_path, history):
    plot_training_curves(tmp_path / "t.png", history, "mine/random")
    assert border_is_blank(tmp_path / "t.png")


# --- the model card ---


def card(tmp_path: Path, corpus, protocol: str, **kwargs) -> tuple[dict, str]:
    run(tmp_path, corpus, protocol, model_id="someone/mine", **kwargs)
    text = (tmp_path / "README.md").read_text()
    return yaml.safe_load(text.split("---")[1]), text


@pytest.mark.slow
def test_model_card_metadata(tmp_path):
    corpus = mine(name="iemocap", sessions=[f"Ses0{1 + k // 8}" for k in range(24)])
    corpus.options = {"schema": "AbstractTTS/IEMOCAP"}
    metadata, text = card(tmp_path, corpus, "sessions")
    assert metadata["pipeline_tag"] == "audio-classification"
    assert metadata["library_name"] == "transformers"
    assert metadata["datasets"] == ["AbstractTTS/IEMOCAP"]
    result = metadata["model-index"][0]["results"][0]
    assert metadata["model-index"][0]["name"] == "mine"
    assert result["task"]["type"] == "audio-classification"
    assert result["dataset"]["type"] == "AbstractTTS/IEMOCAP"
    named = {metric["name"]: metric for metric in result["metrics"]}
    assert set(named) == {f"{name} (iemocap/sessions-fold1)" for name in SCORES}
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert named["UA (iemocap/sessions-fold1)"]["value"] == pytest.approx(report["UA"], abs=1e-4)
    assert len(ModelCard(text).data.eval_results) == 4
    for name in CALIBRATION_SCORES:
        assert f"| {name} | {report['calibration'][name]:.3f} | " in text
    assert 'model="someone/mine"' in text and "trust_remote_code=True" in text
    assert "unknown label 'bored': 3" in text
    assert "No speaker of the test part" in text
    assert "labels are what annotators heard" in text and "to be signed with its authors" in text
    assert "license" not in metadata  # the Hub has no identifier for this licence


@pytest.mark.slow
def test_weights_have_the_licence_of_the_recordings(tmp_path):
    metadata, text = card(tmp_path, mine(name="ravdess"), "random")
    assert metadata["license"] == "cc-by-nc-sa-4.0" and "and therefore of these weights: CC BY-NC-SA 4.0" in text
    assert "what they were asked to express" in text


def test_the_card_of_a_run_on_all_clips_claims_no_score(tmp_path):
    metadata, text = card(tmp_path, mine(), "everything")
    assert "model-index" not in metadata and "metrics" not in metadata
    assert "No test set: this model has no score of its own." in text
    assert "24 train, 0 validation, 0 test" in text and "It was trained on the recordings" in text
    assert "confusion_matrix.png" not in text and "UA" not in text
    assert "- Model: the paper's\n" in text and "Mel\nspectrogram (" in text


@pytest.mark.slow
def test_model_card_warns_of_shared_speakers_and_claims_no_hub_data_set(tmp_path):
    metadata, text = card(tmp_path, mine(), "random")
    assert "Speakers are shared" in text and "not known here; ask the provider of the corpus" in text
    assert "/data/mine" not in text  # folders of this machine are not published
    assert "datasets" not in metadata
