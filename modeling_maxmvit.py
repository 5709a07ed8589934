"""The model MaxMViT-MLP: backbones on constant-Q and Mel images, an optional speech encoder on the waveform, a fusion
and a head."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel, WhisperConfig, initialization
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

try:
    from .configuration_maxmvit import (
        AUTO_MAP,
        BRANCHES,
        CUSTOM_PIPELINES,
        OWN_BACKBONES,
        MaxMViTConfig,
        import_timm,
        shortened,
    )
    from .feature_extraction_maxmvit import TRANSFORMERS_KEYWORDS, checked_settings, normalized, render_image
    from .spectrograms_maxmvit import MIN_POWER, mel_filters
except ImportError:
    if "." in __name__:  # in a package: the error comes from within the sibling module
        raise
    from configuration_maxmvit import (
        AUTO_MAP,
        BRANCHES,
        CUSTOM_PIPELINES,
        OWN_BACKBONES,
        MaxMViTConfig,
        import_timm,
        shortened,
    )
    from feature_extraction_maxmvit import TRANSFORMERS_KEYWORDS, checked_settings, normalized, render_image
    from spectrograms_maxmvit import MIN_POWER, mel_filters

if TYPE_CHECKING:
    # With every checkpoint, transformers copies the files that this one imports relatively: these two as well.
    from .audio_maxmvit import AudioError  # noqa: F401
    from .pipeline_maxmvit import MaxMViTAudioClassificationPipeline  # noqa: F401


# ---- Backbones ----
# The image backbones of MaxMViT-MLP: any image model of timm, or a plain one, built for the image size.

# Errors that timm raises for invalid arguments.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)


def create_branch(branch: str, config: MaxMViTConfig) -> nn.Module:
    """
    Builds a branch, with the interface of a timm model: [`create_backbone`] or [`SpeechEncoder`].

    Raises:
        ValueError: The branch cannot be built.
    """
    if branch == "speech":
        return SpeechEncoder(config.speech_encoder_config or {}, config.speech_pooling, config.speech_layers)
    return create_backbone(branch, config)


def create_backbone(branch: str, config: MaxMViTConfig, **kwargs: Any) -> nn.Module:
    """
    Builds the model that `config` names for a branch, without a classifier.

    Args:
        branch (`str`): `"cqt"` or `"mel"`.
        config ([`MaxMViTConfig`]): Its fields `{branch}_backbone` and `{branch}_backbone_kwargs`, and `image_size`.
        kwargs: Further arguments of `timm.create_model`, such as `pretrained`.

    Raises:
        ValueError: timm cannot build it, or it would ignore part of the images.
    """
    name, changes = getattr(config, f"{branch}_backbone"), getattr(config, f"{branch}_backbone_kwargs")
    try:
        reshaped = config.reshaped_mvitv2(branch)
        if kwargs.get("pretrained"):
            if reshaped is not None:
                raise ValueError(f"its depths or widths were changed by {branch}_backbone_kwargs")
            if name in OWN_BACKBONES:
                raise ValueError("there are none, since it is not a timm model")
        if name in OWN_BACKBONES:
            backbone: Any = ConvNet(num_classes=0, **changes)
        elif reshaped is None:
            backbone = _create(name, config.image_shape, num_classes=0, **changes, **kwargs)
        else:
            architecture, rest = reshaped
            mvitv2 = import_timm().models.mvitv2
            backbone = mvitv2.MultiScaleVit(architecture, img_size=config.image_shape, num_classes=0, **rest)
        _check_image_size(branch, config, backbone)
        if changes and not any(tensor.is_meta for tensor in backbone.parameters()):
            _try_out(backbone, config.image_shape)
    except REFUSALS as error:
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(
            f"{branch}_backbone={name!r} cannot be built with image_size={config.image_size} and "
            f"{branch}_backbone_kwargs={shortened(changes, 300)}: {reason}. Choose arguments that it takes."
        ) from error
    return backbone


def _create(name: str, size: tuple[int, int], **kwargs: Any) -> nn.Module:
    timm = import_timm()
    try:
        return timm.create_model(name, img_size=size, **kwargs)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    # Convolutional models take images of any size and have no img_size.
    return timm.create_model(name, **kwargs)


@torch.no_grad()
def _try_out(backbone: Any, size: tuple[int, int]) -> None:
    """Raises `TypeError` if the forward pass of a reshaped backbone fails or its width is not what timm states."""
    training = backbone.training
    try:
        width = backbone.eval()(torch.zeros(1, 3, *size)).shape[-1]
    except (RuntimeError, ValueError) as error:
        raise TypeError(f"it can be built, but its forward pass fails ({error})") from error
    finally:
        backbone.train(training)
    if width != backbone.head_hidden_size:
        raise TypeError(f"it returns {width} features, but timm states {backbone.head_hidden_size}")


def _check_image_size(branch: str, config: MaxMViTConfig, backbone: Any) -> None:
    """Raises `ValueError` for an image size of which timm's patch embeddings would silently drop the last rows or
    columns, or which is smaller than the backbone's reduction."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch is not None:
        steps = [patch, patch] if isinstance(patch, int) else list(patch)
    else:
        steps = [backbone.feature_info[-1]["reduction"]] * 2
    for side, step in zip(config.image_shape, steps, strict=True):
        if side < step or patch is not None and side % step:
            below = max(side // step * step, step)
            raise ValueError(
                f"{branch}_backbone={getattr(config, f'{branch}_backbone')!r} takes images in steps of {step}: "
                f"image_size={config.image_size} does not work; use {below} or {below + step} instead of {side}."
            )


def backbone_input(images: torch.Tensor | None, name: str, size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """
    Converts images `(B, 1 or 3, height, width)` to the input of a backbone: `(B, 3, *size)` of `dtype`.

    Raises:
        ValueError: The images are missing or have the wrong shape; the message begins with `name`.
    """
    if images is None:
        raise ValueError(f"{name} is missing: this model has a branch that needs it.")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} has shape {tuple(images.shape)}; (batch_size, 1 or 3, height, width) is needed, as "
            "MaxMViTFeatureExtractor returns it."
        )
    if images.shape[-2:] != size:
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return images.expand(-1, 3, -1, -1).to(dtype)


def create_pretrained_backbone(branch: str, config: MaxMViTConfig, weights: str | os.PathLike | None) -> nn.Module:
    """
    Builds the backbone of a branch with timm's pretrained weights, or those of a local file.

    Raises:
        OSError: The weights can neither be downloaded nor found; the message names both remedies.
        ValueError: The weights do not fit the backbone.
    """
    if weights is not None and not os.path.isfile(weights):
        raise OSError(f"{branch}_weights={os.fspath(weights)!r} is not a file.")
    overlay = {} if weights is None else {"pretrained_cfg_overlay": {"file": os.fspath(weights)}}
    name = getattr(config, f"{branch}_backbone")
    try:
        return create_backbone(branch, config, pretrained=True, **overlay)
    except OSError as error:
        raise OSError(
            f"The ImageNet weights of {branch}_backbone={name!r} could not be loaded ({error}). Either run where the "
            f"Hugging Face Hub can be reached (or its cache holds them), or pass a local file as {branch}_weights."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The ImageNet weights of {branch}_backbone={name!r} do not fit it: {error}. They need the unchanged "
            f"architecture: remove what reshapes it from {branch}_backbone_kwargs, or start without them."
        ) from error


def checkpoint_gradients(backbone: Any, enable: bool, name: str) -> None:
    """
    Turns gradient checkpointing of a backbone on or off: its activations are recomputed in the backward pass.

    Raises:
        ValueError: timm does not support it for this backbone; the message begins with `name`.
    """
    try:
        backbone.set_grad_checkpointing(enable)
    except (AssertionError, AttributeError) as error:
        if enable:
            raise ValueError(
                f"{name} has no gradient checkpointing in timm: leave it off, or choose another backbone."
            ) from error


def block_names(module: nn.Module) -> Iterator[str]:
    """Yields the class names of the outermost blocks, which must not be split between devices."""
    for child in module.children():
        kind = type(child).__name__
        if kind.endswith(("Block", "Bottleneck")) or "EncoderLayer" in kind:
            yield kind
        else:
            yield from block_names(child)


