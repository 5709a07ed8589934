"""Tests the familiarity of clips, which compares them with the training data: its distance, output and saving."""

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
    """Returns a `Familiarity` with a random distribution."""
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
    """Returns a tiny model fitted on random images, so that some of such images are familiar and others are not."""
    model = tiny_model(seed=seed, familiarity=True, **kwargs)
    model.familiarity = filled(model.maxmvit.num_features, model.config.num_labels, seed)
    with torch.no_grad():
        features = torch.cat([model.maxmvit(**tiny_images(8, seed=each)).pooler_output for each in range(4)])
    model.familiarity.class_means.copy_(features.mean(0))
    distances = model.familiarity.distance(features).numpy()
    model.familiarity.distances.copy_(torch.from_numpy(np.quantile(distances, (np.arange(512) + 0.5) / 512)))
    return model.eval()


@pytest.mark.parametrize(("num_features", "num_labels", "seed"), [(2, 2, 0), (11, 3, 1), (40, 8, 2), (300, 5, 3)])
def test_the_distance_is_the_mahalanobis_distance_with_the_full_covariance(num_features, num_labels, seed):
    module = filled(num_features, num_labels, seed)
    means, scale, rows, variances = (
        getattr(module, name).double().numpy() for name in ("class_means", "scale", "components", "variances")
    )
    standardised = (rows.T * variances[:-1]) @ rows + variances[-1] * (np.eye(num_features) - rows.T @ rows)
    precision = np.linalg.inv(standardised / np.outer(scale, scale))
    features = np.random.default_rng(seed + 100).normal(0, 4, (6, num_features))
    differences = features[:, None] - means
    expected = np.einsum("bcf,fg,bcg->bc", differences, precision, differences).min(1) / num_features
    found = module.distance(torch.from_numpy(features).float())
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 70))
def test_familiarity_is_the_fraction_of_larger_distances(seed, num_features):
    module = filled(num_features, 3, seed)
    features = torch.from_numpy(np.random.default_rng(seed).normal(0, 4, (5, num_features))).float()
    familiarity = module(features)
    expected = [np.mean(module.distances.numpy() > distance) for distance in module.distance(features).tolist()]
    assert familiarity.tolist() == pytest.approx(expected)
    assert module(module.class_means).tolist() == [1.0] * 3  # the mean of a class has the distance 0
    assert module(module.class_means + 1e4).tolist() == [0.0] * 3


def test_a_constant_feature_is_ignored():
    module = filled(6, 2)
    module.scale[4] = 0
    module.components[:, 4] = 0
    features = torch.zeros(2, 6)
    features[1, 4] = 1e6
    assert module.distance(features)[0] == module.distance(features)[1]


def test_without_familiarity_a_model_has_neither_its_keys_nor_its_output():
    model = tiny_model()
    assert not [name for name in model.state_dict() if "familiarity" in name]
    output = model(**tiny_images())
    assert output.familiarity is None
    assert "familiarity" not in output
    assert len(model(**tiny_images(), return_dict=False)) == 1


def test_familiarity_does_not_change_the_logits_and_is_none_in_training():
    model, plain = familiar_model(), tiny_model()
    images = tiny_images(4)
    output = model(**images)
    assert torch.equal(output.logits, plain(**images).logits)
    assert output.familiarity.shape == (4,)
    assert torch.equal(output.familiarity, model.familiarity(model.maxmvit(**images).pooler_output))
    assert model.train()(**images).familiarity is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", first_fast([0, 5]))
def test_familiarity_is_saved_and_loaded(seed, tmp_path):
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
def test_the_buffers_of_familiarity_stay_float32_in_half_precision(dtype, tmp_path):
    model = familiar_model()
    model.save_pretrained(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.classifier.out_proj.weight.dtype == dtype
    assert {buffer.dtype for buffer in loaded.familiarity.buffers()} == {torch.float32}
    features = torch.randn(4, model.maxmvit.num_features, generator=torch.Generator().manual_seed(0))
    expected = model.familiarity(features)
    torch.testing.assert_close(loaded.familiarity(features.to(dtype)), expected, rtol=0, atol=0.05)


def test_familiarity_saved_in_half_precision_is_nearly_the_same(tmp_path):
    model = familiar_model()
    features = model.maxmvit(**tiny_images(8, seed=7)).pooler_output
    expected = model.familiarity(features)
    model.half().save_pretrained(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(loaded.familiarity(features), expected, rtol=0, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("num_labels", first_fast([3, 7]))
def test_familiarity_is_zero_with_a_head_of_other_classes(num_labels, tmp_path):
    familiar_model().save_pretrained(tmp_path)
    model = MaxMViTForAudioClassification.from_pretrained(
        tmp_path, num_labels=num_labels, ignore_mismatched_sizes=True
    ).eval()
    assert model(**tiny_images(4)).familiarity.tolist() == [0.0] * 4
    without = MaxMViTForAudioClassification.from_pretrained(
        tmp_path, num_labels=num_labels, familiarity=False, ignore_mismatched_sizes=True
    )
    assert without.familiarity is None
