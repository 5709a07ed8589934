"""Training losses: weighted, smoothed and focal cross-entropy for classes, and losses for dimensions."""

from typing import Literal

import torch
from torch.nn.functional import log_softmax, one_hot

from modeling_maxmvit import squared_error


def class_weights(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """
    Returns weights inverse to the frequency of each class, scaled so that the mean weight over `labels` is 1.

    Args:
        labels (`torch.LongTensor` of shape `(num_clips,)`): Class indices of the training clips.
        num_labels (`int`): Number of classes.

    Returns:
        `(num_labels,)`, float32; 0 for a class that does not occur.
    """
    counts = torch.bincount(torch.as_tensor(labels), minlength=num_labels)
    if len(counts) > num_labels:
        raise ValueError(f"The labels contain class {len(counts) - 1}, but there are only {num_labels} classes.")
    present = int((counts > 0).sum())
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 0.0)


class ClassificationLoss:
    """
    Cross-entropy of hard or soft labels with optional class weights, label smoothing and focal loss, averaged over the
    clips of a batch.

    Args:
        weights (`torch.Tensor` of shape `(num_labels,)`, *optional*):
            A weight for each class, see [`class_weights`]. Weighted losses are divided by the number of clips, not by
            the sum of the batch's weights as in `torch.nn.CrossEntropyLoss`, so that accumulated small batches give
            the gradient of the large one.
        label_smoothing (`float`, defaults to 0.0):
            Share of the target that is spread evenly over all classes.
        focal_gamma (`float`, defaults to 0.0):
            If above 0, the term of class c is scaled by `(1 - p_c) ** focal_gamma` (focal loss, Lin et al. 2017,
            https://arxiv.org/abs/1708.02002, equation 4), so that clips that are already classified well count less.
    """

    def __init__(
        self, weights: torch.Tensor | None = None, label_smoothing: float = 0.0, focal_gamma: float = 0.0
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and below 1.")
        if focal_gamma < 0:
            raise ValueError(f"focal_gamma={focal_gamma} must not be negative.")
        self.weights = weights
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Returns the mean loss of a batch.

        Args:
            logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Output of the model.
            labels (`torch.LongTensor` of shape `(batch_size,)` or float probabilities
                `(batch_size, num_labels)`): Hard or soft labels.
        """
        log_probabilities = log_softmax(logits.float(), dim=-1)
        num_labels = logits.shape[-1]
        targets = labels.float() if labels.is_floating_point() else one_hot(labels, num_labels).float()
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / num_labels
        if self.weights is not None:
            targets = targets * self.weights.to(targets.device)
        if self.focal_gamma:
            # At 1 - p = 0 the gradient of the power is infinite for exponents below 1.
            targets = targets * (-torch.expm1(log_probabilities)).clamp(min=1e-6) ** self.focal_gamma
        return -(targets * log_probabilities).sum(dim=-1).mean()


def concordance_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Returns 1 minus the concordance correlation coefficient (Lin 1989, doi 10.2307/2532051), averaged over the
    dimensions for which a batch has at least two values.

    Args:
        outputs (`torch.FloatTensor` of shape `(batch_size, D)`): Estimates.
        targets (`torch.FloatTensor` of shape `(batch_size, D)`): Ratings, NaN if unknown.
    """
    known = ~targets.isnan()
    count = known.sum(0).clamp(min=1)
    x, y = (torch.where(known, values, 0.0) for values in (outputs, targets))
    means = x.sum(0) / count, y.sum(0) / count
    x, y = (torch.where(known, values - mean, 0.0) for values, mean in zip((x, y), means, strict=True))
    spread = (x.square() + y.square()).sum(0) / count + (means[0] - means[1]).square()
    losses = 1 - 2 * (x * y).sum(0) / count / (spread + 1e-8)
    used = known.sum(0) > 1
    return torch.where(used, losses, 0.0).sum() / used.sum().clamp(min=1)


def absolute_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute error of outputs whose target is not NaN; 0 if there are none."""
    known = ~targets.isnan()
    return torch.where(known, outputs - targets, 0.0).abs().sum() / known.sum().clamp(min=1)


DIMENSION_LOSSES = {"ccc": concordance_loss, "mse": squared_error, "mae": absolute_error}


class DimensionLoss:
    """
    Loss of dimensions and, if the model has classes, of these.

    Args:
        kind (`str`, defaults to `"ccc"`): `"ccc"` for [`concordance_loss`], `"mse"` or `"mae"`.
        num_classes (`int`, defaults to 0): Number of classes, whose outputs precede those of the dimensions.
        weight (`float`, defaults to 1.0): Weight of the dimensions beside the classes.
        classification ([`ClassificationLoss`], *optional*): Loss of the classes; by default plain cross-entropy.
    """

    def __init__(
        self,
        kind: Literal["ccc", "mse", "mae"] = "ccc",
        num_classes: int = 0,
        weight: float = 1.0,
        classification: ClassificationLoss | None = None,
    ):
        self.of_dimensions = DIMENSION_LOSSES[kind]
        self.num_classes = num_classes
        self.weight = weight
        self.classification = classification or ClassificationLoss()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Returns the mean loss of a batch.

        Args:
            logits (`torch.FloatTensor` of shape `(batch_size, num_classes + D)`): Output of the model.
            labels (`torch.FloatTensor` of shape `(batch_size, num_classes + D)`): Probabilities of the classes, then
                the values of the dimensions, NaN if unknown.
        """
        logits, labels, count = logits.float(), labels.float(), self.num_classes
        of_dimensions = self.of_dimensions(logits[:, count:], labels[:, count:])
        if not count:
            return of_dimensions
        known = ~labels[:, :count].isnan().any(1)
        of_classes = logits.sum() * 0
        if known.any():
            of_classes = self.classification(logits[known, :count], labels[known, :count])
        return of_classes + self.weight * of_dimensions
