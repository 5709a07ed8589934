"""Calibration scores of a classifier's probabilities, temperature scaling, and the risk-coverage curve.

Everything is computed from probabilities `(clips, C)`; the confidence of a prediction is the largest one in its row.

- ECE, expected calibration error: predictions are divided by confidence into 15 bins of equal width, each including
  its upper edge; ECE is the mean, over predictions, of the gap between the accuracy and the mean confidence in their
  bin (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3). It is biased
  upwards for few clips, since chance alone makes gaps, and more so in a resampled set: its interval may lie above it.
- Brier score (Brier 1950): the mean squared distance between probabilities and truth, from 0 to 2.
- NLL, negative log likelihood: the mean of -ln of the true class's probability.
- AURC, area under the risk-coverage curve (Geifman, Uziel and El-Yaniv 2019, https://arxiv.org/abs/1805.08206): the
  mean error rate of the k most confident predictions, over all k. Predictions of equal confidence have no order: each
  counts with the mean error rate of all of them.

Brier score and NLL equal scikit-learn's `brier_score_loss` and `log_loss`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from transformers.utils import logging

from ser.evaluation.metrics import bootstrap_of_sums

logger = logging.get_logger(__name__)
N_BINS = 15
CALIBRATION_SCORES = ("ECE", "Brier", "NLL")
MAX_POINTS = 101  # of a risk-coverage curve in the report
TEMPERATURES = (0.1, 10.0)  # lowest and highest


def probabilities_of(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Returns the softmax of logits `(..., C)` divided by a temperature, in float64."""
    return softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """
    Returns the temperature that minimises the NLL of some clips (Guo et al. 2017, section 4.2). It changes no
    prediction. The clips must not be training clips, since the model is more confident on those.

    Args:
        labels: true class index of each clip.
        logits: `(clips, C)`.

    Returns:
        A number from 0.1 to 10. If the minimum lies beyond a bound, as for clips that are all classified correctly,
        the bound is returned with a warning.
    """
    labels, logits = np.asarray(labels, dtype=np.int64), np.asarray(logits, dtype=np.float64)
    rows = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=-1)[rows, labels].mean()

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x
    for bound, temperature in zip((low, high), TEMPERATURES, strict=True):
        if abs(found - bound) < 1e-3:
            logger.warning(
                f"No temperature from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g} fits the {len(labels):,} validation "
                f"clips best: using {temperature:g}. Validate on more clips, or leave out --calibrate."
            )
            return temperature
    return float(np.exp(found))


def calibration_scores(
    labels: ArrayLike,
    probabilities: ArrayLike,
    speakers: Sequence[str | None] | None = None,
    resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, Any]:
    """Computes the calibration scores of probabilities.

    Args:
        labels: true class index of each clip.
        probabilities: `(clips, C)`.
        speakers: speaker of each clip, for the intervals by speaker.
        resamples: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        `ECE`, `Brier`, `NLL`; `bins`, the bins that hold clips: `above` and `up_to` (confidence), `n_clips`, mean
        `confidence` and `accuracy`; and `intervals` (see [`bootstrap_of_sums`]).

    Raises:
        ValueError: The numbers of rows and labels differ or are 0, or a row does not hold probabilities.
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, right = _confidences(labels, probabilities)
    place = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    in_bin = np.eye(N_BINS)[place]
    truth = np.eye(probabilities.shape[1])[labels]
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    # The contribution of each clip to the sums from which all three scores are computed, for any set of clips.
    own = np.column_stack(
        [
            np.ones(len(labels)),
            ((probabilities - truth) ** 2).sum(1),
            -np.log(likelihood),
            in_bin * (right - confidence)[:, None],
        ]
    )
    counts = in_bin.sum(0)
    bins = [
        {
            "above": i / N_BINS,
            "up_to": (i + 1) / N_BINS,
            "n_clips": int(counts[i]),
            "confidence": float(confidence[place == i].mean()),
            "accuracy": float(right[place == i].mean()),
        }
        for i in np.flatnonzero(counts)
    ]
    return {
        **{name: float(value) for name, value in _from_sums(own.sum(0)).items()},
        "bins": bins,
        "intervals": bootstrap_of_sums(own, _from_sums, speakers, resamples, seed),
    }


def risk_coverage(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Computes the risk-coverage curve: the error rate of predictions above a minimum confidence.

    Args:
        labels: true class index of each clip.
        probabilities: `(clips, C)`.

    Returns:
        `AURC`; and `curve`, a point for each confidence, or 101 of them: a share `coverage` of the clips has a
        confidence of at least `min_score`, and the share `risk` of these is classified wrongly.

    Raises:
        ValueError: As in [`calibration_scores`].
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, right = _confidences(labels, probabilities)
    values, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)  # the most confident first
    wrong = np.bincount(group, weights=1 - right)
    covered = np.cumsum(sizes)
    each = np.repeat(wrong / sizes, sizes)
    count = len(labels)
    points = np.arange(len(values))
    if len(points) > MAX_POINTS:
        points = np.unique(np.searchsorted(covered, np.linspace(1, count, MAX_POINTS)))
    return {
        "AURC": float((np.cumsum(each) / np.arange(1, count + 1)).mean()),
        "curve": [
            {
                "min_score": float(-values[i]),
                "coverage": float(covered[i] / count),
                "risk": float(wrong[: i + 1].sum() / covered[i]),
            }
            for i in points
        ],
    }


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Calibration needs one row of probabilities for each label, and at least one: got {probabilities.shape} "
            f"and {labels.shape}."
        )
    if not (np.abs(probabilities.sum(1) - 1) < 1e-6).all() or probabilities.min() < 0:
        raise ValueError("Calibration needs probabilities: rows of non-negative numbers whose sum is 1.")
    return labels, probabilities


def _confidences(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the confidence of each prediction, and 1 if it is correct, else 0."""
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)


def _from_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the scores of sets of clips, from sums `(..., 3 + bins)` over them."""
    count = sums[..., 0]
    return {
        "ECE": np.abs(sums[..., 3:]).sum(-1) / count,
        "Brier": sums[..., 1] / count,
        "NLL": sums[..., 2] / count,
    }