# ---- Convolutional backbone ----
# A plain convolutional backbone with the interface of timm's models, for corpora of about a thousand clips.


class ConvNet(nn.Module):
    """
    A small convolutional network. Each stage is a 3 x 3 convolution, BatchNorm and ReLU on a map half the size of the
    previous one (2 x 2 max pooling); the output is the mean and the maximum over the last map. The receptive field is
    local (38 x 38 pixels with four stages), and pooling discards the position. On RAVDESS' thousand clips this
    generalised better to other speakers than the residual networks and vision transformers of timm that were tried
    (docs/experiments.md).

    Args:
        channels (`Sequence[int]`, defaults to `(16, 32, 64, 128)`): Width of each stage.
        num_classes (`int`, defaults to 0): As in timm; there is no classifier here, so only 0.
        in_chans (`int`, defaults to 3): Channels of the images.

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
        """Returns patterns that assign parameters to stages, for layer-wise learning rates."""
        return {"stem": r"^(?!)", "blocks": r"^stages\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_intermediates(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the last map, `(B, channels[-1], H', W')`, and the maps of all stages."""
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


# ---- Speech encoder ----
# The speech branch: a pretrained speech encoder of transformers, its inputs, and the pooling of its layers.
#
# The hidden states of all layers are pooled over time, by attention (Safari et al. 2020,
# https://arxiv.org/abs/2008.01077), to their mean, or to their mean and standard deviation (statistics pooling,
# Snyder et al. 2018, doi 10.1109/ICASSP.2018.8461375; with attention, Okabe et al. 2018,
# https://arxiv.org/abs/1803.10963), and joined by a softmax-weighted sum (Yang et al. 2021, SUPERB,
# https://arxiv.org/abs/2105.01051) or concatenated. The branch has the methods of a timm model, so that the rest of
# the model treats all branches alike.

ATTENTION_SIZE = 128  # hidden units of the attention of attentive_statistics
SEGMENTS = 16  # segments of a clip, whose means are the branch's tokens
LAYER = re.compile(r"^encoder\.(?:encoder\.)?layers\.(\d+)\.")


