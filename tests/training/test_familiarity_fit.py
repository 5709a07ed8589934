"""Tests fitting the familiarity of a model to the features of its training clips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.arguments import ModelArguments
from ser.commands.train import main
from ser.data.corpora.demo import write_demo_corpus
from ser.models import load_model, load_pipeline, make_config, make_model, starting_weights
from ser.training import familiarity
from ser.training.familiarity import fit_familiarity
from ser.training.pooled_statistics import features_with_copies, fit_feature_statistics, pooled_features
from tests.helpers.marks import first_fast
from tests.helpers.tiny import convnet_model, tiny_images, tiny_model
from tests.helpers.training import clips, make_trainer

ROOT = Path(__file__).parents[2]
WIDTH = 96  # pooled features of the tiny model


def voices(num_speakers: int, clips_each: int, seed: int) -> tuple[torch.Tensor, list[int], list[str]]:
    """Returns features, labels and speakers; in a few directions, speakers differ more than their clips do."""
    directions = np.random.default_rng(0).standard_normal((4, WIDTH))
    random = np.random.default_rng(seed)
    of_speaker = random.normal(0, 0.5, (num_speakers, 4)) @ directions
    labels = random.integers(4, size=num_speakers * clips_each)
    speakers = np.repeat(np.arange(num_speakers), clips_each)
    values = of_speaker[speakers] + labels[:, None] + random.normal(0, 1, (len(labels), WIDTH))
    return torch.from_numpy(values).float(), labels.tolist(), [f"{seed}-{speaker}" for speaker in speakers]


def fraction_below(model: MaxMViTForAudioClassification, features: torch.Tensor, bound: float) -> float:
    return float((model.familiarity(features) < bound).float().mean())


@pytest.mark.parametrize("bound", [0.05, 0.2])
def test_the_fraction_of_new_speakers_below_a_bound_is_that_bound(bound):
    features, labels, speakers = voices(20, 30, seed=1)
    model = convnet_model()
    fit_familiarity(model, features, labels, speakers)
    assert model.config.familiarity
    new, _, _ = voices(120, 10, seed=2)
    assert fraction_below(model, new, bound) == pytest.approx(bound, abs=0.6 * bound)
    without = convnet_model()
    fit_familiarity(without, features, labels, [None] * len(labels))
    assert fraction_below(without, new, bound) > fraction_below(model, new, bound)


@pytest.mark.parametrize("kind", ["other directions", "far along known ones"])
def test_other_features_are_not_familiar(kind):
    features, labels, speakers = voices(12, 25, seed=3)
    model = convnet_model()
    fit_familiarity(model, features, labels, speakers)
    random = np.random.default_rng(9)
    other = {
        "other directions": features[:40] + torch.from_numpy(random.normal(0, 3, (40, WIDTH))).float(),
        "far along known ones": 6 * voices(10, 4, seed=4)[0],
    }[kind]
    assert fraction_below(model, other, 0.05) > 0.95


def test_the_same_clips_and_seed_give_the_same_distribution():
    data = voices(8, 20, seed=5)
    models = [convnet_model(seed=seed) for seed in (0, 1)]
    for model in models:
        fit_familiarity(model, *data, seed=7)
    first, second = (model.familiarity.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_a_sample_of_many_clips_is_used(monkeypatch):
    monkeypatch.setattr(familiarity, "MAX_CLIPS", 100)
    features, labels, speakers = voices(10, 30, seed=6)
    features[7] = np.nan  # would make all means NaN if it were drawn
    model = convnet_model()
    seeds = [seed for seed in range(5) if 7 not in np.random.default_rng(seed).permutation(300)[:100]]
    fit_familiarity(model, features, labels, speakers, seed=seeds[0])
    assert torch.isfinite(model.familiarity.class_means).all()


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_class_without_clips_is_never_the_nearest(missing):
    features, labels, speakers = voices(8, 20, seed=8)
    labels = [(missing + 1) % 4 if label == missing else label for label in labels]
    model = convnet_model()
    fit_familiarity(model, features, labels, speakers)
    expected = model.familiarity.distance(features)
    means = model.familiarity.class_means
    others = means[[label for label in range(4) if label != missing]]
    assert torch.isfinite(means).all()
    assert any(torch.equal(means[missing], mean) for mean in others)
    model.familiarity.class_means = others
    assert torch.equal(model.familiarity.distance(features), expected)


def test_constant_features_are_ignored():
    features, labels, speakers = voices(8, 20, seed=10)
    features[:, [3, 50]] = 0.25
    model = convnet_model()
    fit_familiarity(model, features, labels, speakers)
    assert (model.familiarity.scale == 0).nonzero().flatten().tolist() == [3, 50]
    changed = features.clone()
    changed[:, 50] = 99.0
    torch.testing.assert_close(model.familiarity(changed), model.familiarity(features))


@pytest.mark.parametrize(("count", "value"), [(5, None), (2, None), (60, 1.5)])
def test_too_few_or_identical_clips_leave_the_model_unchanged(count, value, caplog):
    features, labels, speakers = voices(10, 6, seed=11)
    features = features[:count] if value is None else torch.full((count, WIDTH), value)
    model = convnet_model()
    keys = {*model.state_dict()}
    fit_familiarity(model, features, labels[:count], speakers[:count])
    assert not model.config.familiarity and {*model.state_dict()} == keys
    assert "predictions have no familiarity" in caplog.text


def test_clips_are_held_out_if_there_is_only_one_speaker():
    features, labels, _ = voices(1, 80, seed=12)
    model = convnet_model()
    fit_familiarity(model, features, labels, ["one"] * 80)
    assert 0.02 < 1 - model.familiarity(features).mean() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("changes", first_fast([{}, {"fusion": "attention"}]))
def test_familiarity_is_fitted_to_the_clips_of_a_trainer(changes, tmp_path):
    trainer = make_trainer(tmp_path, model=tiny_model(**changes))
    part = clips(48).add_column("speaker", [f"{row % 6}" for row in range(48)]).with_format("torch")
    before = trainer.model.eval()(**tiny_images()).logits
    fit_feature_statistics(trainer, part)
    trainer.save_model(str(tmp_path))
    model = load_model(tmp_path).eval()
    torch.testing.assert_close(model(**tiny_images()).logits, before)
    pooled = pooled_features(trainer, part)
    assert 0.1 < model.familiarity(pooled.features).mean() < 0.99
    assert trainer.predict(part).predictions.shape == (48, 4)  # predictions do not include familiarity


def test_training_from_a_checkpoint_starts_without_familiarity(tmp_path):
    data = voices(8, 20, seed=13)
    model = convnet_model()
    model.save_pretrained(tmp_path / "without")
    fit_familiarity(model, *data)
    model.save_pretrained(tmp_path / "with")
    started = []
    for name in ("without", "with"):
        chosen = ModelArguments(model_name_or_path=str(tmp_path / name))
        started.append(make_model(make_config(chosen), chosen))
        assert started[-1].familiarity is None and not started[-1].config.familiarity
    assert started[0].state_dict().keys() == started[1].state_dict().keys()
    assert starting_weights(started[0], chosen) == starting_weights(started[1], chosen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Runs the demo recipe with two altered copies of each clip."""
    folder = tmp_path_factory.mktemp("trained")
    write_demo_corpus(folder / "demo", n_voices=6, clips_per_emotion=3)
    flags = {
        "data_dir": folder / "demo", "cache_dir": folder / "cache", "output_dir": folder / "out",
        "num_train_epochs": 2, "learning_rate": 1e-3, "preprocessing_num_workers": 1, "report_to": "none",
        "waveform_copies": 2,
    }  # fmt: skip
    main([str(ROOT / "configs" / "demo.yaml"), *(f"--{name}={value}" for name, value in flags.items())])
    return folder


