"""Scores of distributions over classes, computed with scipy and scikit-learn."""

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import f1_score


def recomputed(votes: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Computes KL, JS and the soft macro F1 with scipy and scikit-learn."""
    labels = votes / votes.sum(1, keepdims=True)
    pairs = [*zip(labels, probabilities, strict=True)]
    limit = 1 / votes.shape[1]
    return {
        "KL": np.mean([entropy(p, q) for p, q in pairs]),
        "JS": np.mean([jensenshannon(p, q) ** 2 for p, q in pairs]),
        "soft_macro_f1": f1_score(labels > limit, probabilities > limit, average="macro", zero_division=0),
    }
