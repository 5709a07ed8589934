"""Tests models with any timm backbone in either branch, and models of one branch."""

import pytest
import torch
from torch.nn import functional as F

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import ConvNet, MaxMViTForAudioClassification, create_backbone
from tests.helpers.marks import first_fast
from tests.helpers.tiny import tiny_config

RESNET = ("resnet10t", {"channels": [8, 16, 24, 32], "stem_width": 8})
CONVOLUTIONAL = [
    RESNET,
    ("convnet", {"channels": [8, 16, 24]}),
    ("convnextv2_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    ("mobilenetv3_small_050", {}),
    ("test_efficientnet", {}),
    ("densenet121", {"block_config": [1, 1, 1, 1], "growth_rate": 8}),
]
FIXED_SIZE = [
    ("test_vit", {}),
    ("swin_tiny_patch4_window7_224", {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16, "window_size": 4}),
    ("maxvit_tiny_tf_224", {"embed_dim": [32] * 4, "depths": [1] * 4, "stem_width": 8, "head_hidden_size": 16}),
]


def config_of(name, kwargs, **changes):
    fields = {"cqt_backbone": name, "cqt_backbone_kwargs": kwargs, "mel_backbone": name, "mel_backbone_kwargs": kwargs}
    return MaxMViTConfig(**{**fields, "image_size": [64, 96], "hidden_size": 16, "num_labels": 3, **changes})


def random_images(clips=2, height=64, width=96):
    return {f"{branch}_values": torch.randn(clips, 1, height, width) for branch in ("cqt", "mel")}


@pytest.mark.parametrize(
    "name, kwargs",
    [*first_fast(CONVOLUTIONAL, 2), *first_fast(FIXED_SIZE)],
    ids=lambda value: str(value)[:20],
)
def test_a_backbone_trains_and_reloads_exactly(name, kwargs, tmp_path):
    torch.manual_seed(0)
    model, images = MaxMViTForAudioClassification(config_of(name, kwargs)), random_images()
    model.train()(**images, labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    output = model.eval()(**images, output_hidden_states=True)
    assert output.logits.isfinite().all() and len(output.hidden_states) >= 2
    model.save_pretrained(tmp_path)
    reloaded, loading = MaxMViTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    torch.testing.assert_close(reloaded.eval()(**images).logits, output.logits, rtol=0, atol=1e-6)
    assert reloaded.dtype == torch.float32 and reloaded.to(torch.bfloat16)(**images).logits.isfinite().all()


@pytest.mark.parametrize("alone, other", [("cqt", "mel"), ("mel", "cqt")])
def test_a_model_of_one_branch(alone, other, tmp_path):
    model = MaxMViTForAudioClassification(tiny_config(**{f"{other}_backbone": None})).eval()
    images = random_images(width=64)
    output = model.maxmvit(**images)
    assert [*model.branches()] == [alone] and getattr(output, f"{other}_features") is None
    assert output.pooler_output.equal(getattr(output, f"{alone}_features"))
    assert not any(other in name for name in model.state_dict())
    logits = model(**{f"{alone}_values": images[f"{alone}_values"]}).logits
    assert logits.equal(model(**images).logits)  # the other image has no effect
    with pytest.raises(ValueError, match=f"{alone}_values is missing"):
        model(**{f"{other}_values": images[f"{other}_values"]})
    model.save_pretrained(tmp_path)
    reloaded = MaxMViTForAudioClassification.from_pretrained(tmp_path)
    assert getattr(reloaded.config, f"{other}_backbone") is None
    torch.testing.assert_close(reloaded.eval()(**images).logits, logits, rtol=0, atol=1e-6)


def test_a_model_without_a_branch_is_refused():
    with pytest.raises(ValueError, match="all None"):
        MaxMViTConfig(cqt_backbone=None, mel_backbone=None)


@pytest.mark.parametrize(
    "name, kwargs, size, remedy",
    [
        ("vit_tiny_patch16_224", {"depth": 1}, [64, 88], "80 or 96 instead of 88"),
        ("vit_small_patch14_dinov2", {"depth": 1}, 128, "126 or 140 instead of 128"),
        (*RESNET, [64, 16], "32 or 64 instead of 16"),
        ("convnet", {"channels": [8] * 6}, [64, 16], "32 or 64 instead of 16"),
    ],
)
def test_the_error_for_a_size_that_is_not_used_completely_names_sizes_that_are(name, kwargs, size, remedy):
    with pytest.raises(ValueError, match=remedy):
        create_backbone("mel", config_of(name, kwargs, image_size=size))


def test_convolutional_backbones_accept_sizes_that_a_maxvit_refuses():
    model = MaxMViTForAudioClassification(config_of(*RESNET, image_size=[40, 100])).eval()
    assert model(**random_images()).logits.shape == (2, 3)
    with pytest.raises(ValueError, match="cqt_backbone='maxvit_tiny_tf_224' halves .* such as 96 or 128"):
        config_of(*RESNET, cqt_backbone="maxvit_tiny_tf_224", image_size=[64, 100])


@pytest.mark.parametrize(
    "name, kwargs, reason",
    [
        ("resnet10t", {"channels": [8, 16, 24], "layers": [1, 1, 1]}, "layer4"),  # timm's AttributeError
        ("convnet", {"depths": [1]}, "depths"),
        ("convnextv2_atto", {"no_such_argument": 1}, "no_such_argument"),
        ("maxvit_tiny_tf_224", {"depths": [1, 1]}, "AssertionError"),
    ],
)
def test_arguments_that_timm_cannot_build_are_named(name, kwargs, reason):
    with pytest.raises(ValueError, match=f"mel_backbone='{name}' cannot be built .*({reason})"):
        create_backbone("mel", config_of(name, kwargs))


def test_gradient_checkpointing_that_timm_lacks_is_refused():
    model = MaxMViTForAudioClassification(config_of("dla34", {"levels": [1] * 6, "channels": [8] * 6}))
    with pytest.raises(ValueError, match="cqt_backbone='dla34' has no gradient checkpointing"):
        model.gradient_checkpointing_enable()
    assert not model.is_gradient_checkpointing


def test_the_convnet_equals_plain_torch_functions():
    torch.manual_seed(0)
    net = ConvNet(channels=[4, 6]).eval()
    x = torch.randn(2, 3, 8, 12)
    for stage in net.stages:
        norm = stage[2]
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    y = x
    for depth, stage in enumerate(net.stages):
        conv, norm = stage[1], stage[2]
        y = F.max_pool2d(y, 2) if depth else y
        y = F.conv2d(y, conv.weight, padding=1)
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps)[:, None, None].sqrt()
        y = y.clamp(min=0)
    torch.testing.assert_close(net(x), torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1))
    with_checkpoints = ConvNet(channels=[4, 6])
    with_checkpoints.load_state_dict(net.state_dict())
    with_checkpoints.set_grad_checkpointing()
    torch.testing.assert_close(with_checkpoints.train()(x), net.train()(x))


def test_the_convnet_has_no_pretrained_weights():
    model = MaxMViTForAudioClassification(config_of("convnet", {}))
    with pytest.raises(ValueError, match="there are none"):
        model.maxmvit.load_imagenet_weights()
