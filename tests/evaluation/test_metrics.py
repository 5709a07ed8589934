"""Scores against scikit-learn, intervals against a plain bootstrap, and the metrics of Trainer and of evaluate."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_recall_fscore_support

from ser.evaluation import metrics
from ser.evaluation.metrics import (
    SCORES,
    SpeechEmotionScores,
    bootstrap_intervals,
    compute_metrics,
    confusion_matrix,
    scores,
)
from tests.helpers.processes import exit_codes, start

NAMES = ["neutral", "happy", "angry", "sad"]


def sklearn_scores(labels, predictions) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a predicted class that is not among the labels
        return {
            "WA": accuracy_score(labels, predictions),
            "UA": balanced_accuracy_score(labels, predictions),
            "macro_f1": f1_score(labels, predictions, average="macro"),
            "weighted_f1": f1_score(labels, predictions, average="weighted"),
        }


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(pairs)
def test_scores_equal_scikit_learn(drawn):
    """Including absent classes and classes that are never predicted."""
    labels, predictions = map(list, zip(*drawn, strict=True))
    found = scores(labels, predictions, NAMES, resamples=2)
    assert {name: found[name] for name in SCORES} == pytest.approx(sklearn_scores(labels, predictions), abs=1e-12)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=range(4), zero_division=np.nan
    )
    for i, name in enumerate(NAMES):
        ours = found["per_class"][name]
        assert ours["support"] == support[i]
        assert ours["recall"] is None if np.isnan(recall[i]) else ours["recall"] == pytest.approx(recall[i])
        assert (
            ours["precision"] is None if np.isnan(precision[i]) else ours["precision"] == pytest.approx(precision[i])
        )
        assert ours["f1"] == pytest.approx(np.nan_to_num(f1[i]))


def test_one_class_predicted():
    found = scores([0, 1, 2, 3], [1, 1, 1, 1], NAMES)
    assert (found["WA"], found["UA"], found["macro_f1"]) == (0.25, 0.25, pytest.approx(0.1))
    assert found["per_class"]["happy"] == {"recall": 1.0, "precision": 0.25, "f1": 0.4, "support": 1}
    assert found["per_class"]["sad"]["precision"] is None


def test_an_absent_class_does_not_count_in_ua():
    found = scores([0, 0, 1, 1], [0, 0, 1, 2], NAMES)
    assert found["UA"] == 0.75
    assert found["per_class"]["angry"] == {"recall": None, "precision": 0.0, "f1": 0.0, "support": 0}
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["confusion_matrix"][1] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "at least one"),
        ([0, 1], [0], "as many predictions"),
        ([0, 4], [0, 0], "from 0 to 3"),
        ([0], [-1], "0 to"),
    ],
)
def test_invalid_labels_and_predictions_are_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        scores(labels, predictions, NAMES)


# --- intervals ---


def test_intervals_by_clip_equal_a_bootstrap_that_copies_clips():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    predictions = np.where(rng.random(120) < 0.6, labels, rng.integers(0, 4, 120))
    ours = bootstrap_intervals(labels, predictions, 4, resamples=4000)["by_clip"]
    drawn = rng.integers(0, 120, (4000, 120))
    matrices = np.stack([confusion_matrix(labels[d], predictions[d], 4) for d in drawn])
    for name, values in metrics.scores_from_confusion(matrices).items():
        assert ours[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.015)


def test_intervals_by_speaker_equal_a_bootstrap_that_copies_speakers():
    rng = np.random.default_rng(1)
    skill = np.repeat([0.2, 0.5, 0.8, 0.9, 0.4, 0.7], 20)
    labels = rng.integers(0, 4, 120)
    predictions = np.where(rng.random(120) < skill, labels, rng.integers(0, 4, 120))
    speakers = np.repeat([f"s{k}" for k in range(6)], 20)
    intervals = bootstrap_intervals(labels, predictions, 4, list(speakers), resamples=4000)
    own = np.stack(
        [confusion_matrix(labels[speakers == s], predictions[speakers == s], 4) for s in sorted({*speakers})]
    )
    matrices = own[rng.integers(0, 6, (4000, 6))].sum(1)
    for name, values in metrics.scores_from_confusion(matrices).items():
        assert intervals["by_speaker"][name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.02)
    widths = {unit: np.diff(bounds["UA"])[0] for unit, bounds in intervals.items()}
    assert widths["by_speaker"] > widths["by_clip"]


def test_intervals_contain_the_score_and_depend_on_the_seed():
    labels, predictions = [0, 1, 2, 3] * 30, [0, 1, 2, 0, 1, 1, 0, 3] * 15
    found = scores(labels, predictions, NAMES)
    for name in SCORES:
        low, high = found["intervals"]["by_clip"][name]
        assert low < found[name] < high
    assert scores(labels, predictions, NAMES) == found
    assert scores(labels, predictions, NAMES, seed=1)["intervals"] != found["intervals"]


@pytest.mark.parametrize("speakers", [None, ["a"] * 4, ["a", "b", None, "a"]])
def test_no_interval_by_speaker_without_two_known_speakers(speakers):
    assert list(bootstrap_intervals([0, 1, 2, 3], [0, 1, 2, 2], 4, speakers, resamples=5)) == ["by_clip"]


def test_perfect_predictions_have_an_interval_of_width_zero():
    assert bootstrap_intervals([0, 1] * 9, [0, 1] * 9, 2)["by_clip"]["UA"] == [1.0, 1.0]


# --- Trainer and evaluate ---


@pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: (logits, "hidden states")])
def test_compute_metrics_for_trainer(wrap):
    logits = np.array([[2.0, 1, 0], [0, 3, 1], [1, 0, 0], [0, 0, 1]])
    labels = np.array([0, 1, 1, 2])
    found = compute_metrics(SimpleNamespace(predictions=wrap(logits), label_ids=labels))
    assert found == pytest.approx(sklearn_scores(labels, [0, 1, 0, 2]))


@pytest.fixture
def metric(tmp_path):
    return lambda **kwargs: SpeechEmotionScores(cache_dir=str(tmp_path), **kwargs)


def test_the_evaluate_metric_in_batches(metric):
    counted = metric()
    for labels, predictions in (([0, 1], [0, 2]), ([2, 2, 0], [2, 2, 1])):
        counted.add_batch(references=labels, predictions=predictions)
    expected = sklearn_scores([0, 1, 2, 2, 0], [0, 2, 2, 2, 1])
    assert counted.compute() == pytest.approx(expected)


def test_the_evaluate_metric_is_loaded_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = evaluate.load(metrics.__file__, cache_dir=str(tmp_path))
    assert loaded.compute(references=[0, 1, 1], predictions=[0, 1, 0]) == pytest.approx(
        sklearn_scores([0, 1, 1], [0, 1, 0])
    )


def count_part(rank: int, folder: Path) -> None:
    metric = SpeechEmotionScores(num_process=2, process_id=rank, experiment_id="two", cache_dir=str(folder))
    labels, predictions = [([0, 1], [0, 2]), ([2, 2, 0], [2, 2, 1])][rank]
    metric.add_batch(references=labels, predictions=predictions)
    (folder / f"{rank}.json").write_text(json.dumps(metric.compute()))


@pytest.mark.slow
def test_the_evaluate_metric_of_two_processes_counts_every_clip_once(tmp_path):
    assert exit_codes([start(count_part, rank, tmp_path) for rank in (0, 1)]) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == pytest.approx(sklearn_scores([0, 1, 2, 2, 0], [0, 2, 2, 2, 1]))
    assert second is None
