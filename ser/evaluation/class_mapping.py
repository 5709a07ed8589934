"""A test on the classes that a model and a corpus share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp


@dataclass(frozen=True)
class SharedClasses:
    """Which of the model's classes make each of those that are scored.

    Args:
        names: the scored classes.
        columns: for each, the model's classes whose probabilities are added; a class in none of them is masked.
    """

    names: list[str]
    columns: list[list[int]]

    def of_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """`(clips, model's classes)` -> `(clips, scored classes)`: sums, less than 1 in all where one is masked."""
        return np.stack([np.asarray(probabilities, np.float64)[:, each].sum(1) for each in self.columns], axis=1)

    def of_logits(self, logits: np.ndarray) -> np.ndarray:
        """Logits `(clips, scored classes)`, whose softmax is the sums of the model's probabilities, each divided by
        what all of them have together."""
        logs = log_softmax(np.asarray(logits, np.float64), axis=-1)
        return np.stack([logsumexp(logs[:, each], axis=1) for each in self.columns], axis=1)


def shared_classes(names: Sequence[str], model_classes: Mapping[str, str | None]) -> SharedClasses:
    """
    Args:
        names: the classes to be scored.
        model_classes: each of the model's classes, in its order -> the class that it counts as, or None.
    """
    columns = [[i for i, counts_as in enumerate(model_classes.values()) if counts_as == name] for name in names]
    return SharedClasses([*names], columns)
