"""Whether a classifier is as often right as it says: how far its probabilities can be trusted, and what is left out if
only its surest answers count.

Everything is computed from probabilities `(clips, C)`; the confidence of an answer is the largest of its row.

- ECE, expected calibration error: answers are put into 15 bins of confidence of equal width, each with its upper edge;
  the mean, over answers, of the gap between the share of right ones in a bin and their mean confidence (Naeini, Cooper
  and Hauskrecht 2015; Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3, with its 15 bins). Of few clips
  it is too large, as chance alone makes gaps, and of a resampled set larger still: its interval may lie above it.
- Brier score (Brier 1950): the mean over answers of the squared distance between probabilities and truth, 0 to 2.
- NLL, negative log likelihood: the mean of -ln of the true class's probability.
- AURC, area under the risk-coverage curve (Geifman, Uziel and El-Yaniv 2019, https://arxiv.org/abs/1805.08206): the
  mean, over every number of surest answers, of the share of wrong ones among them. Answers of equal confidence stand
  in no order: each counts as wrong in the share in which they are.

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
MOST_POINTS = 101  # of a risk-coverage curve that is written down
TEMPERATURES = (0.1, 10.0)  # least and largest


def probabilities_of(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Softmax of logits `(..., C)` over a temperature, in float64."""
    return softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """
    The temperature that makes the NLL of some clips least (Guo et al. 2017, section 4.2): one number, that changes no
    answer. The clips must be none that the model was trained on, as it is surer of those.

    Args:
        labels: true class index of each clip.
        logits: `(clips, C)`.

    Returns:
        From 0.1 to 10; such a bound, with a warning, where the least NLL lies beyond it, as for clips that are all
        answered rightly.
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
                f"clips best: {temperature:g} is taken. Give them more clips, or leave out --calibrate."
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
    """How far probabilities can be trusted.

    Args:
        labels: true class index of each clip.
        probabilities: `(clips, C)`.
        speakers: speaker of each clip, for the intervals by speaker.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        `ECE`, `Brier`, `NLL`; `bins`, those that hold clips: `above` and `up_to` (confidence), `n_clips`, their mean
        `confidence` and the share of right ones, `accuracy`; and `intervals` (see [`bootstrap_of_sums`]).

    Raises:
        ValueError: There are not as many rows as labels, at least one, or rows are no probabilities.
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, right = _answers(labels, probabilities)
    place = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    in_bin = np.eye(N_BINS)[place]
    truth = np.eye(probabilities.shape[1])[labels]
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    # What each clip adds to the sums from which all three scores are made, of whatever set of clips.
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
    """What a lower bound on confidence costs in answers, and spares in wrong ones.

    Args:
        labels: true class index of each clip.
        probabilities: `(clips, C)`.

    Returns:
        `AURC`; and `curve`, a point for each confidence, or 101 of them: answered are the clips whose confidence is
        `min_score` or more, a share `coverage` of all, of which the share `risk` is wrong.

    Raises:
        ValueError: As [`calibration_scores`].
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, right = _answers(labels, probabilities)
    values, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)  # the surest first
    wrong = np.bincount(group, weights=1 - right)
    answered = np.cumsum(sizes)
    each = np.repeat(wrong / sizes, sizes)
    count = len(labels)
    points = np.arange(len(values))
    if len(points) > MOST_POINTS:
        points = np.unique(np.searchsorted(answered, np.linspace(1, count, MOST_POINTS)))
    return {
        "AURC": float((np.cumsum(each) / np.arange(1, count + 1)).mean()),
        "curve": [
            {
                "min_score": float(-values[i]),
                "coverage": float(answered[i] / count),
                "risk": float(wrong[: i + 1].sum() / answered[i]),
            }
            for i in points
        ],
    }


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Calibration needs as many rows of probabilities as labels, at least one: {probabilities.shape}, "
            f"{labels.shape}."
        )
    if not (np.abs(probabilities.sum(1) - 1) < 1e-6).all() or probabilities.min() < 0:
        raise ValueError("Calibration needs probabilities: rows of numbers from 0 on whose sum is 1.")
    return labels, probabilities


def _answers(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each clip the confidence, and 1 where the answer is right."""
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)


def _from_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of sets of clips, from sums `(..., 3 + bins)` over them."""
    count = sums[..., 0]
    return {
        "ECE": np.abs(sums[..., 3:]).sum(-1) / count,
        "Brier": sums[..., 1] / count,
        "NLL": sums[..., 2] / count,
    }
