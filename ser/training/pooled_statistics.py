"""Computes pooled features of clips, and their statistics over the training clips, which checkpoints store."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from transformers.utils import logging

from modeling_maxmvit import FeatureStatistics
from ser.data.features import rearranged
from ser.evaluation.adaptation import PooledFeatures
from ser.training.familiarity import MAX_CLIPS as MAX_VERSIONS
from ser.training.familiarity import fit_familiarity
from ser.training.trainer import SERTrainer

logger = logging.get_logger(__name__)
MIN_CLIPS = 8  # of a speaker, for the spread of their clips
MAX_CLIPS = 10_000  # more would cost time and memory, and change a mean by less than a hundredth of a deviation


def pooled_features(trainer: SERTrainer, clips: datasets.Dataset) -> PooledFeatures:
    """
    Computes the pooled features of clips as in evaluation: of the originals, without augmentation, from cached layer
    statistics of a frozen speech encoder if the trainer's collator has them.

    Args:
        trainer: Trainer of the model. All of its processes must call this, and all get the features of all clips.
        clips: Clips with the columns `label` and `speaker`, and those that evaluation needs.
    """
    batches: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        batches.append(trainer.accelerator.gather_for_metrics(output.pooler_output.float()).cpu())

    handle = trainer.model.base_model.register_forward_hook(keep)
    try:
        trainer.predict(clips, metric_key_prefix="features")  # trackers would take "test" for the test part
    finally:
        handle.remove()
    labels, speakers = (list(clips.with_format(None)[name][:]) for name in ("label", "speaker"))
    return PooledFeatures(torch.cat(batches)[: len(clips)], labels, speakers)


def features_with_copies(
    trainer: SERTrainer, clips: datasets.Dataset, originals: PooledFeatures
) -> tuple[torch.Tensor, list[int], list[Hashable]]:
    """
    Returns the pooled features of clips and of their altered copies, at most 5,000 in all, chosen at random; their
    labels; and their speakers, or the numbers of the clips if fewer than two speakers are known.

    Args:
        trainer: The trainer of the model.
        clips: The training part.
        originals: Features of the clips, from [`pooled_features`].
    """
    copies = len(clips[0]["spectrograms"]) - 1 if "spectrograms" in clips.column_names else 0
    if not copies:
        return originals.features, originals.labels, [*originals.speakers]
    drawn = np.random.default_rng(trainer.args.seed).permutation(len(clips) * (copies + 1))[:MAX_VERSIONS]
    versions, rows = np.divmod(np.sort(drawn), len(clips))  # originals first
    is_copy = versions > 0
    altered = rearranged(clips, rows[is_copy].tolist(), version=versions[is_copy].tolist())
    features = torch.cat([originals.features[rows[~is_copy]], pooled_features(trainer, altered).features])
    named = len(set(originals.speakers) - {None}) > 1
    known = originals.speakers if named else [None] * len(clips)
    speakers = [row if speaker is None else speaker for row, speaker in enumerate(known)]  # a clip and its copies
    return features, [originals.labels[row] for row in rows], [speakers[row] for row in rows]


def population_statistics(features: torch.Tensor, speakers: Sequence[Hashable]) -> FeatureStatistics:
    """
    Computes the statistics of clips for the model. Every speaker has the same weight, whatever the number of clips.

    Args:
        features (`torch.Tensor` of shape `(N, num_features)`): Of N clips.
        speakers: The speaker of each clip; clips whose speaker is None count as those of one speaker.
    """
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, speaker in enumerate(speakers):
        rows_of[speaker].append(row)
    clips_of = {speaker: features[rows].double() for speaker, rows in rows_of.items()}
    means = torch.stack([clips.mean(0) for clips in clips_of.values()])
    mean = means.mean(0)
    variances = [(clips - mean).square().mean(0) for clips in clips_of.values()]
    statistics = FeatureStatistics(features.shape[1])
    statistics.mean.copy_(mean)
    statistics.deviation.copy_(torch.stack(variances).mean(0).sqrt())
    statistics.speaker_deviation.copy_(means.std(0, correction=0))
    known = [clips for speaker, clips in clips_of.items() if speaker is not None and len(clips) >= MIN_CLIPS]
    if len(known) > 1:
        statistics.largest_spread.fill_(max(statistics.spread(clips.std(0, correction=0)) for clips in known))
    return statistics


def fit_feature_statistics(trainer: SERTrainer, clips: datasets.Dataset) -> None:
    """
    Fits the statistics of pooled features that a checkpoint stores, on at most 10,000 training clips, drawn at random,
    and on altered copies: the mean and standard deviation, for enrolment (unless the fusion or the head uses tokens),
    and the distribution for `familiarity`.

    Args:
        trainer: Trainer of the model, whose training has ended.
        clips: The training part.
    """
    model = trainer.model
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        logger.warning(
            "The checkpoint has no statistics of pooled features, because the weights are sharded: speakers cannot be "
            "enrolled, and predictions have no familiarity."
        )
        return
    if len(clips) > MAX_CLIPS:
        rows = np.random.default_rng(trainer.args.seed).permutation(len(clips))[:MAX_CLIPS]
        clips = clips.select(np.sort(rows))
    pooled = pooled_features(trainer, clips)
    if not model.config.uses_tokens:
        model.base_model.set_feature_statistics(population_statistics(pooled.features, pooled.speakers))
    fit_familiarity(model, *features_with_copies(trainer, clips, pooled), seed=trainer.args.seed)