@pytest.mark.slow
def test_a_run_saves_familiarity_and_noise_is_less_familiar_than_its_clips(trained):
    assert any(name.startswith("familiarity.") for name in load_file(trained / "out" / "model.safetensors"))
    classify = load_pipeline(str(trained / "out"), "cpu", min_familiarity=0.0)
    files = sorted(map(str, (trained / "demo").rglob("*.wav")))
    of_clips = [rows[0]["familiarity"] for rows in classify(files)]
    rate = classify.feature_extractor.sampling_rate
    noises = [np.random.default_rng(seed).normal(0, 0.1, 2 * rate).astype(np.float32) for seed in range(6)]
    of_noises = [rows[0]["familiarity"] for rows in classify(noises)]
    assert np.mean(of_clips) > 0.3
    assert max(of_noises) <= 0.02
    assert {rows[0]["label"] for rows in classify(noises, min_familiarity=0.05)} == {"unfamiliar"}


@pytest.mark.slow
def test_familiarity_is_also_fitted_to_altered_copies(trained, monkeypatch, tmp_path):
    from ser.training import pooled_statistics, run  # run passes the trainer and its training clips

    results = {}

    def record(trainer, part):
        originals = pooled_features(trainer, part)
        results["all"] = features_with_copies(trainer, part, originals), originals
        monkeypatch.setattr(pooled_statistics, "MAX_VERSIONS", 20)
        results["some"] = features_with_copies(trainer, part, originals)

    monkeypatch.setattr(run, "fit_feature_statistics", record)
    flags = {
        "data_dir": trained / "demo", "cache_dir": trained / "cache", "output_dir": tmp_path, "max_train_samples": 24,
        "num_train_epochs": 1, "preprocessing_num_workers": 1, "report_to": "none",
        "waveform_copies": 2,
    }  # fmt: skip
    main([str(ROOT / "configs" / "demo.yaml"), *(f"--{name}={value}" for name, value in flags.items())])
    (features, labels, speakers), originals = results["all"]
    assert len(features) == len(labels) == len(speakers) == 72
    assert labels == originals.labels * 3 and speakers == originals.speakers * 3
    torch.testing.assert_close(features[:24], originals.features)
    for copies in (features[24:48], features[48:]):
        assert ((copies - features[:24]).abs().amax(1) > 1e-4).sum() > 18  # few copies are unchanged
    assert not torch.allclose(features[24:48], features[48:])
    assert len(results["some"][0]) == len(results["some"][1]) == len(results["some"][2]) == 20
