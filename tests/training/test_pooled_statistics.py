"""Tests the statistics of the pooled features of training clips, which are saved with a model."""

import datasets
import numpy as np
import pytest
import torch

from modeling_maxmvit import FeatureStatistics, MaxMViTForAudioClassification, MaxMViTModel
from ser.arguments import ModelArguments
from ser.data.corpora.loading import load_corpus
from ser.models import load_model, make_config, make_model, starting_weights
from ser.training import pooled_statistics
from ser.training.pooled_statistics import fit_feature_statistics, pooled_features, population_statistics
from ser.utils import DataError
from tests.helpers.streaming import trainer_of
from tests.helpers.tiny import convnet_model, tiny_images
from tests.helpers.training import clips, make_trainer

KEYS = {f"maxmvit.feature_statistics.{name}" for name in ("mean", "deviation", "speaker_deviation", "largest_spread")}


def clips_of(speakers: list, seed: int = 0) -> datasets.Dataset:
    return clips(len(speakers), seed).add_column("speaker", speakers).with_format("torch")


def test_pooled_features_are_those_of_the_model_in_the_order_of_the_table(tmp_path):
    trainer, part = make_trainer(tmp_path), clips_of([*"abcabca", None, *"bc"])
    found = pooled_features(trainer, part)
    images = {name: torch.stack([clip[name] for clip in part]) for name in ("cqt_values", "mel_values")}
    with torch.no_grad():
        expected = trainer.model.eval().maxmvit(**images).pooler_output
    torch.testing.assert_close(found.features, expected, rtol=0, atol=1e-5)
    assert found.labels == part["label"][:].tolist() and found.speakers == [*"abcabca", None, *"bc"]
    assert not trainer.model.maxmvit._forward_hooks


def test_features_of_streamed_clips_are_those_of_the_table(streamed_corpus, streamed_shards, tmp_path):
    whole = load_corpus(str(streamed_shards), cache_dir=str(tmp_path))
    streamed, read = trainer_of(streamed_corpus, tmp_path), trainer_of(whole, tmp_path, streaming=False)
    one, other = (pooled_features(each, data.clips.select(range(7, 18)))
                  for each, data in ((streamed, streamed_corpus), (read, whole)))  # fmt: skip
    assert torch.equal(one.features, other.features) and one.features.shape[0] == 11
    assert one.speakers == other.speakers and {*one.speakers} == {*"0123"}


@pytest.mark.parametrize("counts", [{"a": 1, "b": 9}, {"a": 4, "b": 2, None: 3}])
def test_every_speaker_has_the_same_weight(counts):
    rng = np.random.default_rng(0)
    of = {speaker: rng.normal(i, 1 + i, (count, 3)) for i, (speaker, count) in enumerate(counts.items())}
    speakers = [speaker for speaker, count in counts.items() for _ in range(count)]
    found = population_statistics(torch.tensor(np.concatenate([*of.values()])), speakers)
    means = np.stack([values.mean(0) for values in of.values()])
    mean = means.mean(0)
    variance = np.mean([((values - mean) ** 2).mean(0) for values in of.values()], axis=0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.deviation, np.sqrt(variance), rtol=1e-5)
    np.testing.assert_allclose(found.speaker_deviation, means.std(0), rtol=1e-5)
    assert not np.allclose(mean, np.concatenate([*of.values()]).mean(0), atol=1e-3)
    assert found.largest_spread == 0  # there are too few speakers


@pytest.mark.parametrize("seed", [0, 1])
def test_clips_of_two_speakers_spread_more_than_those_of_any_speaker(seed):
    rng = np.random.default_rng(seed)
    voices = rng.normal(0, [3.0] * 4 + [0.1] * 60, (12, 64))  # speakers differ in the first four features
    voices[10:, :4] = [[4.0], [-4.0]]
    clips_of = [voice + rng.normal(0, 1, (20, 64)) for voice in voices]
    features = torch.tensor(np.concatenate(clips_of[:10]))
    found = population_statistics(features, [row // 20 for row in range(200)])
    for clips_of_one in clips_of[10:]:
        assert found.spread(torch.tensor(clips_of_one).std(0)) < 1.3 * float(found.largest_spread)
    two = torch.tensor(np.concatenate(clips_of[10:])).std(0)
    assert found.spread(two) > 1.5 * float(found.largest_spread)


@pytest.mark.slow
def test_fitting_saves_the_statistics_and_does_not_change_the_logits(tmp_path):
    trainer, part = make_trainer(tmp_path), clips_of([*"aaaaab"])
    before = trainer.model.eval()(**tiny_images()).logits
    keys = {*trainer.model.state_dict()}
    fit_feature_statistics(trainer, part)
    trainer.save_model(str(tmp_path))
    model = load_model(tmp_path).eval()
    assert model.config.feature_statistics and {*model.state_dict()} - keys == KEYS
    torch.testing.assert_close(model(**tiny_images()).logits, before)
    expected = population_statistics(*pooled_features(trainer, part)[::2]).state_dict()
    base, report = MaxMViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    for name, value in expected.items():
        torch.testing.assert_close(model.maxmvit.feature_statistics.state_dict()[name], value)
        torch.testing.assert_close(base.feature_statistics.state_dict()[name], value)


@pytest.mark.slow
def test_a_checkpoint_without_its_statistics_is_refused(tmp_path):
    model = convnet_model()
    model.config.feature_statistics = True
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="lacks 4 weight.*feature_statistics"):
        load_model(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path)  # this only warns, since the defaults are valid
    assert (
        loaded.maxmvit.feature_statistics.mean.eq(0).all() and loaded.maxmvit.feature_statistics.deviation.eq(1).all()
    )


@pytest.mark.slow
def test_training_that_starts_from_a_checkpoint_starts_without_its_statistics(tmp_path):
    model = convnet_model()
    model.base_model.set_feature_statistics(FeatureStatistics(model.base_model.num_features))
    model.save_pretrained(tmp_path / "with")
    model.base_model.set_feature_statistics(None)
    model.save_pretrained(tmp_path / "without")
    started = []
    for name in ("with", "without"):
        chosen = ModelArguments(model_name_or_path=str(tmp_path / name))
        started.append(make_model(make_config(chosen), chosen))
        assert not started[-1].config.feature_statistics and started[-1].maxmvit.feature_statistics is None
    assert started[0].state_dict().keys() == started[1].state_dict().keys()
    assert starting_weights(started[0], chosen) == starting_weights(started[1], chosen)


def test_a_model_that_reads_tokens_gets_no_statistics(tmp_path):
    for changes in ({"fusion": "attention"}, {"head": "decoder"}):
        trainer = make_trainer(tmp_path, model=convnet_model(**changes))
        fit_feature_statistics(trainer, clips_of([*"aabb"]))
        assert not trainer.model.config.feature_statistics and not KEYS & {*trainer.model.state_dict()}


@pytest.mark.slow
def test_the_same_sample_of_many_clips_is_drawn_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(pooled_statistics, "MAX_CLIPS", 6)
    means, part = [], clips_of([f"{i % 5}" for i in range(20)])
    for _ in range(2):
        trainer = make_trainer(tmp_path)
        fit_feature_statistics(trainer, part)
        means.append(trainer.model.maxmvit.feature_statistics.mean)
    assert torch.equal(*means)
    whole = population_statistics(*pooled_features(trainer, part)[::2]).mean
    assert not torch.equal(means[0], whole)
