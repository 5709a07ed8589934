"""Scores of estimated dimensions, such as arousal, against ratings, with 95 % intervals.

- CCC: the concordance correlation coefficient (Lin 1989, doi 10.2307/2532051), 2 cov(x, y) / (var x + var y + (mean x
  - mean y)^2): 1 if estimates equal ratings, 0 without a relation; a wrong mean or spread lowers it. Variances are
  divided by n, as in that paper.
- pearson: the correlation of estimates and ratings, which ignores mean and spread.
- MAE: the mean absolute error, as a share of the rating scale.

CCC and correlation are 0 if estimates or ratings are constant. Clips without a rating do not count. A score without
the name of a dimension is the mean over the dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from transformers import EvalPrediction

from ser.evaluation.metrics import bootstrap_of_sums, compute_metrics

DIMENSION_SCORES = ("CCC", "pearson", "MAE")
CONSTANT = 1e-12  # variance up to which values are constant
SUMS = 7  # for each dimension: clips, x, y, xx, yy, xy, |x - y|


def dimension_scores(
    truth: ArrayLike,
    estimates: ArrayLike,
    names: Sequence[str],
    speakers: Sequence[str | None] | None = None,
    resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, Any]:
    """Scores estimates of dimensions.

    Args:
        truth: `(clips, D)`, NaN if unknown.
        estimates: `(clips, D)`.
        names: names of the dimensions.
        speakers: speaker of each clip, for the intervals by speaker.
        resamples: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        `CCC`, `pearson` and `MAE`, and each of them for each dimension (`CCC_arousal`); `n_clips`, the rated clips of
        each dimension; `lines`, slope and intercept of the least-squares line of ratings on estimates for each; and
        `intervals` (see [`bootstrap_intervals`]).

    Raises:
        ValueError: a dimension has no rated clip, or shapes do not fit.
    """
    own = _own(truth, estimates, names)
    sums = own.sum(0).reshape(-1, SUMS)
    if not sums[:, 0].all():
        raise ValueError(f"No clip has a value of {names[int(np.argmin(sums[:, 0]))]}.")
    count, x, y, xx, _, xy, _ = sums.T
    slopes = _ratio(xy / count - x * y / count**2, xx / count - (x / count) ** 2)
    lines = np.stack([slopes, y / count - slopes * x / count], 1).tolist()
    speakers = None if speakers is None else list(speakers)
    return {
        **{name: float(value) for name, value in _from_sums(own.sum(0), names).items()},
        "n_clips": dict(zip(names, count.astype(int).tolist(), strict=True)),
        "lines": dict(zip(names, lines, strict=True)),
        "intervals": bootstrap_of_sums(own, lambda some: _from_sums(some, names), speakers, resamples, seed),
    }


class DimensionMetrics:
    """
    Computes the scores of dimensions, and those of classes if there are any, for `Trainer(compute_metrics=...)`.
    Labels are `(N, num_classes + D)`, NaN if unknown.

    Args:
        names: names of the dimensions.
        num_classes: number of classes, whose outputs precede those of the dimensions.
    """

    def __init__(self, names: Sequence[str], num_classes: int = 0):
        self.names = names
        self.num_classes = num_classes

    def __call__(self, evaluation: EvalPrediction) -> dict[str, float]:
        outputs, labels, count = evaluation.predictions, np.asarray(evaluation.label_ids), self.num_classes
        outputs = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
        sums = _own(labels[:, count:], outputs[:, count:], self.names).sum(0)
        found = {name: float(value) for name, value in _from_sums(sums, self.names).items()}
        classes = labels[:, :count]
        if (known := ~np.isnan(classes).any(1)).any() and count:
            found |= compute_metrics(EvalPrediction(outputs[known, :count], classes[known].argmax(1)))
        return found


def _own(truth: ArrayLike, estimates: ArrayLike, names: Sequence[str]) -> np.ndarray:
    """Returns the contribution of each clip to the sums of each dimension: `(clips, D * SUMS)`."""
    y, x = np.asarray(truth, dtype=np.float64), np.asarray(estimates, dtype=np.float64)
    if y.shape != x.shape or y.ndim != 2 or y.shape[1] != len(names):
        raise ValueError(f"Ratings {y.shape} and estimates {x.shape} do not fit {len(names)} dimensions.")
    columns = np.stack([np.ones_like(y), x, y, x * x, y * y, x * y, np.abs(x - y)], axis=-1)
    return np.where(np.isnan(y)[..., None], 0.0, columns).reshape(len(y), -1)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.zeros(np.broadcast(over, under).shape), where=under > CONSTANT)


def _from_sums(sums: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the scores, each `(...)`, of sums `(..., D * SUMS)`."""
    parts = np.moveaxis(sums.reshape(*sums.shape[:-1], len(names), SUMS), -1, 0)
    count = np.maximum(parts[0], 1)
    x, y, xx, yy, xy, error = parts[1:] / count
    of_x, of_y, together = xx - x * x, yy - y * y, xy - x * y
    both_vary = (of_x > CONSTANT) & (of_y > CONSTANT)
    scores = {
        "CCC": _ratio(2 * together, of_x + of_y + (x - y) ** 2),
        "pearson": _ratio(together, np.sqrt(np.where(both_vary, of_x * of_y, 0.0))),
        "MAE": error,
    }
    means = {score: values.mean(-1) for score, values in scores.items()}
    return means | {
        f"{score}_{name}": values[..., place] for score, values in scores.items() for place, name in enumerate(names)
    }


def format_dimensions(tested: Mapping[str, Any], protocol: str) -> list[str]:
    """Formats the scores with their intervals, one line each."""
    lines = []
    for name in (name for name in tested if name.partition("_")[0] in DIMENSION_SCORES):
        ranges = ", ".join(
            f"{bounds[name][0]:.3f} to {bounds[name][1]:.3f} {unit.replace('_', ' ')}"
            for unit, bounds in tested["intervals"].items()
        )
        lines.append(f"{name} ({protocol}): {tested[name]:.3f} (95 %: {ranges})")
    return lines
