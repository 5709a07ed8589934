"""How much a clip is like the training data: the distance, and what a checkpoint keeps of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_maxmvit import Familiarity, MaxMViTForAudioClassification, MaxMViTModel
from tests.helpers.marks import first_fast
from tests.helpers.tiny import tiny_images, tiny_model

KEYS = {f"familiarity.{name}" for name in ("class_means", "scale", "components", "variances", "distances")}


def filled(num_features: int, num_labels: int, seed: int = 0) -> Familiarity:
    """A distribution drawn at random."""
    random = np.random.default_rng(seed)
    module = Familiarity(num_features, num_labels)
    rows = np.linalg.qr(random.standard_normal((num_features, len(module.components))))[0].T
    for name, values in {
        "class_means": random.normal(0, 3, (num_labels, num_features)),
        "scale": random.uniform(0.2, 3, num_features),
        "components": rows,
        "variances": np.sort(random.uniform(0.5, 9, len(rows) + 1))[::-1],
        "distances": np.sort(random.chisquare(num_features, 512)) / num_features,
    }.items():
        getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(values)))
    return module


def familiar_model(seed: int = 0, **kwargs) -> MaxMViTForAudioClassification:
    """A tiny model whose distances are those of random images, so that these are neither all familiar nor all not."""
    model = tiny_model(seed=seed, familiarity=True, **kwargs)
    model.familiarity = filled(model.maxmvit.num_features, model.config.num_labels, seed)
    with torch.no_grad():
        features = torch.cat([model.maxmvit(**tiny_images(8, seed=each)).pooler_output for each in range(4)])
    model.familiarity.class_means.copy_(features.mean(0))
    distances = model.familiarity.distance(features).numpy()
    model.familiarity.distances.copy_(torch.from_numpy(np.quantile(distances, (np.arange(512) + 0.5) / 512)))
    return model.eval()


@pytest.mark.parametrize(("num_features", "num_labels", "seed"), [(2, 2, 0), (11, 3, 1), (40, 8, 2), (300, 5, 3)])
def test_the_distance_is_mahalanobis_by_the_whole_covariance(num_features, num_labels, seed):
    module = filled(num_features, num_labels, seed)
    means, scale, rows, variances = (
        getattr(module, name).double().numpy() for name in ("class_means", "scale", "components", "variances")
    )
    standardised = (rows.T * variances[:-1]) @ rows + variances[-1] * (np.eye(num_features) - rows.T @ rows)
    precision = np.linalg.inv(standardised / np.outer(scale, scale))
    features = np.random.default_rng(seed + 100).normal(0, 4, (6, num_features))
    apart = features[:, None] - means
    expected = np.einsum("bcf,fg,bcg->bc", apart, precision, apart).min(1) / num_features
    found = module.distance(torch.from_numpy(features).float())
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 70))
def test_familiarity_is_the_share_of_distances_farther_out(seed, num_features):
    module = filled(num_features, 3, seed)
    features = torch.from_numpy(np.random.default_rng(seed).normal(0, 4, (5, num_features))).float()
    familiarity = module(features)
    expected = [np.mean(module.distances.numpy() > distance) for distance in module.distance(features).tolist()]
    assert familiarity.tolist() == pytest.approx(expected)
    assert module(module.class_means).tolist() == [1.0] * 3  # nothing is nearer than the mean of a class
    assert module(module.class_means + 1e4).tolist() == [0.0] * 3


def test_a_feature_that_is_constant_is_left_out():
    module = filled(6, 2)
    module.scale[4] = 0
    module.components[:, 4] = 0
    features = torch.zeros(2, 6)
    features[1, 4] = 1e6
    assert module.distance(features)[0] == module.distance(features)[1]


def test_without_the_field_a_model_has_the_keys_and_the_output_that_it_had():
    model = tiny_model()
    assert not [name for name in model.state_dict() if "familiarity" in name]
    output = model(**tiny_images())
    assert output.familiarity is None
    assert "familiarity" not in output
    assert len(model(**tiny_images(), return_dict=False)) == 1


def test_logits_do_not_depend_on_it_and_training_does_without():
    model, plain = familiar_model(), tiny_model()
    images = tiny_images(4)
    output = model(**images)
    assert torch.equal(output.logits, plain(**images).logits)
    assert output.familiarity.shape == (4,)
    assert torch.equal(output.familiarity, model.familiarity(model.maxmvit(**images).pooler_output))
    assert model.train()(**images).familiarity is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", first_fast([0, 5]))
def test_a_checkpoint_keeps_it(seed, tmp_path):
    model, images = familiar_model(seed), tiny_images(6, seed=seed)
    model.save_pretrained(tmp_path)
    loaded, info = MaxMViTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.state_dict().keys() >= KEYS
    before = model(**images).familiarity
    assert torch.equal(loaded(**images).familiarity, before)
    assert 0 < before.mean() < 1
    base, info = MaxMViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_its_buffers_stay_whole(dtype, tmp_path):
    model = familiar_model()
    model.save_pretrained(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.classifier.out_proj.weight.dtype == dtype
    assert {buffer.dtype for buffer in loaded.familiarity.buffers()} == {torch.float32}
    features = torch.randn(4, model.maxmvit.num_features, generator=torch.Generator().manual_seed(0))
    expected = model.familiarity(features)
    torch.testing.assert_close(loaded.familiarity(features.to(dtype)), expected, rtol=0, atol=0.05)


def test_a_checkpoint_saved_in_half_precision_says_nearly_the_same(tmp_path):
    model = familiar_model()
    features = model.maxmvit(**tiny_images(8, seed=7)).pooler_output
    expected = model.familiarity(features)
    model.half().save_pretrained(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(loaded.familiarity(features), expected, rtol=0, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("num_labels", first_fast([3, 7]))
def test_with_other_classes_it_knows_no_clip(num_labels, tmp_path):
    familiar_model().save_pretrained(tmp_path)
    model = MaxMViTForAudioClassification.from_pretrained(
        tmp_path, num_labels=num_labels, ignore_mismatched_sizes=True
    ).eval()
    assert model(**tiny_images(4)).familiarity.tolist() == [0.0] * 4
    without = MaxMViTForAudioClassification.from_pretrained(
        tmp_path, num_labels=num_labels, familiarity=False, ignore_mismatched_sizes=True
    )
    assert without.familiarity is None
