"""Selects the weights to train: all, only the head, or layers or adapters of a speech encoder."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.training.arguments import SERTrainingArguments

ADAPTED = ["q_proj", "v_proj"]  # projections of queries and values in the supported encoders


def choose_trainable(model: MaxMViTForAudioClassification, args: SERTrainingArguments) -> tuple[set[str], Any]:
    """
    Freezes a speech encoder or its layers, or adds adapters to it, as `args` specify.

    Returns:
        Names of the pretrained weights, filters and adapters that may be trained, and the result of [`add_adapters`].
    """
    parts, filters, adapters = model.pretrained_parts(), model.base_model.filter_bank, None
    tuned = {id(p) for name, part in parts.items() if name != "speech" for p in part.parameters()}
    if filters is not None:
        tuned |= {id(p) for p in filters.parameters()}
    if "speech" in parts:
        # The embedding of masked frames has no gradient if an encoder masks none.
        args.ddp_find_unused_parameters = True
        if args.lora_rank:
            adapters = add_adapters(parts["speech"], args.lora_rank)
            tuned |= {id(p) for p in parts["speech"].parameters() if p.requires_grad}
        elif not args.freeze_speech_encoder:
            tuned |= {id(p) for p in model.branches()["speech"].tunable(args.speech_frozen_layers)}
        for parameter in parts["speech"].parameters():
            parameter.requires_grad_(id(parameter) in tuned)
    return {name for name, parameter in model.named_parameters() if id(parameter) in tuned}, adapters


def set_trained(model: nn.Module, names: Iterable[str], trained: bool) -> None:
    """Sets whether the parameters of these names are trained."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(trained)


def compact_weights(model: MaxMViTForAudioClassification) -> dict[str, torch.Tensor]:
    """
    Returns the weights of a model for its checkpoint. Those of a frozen speech encoder are in float16 if that is
    exact, as for Whisper, whose own checkpoints are in float16. Loading restores float32 without loss.
    """
    weights = model.state_dict()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name in frozen & {name for name in weights if name.startswith("maxmvit.speech_encoder.encoder.")}:
        half = weights[name].half()
        if torch.equal(half.to(weights[name].dtype), weights[name]):
            weights[name] = half
    return weights


def add_adapters(encoder: nn.Module, rank: int) -> Any:
    """
    Adds low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) to a speech encoder with peft:
    queries and values of every layer are projected by `W + B A`, where `A` and `B` are trained, and `B` is 0 at first.

    Args:
        encoder: A model of transformers, which is changed in place.
        rank (`int`): Number of rows of `A` and columns of `B`.

    Returns:
        peft's `LoraModel` of the encoder, whose `merge_and_unload` adds the adapters to the weights and removes them.
    """
    from peft import LoraConfig, LoraModel  # an optional package
    from peft.tuners.lora import Linear

    class Projection(Linear):
        """peft's layer with an adapted `weight`, which the attention of WavLM reads instead of calling the layer."""

        @property
        def weight(self) -> torch.Tensor:
            weight: Any = self.get_base_layer().weight
            return weight if self.merged else weight + self.get_delta_weight(self.active_adapters[0])

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED)
    config._register_custom_module({nn.Linear: Projection})
    return LoraModel(encoder, config, "default")
