"""Tests fusions and heads against their formulas in plain torch, and trains, saves and loads every pair of them."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from configuration_maxmvit import FUSION_NAMES, HEAD_NAMES, MaxMViTConfig
from modeling_maxmvit import FUSIONS, HEADS, MaxMViTForAudioClassification, tokens_of
from ser.arguments import ModelArguments
from tests.helpers.marks import first_fast
from tests.helpers.tiny import tiny_config, tiny_images

WIDTHS, TOKEN_WIDTHS, CLIPS = {"cqt": 6, "mel": 4}, {"cqt": 5, "mel": 3}, 2
CONVOLUTIONS = {
    "cqt_backbone": "resnet10t", "cqt_backbone_kwargs": {"channels": [8, 16, 24, 32], "stem_width": 8},
    "mel_backbone": "mobilenetv3_small_050", "mel_backbone_kwargs": {},
}  # fmt: skip


def config(**kwargs) -> MaxMViTConfig:
    return MaxMViTConfig(**{"num_labels": 3, "hidden_size": 8, "fusion_size": 8, **kwargs})


def build_fusion(name: str, seed: int = 0):
    torch.manual_seed(seed)
    features = {branch: torch.randn(CLIPS, width) for branch, width in WIDTHS.items()}
    tokens = {branch: torch.randn(CLIPS, 7, width) for branch, width in TOKEN_WIDTHS.items()}
    return FUSIONS[name](config(), WIDTHS, TOKEN_WIDTHS).eval(), features, tokens


def test_tables_and_names_agree():
    assert tuple(FUSIONS) == FUSION_NAMES and tuple(HEADS) == HEAD_NAMES
    for option, names in (("fusion", FUSION_NAMES), ("head", HEAD_NAMES)):
        help_text = ModelArguments.__dataclass_fields__[option].metadata["help"]
        assert all(name in help_text for name in names), help_text


def test_concat():
    fusion, features, tokens = build_fusion("concat")
    assert not [*fusion.parameters()] and fusion.out_features == 10
    assert fusion(features, tokens).equal(torch.cat([features["cqt"], features["mel"]], 1))


def test_gated():
    fusion, features, tokens = build_fusion("gated")
    joined = torch.cat([features["cqt"], features["mel"]], 1)
    expected = joined / (1 + torch.exp(-(joined @ fusion.gate.weight.T + fusion.gate.bias)))
    torch.testing.assert_close(fusion(features, tokens), expected)


def test_bilinear():
    fusion, features, tokens = build_fusion("bilinear")
    both = [features[b] @ fusion.project[b].weight.T + fusion.project[b].bias for b in ("cqt", "mel")]
    product = both[0] * both[1]
    expected = torch.sign(product) * torch.sqrt(product.abs() + 1e-6)
    torch.testing.assert_close(fusion(features, tokens), expected / expected.norm(dim=1, keepdim=True))
    zero = {name: torch.zeros_like(values).requires_grad_() for name, values in features.items()}
    for linear in fusion.project.values():
        torch.nn.init.zeros_(linear.bias)
    fusion(zero, tokens).sum().backward()
    assert all(values.grad.isfinite().all() for values in zero.values())


def plain_attention(layer, queries, memory):
    """Computes multi-head attention step by step; returns its output and the mean of its weights over the heads."""
    heads, size = layer.num_heads, layer.embed_dim
    q, k, v = (
        x @ w.T + b
        for x, w, b in zip(
            (queries, memory, memory), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True
        )
    )
    q, k, v = (x.unflatten(-1, (heads, size // heads)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / (size // heads) ** 0.5).softmax(-1)
    values = (weights @ v).transpose(1, 2).flatten(2)
    return values @ layer.out_proj.weight.T + layer.out_proj.bias, weights.mean(1)


def test_attention():
    fusion, features, tokens = build_fusion("attention")
    projected = {b: tokens[b] @ fusion.project[b].weight.T + fusion.project[b].bias for b in ("cqt", "mel")}
    pooled = [features["cqt"], features["mel"]]
    for one, other in (("cqt", "mel"), ("mel", "cqt")):
        update, _ = plain_attention(fusion.attention[one], projected[one], projected[other])
        pooled.append(F.layer_norm(projected[one] + update, (8,)).mean(1))
    torch.testing.assert_close(fusion(features, tokens), torch.cat(pooled, 1))


def test_decoder():
    torch.manual_seed(0)
    head = HEADS["decoder"](config(head="decoder", head_layers=2), 10, TOKEN_WIDTHS).eval()
    fused = torch.randn(CLIPS, 10)
    tokens = {branch: torch.randn(CLIPS, 7, width) for branch, width in TOKEN_WIDTHS.items()}
    memory = torch.cat([head.fused(fused)[:, None], *(head.project[b](tokens[b]) for b in tokens)], 1)
    queries = head.queries[None].repeat(CLIPS, 1, 1)
    maps = []
    for layer in head.layers:
        update, weights = plain_attention(layer.attention, queries, memory)
        queries = F.layer_norm(queries + update, (8,))
        wide = (queries @ layer.dense[0].weight.T + layer.dense[0].bias).relu()
        queries = F.layer_norm(queries + wide @ layer.dense[3].weight.T + layer.dense[3].bias, (8,))
        maps.append(weights)
    expected = torch.stack([queries[:, k] @ head.out_proj.weight[k] + head.out_proj.bias[k] for k in range(3)], dim=1)
    scores, attentions = head(fused, tokens, return_attention=True)
    torch.testing.assert_close(scores, expected)
    for attention, weights in zip(attentions, maps, strict=True):
        assert attention.shape == (CLIPS, 3, 1 + 7 + 7)
        torch.testing.assert_close(attention, weights)
    torch.testing.assert_close(head(fused, tokens)[0], expected)


def test_tokens_of_every_layout():
    class Swin:
        output_fmt = "NHWC"

    maps = torch.randn(2, 5, 3, 4)  # 5 features at 3 x 4 places
    tokens = tokens_of(object(), maps)
    assert tokens.shape == (2, 12, 5) and tokens[0, 4 + 2].equal(maps[0, :, 1, 2])
    assert tokens_of(Swin(), maps.permute(0, 2, 3, 1)).equal(tokens)
    assert tokens_of(object(), tokens).equal(tokens)


OF_IMAGES = [name for name in FUSION_NAMES if name != "late"]  # late fusion needs a speech encoder too
# Two kinds of backbones alternate, since their tokens differ in shape.
PAIRS = [
    ((CONVOLUTIONS, {})[index % 2], fusion, head, 1 + index % 2)
    for index, (fusion, head) in enumerate(itertools.product(OF_IMAGES, HEAD_NAMES))
]


@pytest.mark.slow
@pytest.mark.parametrize("backbones, fusion, head, head_layers", first_fast(PAIRS, 6))
def test_every_pair_trains_and_reloads_exactly(backbones, fusion, head, head_layers, tmp_path):
    torch.manual_seed(0)
    chosen = {"fusion": fusion, "head": head, "head_layers": head_layers, "fusion_size": 24, "hidden_size": 16}
    model, images = MaxMViTForAudioClassification(tiny_config(**chosen, **backbones)), tiny_images()
    model.train()(**images, labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    logits = model.eval()(**images).logits
    assert logits.equal(model(**images, output_hidden_states=True).logits)
    model.save_pretrained(tmp_path)
    reloaded, loading = MaxMViTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert {name: getattr(reloaded.config, name) for name in chosen} == chosen
    torch.testing.assert_close(reloaded.eval()(**images).logits, logits, rtol=0, atol=1e-6)
    assert reloaded.to(torch.bfloat16)(**images).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_other_classes_get_a_new_last_layer(head, tmp_path):
    MaxMViTForAudioClassification(tiny_config(4, head=head)).save_pretrained(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path, num_labels=6, ignore_mismatched_sizes=True).eval()
    assert loaded(**tiny_images()).logits.shape == (2, 6)
    if head == "decoder":
        assert 0.01 < loaded.classifier.queries.std() < 0.03


def test_only_the_decoder_returns_attentions():
    output = MaxMViTForAudioClassification(tiny_config(head="decoder")).eval()(**tiny_images(), output_attentions=True)
    (attention,) = output.attentions
    assert attention.shape[:2] == (2, 4)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4))
    with pytest.raises(ValueError, match="Only head='decoder'"):
        MaxMViTForAudioClassification(tiny_config()).eval()(**tiny_images(), output_attentions=True)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fusion": "sum"}, "fusion='sum' .* concat, gated, attention, bilinear"),
        ({"head": "svm"}, "head='svm' .* mlp, linear, decoder"),
        ({"head_layers": 0}, "head_layers=0"),
        ({"fusion_size": 0}, "fusion_size=0"),
        ({"fusion": "gated", "mel_backbone": None}, "nothing to fuse"),
    ],
)
def test_invalid_fusions_and_heads_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)
