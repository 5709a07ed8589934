"""Maps a model's classes to those that it shares with a corpus, for a test on the shared classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp


@dataclass(frozen=True)
class SharedClasses:
    """The model's classes that make up each scored class.

    Args:
        names: the scored classes.
        columns: for each, the model's classes whose probabilities are added; a class in none of them is masked.
    """

    names: list[str]
    columns: list[list[int]]

    def of_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Sums probabilities `(clips, model's classes)` to `(clips, scored classes)`, without masked classes."""
        return np.stack([np.asarray(probabilities, np.float64)[:, each].sum(1) for each in self.columns], axis=1)

    def of_logits(self, logits: np.ndarray) -> np.ndarray:
        """Returns logits `(clips, scored classes)`, whose softmax equals the summed and normalised probabilities."""
        logs = log_softmax(np.asarray(logits, np.float64), axis=-1)
        return np.stack([logsumexp(logs[:, each], axis=1) for each in self.columns], axis=1)


def shared_classes(names: Sequence[str], model_classes: Mapping[str, str | None]) -> SharedClasses:
    """Returns the mapping from a model's classes to scored ones.

    Args:
        names: the classes to be scored.
        model_classes: each of the model's classes, in their order -> the class that it counts as, or None.
    """
    columns = [[i for i, counts_as in enumerate(model_classes.values()) if counts_as == name] for name in names]
    return SharedClasses([*names], columns)
