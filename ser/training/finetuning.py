"""Which weights a training changes: all, the head's alone, or of a speech encoder some layers, or adapters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.training.arguments import SERTrainingArguments

ADAPTED = ["q_proj", "v_proj"]  # as the encoders that can be joined call the projections of queries and values


def choose_trainable(model: MaxMViTForAudioClassification, args: SERTrainingArguments) -> tuple[set[str], Any]:
    """
    Freezes what `args` say of a speech encoder, or puts adapters beside it.

    Returns:
        Names of the pretrained weights, filters and adapters that may be trained, and what [`add_adapters`] gave.
    """
    parts, filters, adapters = model.pretrained_parts(), model.base_model.filter_bank, None
    tuned = {id(p) for name, part in parts.items() if name != "speech" for p in part.parameters()}
    if filters is not None:
        tuned |= {id(p) for p in filters.parameters()}
    if "speech" in parts:
        # What marks masked frames has no gradient where an encoder masks none.
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
    """Whether the parameters of these names are trained."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(trained)


def add_adapters(encoder: nn.Module, rank: int) -> Any:
    """
    Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) for a speech encoder, by peft: queries
    and values of every layer are projected by `W + B A`, of which `A` and `B` are trained, and `B` begins at 0.

    Args:
        encoder: One of transformers'; it is changed in place.
        rank (`int`): Rows of `A`, columns of `B`.

    Returns:
        peft's `LoraModel` of it, whose `merge_and_unload` makes it what it was, with the sums for its weights.
    """
    from peft import LoraConfig, LoraModel  # which few have
    from peft.tuners.lora import Linear

    class Projection(Linear):
        """Adapted for who calls it, as peft's own, and for who reads its weight, as WavLM's attention does."""

        @property
        def weight(self) -> torch.Tensor:
            weight: Any = self.get_base_layer().weight
            return weight if self.merged else weight + self.get_delta_weight(self.active_adapters[0])

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED)
    config._register_custom_module({nn.Linear: Projection})
    return LoraModel(encoder, config, "default")
