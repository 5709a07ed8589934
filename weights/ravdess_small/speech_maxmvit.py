"""What hears the waveform: a pretrained speech encoder of transformers as a branch, and what it is given.

The branch is the softmax-weighted sum of all layers' hidden states (Yang et al. 2021, SUPERB,
https://arxiv.org/abs/2105.01051), pooled over time by attention (Safari et al. 2020,
https://arxiv.org/abs/2008.01077). It has the methods of a model of timm, so that what follows asks all branches alike.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

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

WAVEFORM = "speech"  # among the spectrograms of a clip: its waveform at the encoder's rate
FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "whisper")
POOLINGS = ("attention", "mean")
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
    Waveforms as an encoder hears them, each prepared by the checkpoint's own feature extractor as if it were alone,
    then filled with zeros to the longest.

    Args:
        waveforms: `(T,)` each, at the processor's rate; those under 4,000 samples get zeros up to that.
        processor: From [`make_processor`].

    Returns:
        `input_values`, float32: `(B, T)` samples or, of Whisper, `(B, bands, frames)`, log-Mel frames of as many
        pieces of 30 s as the longest clip has. `attention_mask`, int64 `(B, T or frames)`: 1 where the clip is.
    """
    values = []
    lengths = []
    for waveform in waveforms:
        samples = F.pad(waveform.float(), (0, max(0, SHORTEST - len(waveform)))).cpu().numpy()
        rate = processor.sampling_rate
        if isinstance(processor, WhisperFeatureExtractor):
            pieces = [samples[i : i + processor.n_samples] for i in range(0, len(samples), processor.n_samples)]
            frames = [processor(piece, sampling_rate=rate)["input_features"][0] for piece in pieces]
            values.append(torch.cat([torch.as_tensor(piece) for piece in frames], dim=-1))
            lengths.append(-(-len(samples) // processor.hop_length))
        else:
            values.append(torch.as_tensor(processor(samples, sampling_rate=rate)["input_values"][0]))
            lengths.append(len(samples))
    longest = max(value.shape[-1] for value in values)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    padded = torch.stack([F.pad(value, (0, longest - value.shape[-1])) for value in values])
    return {"input_values": padded, "attention_mask": mask.long()}


class SpeechEncoder(nn.Module):
    """
    A speech encoder as a branch: `encoder`, transformers' own model, and what makes features of its layers.

    In evaluation, clips of one length go through the encoder together and none is padded: what is heard of a clip does
    not depend on those beside it, which holds for no padded batch of an encoder with GroupNorm. In training a batch
    goes through as one, padding masked; there the encoder also masks stretches by itself, where its configuration
    says so (`apply_spec_augment`).

    Args:
        config (`Mapping`): Of the encoder, from [`read_encoder_config`].
        pooling (`str`): What pools over time: `"attention"`, or `"mean"`.
    """

    def __init__(self, config: Mapping[str, Any], pooling: str = "attention"):
        super().__init__()
        encoder_config: Any = AutoConfig.for_model(**config)
        is_whisper = isinstance(encoder_config, WhisperConfig)
        self.encoder: Any = WhisperEncoder(encoder_config) if is_whisper else AutoModel.from_config(encoder_config)
        self.fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.piece = 2 * encoder_config.max_source_positions if is_whisper else None  # frames, all that Whisper takes
        self.head_hidden_size = self.num_features = width = encoder_config.hidden_size
        self.feature_info = [{"num_chs": width, "layer": i} for i in range(encoder_config.num_hidden_layers + 1)]
        self.layer_weights = nn.Parameter(torch.zeros(len(self.feature_info)))
        self.attention = nn.Linear(width, 1, bias=False) if pooling == "attention" else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)  # the mean, to begin with

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`forward_head` of `forward_features`: `(B, width)`."""
        return self.forward_head(self.forward_features(input_values, attention_mask))

    def forward_features(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            input_values, attention_mask (`torch.Tensor`): From [`speech_inputs`]. Or `layer_means` of `pooling="mean"`
                and None: what is known already is not computed again.

        Returns:
            `(B, 1 + 16, width)`: what is pooled over the clip, then the means of 16 stretches of equal length, as many
            in a short clip as in a long one, so that nobody who attends to them needs a mask. Of `pooling="mean"`
            the first alone.
        """
        if attention_mask is None:
            return self._summed(input_values.unbind(1))[:, None]
        return self._pooled(*self._layers(input_values, attention_mask))

    def forward_head(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(B, tokens, width)` -> `(B, width)`: the pooled one."""
        return tokens[:, 0]

    def forward_intermediates(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`forward_features`, and each layer's hidden states as maps `(B, width, 1, frames)`, or its mean."""
        if attention_mask is None:
            maps = [means[:, :, None, None] for means in input_values.unbind(1)]
            return self.forward_features(input_values, None), maps
        states, lengths = self._layers(input_values, attention_mask)
        return self._pooled(states, lengths), [state.movedim(1, -1)[:, :, None] for state in states]

    def layer_means(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean over time of each layer's hidden states: `(B, layers + 1, width)`."""
        states, lengths = self._layers(input_values, attention_mask)
        return torch.stack([_means(state, lengths) for state in states], dim=1)

    def _summed(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        shares = self.layer_weights.softmax(0)
        return sum(share * state for share, state in zip(shares, states, strict=True))

    def _pooled(self, states: Sequence[torch.Tensor], lengths: Sequence[int]) -> torch.Tensor:
        frames = self._summed(states)
        if self.attention is None:
            return _means(frames, lengths)[:, None]
        tokens = []
        for clip, length in zip(frames, lengths, strict=True):
            heard = clip[:length]
            pooled = self.attention(heard).softmax(0).T @ heard
            tokens.append(torch.cat([pooled, F.adaptive_avg_pool1d(heard.T, STRETCHES).T]))
        return torch.stack(tokens)

    def _layers(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
        """Hidden states of all layers, `(B, frames, width)` each, and how many frames of each clip are its own."""
        lengths = mask.sum(-1).tolist()
        if self.piece:
            return self._layers_of_pieces(values, [-(-length // self.piece) for length in lengths]), [
                -(-length // 2) for length in lengths
            ]
        frames = [self._count_frames(length) for length in lengths]
        if self.encoder.training or len(set(lengths)) == 1:
            padded = min(lengths) < values.shape[-1]
            return self._run(values, mask if padded else None), frames
        together = defaultdict(list)
        for row, length in enumerate(lengths):
            together[length].append(row)
        parts = [(rows, self._run(values[rows, :length], None)) for length, rows in together.items()]
        states = [state.new_zeros(len(values), max(frames), state.shape[-1]) for state in parts[0][1]]
        for rows, part in parts:
            for state, own in zip(states, part, strict=True):
                state[rows, : own.shape[1]] = own
        return states, frames

    def _layers_of_pieces(self, values: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
        """Of Whisper, which takes 30 s at a time: `counts` pieces of each clip, joined again along time."""
        pieces = values.unflatten(-1, (-1, self.piece)).transpose(1, 2)
        used = torch.arange(pieces.shape[1])[None] < torch.tensor(counts)[:, None]
        used = used.to(values.device)
        joined = []
        for own in self._run(pieces[used], None):
            state = own.new_zeros(*used.shape, *own.shape[1:])
            state[used] = own
            joined.append(state.flatten(1, 2))
        return joined

    def _run(self, values: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        answer = self.encoder(values, attention_mask=mask, output_hidden_states=True, return_dict=True)
        # The last one as the encoder gives it, past the norm that some have at their end.
        return [*answer.hidden_states[:-1], answer.last_hidden_state]

    def _count_frames(self, samples: int) -> int:
        config = self.encoder.config
        for width, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - width) // stride + 1
        return samples

    def checked(
        self, input_values: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        The inputs in the encoder's precision; without a mask, all of them is heard, unless they are `layer_means`.

        Raises:
            ValueError: They are missing, or of another shape.
        """
        if input_values is None:
            raise ValueError(
                "input_values is missing: this model has a branch that hears it. The feature extractor gives it if "
                "its speech_processor is set."
            )
        values = input_values.to(self.layer_weights.dtype)
        are_means = values.shape[1:] == (len(self.feature_info), self.num_features)
        if self.attention is None and attention_mask is None and are_means:
            return values, None
        wanted = 3 if self.piece else 2
        if attention_mask is None:
            attention_mask = torch.ones(
                len(input_values), input_values.shape[-1], dtype=torch.long, device=input_values.device
            )
        fits = input_values.ndim == wanted and (not self.piece or input_values.shape[-1] % self.piece == 0)
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


def _means(frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """`(B, frames, width)` -> `(B, width)`: the mean over each clip's own frames."""
    return torch.stack([clip[:length].mean(0) for clip, length in zip(frames, lengths, strict=True)])


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
    is_whisper = isinstance(model.config, WhisperConfig)
    lacking = [key for key in sorted(info["missing_keys"]) if not is_whisper or key.startswith("encoder.")]
    if lacking:
        raise ValueError(
            f"speech_encoder={os.fspath(name)!r} lacks {len(lacking)} of its weights, such as {lacking[0]}: name a "
            "checkpoint that holds the encoder whole."
        )
    return (model.encoder if is_whisper else model).state_dict()


__all__ = ["SpeechEncoder", "pretrained_encoder", "read_encoder_config", "read_processor", "speech_inputs"]
