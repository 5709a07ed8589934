"""Calibration scores against independent formulas, and the temperature with the lowest NLL."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import brier_score_loss, log_loss

from ser.evaluation.calibration import (
    CALIBRATION_SCORES,
    calibration_scores,
    fit_temperature,
    probabilities_of,
    risk_coverage,
)


def rows_of(confidence: np.ndarray, num_labels: int = 4) -> np.ndarray:
    """Returns rows of probabilities of which the largest, that of class 0, is as given."""
    rest = (1 - confidence)[:, None] / (num_labels - 1)
    return np.column_stack([confidence[:, None], np.repeat(rest, num_labels - 1, axis=1)])


def drawn(count: int = 300, num_labels: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws labels, and probabilities that are correlated with them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_labels, size=count)
    return labels, probabilities_of(rng.normal(size=(count, num_labels)) + 1.5 * np.eye(num_labels)[labels])


def binned_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Equation 3 of Guo et al. 2017, bin by bin."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for m in range(1, 16):
        inside = [i for i in range(len(labels)) if (m - 1) / 15 < confidence[i] <= m / 15]
        if inside:
            total += len(inside) / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_the_ece_of_calibrated_predictions_is_zero():
    confidence = np.repeat([0.4, 0.6, 0.8, 1.0], 100)
    right = np.concatenate([np.arange(100) < 100 * share for share in (0.4, 0.6, 0.8, 1.0)])
    found = calibration_scores(np.where(right, 0, 1), rows_of(confidence), resamples=2)
    assert found["ECE"] == pytest.approx(0, abs=1e-12)
    assert [each["n_clips"] for each in found["bins"]] == [100] * 4
    for each in found["bins"]:
        assert each["above"] < each["confidence"] <= each["up_to"]
        assert each["accuracy"] == pytest.approx(each["confidence"])


def test_ece_equals_a_known_gap():
    """50 of 100 predictions are right at 0.9, and 80 of 100 at 0.7: half of 0.4 plus half of 0.1."""
    confidence = np.repeat([0.9, 0.7], 100)
    right = np.concatenate([np.arange(100) < 50, np.arange(100) < 80])
    found = calibration_scores(np.where(right, 0, 1), rows_of(confidence), resamples=2)
    assert found["ECE"] == pytest.approx(0.25, abs=1e-12)


def test_ece_is_near_zero_for_labels_drawn_from_the_probabilities_and_not_for_sharpened_ones():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50_000, 5))
    probabilities = probabilities_of(logits)
    labels = (rng.random((50_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert calibration_scores(labels, probabilities, resamples=2)["ECE"] < 0.01
    sharp = probabilities_of(logits, temperature=0.5)
    known = np.mean(sharp.max(1) - probabilities.max(1))  # the excess confidence of each prediction
    assert calibration_scores(labels, sharp, resamples=2)["ECE"] == pytest.approx(known, abs=0.01)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10**6))
def test_scores_equal_scikit_learn_and_the_bin_by_bin_sum(count, num_labels, seed):
    labels, probabilities = drawn(count, num_labels, seed)
    found = calibration_scores(labels, probabilities, resamples=2)
    classes = range(num_labels)
    assert found["NLL"] == pytest.approx(log_loss(labels, probabilities, labels=classes), abs=1e-12)
    unscaled = brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert found["Brier"] == pytest.approx(unscaled, abs=1e-12)
    assert found["ECE"] == pytest.approx(binned_ece(labels, probabilities), abs=1e-12)


def test_bin_edges_and_predictions_of_probability_one():
    found = calibration_scores([0, 1], [[1 / 15 * 9, 1 - 1 / 15 * 9], [1.0, 0.0]], resamples=2)
    assert [each["up_to"] for each in found["bins"]] == [9 / 15, 1.0]
    assert np.isfinite(found["NLL"]) and found["NLL"] > 300  # the true class has probability 0


@pytest.mark.slow
def test_intervals_equal_a_bootstrap_that_copies_clips_and_speakers():
    labels, probabilities = drawn(150)
    speakers = [f"s{k % 5}" for k in range(150)]
    found = calibration_scores(labels, probabilities, speakers, resamples=3000)["intervals"]
    rng = np.random.default_rng(1)
    by_speaker = [[i for i in range(150) if i % 5 == k] for k in range(5)]
    sets = {
        "by_clip": rng.integers(150, size=(1000, 150)),
        "by_speaker": [np.concatenate([by_speaker[k] for k in rng.integers(5, size=5)]) for _ in range(1000)],
    }
    for unit, drawn_sets in sets.items():
        again = [calibration_scores(labels[rows], probabilities[rows], resamples=1) for rows in drawn_sets]
        for name in CALIBRATION_SCORES:
            expected = np.percentile([each[name] for each in again], [2.5, 97.5])
            assert found[unit][name] == pytest.approx(expected, abs=0.02), (unit, name)


def test_intervals_do_not_depend_on_the_size_of_blocks(monkeypatch):
    labels, probabilities = drawn(40)
    whole = calibration_scores(labels, probabilities, resamples=50)
    monkeypatch.setattr("ser.evaluation.metrics.BLOCK", 100)
    assert calibration_scores(labels, probabilities, resamples=50) == whole
    assert list(calibration_scores(labels, probabilities, [None] * 40, resamples=5)["intervals"]) == ["by_clip"]


def test_risk_and_coverage_by_hand():
    """Four predictions, from the most confident on: right, wrong, right, wrong."""
    found = risk_coverage([0, 1, 0, 1], rows_of(np.array([0.9, 0.8, 0.7, 0.6])))
    assert [each["coverage"] for each in found["curve"]] == [0.25, 0.5, 0.75, 1.0]
    assert [each["risk"] for each in found["curve"]] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert found["AURC"] == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 2]))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**6))
def test_each_point_of_the_curve_is_what_its_min_score_gives(count, seed):
    labels, probabilities = drawn(count, seed=seed)
    probabilities = np.round(probabilities, 2) + [0, 0, 0, 1] * (1 - np.round(probabilities, 2).sum(1, keepdims=True))
    probabilities = np.abs(probabilities) / np.abs(probabilities).sum(1, keepdims=True)  # rounded, so many are equal
    found = risk_coverage(labels, probabilities)
    for point in found["curve"]:
        answered = probabilities.max(1) >= point["min_score"]
        assert point["coverage"] == pytest.approx(answered.mean())
        assert point["risk"] == pytest.approx((probabilities.argmax(1) != labels)[answered].mean())
    assert found["curve"][-1]["coverage"] == 1 and len(found["curve"]) <= 101


def test_equal_confidence_gives_one_area_in_any_order():
    labels, right = np.array([0, 0, 0, 1, 1]), rows_of(np.array([0.9, 0.5, 0.5, 0.5, 0.5]))
    orders = [[0, 1, 2, 3, 4], [0, 3, 4, 1, 2], [4, 3, 2, 1, 0]]
    assert {round(risk_coverage(labels[order], right[order])["AURC"], 12) for order in orders} == {0.271666666667}


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "at least one"),
        ([0], [[0.5, 0.5], [1, 0]], "one row of probabilities for each label"),
        ([0], [[2.0, -1.0]], "non-negative numbers"),
        ([0], [[3.0, 1.0]], "whose sum is 1"),
    ],
)
def test_rows_that_are_not_probabilities_are_refused(labels, probabilities, message):
    for score in (calibration_scores, risk_coverage):
        with pytest.raises(ValueError, match=message):
            score(labels, probabilities)


def test_probabilities_of_large_logits_are_a_softmax():
    logits = np.random.default_rng(0).normal(size=(20, 4), scale=500)
    for temperature in (1.0, 0.3, 4.0):
        expected = np.exp(log_softmax(logits / temperature, axis=-1))
        assert probabilities_of(logits, temperature) == pytest.approx(expected, abs=1e-15)


# --- temperature ---


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_by_which_labels_were_drawn_is_found(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40_000, 5), scale=2)
    labels = (rng.random((40_000, 1)) > probabilities_of(logits, true).cumsum(1)).sum(1)
    assert fit_temperature(labels, logits) == pytest.approx(true, rel=0.03)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(2, 80), st.integers(0, 10**6))
def test_no_other_temperature_has_a_lower_nll_and_none_changes_a_label(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    logits = (rng.normal(size=(count, 4)) + np.eye(4)[labels]).astype(np.float32)
    found = fit_temperature(labels, logits)
    least = log_loss(labels, probabilities_of(logits, found), labels=range(4))
    for other in np.geomspace(0.1, 10, 41):
        probabilities = probabilities_of(logits, other)
        assert log_loss(labels, probabilities, labels=range(4)) > least - 1e-9
        assert (probabilities.argmax(1) == logits.argmax(1)).all()


def test_a_temperature_at_the_bounds_gives_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert fit_temperature([0, 1], [[1.0, 0.0], [0.0, 1.0]]) == 0.1
    assert "No temperature from 0.1 to 10 fits the 2 validation clips best: using 0.1." in caplog.text
    assert fit_temperature([1, 0], [[1.0, 0.0], [0.0, 1.0]]) == 10.0
