"""Fits the distribution of the training clips' features, which shows how similar a clip is to them."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from transformers.utils import logging

from modeling_maxmvit import MAX_COMPONENTS, QUANTILES, Familiarity, MaxMViTForAudioClassification

logger = logging.get_logger(__name__)
MAX_CLIPS = 5_000  # more would cost time and memory, and change little
CLIPS_PER_COMPONENT = 8
GROUPS = 10  # of speakers, each of which is held out in turn
CONSTANT = 1e-5  # of the largest standard deviation, below which a feature counts as constant


def fit_familiarity(
    model: MaxMViTForAudioClassification,
    features: torch.Tensor,
    labels: Sequence[int],
    speakers: Sequence[Hashable],
    seed: int = 0,
) -> None:
    """
    Fits a [`Familiarity`] for a model, and sets `config.familiarity`. If there are too few clips, or their features do
    not vary, the function logs a warning and adds none.

    The distances with which a clip is compared are those of held-out speakers: for each of ten groups of speakers, the
    distribution is fitted on the other groups. If speakers are unknown, groups of clips are held out instead, and
    clips of new speakers get a lower familiarity.

    Args:
        features (`torch.Tensor` of shape `(N, num_features)`): Pooled features of the training clips, of which some
            may be altered copies of others.
        labels (`Sequence[int]`): The class of each clip.
        speakers (`Sequence[Hashable]`): The speaker of each clip, None if unknown.
        seed (`int`, defaults to 0): Of the groups, and of the 5,000 clips that are drawn if there are more.
    """
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(len(features))[:MAX_CLIPS])
    values, classes = features[torch.from_numpy(rows)].float().cpu().numpy(), np.asarray(labels)[rows]
    if model.config.dimensions:  # clips need not have a class: one mean for all
        classes = np.zeros_like(classes)
    groups = _groups([speakers[row] for row in rows], random)
    final = _fit(values, classes, model.config.num_labels)
    held_out = []
    for group in np.unique(groups):
        own = groups == group
        fitted = None if own.all() else _fit(values[~own], classes[~own], model.config.num_labels)
        if fitted is not None:
            held_out.append(fitted.distance(torch.from_numpy(values[own])))
    if final is None or not held_out:
        logger.warning(
            f"{len(rows)} training clips are too few, or their features do not vary: predictions have no familiarity."
        )
        return
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    final.distances.copy_(torch.from_numpy(np.quantile(torch.cat(held_out).numpy(), middles)))
    model.familiarity = final.to(model.device)
    model.config.familiarity = True


def _groups(speakers: Sequence[Hashable], random: np.random.Generator) -> np.ndarray:
    """Returns the numbers `(N,)` of at most ten groups of whole speakers. A clip without a speaker counts as a speaker
    of its own, as does each clip if there is only one speaker."""
    units = [row if speaker is None else speaker for row, speaker in enumerate(speakers)]
    if len(set(units)) < 2:
        units = list(range(len(speakers)))
    names = list(dict.fromkeys(units))
    group_of = dict(zip(names, (random.permutation(len(names)) % GROUPS).tolist(), strict=True))
    return np.array([group_of[unit] for unit in units])


def _fit(values: np.ndarray, labels: np.ndarray, num_labels: int) -> Familiarity | None:
    """Fits the distribution of features `(N, F)`, without distances of held-out clips; None if they do not vary."""
    module = Familiarity(values.shape[1], num_labels)
    deviations = values.std(0)
    varies = deviations > CONSTANT * deviations.max()
    scale = np.divide(1, deviations, where=varies, out=np.zeros_like(deviations))
    means = np.stack([values[labels == label].mean(0) for label in np.unique(labels)])
    nearest = np.searchsorted(np.unique(labels), np.arange(num_labels)).clip(max=len(means) - 1)
    means = means[nearest]  # a class without clips has the mean of another class
    within = (values - means[labels]) * scale
    count = min(MAX_COMPONENTS, int(varies.sum()) // 2, len(values) // CLIPS_PER_COMPONENT)
    power = float(np.square(within).sum()) / len(values)
    if count < 1 or not power:
        return None
    _, singular, components = randomized_svd(within, count, n_iter=3, random_state=0)
    variances = np.square(singular) / len(values)
    rest = (power - variances.sum()) / (varies.sum() - count)
    if rest <= 0:
        return None
    module.class_means.copy_(torch.from_numpy(means))
    module.scale.copy_(torch.from_numpy(scale))
    module.components[:count] = torch.from_numpy(components)
    module.variances[:count] = torch.from_numpy(variances)
    module.variances[-1] = float(rest)
    return module
