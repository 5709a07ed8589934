"""Scores of a model's probabilities against annotators' votes as soft labels.

The votes for a clip are shares of its annotators, and the model's output is a softmax. Both are distributions over the
classes, so clips on which annotators do not agree count fully.

- KL: the mean Kullback-Leibler divergence of the votes from the probabilities, sum of p ln(p / q), in nats, which
  training by cross-entropy against the votes minimises.
- JS: the mean Jensen-Shannon divergence, in nats, 0 to ln 2: half the KL of each from their mean.
- soft_macro_f1: a class counts as present if its share is above 1/C, in votes as in probabilities, so that a clip may
  have several classes or none; the plain mean over all C classes of the F1 = 2 TP / (2 TP + FP + FN), 0 for a class
  that is never present. The rule is that of EMO-SUPERB (Wu et al. 2024, https://arxiv.org/abs/2402.13018).

They equal `scipy.stats.entropy`, the square of `scipy.spatial.distance.jensenshannon` and scikit-learn's `f1_score`
(average "macro", zero_division 0).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr
from transformers import EvalPrediction

from ser.data.corpora.corpus import agreed, shares_of
from ser.evaluation.calibration import probabilities_of
from ser.evaluation.metrics import bootstrap_of_sums, compute_metrics

DISTRIBUTION_SCORES = ("KL", "JS", "soft_macro_f1")


def distribution_scores(
    votes: ArrayLike,
    probabilities: ArrayLike,
    speakers: Sequence[str | None] | None = None,
    resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, Any]:
    """Scores probabilities against votes.

    Args:
        votes: `(clips, classes)`, for the first of the model's classes; further classes have no votes.
        probabilities: `(clips, C)`.
        speakers: speaker of each clip, for the intervals by speaker.
        resamples: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        `KL`, `JS`, `soft_macro_f1`; `n_clips`; `n_without_agreement`, the number of clips on which annotators do not
        agree; and `intervals` (see [`bootstrap_of_sums`]).
    """
    own = _own(votes, probabilities)
    return {
        "n_clips": len(own),
        "n_without_agreement": int((~agreed(votes)).sum()),
        **{name: float(value) for name, value in _from_sums(own.sum(0)).items()},
        "intervals": bootstrap_of_sums(own, _from_sums, speakers, resamples, seed),
    }


def compute_distribution_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Computes the scores of [`compute_metrics`] for clips on which annotators agree, if there are any, and the scores
    of distributions; labels are shares `(N, C)`."""
    logits = evaluation.predictions
    logits, shares = np.asarray(logits[0] if isinstance(logits, tuple) else logits), np.asarray(evaluation.label_ids)
    sure = agreed(shares)
    hard: dict[str, float] = {}
    if sure.any():
        hard = compute_metrics(EvalPrediction(predictions=logits[sure], label_ids=shares[sure].argmax(1)))
    sums = _own(shares, probabilities_of(logits)).sum(0)
    return hard | {name: float(value) for name, value in _from_sums(sums).items()}


def _own(votes: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Returns the contribution of each clip to the sums from which the scores are computed: `(clips, 3 + 3 C)`."""
    shares, probabilities = shares_of(votes), np.asarray(probabilities, dtype=np.float64)
    if len(shares) != len(probabilities) or shares.shape[1] > probabilities.shape[1]:
        raise ValueError(f"Votes of {shares.shape} do not fit probabilities of {probabilities.shape}.")
    count = probabilities.shape[1]
    shares = np.pad(shares, ((0, 0), (0, count - shares.shape[1])))
    mean = (shares + probabilities) / 2
    js = (rel_entr(shares, mean) + rel_entr(probabilities, mean)).sum(1) / 2
    kl = rel_entr(shares, np.maximum(probabilities, np.finfo(np.float64).tiny)).sum(1)
    true, predicted = shares > 1 / count, probabilities > 1 / count
    return np.column_stack([np.ones(len(shares)), kl, js, true & predicted, predicted & ~true, true & ~predicted])


def _from_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    hits, false, missed = np.split(sums[..., 3:], 3, axis=-1)
    under = 2 * hits + false + missed
    f1 = np.divide(2 * hits, under, out=np.zeros(under.shape), where=under > 0)
    return {
        "KL": sums[..., 1] / sums[..., 0],
        "JS": sums[..., 2] / sums[..., 0],
        "soft_macro_f1": f1.mean(-1),
    }
