"""Scores of distributions over classes by scipy and scikit-learn."""

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import f1_score


def recomputed(votes: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The same by scipy and scikit-learn."""
    shares = votes / votes.sum(1, keepdims=True)
    pairs = [*zip(shares, probabilities, strict=True)]
    limit = 1 / votes.shape[1]
    return {
        "KL": np.mean([entropy(p, q) for p, q in pairs]),
        "JS": np.mean([jensenshannon(p, q) ** 2 for p, q in pairs]),
        "soft_macro_f1": f1_score(shares > limit, probabilities > limit, average="macro", zero_division=0),
    }
