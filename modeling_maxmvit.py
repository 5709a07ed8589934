"""MaxMViT-MLP: a MaxViT reads the constant-Q spectrogram, an MViTv2 the Mel spectrogram, an MLP names the emotion.

A speech encoder may hear the waveform beside them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

try:
    from .backbones_maxmvit import (
        backbone_input,
        block_names,
        checkpoint_gradients,
        create_branch,
        create_pretrained_backbone,
    )
    from .configuration_maxmvit import AUTO_MAP, BRANCHES, CUSTOM_PIPELINES, MaxMViTConfig
    from .heads_maxmvit import FUSIONS, HEADS, QUERY_STD, DecoderHead, loss_of, tokens_of
    from .keywords_maxmvit import check_call
    from .learnable_maxmvit import MelFilterBank
    from .speech_maxmvit import pretrained_encoder
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from backbones_maxmvit import (
        backbone_input,
        block_names,
        checkpoint_gradients,
        create_branch,
        create_pretrained_backbone,
    )
    from configuration_maxmvit import AUTO_MAP, BRANCHES, CUSTOM_PIPELINES, MaxMViTConfig
    from heads_maxmvit import FUSIONS, HEADS, QUERY_STD, DecoderHead, loss_of, tokens_of
    from keywords_maxmvit import check_call
    from learnable_maxmvit import MelFilterBank
    from speech_maxmvit import pretrained_encoder

if TYPE_CHECKING:
    # transformers copies the files that this text imports relatively along with every checkpoint, these two included.
    from .feature_extraction_maxmvit import MaxMViTFeatureExtractor  # noqa: F401
    from .pipeline_maxmvit import MaxMViTAudioClassificationPipeline  # noqa: F401

FILLED = "_is_hf_initialized"  # transformers' mark on a tensor whose values are meant, drawn or loaded


@dataclass
class MaxMViTModelOutput(ModelOutput):
    """
    What the branches saw and heard; None for a branch that the model has not.

    Args:
        cqt_features (`torch.FloatTensor` of shape `(batch_size, 768)`):
            Pooled features of the constant-Q branch (768 for the default backbone).
        mel_features (`torch.FloatTensor` of shape `(batch_size, 768)`):
            Pooled features of the Mel branch.
        speech_features (`torch.FloatTensor` of shape `(batch_size, hidden size of the encoder)`):
            Pooled features of the speech encoder.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, 1536)`):
            Those of all branches, concatenated.
        tokens (`dict` of `torch.FloatTensor` of shape `(batch_size, tokens, width)`):
            By branch, the places of the last feature map, or the stretches of the clip that the speech encoder heard,
            where the fusion or the head looks at them; else None.
        hidden_states (`tuple(torch.FloatTensor)`, given when `output_hidden_states` is):
            What the stages of all branches gave, each of shape `(batch_size, channels, height, width)`: the maps of
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


class MaxMViTPreTrainedModel(PreTrainedModel):
    """Loading, saving and gradient checkpointing, shared by all MaxMViT models."""

    config_class = MaxMViTConfig
    base_model_prefix = "maxmvit"
    main_input_name = "cqt_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # forward takes further keywords, from which Trainer would conclude that the loss divides by the items it names.
    accepts_loss_kwargs = False

    def branches(self) -> dict[str, Any]:
        """
        Who sees and hears by name, `"cqt"`, `"mel"` and `"speech"` or those of them that the model has, in the order
        of their features; `BRANCHES` in `configuration_maxmvit.py` says what each is given and which field of the
        configuration names it. timm's models share methods but no class that has them, so their type says nothing.
        """
        return {name: getattr(self.base_model, BRANCHES[name].field) for name in self.config.branch_names}

    def pretrained_parts(self) -> dict[str, Any]:
        """
        Of each branch what others may have trained, for who freezes it or trains it by other rules than the head: a
        backbone of pictures whole, a speech encoder without what makes features of its layers.
        """
        return {name: branch.encoder if name == "speech" else branch for name, branch in self.branches().items()}

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """
        Draws what neither a checkpoint nor timm has filled: transformers calls it after building a model, and after
        loading one. Weights that a checkpoint lacks get the values of a backbone that timm has just built.
        """
        super().initialize_weights()
        for branch, backbone in self.branches().items():
            state = backbone.state_dict(keep_vars=True)
            missing = [name for name, tensor in state.items() if not getattr(tensor, FILLED, False)]
            if missing:
                drawn = create_branch(branch, self.config).state_dict()
                for name in missing:
                    state[name].copy_(drawn[name])

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
        """None: pictures go in, no tokens."""
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
            Names and sizes of the branches. They start at random; see [`~MaxMViTModel.load_imagenet_weights`] and
            [`~MaxMViTModel.load_speech_weights`].
    """

    _keys_to_ignore_on_load_unexpected = [r"classifier\."]

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
        self._no_split_modules = sorted({*block_names(self)})
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # timm draws the weights of the backbones when it builds them, so transformers must not redraw them. Buffers
        # that no checkpoint holds, such as MaxViT's relative-position tables, come off the meta device, on which
        # `from_pretrained` builds, as uninitialised memory.
        if callable(draw := getattr(module, "init_non_persistent_buffers", None)):
            draw()
        if isinstance(module, MelFilterBank):
            initialization.zeros_(module.log_gains)

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
        Args:
            cqt_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Constant-Q images from [`MaxMViTFeatureExtractor`]. One channel is repeated to three; a size other
                than `config.image_size` is resized bilinearly. A model without this branch takes no notice of them.
            mel_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Mel images of the same clips.
            input_values (`torch.FloatTensor` of shape `(batch_size, samples)`):
                What a speech encoder hears of them, from [`MaxMViTFeatureExtractor`]; of Whisper
                `(batch_size, bands, frames)`.
            attention_mask (`torch.Tensor` of shape `(batch_size, samples or frames)`):
                1 where the clip is, 0 where it was filled with zeros; without it, all is the clip.
            power_values (`torch.FloatTensor` of shape `(batch_size, bins, frames)`):
                Of `filter_bank="learnable"`, what the Mel branch is given in place of `mel_values`, in dB.
            power_lengths (`torch.Tensor` of shape `(batch_size,)`):
                How many of its frames are the clip's; without it, all are.
            kwargs:
                `output_hidden_states` (`bool`, *optional*, defaults to `config.output_hidden_states`): True adds the
                maps of all stages. `return_dict` (`bool`, *optional*, defaults to `config.return_dict`): False gives
                a plain tuple. What else transformers passes to models of other kinds has no effect, except that
                attention maps are refused.

        Raises:
            ValueError: for images of a wrong shape or of unequal number.
            TypeError: for a keyword that transformers does not know.
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
            elif self.config.looks_at_tokens:
                last = backbone.forward_features(*inputs[name])
            else:
                features[name] = backbone(*inputs[name])
                continue
            features[name] = backbone.forward_head(last)
            tokens[name] = tokens_of(backbone, last)
        return MaxMViTModelOutput(
            **{f"{name}_features": values for name, values in features.items()},
            pooler_output=torch.cat(list(features.values()), dim=-1),
            tokens=tokens if self.config.looks_at_tokens else None,
            hidden_states=tuple(maps) if with_maps else None,
        )

    def load_imagenet_weights(
        self, cqt_weights: str | os.PathLike | None = None, mel_weights: str | os.PathLike | None = None
    ) -> None:
        """
        Replaces the weights of the backbones that see pictures by timm's pretrained ones.

        Args:
            cqt_weights (`str` or `os.PathLike`, *optional*):
                Local weight file (`.safetensors`, `.bin`, `.pth`) in timm's or the original format of
                `config.cqt_backbone`. Without it, timm takes the weights from the Hub or its cache.
            mel_weights (`str` or `os.PathLike`, *optional*):
                The same for `config.mel_backbone`.

        Raises:
            OSError: if the weights can neither be downloaded nor found; the message names both ways out.
            ValueError: if the backbone was reshaped by its kwargs, so that the pretrained weights do not fit.
        """
        weights = {"cqt": cqt_weights, "mel": mel_weights}
        for branch in self.config.picture_names:
            pretrained = create_pretrained_backbone(branch, self.config, weights[branch])
            self.branches()[branch].load_state_dict(pretrained.state_dict())

    def load_speech_weights(self, weights: str | os.PathLike | None = None) -> None:
        """
        Replaces the weights of the speech encoder by those of its checkpoint.

        Args:
            weights (`str` or `os.PathLike`, *optional*, defaults to `config.speech_encoder`):
                A name on the Hub, which its cache may hold, or a folder.

        Raises:
            OSError: if they can neither be downloaded nor found; the message names both ways out.
            ValueError: if they do not fit, or are not whole.
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
    MaxMViT-MLP: the branches, what fuses their features and the head that names the emotion of a clip.

    Args:
        config ([`MaxMViTConfig`]):
            `num_labels` (or `id2label`) sets the number of emotions; `fusion` and `head` what follows the branches.
    """

    def __init__(self, config: MaxMViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.maxmvit = MaxMViTModel(config)
        branches = self.maxmvit.branches()
        token_widths = {name: backbone.num_features for name, backbone in branches.items()}
        widths = {name: backbone.head_hidden_size for name, backbone in branches.items()}
        self.fusion = FUSIONS[config.fusion](config, widths, token_widths)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.classifier = HEADS[config.head](config, self.fusion.out_features, token_widths)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DecoderHead):
            initialization.normal_(module.queries, std=QUERY_STD)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        As [`~MaxMViTPreTrainedModel.save_pretrained`]. A fitted `config.temperature` is folded into the last layer
        that is saved, and the saved configuration says 1: the logits of the checkpoint are calibrated for every
        caller, not only for this project's pipeline. This model itself stays as it is.
        """
        temperature = self.config.temperature
        if temperature == 1 or self.config.problem_type not in (None, "single_label_classification"):
            return super().save_pretrained(save_directory, **kwargs)
        state = dict(kwargs.pop("state_dict", None) or self.state_dict())
        for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            cqt_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Constant-Q images, see [`MaxMViTModel.forward`].
            mel_values (`torch.FloatTensor` of shape `(batch_size, 1 or 3, height, width)`):
                Mel images of the same clips.
            labels (`torch.Tensor`, *optional*):
                The truth, of the kind that `config.problem_type` names:
                - None or `"single_label_classification"` (cross-entropy): class indices of shape `(batch_size,)`, or
                  float probabilities of shape `(batch_size, num_labels)` as mixup makes them;
                - `"multi_label_classification"` (binary cross-entropy): 0 or 1 per class, `(batch_size, num_labels)`;
                - `"regression"` (squared error): `(batch_size, num_labels)`, or `(batch_size,)` where that is one.
            input_values, attention_mask (`torch.Tensor`):
                What a speech encoder hears, see [`MaxMViTModel.forward`].
            power_values, power_lengths (`torch.Tensor`):
                What learnable Mel filters are fed with, see [`MaxMViTModel.forward`].
            kwargs:
                `output_hidden_states` and `return_dict`, see [`MaxMViTModel.forward`]; `output_attentions` (`bool`,
                *optional*) for what the queries of `head="decoder"` attend to.

        Returns:
            The mean `loss` where labels are given, `logits` of shape `(batch_size, num_labels)`, the scores before the
            softmax in the order of `config.id2label`, `hidden_states` as in [`MaxMViTModelOutput`], and where asked
            for `attentions`, one `(batch_size, num_labels, 1 + tokens)` for each layer of the decoder.

        Raises:
            ValueError: as [`MaxMViTModel.forward`], for labels of another kind than `config.problem_type` names, and
                for a batch of one clip in training.
        """
        look = kwargs.pop("output_attentions", None)
        inputs = (cqt_values, mel_values, input_values, attention_mask, power_values, power_lengths)
        outputs = self.maxmvit(*inputs, return_dict=True, **kwargs)
        features = {name: outputs[f"{name}_features"] for name in self.config.branch_names}
        tokens = outputs.tokens or {}
        fused = self.feature_dropout(self.fusion(features, tokens))
        logits, attentions = self.classifier(fused, tokens, look=bool(look))
        loss = None if labels is None else loss_of(logits.float(), labels, self.config.problem_type)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=attentions
        )


MaxMViTModel.register_for_auto_class("AutoModel")
MaxMViTForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = ["MaxMViTForAudioClassification", "MaxMViTModel", "MaxMViTPreTrainedModel"]