class SpeechFeatures(NamedTuple):
    """
    Output of [`SpeechEncoder.forward_features`].

    Args:
        pooled (`torch.Tensor` of shape `(B, head_hidden_size)`): The features of the clip.
        tokens (`torch.Tensor` of shape `(B, 1 or 1 + 16, num_features)`): The mean over time of the weighted sum of
            all layers (weighted by attention, if any) and, with pooling by attention, the means of 16 segments of
            equal length: as many for a short clip as for a long one, so that no mask is needed.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor


class SpeechEncoder(nn.Module):
    """
    The speech branch: `encoder`, a speech encoder of transformers, with pooling of its layers.

    Whisper runs on the clip's own length (its positional embeddings cut to it) instead of 30 s: a fourteenth of the
    time for a clip of 3.7 s. For a clip of exactly 30 s the output equals that of transformers' encoder.

    In evaluation, only clips of equal length are run together, without padding, so that the features of a clip do not
    depend on the other clips of the batch; in an encoder with GroupNorm, padding would make them depend on it. In
    training, a batch is padded and run at once. Padding is masked in all layers, and is never part of the pooling. In
    training, the encoder also masks spans of time if its configuration enables that (`apply_spec_augment`).

    Args:
        config (`Mapping`): Of the encoder, from [`read_encoder_config`].
        pooling (`str`, defaults to `"attention"`): How frames are pooled over time: `"attention"` (begins as the
            mean), `"mean"`, `"statistics"` (mean and standard deviation) or `"attentive_statistics"`. The features
            of the last two are standardised by running statistics, since their scales differ by orders of magnitude.
        layers (`str`, defaults to `"weighted_sum"`): How the pooled layers are joined: `"weighted_sum"`, by a softmax
            of learned weights, or `"concat"`.
    """

    def __init__(self, config: Mapping[str, Any], pooling: str = "attention", layers: str = "weighted_sum"):
        super().__init__()
        encoder_config: Any = AutoConfig.for_model(**config)
        is_whisper = isinstance(encoder_config, WhisperConfig)
        self.encoder: Any = WhisperEncoder(encoder_config) if is_whisper else AutoModel.from_config(encoder_config)
        self.fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.piece = 2 * encoder_config.max_source_positions if is_whisper else None  # frames, the maximum of Whisper
        self.num_features = width = encoder_config.hidden_size
        self.feature_info = [{"num_chs": width, "layer": i} for i in range(encoder_config.num_hidden_layers + 1)]
        self.has_deviations, self.concatenates = "statistics" in pooling, layers == "concat"
        self.head_hidden_size = width * (1 + self.has_deviations)
        if self.concatenates:
            self.head_hidden_size *= len(self.feature_info)
        self.layer_weights = nn.Parameter(torch.zeros(len(self.feature_info)))
        self.attention: nn.Module | None = None
        if pooling == "attention":
            self.attention = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.attention.weight)  # initially the mean
        elif pooling == "attentive_statistics":
            score = nn.Linear(ATTENTION_SIZE, 1, bias=False)
            nn.init.zeros_(score.weight)
            self.attention = nn.Sequential(nn.Linear(width, ATTENTION_SIZE), nn.Tanh(), score)
        self.norm = nn.BatchNorm1d(self.head_hidden_size, affine=False) if self.has_deviations else None

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Returns `forward_head` of `forward_features`: `(B, head_hidden_size)`."""
        return self.forward_head(self.forward_features(input_values, attention_mask))

    def forward_features(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> SpeechFeatures:
        """
        Runs the encoder and pools its layers.

        Args:
            input_values, attention_mask (`torch.Tensor`): From [`speech_inputs`]; or, for pooling without attention,
                precomputed `layer_statistics` and None.
        """
        if attention_mask is None:
            means, deviations = input_values.unbind(2)
            return SpeechFeatures(self._joined(means, deviations), self._summed(means.unbind(1))[:, None])
        return self._pooled(*self._layers(input_values, attention_mask))

    def forward_head(self, features: SpeechFeatures) -> torch.Tensor:
        """Returns the pooled features, `(B, head_hidden_size)`."""
        return features.pooled

    def forward_intermediates(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[SpeechFeatures, list[torch.Tensor]]:
        """Returns `forward_features`, and each layer's hidden states as maps `(B, width, 1, frames)`, or its mean."""
        if attention_mask is None:
            maps = [means[:, :, None, None] for means in input_values[:, :, 0].unbind(1)]
            return self.forward_features(input_values, None), maps
        states, lengths = self._layers(input_values, attention_mask)
        return self._pooled(states, lengths), [state.movedim(1, -1)[:, :, None] for state in states]

    def layer_statistics(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns mean and standard deviation over time of each layer's hidden states: `(B, layers + 1, 2, width)`."""
        return torch.stack(_statistics_of_layers(*self._layers(input_values, attention_mask)), dim=2)

    def _summed(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = self.layer_weights.softmax(0)
        return sum(weight * state for weight, state in zip(weights, states, strict=True))

    def _joined(self, means: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
        """Joins the means and deviations of all layers, `(B, layers + 1, width)` each, into the features of a clip."""
        values = torch.cat([means, deviations], dim=-1) if self.has_deviations else means
        features = values.flatten(1) if self.concatenates else self._summed(values.unbind(1))
        if self.norm is None:
            return features
        if self.norm.training and isinstance(self.norm, nn.BatchNorm1d) and len(features) == 1:
            raise ValueError(
                "A batch of one clip cannot be trained on: statistics pooling standardises its features over the "
                "batch. Take a larger batch, or call eval()."
            )
        return self.norm(features)

    def _pooled(self, states: Sequence[torch.Tensor], lengths: Sequence[int]) -> SpeechFeatures:
        if self.attention is None:
            means, deviations = _statistics_of_layers(states, lengths)
            return SpeechFeatures(self._joined(means, deviations), self._summed(means.unbind(1))[:, None])
        summed = [clip[:length] for clip, length in zip(self._summed(states), lengths, strict=True)]
        weights = [self.attention(clip).softmax(0)[:, 0] for clip in summed]
        means, deviations = _statistics_of_layers(states, lengths, weights)
        segments = [_segment_means(clip) for clip in summed]
        tokens = torch.cat([self._summed(means.unbind(1))[:, None], torch.stack(segments)], dim=1)
        return SpeechFeatures(self._joined(means, deviations), tokens)

    def _layers(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
        """Returns the hidden states of all layers, `(B, frames, width)` each, and each clip's number of frames."""
        lengths = mask.sum(-1).tolist()
        frames = [self._count_frames(length) for length in lengths]
        if self.piece is None:
            if self.encoder.training or len(set(lengths)) == 1:
                padded = min(lengths) < values.shape[-1]
                return self._run(values, mask if padded else None), frames
            parts = [(row, 0, length) for row, length in enumerate(lengths)]
        else:
            parts = [
                (row, start, min(self.piece, length - start))
                for row, length in enumerate(lengths)
                for start in range(0, length, self.piece)
            ]
        return self._layers_of_parts(values, parts, max(frames)), frames

    def _layers_of_parts(
        self, values: torch.Tensor, parts: Sequence[tuple[int, int, int]], frames: int
    ) -> list[torch.Tensor]:
        """Returns the hidden states of parts of clips (row, start and length of each), joined along time."""
        groups = defaultdict(list)
        for part in parts:
            groups[0 if self.encoder.training else part[2]].append(part)
        states: list[torch.Tensor] = []
        for group in groups.values():
            lengths = [length for *_, length in group]
            given = torch.stack(
                [F.pad(values[row, ..., first : first + own], (0, max(lengths) - own)) for row, first, own in group]
            )
            if self.piece is None:
                run = self._run(given, None)
            else:
                is_padded = min(lengths) < max(lengths)
                run = self._run_whisper(given, torch.tensor(lengths, device=given.device) if is_padded else None)
            states = states or [own.new_zeros(len(values), frames, own.shape[-1]) for own in run]
            for state, own in zip(states, run, strict=True):
                for (row, start, length), hidden in zip(group, own, strict=True):
                    first, count = start // 2, self._count_frames(length)
                    state[row, first : first + count] = hidden[:count]
        return states

    def _run(self, values: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        output = self.encoder(values, attention_mask=mask, output_hidden_states=True, return_dict=True)
        # The last layer's state is taken after the final norm that some encoders have.
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def _run_whisper(self, values: torch.Tensor, lengths: torch.Tensor | None) -> list[torch.Tensor]:
        """
        Runs transformers' `WhisperEncoder`, which accepts 30 s only, on log-Mel frames `(B, bands, frames)` of any
        length up to that. Frames beyond `lengths`, `(B,)`, are zero between the convolutions, like the padding of the
        convolutions, and masked in the attention of all layers; with None, no clip is padded.
        """
        encoder = self.encoder
        hidden = F.gelu(encoder.conv1(values))
        if lengths is not None:
            hidden = hidden * (torch.arange(hidden.shape[-1], device=values.device) < lengths[:, None])[:, None]
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, p=encoder.dropout, training=encoder.training)
        mask = None
        if lengths is not None:
            is_own = torch.arange(hidden.shape[1], device=values.device) < (lengths[:, None] + 1) // 2
            mask = torch.zeros_like(is_own, dtype=hidden.dtype).masked_fill(~is_own, torch.finfo(hidden.dtype).min)
            mask = mask[:, None, None].expand(-1, 1, hidden.shape[1], -1)
        states = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        return [*states[:-1], encoder.layer_norm(hidden)]

    def _count_frames(self, length: int) -> int:
        """Returns the number of encoder frames for `length` samples (for Whisper, log-Mel frames)."""
        if self.piece is not None:
            return -(-length // 2)
        config = self.encoder.config
        for width, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            length = (length - width) // stride + 1
        return length

    def checked(
        self, input_values: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Returns the inputs in the encoder's precision; a missing mask is all ones, and None for `layer_statistics`.

        Raises:
            ValueError: The inputs are missing or have the wrong shape.
        """
        if input_values is None:
            raise ValueError(
                "input_values is missing: this model has a speech encoder, which needs it. The feature extractor "
                "returns it if its speech_processor is set."
            )
        values = input_values.to(self.layer_weights.dtype)
        are_statistics = values.shape[1:] == (len(self.feature_info), 2, self.num_features)
        if self.attention is None and attention_mask is None and are_statistics:
            return values, None
        if attention_mask is None:
            attention_mask = torch.ones(
                len(input_values), input_values.shape[-1], dtype=torch.long, device=input_values.device
            )
        fits = input_values.ndim == (3 if self.piece else 2)
        if not fits or attention_mask.shape != (len(input_values), input_values.shape[-1]):
            raise ValueError(
                f"input_values has shape {tuple(input_values.shape)}, attention_mask {tuple(attention_mask.shape)}: "
                "they are not what the feature extractor of this speech encoder returns."
            )
        return values, attention_mask

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether each layer recomputes its activations in the backward pass instead of keeping them."""
        if enable:
            self.encoder.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.encoder.activation_checkpointing_disable()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns patterns of the parameters of each layer, as timm's models do: convolutions, layers, the rest."""
        return {"stem": r"^encoder\.(?!(?:encoder\.)?layers\.)", "blocks": [(LAYER.pattern, None), (r".", (99999,))]}

    def tunable(self, frozen_layers: int | None = None) -> Iterator[nn.Parameter]:
        """
        Yields the encoder's parameters that training may change: all but those that transformers itself keeps fixed.

        Args:
            frozen_layers (`int`, *optional*): Number of lowest layers to leave out, with all parameters in no layer.
        """
        for name, parameter in self.named_parameters():
            layer = LAYER.match(name)
            above = frozen_layers is None or layer is not None and int(layer[1]) >= frozen_layers
            if name.startswith("encoder.") and name not in self.fixed and above:
                yield parameter


def _segment_means(frames: torch.Tensor) -> torch.Tensor:
    """Computes the means of 16 segments of equal length, `(frames, width)` -> `(16, width)`, like adaptive pooling,
    which ONNX does not have for clips of any length."""
    length = frames.shape[0]
    number = torch.arange(SEGMENTS, device=frames.device)[:, None]
    begin, end = number * length // SEGMENTS, -(-(number + 1) * length // SEGMENTS)
    place = torch.arange(length, device=frames.device)
    return ((place >= begin) & (place < end)).to(frames.dtype) / (end - begin).to(frames.dtype) @ frames


def _statistics(
    frames: torch.Tensor, lengths: Sequence[int], weights: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes mean and standard deviation over each clip's own frames, `(B, frames, width)` -> `(B, width)` each;
    weighted if there are `weights`, one `(length,)` per clip, which sum to 1."""
    means, deviations = [], []
    for row, (clip, length) in enumerate(zip(frames, lengths, strict=True)):
        own = clip[:length]
        weight = own.new_full((length, 1), 1 / length) if weights is None else weights[row][:, None]
        mean = (weight * own).sum(0)
        variance = (weight * (own - mean).square()).sum(0)
        means.append(mean)
        deviations.append(variance.clamp(min=1e-10).sqrt())  # the gradient of a square root is infinite at 0
    return torch.stack(means), torch.stack(deviations)


def _statistics_of_layers(
    states: Sequence[torch.Tensor], lengths: Sequence[int], weights: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `_statistics` of each layer: means and standard deviations, `(B, layers + 1, width)` each."""
    means, deviations = zip(*(_statistics(state, lengths, weights) for state in states), strict=True)
    return torch.stack(means, dim=1), torch.stack(deviations, dim=1)


def pretrained_encoder(name: str | os.PathLike, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    Returns the weights of a checkpoint for the `encoder` of [`SpeechEncoder`].

    Args:
        name: A name on the Hugging Face Hub, or a folder.
        config: Configuration of the encoder.

    Raises:
        OSError: The weights can neither be downloaded nor found; the message names both remedies.
        ValueError: The weights do not fit the encoder, or are incomplete.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # Whisper's decoder, which is not needed, may be missing; the rest is checked below
    try:
        model, info = AutoModel.from_pretrained(
            name, config=AutoConfig.for_model(**config), dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise OSError(
            f"The weights of speech_encoder={os.fspath(name)!r} could not be loaded ({error}). Either run where the "
            "Hugging Face Hub can be reached (or its cache holds them), or name a local folder."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"The weights of speech_encoder={os.fspath(name)!r} do not fit it: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    is_whisper = isinstance(model.config, WhisperConfig)
    lacking = [key for key in sorted(info["missing_keys"]) if not is_whisper or key.startswith("encoder.")]
    if lacking:
        raise ValueError(
            f"speech_encoder={os.fspath(name)!r} lacks {len(lacking)} of its weights, such as {lacking[0]}: name a "
            "checkpoint that contains the whole encoder."
        )
    return (model.encoder if is_whisper else model).state_dict()


# ---- Learnable Mel filters ----
# A trainable Mel filter bank: the model computes the Mel image from the power of every frequency.
#
# As in Sainath et al. (2013, "Learning filter banks within a deep neural network framework"), filters are
# initialised to those of the Mel scale and stay positive, as exponentials of the learned parameters.

FLOOR_DB = 10 * math.log10(MIN_POWER)
MIN_RELATIVE_POWER = 1e-30  # relative to the clip's loudest frequency: far below the floor, and more than 0


class MelFilterBank(nn.Module):
    """
    Computes normalised Mel images from power spectrograms, initially the same as those of [`MaxMViTFeatureExtractor`].

    A filter is a triangle of `spectrograms_maxmvit.mel_filters`, each of its weights multiplied by the exponential
    of its own parameter in `log_gains`, initially 0. So filters stay positive and within their bands, a step changes
    small and large weights by the same factor, and weight decay pulls the filters towards their initial values. (If
    the weights were trained directly, one step of Adam would extend every filter to all frequencies.)

    Args:
        settings (`Mapping`): From `feature_extraction_maxmvit.image_settings`.

    Raises:
        ValueError: A setting is unknown or missing, or has the wrong type.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        self.settings = settings = checked_settings(settings)
        self._shape = settings["sampling_rate"], settings["mel_n_fft"], settings["n_mels"]
        self.log_gains = nn.Parameter(torch.zeros(int((mel_filters(*self._shape) > 0).sum())))

    def filters(self) -> torch.Tensor:
        """Returns the current filters: `(n_mels, mel_n_fft // 2 + 1)`, float32."""
        begin, places = _slaney(*self._shape, self.log_gains.device)
        return begin.masked_scatter(places, begin[places] * self.log_gains.float().exp())

    def forward(self, power_values: torch.Tensor | None, power_lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Computes normalised Mel images.

        Args:
            power_values (`torch.Tensor` of shape `(B, mel_n_fft // 2 + 1, frames)`): In dB, from [`power_inputs`].
            power_lengths (`torch.Tensor` of shape `(B,)`, *optional*): Frames of each clip; by default all.

        Returns:
            `(B, 3, height, width)`, float32 in any autocast.

        Raises:
            ValueError: The inputs are missing or have the wrong shape.
        """
        if power_values is None:
            raise ValueError(
                "power_values is missing: this model has learnable filters, which need it. The feature extractor "
                "returns it if its filter_bank is 'learnable'."
            )
        bins, longest = self.settings["mel_n_fft"] // 2 + 1, power_values.shape[-1]
        lengths = [longest] * len(power_values) if power_lengths is None else power_lengths.tolist()
        fits = power_values.ndim == 3 and power_values.shape[1] == bins and len(lengths) == len(power_values)
        if not fits or not all(0 < length <= longest for length in lengths):
            raise ValueError(
                f"power_values has shape {tuple(power_values.shape)}, power_lengths are {lengths}: ({bins} bins, "
                "frames) of each clip are needed, as the feature extractor of this model returns them."
            )
        with torch.autocast(power_values.device.type, enabled=False):
            filters = self.filters()
            clips = [db[:, :length].float() for db, length in zip(power_values, lengths, strict=True)]
            images = torch.cat([render_image(_mels(filters, db), self.settings) for db in clips])
            return normalized(images, self.settings["image_mean"], self.settings["image_std"])


def _mels(filters: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Applies filters, `(n_mels, bins)`, to powers, `(bins, T)` in dB: `(n_mels, T)` in dB, floored at -100 dB like
    `mel` of the extractor."""
    loudest = power.amax()  # scaled to a power of 1, to avoid overflow of float32
    mels = (filters @ 10 ** ((power - loudest) / 10)).clamp(min=MIN_RELATIVE_POWER).log10()
    return (10 * mels + loudest).clamp(min=FLOOR_DB)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached tensors are used in training too
def _slaney(sampling_rate: int, n_fft: int, n_mels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the initial filters, and where they are positive. They are not buffers, which a bfloat16 model would
    round."""
    bank = torch.from_numpy(mel_filters(sampling_rate, n_fft, n_mels)).to(device)
    return bank, bank > 0


# ---- Fusions ----

QUERY_STD = 0.02
Tensors = Mapping[str, torch.Tensor]


def tokens_of(backbone: Any, feature_map: Any) -> torch.Tensor:
    """Returns the last feature map of a timm model, `(B, C, H, W)`, `(B, H, W, C)` or `(B, L, C)`, as tokens
    `(B, L, C)`; or the tokens of [`SpeechFeatures`]."""
    if hasattr(feature_map, "tokens"):
        return feature_map.tokens
    if feature_map.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") != "NHWC":
        feature_map = feature_map.movedim(1, -1)
    return feature_map.flatten(1, -2)


class ConcatFusion(nn.Module):
    """Concatenates the features of all branches, as in the paper: `(B, sum of the widths)`."""

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__()
        self.out_features = sum(widths.values())

    def forward(self, features: Tensors, tokens: Tensors) -> torch.Tensor:
        return torch.cat(list(features.values()), dim=-1)


class GatedFusion(ConcatFusion):
    """
    Concatenates the features, each multiplied by a gate between 0 and 1 that is computed from all of them, so that an
    unreliable branch can be weighted down (Arevalo et al. 2017, https://arxiv.org/abs/1702.01992, with a gate for each
    feature of each branch instead of one for their sum).
    """

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__(config, widths, token_widths)
        self.gate = nn.Linear(self.out_features, self.out_features)

    def forward(self, features: Tensors, tokens: Tensors) -> torch.Tensor:
        joined = super().forward(features, tokens)
        return joined * self.gate(joined).sigmoid()


class AttentionFusion(ConcatFusion):
    """
    Each branch's tokens, projected to `config.fusion_size`, attend to those of the other branches (crossmodal
    attention, Tsai et al. 2019, https://arxiv.org/abs/1906.00295); `LayerNorm(tokens + attention)` is averaged over
    the tokens. Returns the branches' features, then these means: `(B, sum of the widths + branches * fusion_size)`.
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
            attended, _ = self.attention[name](queries, others, others, need_weights=False)
            pooled.append(self.norm[name](queries + attended).mean(dim=1))
        return torch.cat(pooled, dim=-1)


class BilinearFusion(nn.Module):
    """
    Multiplies the features of different branches, in low-rank form (Kim et al. 2017,
    https://arxiv.org/abs/1610.04325): each branch is projected to `config.fusion_size`, the projections are
    multiplied, and signed square root and L2 norm are applied (Lin et al. 2015, https://arxiv.org/abs/1504.07889).
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


FUSIONS: dict[str, Any] = {
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "bilinear": BilinearFusion,
    "late": ConcatFusion,  # and a LateFusionHead after it
}


def _attention(size: int, dropout: float = 0.0) -> nn.MultiheadAttention:
    """Returns an attention with 8 heads, or as many below 8 as divide `size`."""
    return nn.MultiheadAttention(size, math.gcd(size, 8), dropout=dropout, batch_first=True)


# ---- Heads ----
# A head maps the fused features to the logits of the emotions.

NO_ATTENTION = "Only head='decoder' returns attention maps: leave out output_attentions=True."


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
    `config.head_layers` times Dense, BatchNorm, Dropout and ReLU, then Dense: `(B, in_features)` ->
    `(B, config.num_labels)`, and no attention. Raises `ValueError` if attention is requested (`return_attention`),
    and for a batch of one clip in training, which has no variance for BatchNorm.
    """

    def __init__(self, config: MaxMViTConfig, in_features: int, token_widths: Mapping[str, int]):
        super().__init__(config, in_features)
        self.deeper = nn.Sequential(*(HiddenLayer(config, config.hidden_size) for _ in range(config.head_layers - 1)))
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(  # type: ignore[override]
        self, features: torch.Tensor, tokens: Tensors, return_attention: bool = False
    ) -> tuple[torch.Tensor, None]:
        if return_attention:
            raise ValueError(NO_ATTENTION)
        # A BatchNorm that is synchronised over processes (another class) includes their clips too.
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

    def forward(
        self, features: torch.Tensor, tokens: Tensors, return_attention: bool = False
    ) -> tuple[torch.Tensor, None]:
        if return_attention:
            raise ValueError(NO_ATTENTION)
        return self.out_proj(features), None


class DecoderLayer(nn.Module):
    """Attention of the class queries to the tokens, then two dense layers, each part with a residual connection."""

    def __init__(self, size: int, dropout: float):
        super().__init__()
        self.attention = _attention(size, dropout)
        self.attention_norm = nn.LayerNorm(size)
        self.dense = nn.Sequential(
            nn.Linear(size, 2 * size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * size, size)
        )
        self.dense_norm = nn.LayerNorm(size)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor, return_attention: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        read, weights = self.attention(queries, memory, memory, need_weights=return_attention)
        queries = self.attention_norm(queries + read)
        return self.dense_norm(queries + self.dense(queries)), weights


class DecoderHead(nn.Module):
    """
    One learned query for each class attends to the tokens of all branches and the fused features, in
    `config.head_layers` layers, followed by a linear map for each class: `(B, config.num_labels)`. As in ML-Decoder
    (Ridnik et al. 2021, https://arxiv.org/abs/2111.12933) the queries do not attend to each other, unlike in
    Query2Label (Liu et al. 2021, https://arxiv.org/abs/2107.10834).

    With `return_attention`, the attention of each layer is returned too, averaged over its heads: `(B, num_labels, 1 +
    tokens)`, the fused features first, then the branches' tokens in their order.
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
        self, features: torch.Tensor, tokens: Tensors, return_attention: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        projected = [self.project[name](values) for name, values in tokens.items()]
        memory = torch.cat([self.fused(features)[:, None], *projected], dim=1)
        queries, attentions = self.queries.expand(features.shape[0], -1, -1), []
        for layer in self.layers:
            queries, weights = layer(queries, memory, return_attention)
            attentions.append(weights)
        scores = (queries * self.out_proj.weight).sum(dim=-1) + self.out_proj.bias
        return scores, tuple(attentions) if return_attention else None


HEADS: dict[str, Any] = {"mlp": MLPHead, "linear": LinearHead, "decoder": DecoderHead}
OUTPUT_LAYER = re.compile(r"^classifier\.(?:images\.|speech\.)?out_proj\.(?:weight|bias)$")


class LateFusionHead(nn.Module):
    """
    Late fusion: `images`, the head that `config.head` names, on the features of the images, and `speech`, a
    [`LinearHead`] on those of the speech encoder. The logits are the mean of theirs, the latter with a weight of
    `config.speech_share`; the probabilities are then the normalised geometric mean (a product of experts, Hinton 2002,
    doi 10.1162/089976602760128018).
    """

    def __init__(self, config: MaxMViTConfig, widths: Mapping[str, int], token_widths: Mapping[str, int]):
        super().__init__()
        self.share, self.speech_size = config.speech_share, widths["speech"]
        of_images = {name: width for name, width in token_widths.items() if name != "speech"}
        self.images = HEADS[config.head](config, sum(widths.values()) - self.speech_size, of_images)
        self.speech = LinearHead(config, self.speech_size, token_widths)

    def forward(
        self, features: torch.Tensor, tokens: Tensors, return_attention: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        logits, attentions = self.branch_logits(features, tokens, return_attention)
        return self.joined(*logits), attentions

    def joined(self, images: torch.Tensor, speech: torch.Tensor) -> torch.Tensor:
        """Returns the weighted mean of the logits of the two classifiers."""
        return (1 - self.share) * images + self.share * speech

    def branch_logits(
        self, features: torch.Tensor, tokens: Tensors, return_attention: bool = False
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...] | None]:
        """Returns the logits of the two classifiers, `(B, num_labels)` each, and the attention of the first."""
        of_images, of_speech = features.split([features.shape[1] - self.speech_size, self.speech_size], dim=1)
        of_branches = {name: values for name, values in tokens.items() if name != "speech"}
        logits, attentions = self.images(of_images, of_branches, return_attention)
        return (logits, self.speech(of_speech, tokens)[0]), attentions


# ---- Familiarity ----
# How similar a clip is to the training data, by the Mahalanobis distance of its features from those of the training
# clips (Lee et al. 2018, https://arxiv.org/abs/1807.03888).

MAX_COMPONENTS = 64
QUANTILES = 512


class Familiarity(nn.Module):
    """
    Computes the share of training-like clips that lie farther from the training data than a clip does:
    `(B, num_features)` pooled features -> `(B,)`, 0 to 1, float32 in any autocast.

    The features of each class are assumed to be Gaussian, with one covariance for all classes. Since there are several
    thousand features, it is that of probabilistic PCA (Tipping and Bishop 1999): the principal components of the
    standardised features about their class means, each with its variance, and one variance for all other directions.
    The distance of a clip is the squared Mahalanobis distance from the nearest class mean, divided by the number of
    features. Most of what distinguishes other sounds from speech lies outside the principal components.

    All buffers are part of the checkpoint, and fitted by `ser/training/familiarity.py`. Until then, the class means
    are NaN, and the familiarity of every clip is 0.

    Args:
        num_features (`int`): Features of all branches, as in `pooler_output`.
        num_labels (`int`): Classes.

    Attributes:
        class_means (`torch.Tensor` of shape `(num_labels, num_features)`): Mean features of each class.
        scale (`torch.Tensor` of shape `(num_features,)`): 1 / standard deviation of each feature; 0 if it is constant.
        components (`torch.Tensor` of shape `(components, num_features)`): Orthonormal; rows of zeros where there are
            fewer. There are at most 64, and at most half as many as features.
        variances (`torch.Tensor` of shape `(components + 1,)`): Of each component, and of all other directions.
        distances (`torch.Tensor` of shape `(512,)`): Quantiles, in ascending order, of the distances of clips of
            speakers that the distribution was fitted without.
    """

    class_means: torch.Tensor
    scale: torch.Tensor
    components: torch.Tensor
    variances: torch.Tensor
    distances: torch.Tensor

    def __init__(self, num_features: int, num_labels: int):
        super().__init__()
        components = min(MAX_COMPONENTS, num_features // 2)
        self.register_buffer("class_means", torch.full((num_labels, num_features), math.nan))
        self.register_buffer("scale", torch.zeros(num_features))
        self.register_buffer("components", torch.zeros(components, num_features))
        self.register_buffer("variances", torch.ones(components + 1))
        self.register_buffer("distances", torch.zeros(QUANTILES))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the share of `distances` above that of each clip, `(B,)`."""
        return (self.distances.float() > self.distance(features)[:, None]).float().mean(1)

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the distance of each clip, `(B,)`."""
        with torch.autocast(features.device.type, enabled=False):
            deviations = (features.float()[:, None] - self.class_means.float()) * self.scale.float()
            along = (deviations @ self.components.float().T).square()
            rest = (deviations.square().sum(-1) - along.sum(-1)).clamp(min=0)
            variances = self.variances.float()
            squared = (along / variances[:-1]).sum(-1) + rest / variances[-1]
        return squared.amin(1) / features.shape[1]


# ---- Loss ----


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error of outputs whose target is not NaN; 0 if there are none."""
    known = ~targets.isnan()
    return torch.where(known, outputs - targets, 0.0).square().sum() / known.sum().clamp(min=1)


def loss_of(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None, num_classes: int | None = None
) -> torch.Tensor:
    """Returns the mean loss of `problem_type`; see [`MaxMViTForAudioClassification.forward`] for the labels. If only
    the first `num_classes` outputs are classes, the loss is the sum of their loss and the squared error of the
    other outputs."""
    per_class, per_clip = labels.shape == logits.shape, labels.shape == logits.shape[:1]
    if problem_type == "regression":
        if per_class or per_clip and logits.shape[1] == 1:
            return squared_error(logits, labels.to(logits.dtype).view_as(logits))
        needed = "one number per output"
    elif num_classes is not None and num_classes < logits.shape[1]:
        if per_class and labels.is_floating_point():
            labels = labels.to(logits.dtype)
            known = ~labels[:, :num_classes].isnan().any(1)
            entropies = F.cross_entropy(logits[known, :num_classes], labels[known, :num_classes], reduction="sum")
            of_classes = entropies / known.sum().clamp(min=1)
            return of_classes + squared_error(logits[:, num_classes:], labels[:, num_classes:])
        needed = "a float probability for each class and a value for each dimension of each clip, NaN if unknown"
    elif problem_type == "multi_label_classification":
        if per_class:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        needed = "0 or 1 for each class of each clip"
    elif logits.shape[1] == 1:
        needed = "two classes or more, and a single number needs problem_type='regression'"
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


# ---- Statistics of the training clips ----


DISTINCTIVE_SHARE = 0.05  # fraction of the features by which speakers differ most


class FeatureStatistics(nn.Module):
    """
    Statistics of the pooled features (`pooler_output`) of the training clips. All speakers have the same weight,
    however many clips each of them has.

    Args:
        num_features (`int`): Pooled features of all branches.

    Attributes:
        mean, deviation (`torch.Tensor` of shape `(num_features,)`): Mean and standard deviation of the clips.
        speaker_deviation (`torch.Tensor` of shape `(num_features,)`): Standard deviation of the speakers' means.
        largest_spread (`torch.Tensor` of shape `()`): The largest [`~FeatureStatistics.spread`] of the clips of one
            speaker; 0 where too few speakers are known.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    speaker_deviation: torch.Tensor
    largest_spread: torch.Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("speaker_deviation", torch.zeros(num_features))
        self.register_buffer("largest_spread", torch.zeros(()))

    def spread(self, deviation: torch.Tensor) -> float:
        """
        Computes how much clips differ in the features by which the speakers of the training clips differ most: the
        mean over these features of the variance relative to that of the training clips. Clips of several speakers
        differ more than those of one speaker.

        Args:
            deviation (`torch.Tensor` of shape `(num_features,)`): Standard deviation of the features of the clips.
        """
        own = self.deviation.float().clamp(min=1e-6)
        count = math.ceil(DISTINCTIVE_SHARE * len(own))
        distinctive = (self.speaker_deviation.float() / own).topk(count).indices
        return float((deviation.to(own.device, own.dtype)[distinctive] / own[distinctive]).square().mean())


# ---- Checks ----


def check_call(given: Mapping[str, Any]) -> None:
    """Raises `TypeError` for a keyword of the model's call that transformers does not know, `ValueError` for attention
    maps."""
    for name, value in given.items():
        if name not in TRANSFORMERS_KEYWORDS:
            raise TypeError(f"MaxMViT takes no argument {name!r}.")
        if name == "output_attentions" and value:
            raise ValueError("MaxMViT returns no attention maps: leave out output_attentions=True.")


# ---- Models ----

FILLED = "_is_hf_initialized"  # transformers' mark on a tensor that is initialised or loaded


@dataclass
class MaxMViTModelOutput(ModelOutput):
    """
    Output of the branches; `None` for a branch the model does not have.

    Args:
        cqt_features (`torch.FloatTensor` of shape `(batch_size, 768)`):
            Pooled features of the constant-Q branch (768 for the default backbone).
        mel_features (`torch.FloatTensor` of shape `(batch_size, 768)`):
            Pooled features of the Mel branch.
        speech_features (`torch.FloatTensor` of shape `(batch_size, hidden size of the encoder)`):
            Pooled features of the speech encoder.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, 1536)`):
            Pooled features of all branches, concatenated.
        tokens (`dict` of `torch.FloatTensor` of shape `(batch_size, tokens, width)`):
            By branch, the positions of the last feature map, or segments of the clip for the speech encoder; `None`
            unless the fusion or the head uses them.
        hidden_states (`tuple(torch.FloatTensor)`, given when `output_hidden_states` is):
            Output of the stages of all branches, each of shape `(batch_size, channels, height, width)`: the maps of
            the constant-Q branch in order of depth, then those of the Mel branch, then the layers of the speech
            encoder (height 1, width in frames). Branch `name` has
            `len(model.branches()[name].feature_info)` of them; for the default backbones 5 (MaxViT's stem and four
            stages: 64 x 112 x 112, 96 x 56 x 56, 192 x 28 x 28, 384 x 14 x 14, 768 x 7 x 7) and 4 (MViTv2's stages:
            96 x 56 x 56 down to 768 x 7 x 7).
    """

    cqt_features: torch.Tensor | None = None
    mel_features: torch.Tensor | None = None
    speech_features: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    tokens: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MaxMViTClassifierOutput(SequenceClassifierOutput):
    """
    [`~transformers.modeling_outputs.SequenceClassifierOutput`], with additional outputs of this model.

    Args:
        branch_logits (`tuple(torch.FloatTensor)`, given in training if `config.fusion` is `"late"`):
            The logits of the two classifiers, each of which is trained with its own loss.
        familiarity (`torch.FloatTensor` of shape `(batch_size,)`, given in evaluation if `config.familiarity` is set):
            The share of training-like clips that lie farther from the training data, 0 to 1; see [`Familiarity`].
    """

    branch_logits: tuple[torch.Tensor, ...] | None = None
    familiarity: torch.FloatTensor | None = None


class MaxMViTPreTrainedModel(PreTrainedModel):
    """Loading, saving and gradient checkpointing, shared by all MaxMViT models."""

    config_class = MaxMViTConfig
    base_model_prefix = "maxmvit"
    main_input_name = "cqt_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Since forward accepts further keywords, Trainer would assume that the loss is divided by num_items_in_batch.
    accepts_loss_kwargs = False

    def branches(self) -> dict[str, Any]:
        """
        Returns the branches that the model has, of `"cqt"`, `"mel"` and `"speech"`, by name and in the order of their
        features; see `BRANCHES` in `configuration_maxmvit.py` for their inputs and fields of the configuration. timm's
        models share methods but no base class that declares them, hence the type `Any`.
        """
        return {name: getattr(self.base_model, BRANCHES[name].field) for name in self.config.branch_names}

    def pretrained_parts(self) -> dict[str, Any]:
        """
        Returns the part of each branch that may be pretrained, to freeze it or to train it differently from the head:
        the whole of an image backbone, and a speech encoder without the pooling of its layers.
        """
        return {name: branch.encoder if name == "speech" else branch for name, branch in self.branches().items()}

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """
        Initialises weights that come neither from a checkpoint nor from timm; transformers calls this after building
        or loading a model. Backbone weights that a checkpoint lacks are copied from a newly built backbone.
        """
        super().initialize_weights()
        for branch, backbone in self.branches().items():
            state = backbone.state_dict(keep_vars=True)
            missing = [name for name, tensor in state.items() if not getattr(tensor, FILLED, False)]
            if missing:
                initial = create_branch(branch, self.config).state_dict()
                for name in missing:
                    state[name].copy_(initial[name])

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable | None = None, every_n_layers: int = 1
    ) -> None:
        # timm's stages call torch's checkpoint themselves, without reentrancy and for each of their blocks.
        if every_n_layers != 1:
            raise ValueError(f"every_n_layers={every_n_layers}: timm checkpoints all blocks of a backbone or none.")
        for name, backbone in self.branches().items():
            field = BRANCHES[name].field
            checkpoint_gradients(backbone, enable, f"{field}={getattr(self.config, field)!r}")
        self.base_model.gradient_checkpointing = enable

    def get_input_embeddings(self) -> None:
        """Returns `None`: the inputs are images, not tokens."""
        return None

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise NotImplementedError("MaxMViT has no token embeddings.")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves weights, configuration and this code, so that every Auto class and `pipeline("audio-classification")`
        can load the folder with `trust_remote_code=True`. See [`~transformers.PreTrainedModel.save_pretrained`].
        """
        self.config.auto_map = dict(AUTO_MAP)
        self.config.custom_pipelines = {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}
        super().save_pretrained(save_directory, **kwargs)


class MaxMViTModel(MaxMViTPreTrainedModel):
    """
    The branches without a head, and `filter_bank`, a [`MelFilterBank`] before the Mel branch or None.

    Args:
        config ([`MaxMViTConfig`]):
            Names and sizes of the branches, initialised at random; see [`~MaxMViTModel.load_imagenet_weights`] and
            [`~MaxMViTModel.load_speech_weights`].
    """

    _keys_to_ignore_on_load_unexpected = [r"classifier\.", r"^familiarity\."]

    def __init__(self, config: MaxMViTConfig):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.filter_bank = MelFilterBank(config.filter_bank_config) if config.filter_bank == "learnable" else None
        for name in config.branch_names:
            setattr(self, BRANCHES[name].field, create_branch(name, config))
        self.num_features = sum(backbone.head_hidden_size for backbone in self.branches().values())
        for backbone in self.branches().values():
            for tensor in chain(backbone.parameters(), backbone.buffers()):
                setattr(tensor, FILLED, not tensor.is_meta)
        self.feature_statistics = FeatureStatistics(self.num_features) if config.feature_statistics else None
        self._no_split_modules = sorted({*block_names(self)})
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # timm initialises the backbones when it builds them, so transformers must not initialise them again. Buffers
        # that no checkpoint contains, such as MaxViT's relative-position tables, are uninitialised memory after
        # `from_pretrained`, which builds the model on the meta device.
        if callable(initialise := getattr(module, "init_non_persistent_buffers", None)):
            initialise()
        if isinstance(module, MelFilterBank):
            initialization.zeros_(module.log_gains)
        if isinstance(module, FeatureStatistics):
            initialization.ones_(module.deviation)
            for buffer in (module.mean, module.speaker_deviation, module.largest_spread):
                initialization.zeros_(buffer)

    def set_feature_statistics(self, statistics: FeatureStatistics | None) -> None:
        """
        Sets the statistics of the training clips' pooled features, and the field of the configuration that
        records them. Pass `None` before the weights change.
        """
        self.config.feature_statistics = statistics is not None
        self.feature_statistics = None if statistics is None else statistics.to(self.device)

    @can_return_tuple
    def forward(
        self,
        cqt_values: torch.FloatTensor | None = None,
        mel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        power_values: torch.FloatTensor | None = None,
        power_lengths: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaxMViTModelOutput | tuple[torch.Tensor, ...]:
        """
        Computes the features of all branches.

        Args:
            cqt_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Constant-Q images from [`MaxMViTFeatureExtractor`]. One channel is repeated to three; a size other
                than `config.image_size` is resized bilinearly. Ignored by a model without this branch.
            mel_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Mel images of the same clips.
            input_values (`torch.FloatTensor` of shape `(batch_size, samples)`):
                Input of the speech encoder, from [`MaxMViTFeatureExtractor`]; for Whisper
                `(batch_size, bands, frames)`.
            attention_mask (`torch.Tensor` of shape `(batch_size, samples or frames)`):
                1 for the clip, 0 for padding; by default all 1.
            power_values (`torch.FloatTensor` of shape `(batch_size, bins, frames)`):
                For `filter_bank="learnable"`: input of the Mel branch instead of `mel_values`, in dB.
            power_lengths (`torch.Tensor` of shape `(batch_size,)`):
                Number of frames of each clip without padding; by default all.
            kwargs:
                `output_hidden_states` (`bool`, *optional*, defaults to `config.output_hidden_states`): True adds the
                maps of all stages. `return_dict` (`bool`, *optional*, defaults to `config.return_dict`): False gives
                a plain tuple. Other keywords of transformers have no effect, except that a request for attention
                maps is refused.

        Raises:
            ValueError: Images have the wrong shape, or the branches get different numbers of clips.
            TypeError: A keyword is unknown to transformers.
        """
        check_call(kwargs)
        given = {
            "cqt_values": cqt_values, "mel_values": mel_values,
            "input_values": input_values, "attention_mask": attention_mask,
            "power_values": power_values, "power_lengths": power_lengths,
        }  # fmt: skip
        inputs = {name: self._to_branch_input(name, given) for name in self.branches()}
        one, *others = inputs
        for other in others:
            if inputs[one][0].shape[0] != inputs[other][0].shape[0]:
                names = [self.config.inputs_of(name)[0] for name in (one, other)]
                counts = [len(inputs[name][0]) for name in (one, other)]
                raise ValueError(f"{names[0]} holds {counts[0]} clips, {names[1]} {counts[1]}.")
        asked = kwargs.get("output_hidden_states")
        with_maps = self.config.output_hidden_states if asked is None else asked
        features, tokens, maps = {}, {}, []
        for name, backbone in self.branches().items():
            if with_maps:
                last, maps_of_stages = backbone.forward_intermediates(*inputs[name])
                maps.extend(maps_of_stages)
            elif self.config.uses_tokens:
                last = backbone.forward_features(*inputs[name])
            else:
                features[name] = backbone(*inputs[name])
                continue
            features[name] = backbone.forward_head(last)
            tokens[name] = tokens_of(backbone, last)
        return MaxMViTModelOutput(
            **{f"{name}_features": values for name, values in features.items()},
            pooler_output=torch.cat(list(features.values()), dim=-1),
            tokens=tokens if self.config.uses_tokens else None,
            hidden_states=tuple(maps) if with_maps else None,
        )

    def load_imagenet_weights(
        self, cqt_weights: str | os.PathLike | None = None, mel_weights: str | os.PathLike | None = None
    ) -> None:
        """
        Replaces the weights of the image backbones by timm's pretrained ones.

        Args:
            cqt_weights (`str` or `os.PathLike`, *optional*):
                Local weight file (`.safetensors`, `.bin`, `.pth`) in timm's or the original format of
                `config.cqt_backbone`. Without it, timm takes the weights from the Hub or its cache.
            mel_weights (`str` or `os.PathLike`, *optional*):
                The same for `config.mel_backbone`.

        Raises:
            OSError: The weights can neither be downloaded nor found; the message names both remedies.
            ValueError: The backbone was reshaped by its kwargs, so that the pretrained weights do not fit.
        """
        weights = {"cqt": cqt_weights, "mel": mel_weights}
        for branch in self.config.image_names:
            pretrained = create_pretrained_backbone(branch, self.config, weights[branch])
            self.branches()[branch].load_state_dict(pretrained.state_dict())

    def load_speech_weights(self, weights: str | os.PathLike | None = None) -> None:
        """
        Replaces the weights of the speech encoder by those of its checkpoint.

        Args:
            weights (`str` or `os.PathLike`, *optional*, defaults to `config.speech_encoder`):
                A name on the Hub, which its cache may hold, or a folder.

        Raises:
            OSError: The weights can neither be downloaded nor found; the message names both remedies.
            ValueError: The weights do not fit the encoder, or are incomplete.
        """
        name, settings = weights or self.config.speech_encoder, self.config.speech_encoder_config
        self.pretrained_parts()["speech"].load_state_dict(pretrained_encoder(name, settings))

    def _to_branch_input(self, branch: str, given: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        names = self.config.inputs_of(branch)
        values = [given[name] for name in names]
        if branch == "speech":
            return self.branches()[branch].checked(*values)
        images = values[0] if branch != "mel" or self.filter_bank is None else self.filter_bank(*values)
        return (backbone_input(images, names[0], self.config.image_shape, self.dtype),)


class MaxMViTForAudioClassification(MaxMViTPreTrainedModel):
    """
    MaxMViT-MLP for classification: the branches, the fusion of their features, and the head.

    Args:
        config ([`MaxMViTConfig`]):
            `num_labels` (or `id2label`) sets the number of emotions; `fusion` and `head` what follows the branches.

    With `config.familiarity`, `familiarity` is the [`Familiarity`] of the training data, else None.
    """

    # Training from a checkpoint leaves it out, since it was fitted for other weights.
    _keys_to_ignore_on_load_unexpected = [r"^familiarity\."]
    _keep_in_fp32_modules_strict = ["familiarity"]

    def __init__(self, config: MaxMViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.maxmvit = MaxMViTModel(config)
        branches = self.maxmvit.branches()
        token_widths = {name: backbone.num_features for name, backbone in branches.items()}
        widths = {name: backbone.head_hidden_size for name, backbone in branches.items()}
        self.fusion = FUSIONS[config.fusion](config, widths, token_widths)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        if config.fusion == "late":
            self.classifier: nn.Module = LateFusionHead(config, widths, token_widths)
        else:
            self.classifier = HEADS[config.head](config, self.fusion.out_features, token_widths)
        self.familiarity = Familiarity(self.maxmvit.num_features, config.num_labels) if config.familiarity else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DecoderHead):
            initialization.normal_(module.queries, std=QUERY_STD)
        if isinstance(module, Familiarity):
            initialization.constant_(module.class_means, math.nan)  # not fitted for a head of other classes

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves the model like [`~MaxMViTPreTrainedModel.save_pretrained`]. A fitted `config.temperature` is folded into
        the saved last layer, and is 1 in the saved configuration: the logits of the checkpoint are calibrated for
        every caller, not only for this project's pipeline. The model in memory does not change.
        """
        temperature = self.config.temperature
        if temperature == 1 or self.config.problem_type not in (None, "single_label_classification"):
            return super().save_pretrained(save_directory, **kwargs)
        state = dict(kwargs.pop("state_dict", None) or self.state_dict())
        for name in filter(OUTPUT_LAYER.match, list(state)):
            state[name] = state[name] / temperature
        self.config.temperature = 1.0
        try:
            return super().save_pretrained(save_directory, state_dict=state, **kwargs)
        finally:
            self.config.temperature = temperature

    @can_return_tuple
    def forward(
        self,
        cqt_values: torch.FloatTensor | None = None,
        mel_values: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        input_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        power_values: torch.FloatTensor | None = None,
        power_lengths: torch.Tensor | None = None,
        feature_shift: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaxMViTClassifierOutput | tuple[torch.Tensor, ...]:
        """
        Computes the logits of clips and, if there are labels, the loss.

        Args:
            cqt_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Constant-Q images, see [`MaxMViTModel.forward`].
            mel_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Mel images of the same clips.
            labels (`torch.Tensor`, *optional*):
                The targets, whose form `config.problem_type` sets:
                - None or `"single_label_classification"` (cross-entropy): class indices of shape `(batch_size,)`, or
                  float probabilities of shape `(batch_size, num_labels)` as mixup makes them;
                - `"multi_label_classification"` (binary cross-entropy): 0 or 1 per class, `(batch_size, num_labels)`;
                - `"regression"` (squared error): `(batch_size, num_labels)`, or `(batch_size,)` for one label; NaN
                  where a value is unknown;
                - classes and `config.dimensions` together (the sum of cross-entropy and squared error): float
                  probabilities of the classes, then the values of the dimensions, `(batch_size, num_labels)`, NaN
                  where unknown.
            input_values, attention_mask (`torch.Tensor`):
                Inputs of the speech encoder, see [`MaxMViTModel.forward`].
            power_values, power_lengths (`torch.Tensor`):
                Inputs of learnable Mel filters, see [`MaxMViTModel.forward`].
            feature_shift (`torch.Tensor` of shape `(num_features,)` or `(batch_size, num_features)`, *optional*):
                Subtracted from the pooled features of all branches, in the order of `pooler_output`, before the
                fusion: what is known of a speaker, or of the recording conditions, apart from the emotion.
            kwargs:
                `output_hidden_states` and `return_dict`, see [`MaxMViTModel.forward`]; `output_attentions` (`bool`,
                *optional*) for what the queries of `head="decoder"` attend to.

        Returns:
            The mean `loss` if labels are given; `logits` of shape `(batch_size, num_labels)`, the scores before the
            softmax in the order of `config.id2label`; `hidden_states` as in [`MaxMViTModelOutput`]; if requested,
            `attentions`, one `(batch_size, num_labels, 1 + tokens)` for each layer of the decoder; in evaluation,
            `familiarity` of shape `(batch_size,)` if `config.familiarity` is set. In training, a model with
            `fusion="late"` also returns `branch_logits`, and its loss is the sum over them.

        Raises:
            ValueError: As in [`MaxMViTModel.forward`] and [`~MaxMViTForAudioClassification.shifted`]; or the labels
                do not have the form for `config.problem_type`, or a batch has one clip in training.
        """
        output_attentions = kwargs.pop("output_attentions", None)
        inputs = (cqt_values, mel_values, input_values, attention_mask, power_values, power_lengths)
        outputs = self.maxmvit(*inputs, return_dict=True, **kwargs)
        features = {name: outputs[f"{name}_features"] for name in self.config.branch_names}
        if feature_shift is not None:
            features = self._by_branch(self.shifted(outputs.pooler_output, feature_shift))
        tokens = outputs.tokens or {}
        fused = self.feature_dropout(self.fusion(features, tokens))
        branch_logits = None
        if self.training and isinstance(self.classifier, LateFusionHead):
            branch_logits, attentions = self.classifier.branch_logits(
                fused, tokens, return_attention=bool(output_attentions)
            )
            logits = self.classifier.joined(*branch_logits)
        else:
            logits, attentions = self.classifier(fused, tokens, return_attention=bool(output_attentions))
        loss = None
        if labels is not None:
            kind, count = self.config.problem_type, self.config.num_classes
            losses = [loss_of(each.float(), labels, kind, count) for each in branch_logits or (logits,)]
            loss = torch.stack(losses).sum()
        familiarity = None if self.familiarity is None or self.training else self.familiarity(outputs.pooler_output)
        return MaxMViTClassifierOutput(
            loss=loss,
            logits=logits,
            branch_logits=branch_logits,
            hidden_states=outputs.hidden_states,
            attentions=attentions,
            familiarity=familiarity,
        )

    def shifted(self, pooled: torch.Tensor, feature_shift: torch.Tensor) -> torch.Tensor:
        """
        Subtracts a shift from pooled features.

        Args:
            pooled (`torch.Tensor` of shape `(batch_size, num_features)`): As in `pooler_output`.
            feature_shift (`torch.Tensor` of shape `(num_features,)` or `(batch_size, num_features)`): For all clips,
                or one for each.

        Raises:
            ValueError: The shift has the wrong shape, or the fusion or the head uses tokens, which it does not change.
        """
        if self.config.uses_tokens:
            raise ValueError(
                f"feature_shift changes pooled features only, and fusion={self.config.fusion!r} with "
                f"head={self.config.head!r} reads feature maps too: train a model with another fusion and head for it."
            )
        if feature_shift.shape not in (pooled.shape, pooled.shape[1:]):
            raise ValueError(
                f"feature_shift has shape {tuple(feature_shift.shape)}; ({pooled.shape[1]},) is needed, or "
                f"{tuple(pooled.shape)} for a shift of each clip."
            )
        return pooled - feature_shift.to(pooled.device, pooled.dtype)

    def classify_features(self, pooled: torch.Tensor) -> torch.Tensor:
        """
        Applies the fusion and the head to pooled features that were computed before.

        Args:
            pooled (`torch.Tensor` of shape `(batch_size, num_features)`): As in `pooler_output`, shifted or not.

        Returns:
            The logits, `(batch_size, num_labels)`.

        Raises:
            ValueError: The fusion or the head uses tokens, which pooled features do not contain.
        """
        if self.config.uses_tokens:
            raise ValueError(
                f"fusion={self.config.fusion!r} with head={self.config.head!r} reads feature maps too, which pooled "
                "features do not hold: call the model on its inputs."
            )
        return self.classifier(self.feature_dropout(self.fusion(self._by_branch(pooled), {})), {})[0]

    def _by_branch(self, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
        branches = self.maxmvit.branches()
        widths = [backbone.head_hidden_size for backbone in branches.values()]
        return dict(zip(branches, pooled.split(widths, dim=-1), strict=True))


MaxMViTModel.register_for_auto_class("AutoModel")
MaxMViTForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")


__all__ = ["MaxMViTForAudioClassification", "MaxMViTModel", "MaxMViTPreTrainedModel"]
