"""What follows the branches of MaxMViT-MLP: their features are fused, a head scores emotions, a loss the scores."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

try:
    from .configuration_maxmvit import MaxMViTConfig
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from configuration_maxmvit import MaxMViTConfig

QUERY_STD = 0.02
NO_ATTENTION = "Only head='decoder' returns attention maps: leave out output_attentions=True."
Tensors = Mapping[str, torch.Tensor]


def tokens_of(backbone: Any, feature_map: Any) -> torch.Tensor:
    """Returns the last feature map of a timm model, `(B, C, H, W)`, `(B, H, W, C)` or `(B, L, C)`, as tokens
    `(B, L, C)`; the speech branch has its own."""
    if hasattr(feature_map, "tokens"):
        return feature_map.tokens
    if feature_map.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") != "NHWC":
        feature_map = feature_map.movedim(1, -1)
    return feature_map.flatten(1, -2)


class ConcatFusion(nn.Module):
    """The features of all branches beside each other, as in the paper: `(B, sum of the widths)`."""

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__()
        self.out_features = sum(widths.values())

    def forward(self, features: Tensors, tokens: Tensors) -> torch.Tensor:
        return torch.cat(list(features.values()), dim=-1)


class GatedFusion(ConcatFusion):
    """
    The same, each feature times a gate between 0 and 1 that sees all of them, so that a branch that hears badly may
    be heard less (Arevalo et al. 2017, https://arxiv.org/abs/1702.01992, with a gate for each feature of each branch
    in place of one for their sum).
    """

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__(config, widths, token_widths)
        self.gate = nn.Linear(self.out_features, self.out_features)

    def forward(self, features: Tensors, tokens: Tensors) -> torch.Tensor:
        joined = super().forward(features, tokens)
        return joined * self.gate(joined).sigmoid()


class AttentionFusion(ConcatFusion):
    """
    Each branch's tokens attend to those of the others (crossmodal attention, Tsai et al. 2019,
    https://arxiv.org/abs/1906.00295): projected to `config.fusion_size`, `LayerNorm(own + attention)`, mean over the
    tokens. The branches' features, then what they heard of each other: `(B, sum of the widths + branches *
    fusion_size)`.
    """

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__(config, widths, token_widths)
        size = config.fusion_size
        self.project = nn.ModuleDict({name: nn.Linear(width, size) for name, width in token_widths.items()})
        self.attention = nn.ModuleDict({name: _attention(size) for name in token_widths})
        self.norm = nn.ModuleDict({name: nn.LayerNorm(size) for name in token_widths})
        self.out_features += size * len(token_widths)

    def forward(self, features: Tensors, tokens: Tensors) -> torch.Tensor:
        own = {name: self.project[name](values) for name, values in tokens.items()}
        pooled = [super().forward(features, tokens)]
        for name, queries in own.items():
            others = torch.cat([values for other, values in own.items() if other != name], dim=1)
            heard, _ = self.attention[name](queries, others, others, need_weights=False)
            pooled.append(self.norm[name](queries + heard).mean(dim=1))
        return torch.cat(pooled, dim=-1)


class BilinearFusion(nn.Module):
    """
    Products of features of different branches, by their low-rank form (Kim et al. 2017,
    https://arxiv.org/abs/1610.04325): each branch is projected to `config.fusion_size`, and the projections are
    multiplied; then signed square root and L2 norm (Lin et al. 2015, https://arxiv.org/abs/1504.07889).
    """

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(width, config.fusion_size) for name, width in widths.items()})
        self.out_features = config.fusion_size

    def forward(self, features: Tensors, tokens: Tensors) -> torch.Tensor:
        product = math.prod(self.project[name](values) for name, values in features.items())
        # The gradient of a square root is infinite at 0.
        rooted = product.sign() * (product.abs() + 1e-6).sqrt()
        return F.normalize(rooted, dim=-1)


FUSIONS = {"concat": ConcatFusion, "gated": GatedFusion, "attention": AttentionFusion, "bilinear": BilinearFusion}


class HiddenLayer(nn.Module):
    """Dense, BatchNorm, Dropout, ReLU: `(B, in_features)` -> `(B, config.hidden_size)`."""

    def __init__(self, config: MaxMViTConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.norm = nn.BatchNorm1d(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.activation = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dropout(self.norm(self.dense(features))))


class MLPHead(HiddenLayer):
    """
    Dense, BatchNorm, Dropout, ReLU, and again for each further one of `config.head_layers`, Dense:
    `(B, in_features)` -> `(B, config.num_labels)`, and no attention. Raises `ValueError` where that is asked for by
    `look`, and for a batch of one clip in training, which has no spread that BatchNorm could divide by.
    """

    def __init__(self, config: MaxMViTConfig, in_features: int, token_widths: Mapping[str, int]):
        super().__init__(config, in_features)
        self.deeper = nn.Sequential(*(HiddenLayer(config, config.hidden_size) for _ in range(config.head_layers - 1)))
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(  # type: ignore[override]
        self, features: torch.Tensor, tokens: Tensors, look: bool = False
    ) -> tuple[torch.Tensor, None]:
        if look:
            raise ValueError(NO_ATTENTION)
        # A BatchNorm that is synchronised over processes (another class) sees their clips too.
        if self.norm.training and isinstance(self.norm, nn.BatchNorm1d) and features.shape[0] == 1:
            raise ValueError(
                "A batch of one clip cannot be trained on: the BatchNorm of the head needs two. Take a larger batch, "
                "drop the last one where it is smaller, or call eval()."
            )
        return self.out_proj(self.deeper(super().forward(features))), None


class LinearHead(nn.Module):
    """A linear classifier: `(B, in_features)` -> `(B, config.num_labels)`, and no attention."""

    def __init__(self, config: MaxMViTConfig, in_features: int, token_widths: Mapping[str, int]):
        super().__init__()
        self.out_proj = nn.Linear(in_features, config.num_labels)

    def forward(self, features: torch.Tensor, tokens: Tensors, look: bool = False) -> tuple[torch.Tensor, None]:
        if look:
            raise ValueError(NO_ATTENTION)
        return self.out_proj(features), None


class DecoderLayer(nn.Module):
    """A class's query reads the tokens, then thinks: attention and two dense layers, each with a residual."""

    def __init__(self, size: int, dropout: float):
        super().__init__()
        self.attention = _attention(size, dropout)
        self.attention_norm = nn.LayerNorm(size)
        self.dense = nn.Sequential(
            nn.Linear(size, 2 * size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * size, size)
        )
        self.dense_norm = nn.LayerNorm(size)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, look: bool) -> tuple[torch.Tensor, torch.Tensor]:
        read, weights = self.attention(queries, memory, memory, need_weights=look)
        queries = self.attention_norm(queries + read)
        return self.dense_norm(queries + self.dense(queries)), weights


class DecoderHead(nn.Module):
    """
    One learned query for each class reads the tokens of all branches and the fused features, in `config.head_layers`
    layers, and a linear map of its own scores it: `(B, config.num_labels)`. As in ML-Decoder (Ridnik et al. 2021,
    https://arxiv.org/abs/2111.12933) the queries do not attend to each other, which Query2Label's (Liu et al. 2021,
    https://arxiv.org/abs/2107.10834) do.

    Where `look` is True, the attention of each layer comes too, mean over its heads: `(B, num_labels, 1 + tokens)`,
    the fused features first, then the branches' tokens in their order.
    """

    def __init__(self, config: MaxMViTConfig, in_features: int, token_widths: Mapping[str, int]):
        super().__init__()
        size = config.hidden_size
        self.fused = nn.Linear(in_features, size)
        self.project = nn.ModuleDict({name: nn.Linear(width, size) for name, width in token_widths.items()})
        self.queries = nn.Parameter(torch.empty(config.num_labels, size).normal_(std=QUERY_STD))
        self.layers = nn.ModuleList(DecoderLayer(size, config.hidden_dropout) for _ in range(config.head_layers))
        self.out_proj = nn.Linear(size, config.num_labels)

    def forward(
        self, features: torch.Tensor, tokens: Tensors, look: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        projected = [self.project[name](values) for name, values in tokens.items()]
        memory = torch.cat([self.fused(features)[:, None], *projected], dim=1)
        queries, seen = self.queries.expand(features.shape[0], -1, -1), []
        for layer in self.layers:
            queries, weights = layer(queries, memory, look)
            seen.append(weights)
        scores = (queries * self.out_proj.weight).sum(dim=-1) + self.out_proj.bias
        return scores, tuple(seen) if look else None


HEADS = {"mlp": MLPHead, "linear": LinearHead, "decoder": DecoderHead}


def loss_of(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """The mean loss of `problem_type`; see [`MaxMViTForAudioClassification.forward`] for the labels it takes."""
    per_class, per_clip = labels.shape == logits.shape, labels.shape == logits.shape[:1]
    if problem_type == "regression":
        if per_class or per_clip and logits.shape[1] == 1:
            return F.mse_loss(logits, labels.to(logits.dtype).view_as(logits))
        needed = "one number per output"
    elif problem_type == "multi_label_classification":
        if per_class:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        needed = "0 or 1 for each class of each clip"
    elif logits.shape[1] == 1:
        needed = "two classes or more; for a single number, problem_type='regression' is there"
    else:
        if per_class and labels.is_floating_point():
            return F.cross_entropy(logits, labels.to(logits.dtype))
        if per_clip and not labels.is_floating_point():
            return F.cross_entropy(logits, labels.long())
        needed = "the index of a class for each clip, or a float probability for each class of each clip"
    raise ValueError(
        f"problem_type={problem_type!r} needs {needed}. labels are {labels.dtype} of shape {tuple(labels.shape)}, "
        f"logits of shape {tuple(logits.shape)}."
    )


def _attention(size: int, dropout: float = 0.0) -> nn.MultiheadAttention:
    """With as many of 8 heads as divide `size`."""
    return nn.MultiheadAttention(size, math.gcd(size, 8), dropout=dropout, batch_first=True)
