"""Scores of an emotion classifier with 95 % intervals, also as an `evaluate` metric.

Everything is computed from confusion matrices `(..., C, C)`, whose rows are true and whose columns predicted classes:

- WA, weighted accuracy: the share of clips classified correctly (the mean of the class recalls weighted by support).
- UA, unweighted accuracy: the plain mean of the class recalls, over the classes that occur among the labels; the
  measure of the INTERSPEECH 2009 Emotion Challenge (Schuller, Steidl and Batliner 2009) and of most work since.
- macro F1: the plain mean of the class F1 = 2 TP / (2 TP + FP + FN), over the classes that occur among labels or
  predictions. weighted F1: their mean weighted by support.

They equal scikit-learn's `accuracy_score`, `balanced_accuracy_score` and `f1_score` (average "macro" and "weighted").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from transformers import EvalPrediction

SCORES = ("WA", "UA", "macro_f1", "weighted_f1")
BLOCK = 2**22  # random numbers at a time


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_labels: int) -> np.ndarray:
    """Returns counts `(num_labels, num_labels)`: rows are true classes, columns predicted ones."""
    labels, predictions = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if labels.shape != predictions.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"Scores need as many predictions as labels, and at least one: {predictions.shape}, {labels.shape}."
        )
    if min(labels.min(), predictions.min()) < 0 or max(labels.max(), predictions.max()) >= num_labels:
        raise ValueError(f"Labels and predictions must be class indices from 0 to {num_labels - 1}.")
    counts = np.bincount(labels * num_labels + predictions, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Divides; the quotient is 0 where the divisor is."""
    return np.divide(over, under, out=np.zeros(np.broadcast(over, under).shape), where=under > 0)


def scores_from_confusion(matrix: ArrayLike) -> dict[str, np.ndarray]:
    """Returns the four scores of confusion matrices `(..., C, C)`, each of shape `(...)`."""
    matrix = np.asarray(matrix, dtype=np.float64)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    support, predicted, total = matrix.sum(-1), matrix.sum(-2), matrix.sum((-2, -1))
    f1 = _ratio(2 * hits, support + predicted)
    return {
        "WA": _ratio(hits.sum(-1), total),
        "UA": _ratio(_ratio(hits, support).sum(-1), (support > 0).sum(-1)),
        "macro_f1": _ratio(f1.sum(-1), (support + predicted > 0).sum(-1)),
        "weighted_f1": _ratio((f1 * support).sum(-1), total),
    }


