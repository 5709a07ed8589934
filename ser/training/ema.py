"""Exponential moving average of weights, which often scores better than the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

UNAVERAGED = "unaveraged.safetensors"  # in a checkpoint, the weights with which training continues


class AveragedWeights:
    """
    Exponential moving average of a model's weights (Polyak and Juditsky 1992): at first the weights after the first
    update, then `decay * average + (1 - decay) * weights` after each further update. BatchNorm's running means and
    variances are averaged like the weights, to match them.

    The arithmetic is torch's. torch's `AveragedModel` is not used, since it fetches a count from the device at every
    update, and also averages integer buffers, rounding indices down.

    Args:
        model (`nn.Module`): Model whose weights are averaged; it must not be moved.
        decay (`float`): From 0 (the last weights) to below 1; 0.99 averages over about 100 updates.
        begun (`bool`, defaults to False): Whether the model already holds an average, rather than the weights before
            the first update.
    """

    def __init__(self, model: nn.Module, decay: float, begun: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be at least 0 and below 1.")
        self._weights = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self._averages = [tensor.clone() for tensor in self._weights]
        self._move = get_ema_multi_avg_fn(decay)
        self._begun = begun
        self._applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average; to be called after every update of the weights."""
        if self._begun:
            self._move(self._averages, self._weights, None)
            return
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.copy_(weight)
        self._begun = True

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchanges the average and the model's weights."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the averaged weights within the context."""
        if self._applied:
            yield
            return
        self.exchange()
        self._applied = True
        try:
            yield
        finally:
            self.exchange()
            self._applied = False
