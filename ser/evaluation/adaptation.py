"""Computes logits of clips relative to the mean features of their speakers or of all clips, without labels."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import map_shift, population_mean
from ser.utils import DataError

ADAPTATIONS = ("speaker", "table")


class PooledFeatures(NamedTuple):
    """
    Pooled features of N clips, in the order of their table.

    Args:
        features (`torch.Tensor` of shape `(N, num_features)`): `pooler_output` of the model, float32, on the CPU.
        labels (`list[int]`): The class of each clip.
        speakers (`list[str | None]`): The speaker of each clip, None if unknown.
    """

    features: torch.Tensor
    labels: list[int]
    speakers: list[str | None]


def adapted_logits(
    model: MaxMViTForAudioClassification, pooled: PooledFeatures, adapt: str, relevance: float
) -> np.ndarray:
    """
    Computes logits, `(N, num_labels)`, of N clips relative to the mean features of all clips of their speaker, or of
    all N. Labels are not used. The scores are transductive: each clip contributes to the mean that is subtracted.

    Args:
        model: A model with the statistics of its training clips.
        pooled: Features from `ser.training.pooled_statistics.pooled_features`.
        adapt: `"speaker"` or `"table"`.
        relevance: Number of clips that the mean of the training clips counts for.

    Raises:
        DataError: The speaker of a clip is unknown, or the model does not keep the statistics.
    """
    groups: Sequence[Hashable] = pooled.speakers if adapt == "speaker" else [0] * len(pooled.features)
    if None in groups:
        raise DataError(
            f"--adapt speaker needs the speaker of every clip, and {groups.count(None):,} of {len(groups):,} have "
            "none: use --adapt table, or a corpus that names them."
        )
    try:
        population = population_mean(model)
    except ValueError as error:
        raise DataError(f"--adapt {adapt}: {error}") from error
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    features = pooled.features.numpy()
    shifts = np.empty_like(features)
    for rows in rows_of.values():
        shifts[rows] = map_shift(features[rows].mean(0), len(rows), population, relevance)
    return shifted_logits(model, pooled.features, torch.from_numpy(shifts))


@torch.no_grad()
def shifted_logits(model: MaxMViTForAudioClassification, features: torch.Tensor, shifts: torch.Tensor) -> np.ndarray:
    """Computes logits, `(N, num_labels)`, of pooled features, `(N, num_features)`, after subtracting their shifts."""
    model.eval()
    on_device = features.to(model.device, model.dtype)
    return model.classify_features(model.shifted(on_device, shifts)).float().cpu().numpy()
