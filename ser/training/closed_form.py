"""Fits a linear classifier on a frozen speech encoder in closed form: shrunk linear discriminant analysis or, for
dimensions, ridge regression.

The classifier of Gaussian classes with one covariance (Fisher 1936) needs the inverse of the covariance within
classes, which a thousand clips do not determine for thousands of features. It is shrunk towards a multiple of the
identity (regularised discriminant analysis, Friedman 1989, doi 10.1080/01621459.1989.10478752, with one covariance).
The amount of shrinkage and the scale of the logits are chosen by cross-validation over the training speakers, so that
no validation part is needed. The penalty of the ridge regression (Hoerl and Kennard 1970) is chosen in the same way,
by the concordance correlation coefficient of each dimension.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import LateFusionHead, LinearHead, MaxMViTForAudioClassification, SpeechEncoder
from ser.data.corpora.dimensions import DIMENSIONS
from ser.data.embedding_cache import can_cache_embeddings
from ser.evaluation.calibration import fit_temperature, probabilities_of
from ser.training.arguments import SERTrainingArguments
from ser.training.losses import concordance_loss
from ser.utils import DataError

logger = logging.get_logger(__name__)
SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)  # times the mean squared norm of a clip's features
FOLDS = 5  # of training speakers
ABSENT = -1e4  # the logit of a class that has no training clip


class LinearClassifier(NamedTuple):
    """
    A linear classifier in closed form.

    Args:
        weight (`torch.Tensor` of shape `(num_labels, num_features)`), bias (`torch.Tensor` of shape `(num_labels,)`):
            Of the logits.
        shrinkage (`float`): The share of the identity in the covariance, from 0 to 1.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    shrinkage: float


class Scatter(NamedTuple):
    """
    Sums over clips.

    Args:
        counts (`torch.Tensor` of shape `(num_labels,)`): Clips of each class.
        sums (`torch.Tensor` of shape `(num_labels, num_features)`): Of their features.
        products (`torch.Tensor` of shape `(num_features, num_features)`): Of the outer products of features.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    products: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, labels: torch.Tensor, num_labels: int) -> "Scatter":
        members = nn.functional.one_hot(labels, num_labels).to(features.dtype)
        return cls(members.sum(0), members.T @ features, features.T @ features)

    def without(self, other: "Scatter") -> "Scatter":
        return Scatter(*(own - left_out for own, left_out in zip(self, other, strict=True)))

    def discriminant(self, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns weight and bias of the classes, which are equally likely a priori."""
        means = self.sums / self.counts.clamp(min=1)[:, None]
        within = (self.products - self.sums.T @ means) / self.counts.sum()
        size = within.diagonal().mean().clamp(min=torch.finfo(within.dtype).tiny)
        within.mul_(1 - shrinkage).diagonal().add_(shrinkage * size)
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(within)).T
        bias = -(weight * means).sum(1) / 2
        return weight, torch.where(self.counts > 0, bias, ABSENT)


def fit_discriminant(
    features: torch.Tensor, labels: torch.Tensor, groups: Sequence[int], num_labels: int
) -> LinearClassifier:
    """
    Fits a linear discriminant analysis, with shrinkage and scale chosen by cross-validation over groups.

    Args:
        features (`torch.Tensor` of shape `(clips, num_features)`): Of one scale.
        labels (`torch.Tensor` of shape `(clips,)`): Indices of classes.
        groups (`Sequence[int]`): The group of each clip, such as its speaker; a clip and its altered copies have the
            same. There must be at least two.
        num_labels (`int`): Number of classes.
    """
    center = features.mean(0)
    features = features - center
    folds = torch.as_tensor(np.unique(groups, return_inverse=True)[1]) % FOLDS
    parts = [Scatter.of(features[folds == fold], labels[folds == fold], num_labels) for fold in folds.unique()]
    whole = Scatter(*(torch.stack(sums).sum(0) for sums in zip(*parts, strict=True)))
    best = (np.inf, 0.0, 1.0)
    for shrinkage in SHRINKAGES:
        logits, truth = [], []
        for fold, part in zip(folds.unique(), parts, strict=True):
            weight, bias = whole.without(part).discriminant(shrinkage)
            logits.append(features[folds == fold] @ weight.T + bias)
            truth.append(labels[folds == fold])
        scores, indices = torch.cat(logits).double().numpy(), torch.cat(truth).numpy()
        scale = scores.std()  # with little shrinkage, logits are outside the range of temperatures that are tried
        scores /= scale
        temperature = fit_temperature(indices, scores)
        right = probabilities_of(scores, temperature)[np.arange(len(indices)), indices]
        best = min(best, (-np.log(right.clip(min=1e-12)).mean(), shrinkage, scale * temperature))
    nll, shrinkage, temperature = best
    logger.info(f"Linear discriminant analysis: shrinkage {shrinkage:g}, NLL {nll:.3f} on speakers left out")
    weight, bias = whole.discriminant(shrinkage)
    weight, bias = weight / temperature, bias / temperature
    return LinearClassifier(weight, bias - weight @ center, shrinkage)