def scores(
    labels: ArrayLike,
    predictions: ArrayLike,
    label_names: Sequence[str],
    speakers: Sequence[str | None] | None = None,
    resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, Any]:
    """Computes the scores of a test part.

    Args:
        labels: true class index of each clip.
        predictions: predicted class index of each clip.
        label_names: classes in the order of the indices.
        speakers: speaker of each clip, for the intervals by speaker.
        resamples: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        `n_clips`, `WA`, `UA`, `macro_f1`, `weighted_f1`, `per_class` (name -> recall, precision, f1, support; recall
        is None for a class without clips, precision for a class that is never predicted), `confusion_matrix` (rows
        true, columns predicted) and `intervals` (see [`bootstrap_intervals`]).
    """
    matrix = confusion_matrix(labels, predictions, len(label_names))
    hits, support, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    recall, precision, f1 = _ratio(hits, support), _ratio(hits, predicted), _ratio(2 * hits, support + predicted)
    per_class = {
        name: {
            "recall": float(recall[i]) if support[i] else None,
            "precision": float(precision[i]) if predicted[i] else None,
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(label_names)
    }
    return {
        "n_clips": int(matrix.sum()),
        **{name: float(value) for name, value in scores_from_confusion(matrix).items()},
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
        "intervals": bootstrap_intervals(labels, predictions, len(label_names), speakers, resamples, seed),
    }


def group_scores(
    labels: ArrayLike, predictions: ArrayLike, num_labels: int, groups: Sequence[str | None]
) -> dict[str, dict[str, float]]:
    """Returns the number of clips and the four scores of each group; clips without a group are left out."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    found: dict[str, dict[str, float]] = {}
    for group in sorted({group for group in groups if group is not None}):
        mask = np.array([each == group for each in groups])
        matrix = confusion_matrix(labels[mask], predictions[mask], num_labels)
        found[group] = {"n_clips": int(matrix.sum())}
        found[group] |= {name: float(value) for name, value in scores_from_confusion(matrix).items()}
    return found


def bootstrap_intervals(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_labels: int,
    speakers: Sequence[str | None] | None = None,
    resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, dict[str, list[float]]]:
    """Returns 95 % bootstrap percentile intervals (Efron 1979), `{"by_clip": {"WA": [low, high], ...}, ...}`.

    `by_clip` resamples clips, and estimates the variation over other clips of the same speakers. `by_speaker`
    resamples whole speakers, whose clips are similar, and estimates the variation over other speakers; it is usually
    wider, but still too narrow for a handful of speakers. It is computed if all speakers are known and there are at
    least two.

    A sample of clips is a multinomial draw over the cells of the confusion matrix, and a sample of speakers a sum of
    their confusion matrices, so that no clip is copied.
    """
    rng = np.random.default_rng(seed)
    matrix = confusion_matrix(labels, predictions, num_labels)
    shape = (resamples, num_labels, num_labels)
    drawn = {"by_clip": rng.multinomial(matrix.sum(), matrix.ravel() / matrix.sum(), size=resamples).reshape(shape)}
    if (rows := speaker_rows(speakers)) is not None:
        labels, predictions = np.asarray(labels), np.asarray(predictions)
        own = [confusion_matrix(labels[mask], predictions[mask], num_labels).ravel() for mask in rows]
        times = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
        drawn["by_speaker"] = (times @ np.stack(own)).reshape(shape)
    return {unit: percentile_intervals(scores_from_confusion(matrices)) for unit, matrices in drawn.items()}


def bootstrap_of_sums(
    own: np.ndarray,
    from_sums: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    speakers: Sequence[str | None] | None = None,
    resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, dict[str, list[float]]]:
    """Returns the intervals of [`bootstrap_intervals`] for scores that are computed from sums over clips.

    Args:
        own: `(clips, columns)`: the contribution of each clip to the sums.
        from_sums: sums `(..., columns)` -> scores, each `(...)`.
        speakers: speaker of each clip, for the intervals by speaker.
        resamples: number of bootstrap samples.
        seed: random seed of the bootstrap.
    """
    drawn = {"by_clip": _resampled(own, resamples, seed)}
    if (rows := speaker_rows(speakers)) is not None:
        drawn["by_speaker"] = _resampled(np.stack([own[mask].sum(0) for mask in rows]), resamples, seed)
    return {unit: percentile_intervals(from_sums(sums)) for unit, sums in drawn.items()}


def _resampled(own: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Returns sums `(resamples, columns)` over as many rows as `own` has, drawn with replacement."""
    rng, count = np.random.default_rng(seed), len(own)
    sums = np.empty((resamples, own.shape[1]))
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums[start : start + size] = times @ own
    return sums


def speaker_rows(speakers: Sequence[str | None] | None) -> list[np.ndarray] | None:
    """Returns a mask of the clips of each speaker, sorted by name; None if a speaker is unknown, or there is only
    one."""
    if not speakers or None in speakers or len({*speakers}) < 2:
        return None
    speaker_of = np.asarray(speakers)
    return [speaker_of == name for name in np.unique(speaker_of)]


def percentile_intervals(drawn: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Returns the bounds of the middle 95 % of each score's bootstrap samples: `{score: [low, high]}`."""
    bounds = {name: np.percentile(values, [2.5, 97.5]) for name, values in drawn.items()}
    return {name: [float(low), float(high)] for name, (low, high) in bounds.items()}


class SpeechEmotionScores(evaluate.Metric):
    """WA, UA, macro F1 and weighted F1 as an `evaluate` metric, which needs neither a network nor the rest of this
    project: `SpeechEmotionScores()`, or `evaluate.load("ser/evaluation/metrics.py")`. With several processes, pass
    `num_process`, `process_id` and `experiment_id`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Scores of speech emotion recognition: WA, UA, macro F1, weighted F1.",
            citation="",
            inputs_description="predictions: predicted class indices. references: true class indices.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        matrix = confusion_matrix(references, predictions, max(*predictions, *references) + 1)
        return {name: float(value) for name, value in scores_from_confusion(matrix).items()}


def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Computes [`SpeechEmotionScores`] of logits `(N, C)`, or of a tuple that starts with them, for
    `Trainer(compute_metrics=...)`, which first gathers the clips of all processes."""
    logits = evaluation.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    metric = SpeechEmotionScores(keep_in_memory=True)
    return metric.compute(predictions=logits.argmax(-1), references=evaluation.label_ids)
