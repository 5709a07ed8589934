"""The backbones of MaxMViT-MLP: any image model of timm, or a plain one, built for the pictures that it will see."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

try:
    from .configuration_maxmvit import OWN_BACKBONES, MaxMViTConfig, import_timm
    from .convnet_maxmvit import ConvNet
    from .keywords_maxmvit import shortened
    from .speech_maxmvit import SpeechEncoder
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from configuration_maxmvit import OWN_BACKBONES, MaxMViTConfig, import_timm
    from convnet_maxmvit import ConvNet
    from keywords_maxmvit import shortened
    from speech_maxmvit import SpeechEncoder

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)  # timm's, of arguments at large


def create_branch(branch: str, config: MaxMViTConfig) -> nn.Module:
    """
    What sees or hears by this name, with the methods of a model of timm: [`create_backbone`] or [`SpeechEncoder`].

    Raises:
        ValueError: if it cannot be built.
    """
    if branch == "speech":
        return SpeechEncoder(config.speech_encoder_config or {}, config.speech_pooling, config.speech_layers)
    return create_backbone(branch, config)


def create_backbone(branch: str, config: MaxMViTConfig, **kwargs: Any) -> nn.Module:
    """
    The model that `config` names for a branch, without a classifier.

    Args:
        branch (`str`): `"cqt"` or `"mel"`.
        config ([`MaxMViTConfig`]): Its fields `{branch}_backbone` and `{branch}_backbone_kwargs`, and `image_size`.
        kwargs: Further arguments of `timm.create_model`, such as `pretrained`.

    Raises:
        ValueError: if timm cannot build it, or part of the pictures would go unseen.
    """
    name, changes = getattr(config, f"{branch}_backbone"), getattr(config, f"{branch}_backbone_kwargs")
    try:
        reshaped = config.reshaped_mvitv2(branch)
        if kwargs.get("pretrained"):
            if reshaped is not None:
                raise ValueError(f"its depths or widths were changed by {branch}_backbone_kwargs")
            if name in OWN_BACKBONES:
                raise ValueError("there are none, since it is none of timm's")
        if name in OWN_BACKBONES:
            backbone: Any = ConvNet(num_classes=0, **changes)
        elif reshaped is None:
            backbone = _create(name, config.image_shape, num_classes=0, **changes, **kwargs)
        else:
            architecture, rest = reshaped
            mvitv2 = import_timm().models.mvitv2
            backbone = mvitv2.MultiScaleVit(architecture, img_size=config.image_shape, num_classes=0, **rest)
        _check_pictures_are_seen(branch, config, backbone)
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
    # Convolutions see pictures of any size, and are not asked for which.
    return timm.create_model(name, **kwargs)


@torch.no_grad()
def _try_out(backbone: Any, size: tuple[int, int]) -> None:
    """Some reshaped architectures are built and then cannot see, or have another width than timm says."""
    training = backbone.training
    try:
        width = backbone.eval()(torch.zeros(1, 3, *size)).shape[-1]
    except (RuntimeError, ValueError) as error:
        raise TypeError(f"it is built, but sees nothing ({error})") from error
    finally:
        backbone.train(training)
    if width != backbone.head_hidden_size:
        raise TypeError(f"it gives {width} features where timm says {backbone.head_hidden_size}")


def _check_pictures_are_seen(branch: str, config: MaxMViTConfig, backbone: Any) -> None:
    """timm's patch embeddings leave the last rows and columns out, and small maps shrink to nothing, silently."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch is not None:
        steps = [patch, patch] if isinstance(patch, int) else list(patch)
    else:
        steps = [backbone.feature_info[-1]["reduction"]] * 2
    for side, step in zip(config.image_shape, steps, strict=True):
        if side < step or patch is not None and side % step:
            below = max(side // step * step, step)
            raise ValueError(
                f"{branch}_backbone={getattr(config, f'{branch}_backbone')!r} sees pictures in steps of {step}: "
                f"image_size={config.image_size} does not work, {below} or {below + step} in place of {side} would."
            )


def backbone_input(images: torch.Tensor | None, name: str, size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """
    Images `(B, 1 or 3, height, width)` as a backbone takes them: `(B, 3, *size)` of `dtype`.

    Raises:
        ValueError: They are missing, or of another shape; the message begins with `name`.
    """
    if images is None:
        raise ValueError(f"{name} is missing: this model has a branch that sees it.")
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
    The same with timm's pretrained weights, or those of a local file.

    Raises:
        OSError: if the weights can neither be downloaded nor found; the message names both ways out.
        ValueError: if the weights do not fit the backbone.
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
    Has a backbone compute its activations again in the backward pass instead of keeping them, or no longer.

    Raises:
        ValueError: if timm cannot do that with this one; the message begins with `name`.
    """
    try:
        backbone.set_grad_checkpointing(enable)
    except (AssertionError, AttributeError) as error:
        if enable:
            raise ValueError(
                f"{name} has no gradient checkpointing in timm: leave it off, or choose another backbone."
            ) from error


def block_names(module: nn.Module) -> Iterator[str]:
    """Class names of the outermost blocks, which must not be divided between devices."""
    for child in module.children():
        kind = type(child).__name__
        if kind.endswith(("Block", "Bottleneck")) or "EncoderLayer" in kind:
            yield kind
        else:
            yield from block_names(child)