def fit_ridge(
    features: torch.Tensor, values: torch.Tensor, groups: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Fits a ridge regression of one dimension, with a penalty chosen by cross-validation over groups.

    Args:
        features (`torch.Tensor` of shape `(clips, num_features)`): Of one scale.
        values (`torch.Tensor` of shape `(clips,)`): NaN if unknown.
        groups (`Sequence[int]`): As for [`fit_discriminant`].

    Returns:
        Weight `(num_features,)` and bias, float64.
    """
    known = ~values.isnan()
    x, y = features[known].double(), values[known].double()
    folds = torch.as_tensor(np.unique(np.asarray(groups)[known.numpy()], return_inverse=True)[1]) % FOLDS
    losses = []
    for penalty in PENALTIES:
        estimates = torch.empty_like(y)
        for fold in folds.unique():
            weight, bias = _ridge(x[folds != fold], y[folds != fold], penalty)
            estimates[folds == fold] = x[folds == fold] @ weight + bias
        losses.append(float(concordance_loss(estimates[:, None], y[:, None])))
    best = int(np.argmin(losses))
    logger.info(f"Ridge regression: penalty {PENALTIES[best]:g}, CCC {1 - losses[best]:.3f} on speakers left out")
    return _ridge(x, y, PENALTIES[best])


def _ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Solves the dual problem, which has one unknown for each clip, since there are fewer clips than features."""
    centre, mean = x.mean(0), y.mean()
    x = x - centre
    products = x @ x.T
    products.diagonal().add_(penalty * products.diagonal().mean() + torch.finfo(x.dtype).tiny)
    weight = x.T @ torch.linalg.solve(products, y - mean)
    return weight, mean - weight @ centre


def check_closed_form(config: MaxMViTConfig, args: SERTrainingArguments, keeps_features: bool) -> None:
    """
    Raises `DataError` if a classifier cannot be fitted in closed form, since its features vary or it is not linear.
    """
    lacking = [
        name
        for name, is_given in {
            "--freeze_speech_encoder and --speech_pooling mean or statistics": can_cache_embeddings(config, args),
            "--speech_layers concat": config.speech_layers == "concat",
            "--fusion late, or --head linear of a model without images":
                config.fusion == "late" or config.head == "linear" and config.branch_names == ["speech"],
            "--cache_features": keeps_features,
            "no --feature_dropout": not config.feature_dropout,
            "--target emotion or dimensions": not (config.dimensions and config.num_classes),
        }.items()
        if not is_given
    ]  # fmt: skip
    if lacking:
        raise DataError(f"--closed_form_classifier needs {'; '.join(lacking)}.")


@torch.no_grad()
def fit_speech_classifier(
    model: MaxMViTForAudioClassification, clips: datasets.Dataset, layer_statistics: Mapping[str, torch.Tensor]
) -> None:
    """
    Fits the classifier of a frozen speech encoder on clips and their altered copies, and freezes it.

    Args:
        model: Model whose speech branch pools by `"mean"` or `"statistics"`, concatenates its layers and is followed
            by the linear classifier. It is changed in place, with the running statistics that standardise the
            features.
        clips: The training part, from `extract_features`.
        layer_statistics: From `layer_statistics_of`.
    """
    branch: SpeechEncoder = model.branches()["speech"]
    branch.requires_grad_(False)
    column = DIMENSIONS if model.config.dimensions else "label"
    features, targets, speakers = training_features(branch, clips, layer_statistics, column)
    if model.config.dimensions:
        lines = [fit_ridge(features, values, speakers) for values in targets.T]
        weight, bias = (torch.stack(parts) for parts in zip(*lines, strict=True))
    else:
        weight, bias, _ = fit_discriminant(features, targets, speakers, model.config.num_labels)
    classifier = speech_classifier(model)
    classifier.out_proj.weight.copy_(weight)
    classifier.out_proj.bias.copy_(bias)
    classifier.requires_grad_(False)


def training_features(
    branch: SpeechEncoder, clips: datasets.Dataset, layer_statistics: Mapping[str, torch.Tensor], column: str = "label"
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """
    Fits the statistics that standardise features, and returns the features of clips and of their altered copies,
    `(N, head_hidden_size)`; their labels, `(N,)` or, from the column `dimensions`, the values of these, `(N, D)`; and
    the numbers of their speakers (or of the clips if speakers are unknown).
    """
    versions = clips["spectrograms"]
    rows = [(content, row) for row, clip in enumerate(versions) for content in dict.fromkeys(clip.contents)]
    owners = torch.tensor([row for _, row in rows])
    statistics = torch.stack([layer_statistics[content] for content, _ in rows])
    branch.eval()
    if branch.norm is not None:
        branch.norm.reset_running_stats()
        raw = encoder_features(branch, statistics)
        branch.norm.load_state_dict({"running_mean": raw.mean(0), "running_var": raw.var(0)}, strict=False)
    speakers = clips["speaker"][:]
    known = None not in speakers and len(set(speakers)) > 1
    numbers = np.unique(speakers, return_inverse=True)[1] if known else np.arange(len(speakers))
    labels = torch.as_tensor(clips[column][:])[owners]
    return encoder_features(branch, statistics), labels, numbers[owners].tolist()


@torch.no_grad()
def encoder_features(branch: SpeechEncoder, statistics: torch.Tensor) -> torch.Tensor:
    """Computes features, `(N, head_hidden_size)`, from layer statistics, `(N, layers + 1, 2, width)`, on the CPU."""
    device = next(branch.parameters()).device
    return torch.cat([branch(part.float().to(device), None).cpu() for part in statistics.split(256)])


def speech_classifier(model: MaxMViTForAudioClassification) -> LinearHead:
    """Returns the linear classifier that follows the speech encoder."""
    classifier: Any = model.classifier
    return classifier.speech if isinstance(classifier, LateFusionHead) else classifier
