"""Weighted, smoothed and focal cross-entropy for training."""

import torch
from torch.nn.functional import log_softmax, one_hot


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
            A weight for each class, see [`class_weights`]. Weighted losses are divided by the number of clips and not,
            as in `torch.nn.CrossEntropyLoss`, by the sum of the batch's weights, so that accumulated small batches
            give the gradient of the large one.
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
