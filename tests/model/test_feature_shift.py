"""Tests shifting pooled features, as for a speaker, and classifying features that were computed before."""

import pytest
import torch

from tests.helpers.tiny import tiny_config, tiny_images, tiny_model

FUSIONS = ["concat", "gated", "bilinear"]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["mlp", "linear"])
@torch.no_grad()
def test_a_shift_is_subtracted_from_the_features_before_the_fusion(fusion, head):
    model, images = tiny_model(fusion=fusion, head=head), tiny_images(3)
    pooled = model.maxmvit(**images).pooler_output
    plain = model(**images).logits
    torch.testing.assert_close(model.classify_features(pooled), plain)
    width = pooled.shape[1]
    for shift in (torch.rand(width), torch.rand(3, width)):
        shifted = model(**images, feature_shift=shift).logits
        torch.testing.assert_close(shifted, model.classify_features(pooled - shift))
        assert not torch.allclose(shifted, plain, atol=1e-4)
    assert torch.equal(model(**images, feature_shift=torch.zeros(width)).logits, plain)


def test_each_clip_has_its_own_shift_and_each_branch_its_own_part():
    model, images = tiny_model(), tiny_images(3)
    shift = torch.zeros(3, model.maxmvit.num_features)
    shift[1, -1] = 5  # a feature of the Mel branch
    with torch.no_grad():
        plain, shifted = model(**images).logits, model(**images, feature_shift=shift).logits
    assert torch.equal(plain[[0, 2]], shifted[[0, 2]]) and not torch.equal(plain[1], shifted[1])


@pytest.mark.parametrize("changes", [{"fusion": "attention"}, {"head": "decoder"}])
def test_a_model_that_reads_tokens_refuses_a_shift(changes):
    model = tiny_model(**changes)
    shift = torch.zeros(model.maxmvit.num_features)
    with pytest.raises(ValueError, match="feature_shift changes pooled features only.* train a model with another"):
        model(**tiny_images(), feature_shift=shift)
    with pytest.raises(ValueError, match="reads feature maps too.*call the model on its inputs"):
        model.classify_features(shift[None])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 64), (64, 2), ()])
def test_a_shift_of_another_shape_is_refused(shape):
    model = tiny_model()
    with pytest.raises(ValueError, match="feature_shift has shape .* is needed"):
        model(**tiny_images(2), feature_shift=torch.zeros(shape))


def test_only_a_configuration_with_feature_statistics_adds_their_buffers():
    keys = {*tiny_model().state_dict()}
    assert not tiny_config().feature_statistics
    added = {*tiny_model(feature_statistics=True).state_dict()} - keys
    names = ("mean", "deviation", "speaker_deviation", "largest_spread")
    assert added == {f"maxmvit.feature_statistics.{name}" for name in names}
