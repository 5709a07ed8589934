"""The speech branch: a pretrained speech encoder of transformers, its inputs, and the pooling of its layers.

The hidden states of all layers are pooled over time, by attention (Safari et al. 2020,
https://arxiv.org/abs/2008.01077), to their mean, or to their mean and standard deviation (statistics pooling, Snyder
et al. 2018, doi 10.1109/ICASSP.2018.8461375; with attention, Okabe et al. 2018, https://arxiv.org/abs/1803.10963), and
joined by a softmax-weighted sum (Yang et al. 2021, SUPERB, https://arxiv.org/abs/2105.01051) or concatenated. The
branch has the methods of a timm model, so that the rest of the model treats all branches alike.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import soxr  # comes with librosa
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

WAVEFORM = "speech"  # among the spectrograms of a clip: its waveform at the encoder's rate
FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "whisper")
POOLINGS = ("attention", "mean", "statistics", "attentive_statistics")
LAYER_CHOICES = ("weighted_sum", "concat")
ATTENTION_SIZE = 128  # hidden units of the attention of attentive_statistics
STRETCHES = 16  # of a clip, whose means are the branch's tokens
SHORTEST = 4000  # samples at 16 kHz, more than the encoders' own masks in training are long
EXTRACTORS = {cls.__name__: cls for cls in (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor)}
# Of an encoder's configuration: what says nothing about it, or is the checkpoint's that it is taken from.
NOT_KEPT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "transformers_version"}
# All layers are summed, so none may be left out; and an adapter would come after them.
SETTLED = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "add_adapter": False}
LAYER = re.compile(r"^encoder\.(?:encoder\.)?layers\.(\d+)\.")


def read_encoder_config(name: str | os.PathLike) -> dict[str, Any]:
    """
    The configuration of a speech encoder, as this model's keeps it: all that builds it again without a network.

    Args:
        name: A name on the Hugging Face Hub, or a folder that `save_pretrained` wrote.

    Raises:
        OSError: It can neither be downloaded nor found; names both ways out.
        ValueError: It is none of the families that can be joined.
    """
    with_remedy = f"speech_encoder={os.fspath(name)!r}"
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"{with_remedy} could not be loaded ({error}). Either run where the Hugging Face Hub can be reached (or "
            "its cache holds it), or name a local folder."
        ) from error
    kept = {key: value for key, value in config.to_dict().items() if key not in NOT_KEPT}
    kept |= {key: value for key, value in SETTLED.items() if key in kept}
    check_encoder_config(kept, with_remedy)
    return json.loads(json.dumps(kept))  # as a checkpoint has it, tuples and all


def check_encoder_config(config: Mapping[str, Any], name: str) -> None:
    """Raises `ValueError`, which begins with `name`, if this is the configuration of another family."""
    if config.get("model_type") not in FAMILIES:
        raise ValueError(
            f"{name} is a model of type {config.get('model_type')!r}, which cannot be joined: it is one of "
            f"{', '.join(FAMILIES)}."
        )


def read_processor(name: str | os.PathLike) -> dict[str, Any]:
    """
    How the checkpoint of a speech encoder wants waveforms: the settings of its own feature extractor, such as its rate
    and whether each waveform is brought to zero mean and unit variance.

    Raises:
        OSError: There is no `preprocessor_config.json`.
        ValueError: It is that of another kind of model.
    """
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"speech_encoder={os.fspath(name)!r} does not say how it wants waveforms ({error}). Its folder needs a "
            "preprocessor_config.json, as the checkpoint was published with."
        ) from error
    settings = {key: value for key, value in extractor.to_dict().items() if key not in ("auto_map", "processor_class")}
    make_processor(settings)
    return settings


def make_processor(settings: Mapping[str, Any]) -> Any:
    """
    The feature extractor that settings of [`read_processor`] describe.

    Raises:
        ValueError: transformers' own for these encoders are others.
    """
    kind = settings.get("feature_extractor_type")
    if kind not in EXTRACTORS:
        raise ValueError(f"speech_processor is a {kind!r}, and has to be one of {', '.join(EXTRACTORS)}.")
    return _made_processor(json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=4)
def _made_processor(settings: str) -> Any:
    given = json.loads(settings)
    return EXTRACTORS[given["feature_extractor_type"]](**given)


def resampled(waveform: torch.Tensor, sampling_rate: int, processor: Any) -> torch.Tensor:
    """`(T,)` at `sampling_rate` -> float32 at the rate of a feature extractor, on the CPU."""
    samples = waveform.cpu().numpy()
    return torch.from_numpy(soxr.resample(samples, sampling_rate, processor.sampling_rate, quality="HQ"))


def speech_inputs(waveforms: Sequence[torch.Tensor], processor: Any) -> dict[str, torch.Tensor]:
    """
    Prepares waveforms for an encoder: each alone, by the checkpoint's own feature extractor, then padded with zeros to
    the longest.

    Args:
        waveforms: `(T,)` each, at the processor's rate; those under 4,000 samples are padded to that length.
        processor: From [`make_processor`].

    Returns:
        `input_values`, float32: `(B, T)` samples or, for Whisper, `(B, bands, frames)` log-Mel frames, 100 per second,
        of the clip's own length instead of 30 s; a clip of more than 30 s is prepared in pieces of 30 s.
        `attention_mask`, int64 `(B, T or frames)`: 1 for the clip, 0 for padding.
    """
    prepare = _log_mel if isinstance(processor, WhisperFeatureExtractor) else _samples
    values = [prepare(_at_least(waveform.float().cpu(), SHORTEST).numpy(), processor) for waveform in waveforms]
    lengths = torch.tensor([value.shape[-1] for value in values])
    longest = int(lengths.max())
    mask = torch.arange(longest)[None] < lengths[:, None]
    padded = torch.stack([F.pad(value, (0, longest - value.shape[-1])) for value in values])
    return {"input_values": padded, "attention_mask": mask.long()}


def _at_least(samples: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(samples, (0, max(0, length - len(samples))))


def _samples(samples: np.ndarray, processor: Any) -> torch.Tensor:
    return torch.as_tensor(processor(samples, sampling_rate=processor.sampling_rate)["input_values"][0])


def _log_mel(samples: np.ndarray, processor: WhisperFeatureExtractor) -> torch.Tensor:
    frames = []
    for start in range(0, len(samples), processor.n_samples):
        piece = _at_least(torch.from_numpy(samples[start : start + processor.n_samples]), SHORTEST).numpy()
        given = processor(piece, sampling_rate=processor.sampling_rate, padding=False)
        frames.append(torch.as_tensor(given["input_features"][0]))
    return torch.cat(frames, dim=-1)


class SpeechFeatures(NamedTuple):
    """
    Output of [`SpeechEncoder.forward_features`].

    Args:
        pooled (`torch.Tensor` of shape `(B, head_hidden_size)`): The features of the clip.
        tokens (`torch.Tensor` of shape `(B, 1 or 1 + 16, num_features)`): The mean over time of the weighted sum of
            all layers (weighted by attention where there is one) and, of a pooling by attention, the means of 16
            stretches of equal length: as many for a short clip as for a long one, so that no mask is needed.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor


