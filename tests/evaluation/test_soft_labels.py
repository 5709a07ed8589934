"""Scores of soft labels against independent formulas, and clips without a majority label."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from ser.data.augmentation import Mixup
from ser.data.corpora.corpus import agreed, shares_of, with_one_label
from ser.evaluation.calibration import probabilities_of
from ser.evaluation.soft_labels import DISTRIBUTION_SCORES, compute_distribution_metrics, distribution_scores
from tests.helpers.soft_labels import recomputed


def drawn(count: int, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws votes of three or four annotators, and logits that are correlated with them."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(num_labels, 0.5), size=count)
    votes = np.stack([rng.multinomial(rng.integers(3, 5), row) for row in chances])
    return votes.astype(float), np.log(chances + 0.1) + rng.normal(size=chances.shape)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10**6))
def test_scores_equal_scipy_and_scikit_learn(count, num_labels, seed):
    votes, logits = drawn(count, num_labels, seed)
    probabilities = probabilities_of(logits)
    found = distribution_scores(votes, probabilities, resamples=2)
    expected = recomputed(votes, probabilities)
    assert {name: found[name] for name in DISTRIBUTION_SCORES} == pytest.approx(expected, abs=1e-9)
    assert found["n_clips"] == count
    assert found["n_without_agreement"] == sum(list(row).count(row.max()) > 1 for row in votes)


def test_probabilities_equal_to_the_votes_are_perfect_and_zero_ones_give_finite_scores():
    votes = np.array([[3.0, 0, 0], [1, 2, 0], [1, 1, 1]])
    found = distribution_scores(votes, shares_of(votes), resamples=2)
    assert (found["KL"], found["JS"]) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert found["soft_macro_f1"] == pytest.approx(2 / 3)  # no class of the third clip has votes above chance
    worst = distribution_scores([[1.0, 0]], [[0.0, 1.0]], resamples=2)
    assert np.isfinite(worst["KL"]) and worst["KL"] > 300 and worst["JS"] == pytest.approx(np.log(2))


def test_classes_that_annotators_could_not_choose_have_no_votes():
    votes, logits = drawn(30, 3, 0)
    probabilities = probabilities_of(np.pad(logits, ((0, 0), (0, 2))))
    padded = distribution_scores(np.pad(votes, ((0, 0), (0, 2))), probabilities, resamples=9)
    assert distribution_scores(votes, probabilities, resamples=9) == padded
    with pytest.raises(ValueError, match="do not fit"):
        distribution_scores(votes, probabilities[:, :2])


def test_intervals_are_by_clip_and_by_speaker():
    votes, logits = drawn(80, 4, 0)
    found = distribution_scores(votes, probabilities_of(logits), [f"s{k % 4}" for k in range(80)], resamples=2000)
    for unit in ("by_clip", "by_speaker"):
        for name in DISTRIBUTION_SCORES:
            low, high = found["intervals"][unit][name]
            assert low < found[name] < high, (unit, name)


@pytest.mark.parametrize("votes", [[[0.0, 0.0]], [[1.0, -1.0]], [[1.0, float("nan")]], [1.0, 2.0]])
def test_values_that_are_not_votes_are_refused(votes):
    with pytest.raises(ValueError, match="Votes must be numbers of at least 0"):
        shares_of(votes)


def test_annotators_agree_if_one_class_has_most_votes():
    votes = [[2.0, 1, 0], [1, 1, 0], [0, 0, 1], [2, 2, 3]]
    assert agreed(votes).tolist() == [True, False, True, True]
    table = Dataset.from_dict({"label": [0, 0, 2, 2], "votes": votes}).with_format("torch")
    assert with_one_label(table).tolist() == [True, False, True, True]
    assert with_one_label(table.remove_columns("votes")).tolist() == [True] * 4


def test_metrics_for_trainer_count_clips_without_agreement_in_distributions_only():
    votes, logits = drawn(50, 4, 1)
    sure = agreed(votes)
    found = compute_distribution_metrics(SimpleNamespace(predictions=(logits, "more"), label_ids=shares_of(votes)))
    expected = recomputed(votes, probabilities_of(logits))
    assert {name: found[name] for name in DISTRIBUTION_SCORES} == pytest.approx(expected)
    assert 0 < sure.sum() < 50
    assert found["UA"] == pytest.approx(balanced_accuracy_score(votes[sure].argmax(1), logits[sure].argmax(1)))
    ties = compute_distribution_metrics(SimpleNamespace(predictions=logits[:1], label_ids=np.full((1, 4), 0.25)))
    assert set(ties) == set(DISTRIBUTION_SCORES)


def test_mixup_blends_soft_labels_as_it_blends_labels():
    images = {"cqt": torch.rand(6, 1, 4, 4)}
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    blended = []
    for kind in (labels, torch.nn.functional.one_hot(labels, 3).float()):
        torch.manual_seed(0)
        blended.append(Mixup(0.5, 3)(images, kind)[1])
    assert torch.equal(*blended) and blended[0].dtype == torch.float32
