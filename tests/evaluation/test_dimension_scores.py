"""Scores of dimensions against independent formulas."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error
from transformers import EvalPrediction

from ser.evaluation.dimensions import DimensionMetrics, dimension_scores

NAMES = ["arousal", "valence"]


def rated(clips: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=(clips, 2))
    estimates = 0.2 + 0.5 * truth + rng.normal(scale=0.1, size=(clips, 2))
    truth[rng.uniform(size=truth.shape) < 0.2] = np.nan
    return truth, estimates, [f"s{k % 6}" for k in range(clips)]


def lin(x: np.ndarray, y: np.ndarray) -> float:
    """The concordance correlation coefficient as in the paper: 1 minus a ratio of expected squared differences."""
    squared_difference = np.mean((x - y) ** 2)
    return 1 - squared_difference / (np.var(x) + np.var(y) + (x.mean() - y.mean()) ** 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_those_of_scipy_scikit_learn_and_the_paper(seed):
    truth, estimates, speakers = rated(seed=seed)
    found = dimension_scores(truth, estimates, NAMES, speakers, resamples=500)
    for place, name in enumerate(NAMES):
        known = ~np.isnan(truth[:, place])
        y, x = truth[known, place], estimates[known, place]
        assert found[f"CCC_{name}"] == pytest.approx(lin(x, y))
        assert found[f"pearson_{name}"] == pytest.approx(pearsonr(x, y)[0])
        assert found[f"MAE_{name}"] == pytest.approx(mean_absolute_error(y, x))
        line = LinearRegression().fit(x[:, None], y)
        assert found["lines"][name] == pytest.approx([line.coef_[0], line.intercept_])
        assert found["n_clips"][name] == known.sum()
    for score in ("CCC", "pearson", "MAE"):
        assert found[score] == pytest.approx(np.mean([found[f"{score}_{name}"] for name in NAMES]))
        for unit in ("by_clip", "by_speaker"):
            low, high = found["intervals"][unit][f"{score}_arousal"]
            assert low < found[f"{score}_arousal"] < high


def test_perfect_shifted_opposite_and_constant_estimates():
    truth = np.linspace(0, 1, 11)[:, None]
    estimates = (truth, truth + 0.5, 1 - truth, 0 * truth + 0.37)
    perfect, shifted, opposite, constant = (dimension_scores(truth, x, ["a"], resamples=20) for x in estimates)
    assert (perfect["CCC"], perfect["MAE"], perfect["pearson"]) == pytest.approx((1, 0, 1))
    assert shifted["pearson"] == pytest.approx(1) and 0.2 < shifted["CCC"] < 0.5
    assert opposite["CCC"] == pytest.approx(-1)
    assert constant["CCC"] == pytest.approx(0) and constant["pearson"] == 0 and constant["MAE"] > 0.2
    still = dimension_scores(0 * truth + 0.2, truth, ["a"], resamples=20)
    assert still["CCC"] == pytest.approx(0) and still["pearson"] == 0


def test_intervals_of_unrelated_estimates_contain_0():
    rng = np.random.default_rng(3)
    found = dimension_scores(rng.uniform(size=(200, 1)), rng.uniform(size=(200, 1)), ["a"], resamples=500)
    low, high = found["intervals"]["by_clip"]["CCC"]
    assert low < 0 < high and "by_speaker" not in found["intervals"]


def test_metrics_for_the_trainer_score_classes_by_the_clips_that_have_one():
    truth, estimates, _ = rated()
    classes = np.eye(3)[np.arange(60) % 3]
    classes[::4] = np.nan
    outputs = np.hstack([np.random.default_rng(0).normal(size=(60, 3)), estimates])
    found = DimensionMetrics(NAMES, 3)(EvalPrediction(predictions=outputs, label_ids=np.hstack([classes, truth])))
    known = ~np.isnan(classes[:, 0])
    expected = balanced_accuracy_score(classes[known].argmax(1), outputs[known, :3].argmax(1))
    assert found["UA"] == pytest.approx(expected)
    alone = DimensionMetrics(NAMES)(EvalPrediction(predictions=(estimates, None), label_ids=truth))
    assert alone == {name: value for name, value in found.items() if name in alone} and "UA" not in alone
    assert alone["CCC"] == pytest.approx(dimension_scores(truth, estimates, NAMES, resamples=10)["CCC"])


@pytest.mark.parametrize("shape", [(4, 1), (5, 2)])
def test_scores_of_other_shapes_or_without_ratings_are_refused(shape):
    with pytest.raises(ValueError, match="do not fit 2 dimensions"):
        dimension_scores(np.zeros((4, 2)), np.zeros(shape), NAMES)
    truth = np.full((4, 2), np.nan)
    truth[:, 0] = 0.5
    with pytest.raises(ValueError, match="No clip has a value of valence"):
        dimension_scores(truth, np.zeros((4, 2)), NAMES)
