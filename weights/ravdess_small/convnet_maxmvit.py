"""A convolutional backbone of the plainest kind, for corpora of a thousand clips, in the manner of timm's models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class ConvNet(nn.Module):
    """
    Stages of a 3 x 3 convolution, BatchNorm and ReLU, each on a map of half the size of the one before it (2 x 2 max
    pooling); mean and maximum over the last map. What it sees is local: with four stages a place of the last map hangs
    on 38 x 38 pixels, and where they lie is forgotten. On RAVDESS' thousand clips that generalised to other speakers
    better than the residual networks and vision transformers of timm that were tried (docs/experiments.md).

    Args:
        channels (`Sequence[int]`, defaults to `(16, 32, 64, 128)`): Width of each stage.
        num_classes (`int`, defaults to 0): As in timm; there is no classifier here, so only 0.
        in_chans (`int`, defaults to 3): Channels of the pictures.

    `forward` maps `(B, in_chans, H, W)` to `(B, 2 * channels[-1])`. H and W are at least `2 ** (stages - 1)`.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 128), num_classes: int = 0, in_chans: int = 3):
        super().__init__()
        if num_classes:
            raise TypeError("it has no classifier: num_classes is 0")
        self.num_features = channels[-1]
        self.head_hidden_size = 2 * channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 2**depth, "module": f"stages.{depth}"}
            for depth, width in enumerate(channels)
        ]
        widths = [in_chans, *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.MaxPool2d(2) if depth else nn.Identity(),
                nn.Conv2d(widths[depth], widths[depth + 1], kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(widths[depth + 1]),
                nn.ReLU(inplace=True),
            )
            for depth in range(len(channels))
        )
        self.grad_checkpointing = False

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are of which stage, for layer-wise learning rates."""
        return {"stem": r"^(?!)", "blocks": r"^stages\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_intermediates(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The last map, `(B, channels[-1], H', W')`, and the maps of all stages."""
        maps = []
        for stage in self.stages:
            again = self.grad_checkpointing and self.training
            x = checkpoint(stage, x, use_reentrant=False) if again else stage(x)
            maps.append(x)
        return x, maps

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_intermediates(x)[0]

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))