class SpeechEncoder(nn.Module):
    """
    The speech branch: `encoder`, a speech encoder of transformers, with the pooling of its layers.

    Whisper runs on the clip's own length (its positional embeddings cut to it) instead of 30 s: a fourteenth of the
    time for a clip of 3.7 s. A clip of exactly 30 s gives what transformers' own encoder gives.

    In evaluation, clips of one length go through the encoder together and none is padded, so that the features of a
    clip do not depend on the other clips of the batch, which holds for no padded batch of an encoder with GroupNorm.
    In training, a batch is padded and goes through at once. Padding is masked in all layers, and is never part of the
    pooling. In training the encoder also masks spans of time by itself where its configuration says so
    (`apply_spec_augment`).

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
        self.piece = 2 * encoder_config.max_source_positions if is_whisper else None  # frames, the most Whisper takes
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
            nn.init.zeros_(self.attention.weight)  # begins as the mean
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
            input_values, attention_mask (`torch.Tensor`): From [`speech_inputs`]. Or, of a pooling without attention,
                `layer_statistics` computed before, and None.
        """
        if attention_mask is None:
            means, deviations = input_values.unbind(2)
            return SpeechFeatures(self._joined(means, deviations), self._summed(means.unbind(1))[:, None])
        return self._pooled(*self._layers(input_values, attention_mask))

    def forward_head(self, features: SpeechFeatures) -> torch.Tensor:
        """`(B, head_hidden_size)`: the pooled features."""
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
        """Mean and standard deviation over time of each layer's hidden states: `(B, layers + 1, 2, width)`."""
        return torch.stack(_statistics_of_layers(*self._layers(input_values, attention_mask)), dim=2)

    def _summed(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        shares = self.layer_weights.softmax(0)
        return sum(share * state for share, state in zip(shares, states, strict=True))

    def _joined(self, means: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
        """Means and deviations of all layers, `(B, layers + 1, width)` each, as the features of the clip."""
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
        stretches = [F.adaptive_avg_pool1d(clip.T, STRETCHES).T for clip in summed]
        tokens = torch.cat([self._summed(means.unbind(1))[:, None], torch.stack(stretches)], dim=1)
        return SpeechFeatures(self._joined(means, deviations), tokens)

    def _layers(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
        """Hidden states of all layers, `(B, frames, width)` each, and how many frames of each clip are its own."""
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
        """Hidden states of parts of clips, each a row, a start and a length, put where they belong along time."""
        together = defaultdict(list)
        for part in parts:
            together[0 if self.encoder.training else part[2]].append(part)
        states: list[torch.Tensor] = []
        for group in together.values():
            lengths = [length for *_, length in group]
            given = torch.stack(
                [F.pad(values[row, ..., first : first + own], (0, max(lengths) - own)) for row, first, own in group]
            )
            run = self._run(given, None) if self.piece is None else self._run_whisper(given, lengths)
            states = states or [own.new_zeros(len(values), frames, own.shape[-1]) for own in run]
            for state, own in zip(states, run, strict=True):
                for (row, start, length), hidden in zip(group, own, strict=True):
                    first, count = start // 2, self._count_frames(length)
                    state[row, first : first + count] = hidden[:count]
        return states

    def _run(self, values: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        answer = self.encoder(values, attention_mask=mask, output_hidden_states=True, return_dict=True)
        # The last one as the encoder gives it, past the norm that some have at their end.
        return [*answer.hidden_states[:-1], answer.last_hidden_state]

    def _run_whisper(self, values: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
        """
        The forward pass of transformers' `WhisperEncoder`, which takes 30 s only, for log-Mel frames `(B, bands,
        frames)` of any length up to that. Frames beyond `lengths` are zero between the convolutions, as what the
        convolutions pad a clip with, and masked in the attention of all layers.
        """
        encoder = self.encoder
        own = torch.tensor(lengths, device=values.device)[:, None]
        hidden = F.gelu(encoder.conv1(values))
        hidden = hidden * (torch.arange(hidden.shape[-1], device=values.device) < own)[:, None]
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, p=encoder.dropout, training=encoder.training)
        mask = None
        if min(lengths) < max(lengths):
            is_own = torch.arange(hidden.shape[1], device=values.device) < (own + 1) // 2
            mask = torch.zeros_like(is_own, dtype=hidden.dtype).masked_fill(~is_own, torch.finfo(hidden.dtype).min)
            mask = mask[:, None, None].expand(-1, 1, hidden.shape[1], -1)
        states = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        return [*states[:-1], encoder.layer_norm(hidden)]

    def _count_frames(self, length: int) -> int:
        """Frames of the encoder for so many samples, or log-Mel frames of Whisper."""
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
        Returns the inputs in the encoder's precision, with a mask of ones where none is given, unless they are
        `layer_statistics`.

        Raises:
            ValueError: They are missing, or of another shape.
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
        """Whether each layer computes its activations again in the backward pass instead of keeping them."""
        if enable:
            self.encoder.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.encoder.activation_checkpointing_disable()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameter is in which layer, as timm's models say it: the convolutions, the layers, what follows."""
        return {"stem": r"^encoder\.(?!(?:encoder\.)?layers\.)", "blocks": [(LAYER.pattern, None), (r".", (99999,))]}

    def tunable(self, frozen_layers: int | None = None) -> Iterator[nn.Parameter]:
        """
        The encoder's parameters that training may change: all but what transformers itself keeps fixed.

        Args:
            frozen_layers (`int`, *optional*): Without so many of its lowest layers, and without what is in no layer.
        """
        for name, parameter in self.named_parameters():
            layer = LAYER.match(name)
            above = frozen_layers is None or layer is not None and int(layer[1]) >= frozen_layers
            if name.startswith("encoder.") and name not in self.fixed and above:
                yield parameter


def _statistics(
    frames: torch.Tensor, lengths: Sequence[int], weights: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, frames, width)` -> mean and standard deviation over each clip's own frames, `(B, width)` each; weighted
    where there are `weights`, one `(length,)` per clip, which sum to 1."""
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
    """`_statistics` of each layer: means and standard deviations, `(B, layers + 1, width)` each."""
    means, deviations = zip(*(_statistics(state, lengths, weights) for state in states), strict=True)
    return torch.stack(means, dim=1), torch.stack(deviations, dim=1)


def pretrained_encoder(name: str | os.PathLike, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    The weights of a checkpoint for the `encoder` of [`SpeechEncoder`].

    Args:
        name: A name on the Hugging Face Hub, or a folder.
        config: Of the encoder that they are for.

    Raises:
        OSError: They can neither be downloaded nor found; names both ways out.
        ValueError: They do not fit, or are not whole.
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
            "checkpoint that holds the encoder whole."
        )
    return (model.encoder if is_whisper else model).state_dict()


__all__ = ["SpeechEncoder", "pretrained_encoder", "read_encoder_config", "read_processor", "speech_inputs"]
