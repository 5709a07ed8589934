"""Adaptation to speakers in evaluation: evaluate_ser.py --adapt, and the benchmark of enrollment."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import adaptation
from modeling_maxmvit import FeatureStatistics
from ser.arguments import DataArguments
from ser.commands import evaluate as evaluate_ser
from ser.evaluation.adaptation import adapted_logits
from ser.training.pooled_statistics import PooledFeatures
from ser.utils import DataError
from tests.helpers.tiny import save_tiny, tiny_model
from tests.helpers.training import make_arguments

NAMES = ["neutral", "happy", "angry", "sad"]
VOICES = [f"voice_{number:02d}" for number in range(6)]


def model_of(seed: int, has_statistics: bool = True):
    model = tiny_model(len(NAMES), seed=seed)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: index for index, name in enumerate(NAMES)}
    if has_statistics:
        model.base_model.set_feature_statistics(FeatureStatistics(model.base_model.num_features))
    with torch.no_grad():
        model.classifier.out_proj.weight *= 15
    return model


@pytest.fixture(scope="module")
def run_folder(demo_corpus, feature_cache, tmp_path_factory):
    """Writes the folders of two folds of a run; the model of the second has no feature statistics."""
    folder = tmp_path_factory.mktemp("run")
    data = dataclasses.asdict(
        DataArguments(dataset_name=["demo"], data_dir=[str(demo_corpus)], cache_dir=str(feature_cache))
    )
    files = sorted(path.relative_to(demo_corpus).as_posix() for path in demo_corpus.rglob("*.wav"))
    for fold in (1, 2):
        place = folder / f"fold_{fold}"
        save_tiny(place, model_of(fold, has_statistics=fold == 1))
        tested = VOICES[2 * fold - 2 : 2 * fold]
        clips = [
            {"file": file, "speaker": next(voice for voice in VOICES if voice in file), "label": "sad",
             "part": "test" if any(voice in file for voice in tested) else "train"}
            for file in files
        ]  # fmt: skip
        (place / "splits.json").write_text(json.dumps({"protocol": f"demo/speaker-fold{fold}", "clips": clips}))
        training = make_arguments(place).to_sanitized_dict()
        (place / "metrics.json").write_text(json.dumps({"data_arguments": data, "training_arguments": training}))
    return folder


def evaluated(folder, demo_corpus, feature_cache, output, *flags) -> dict:
    where = ["--data_dir", demo_corpus, "--cache_dir", feature_cache, "--output_dir", output, "--use_cpu", "true"]
    evaluate_ser.main([str(flag) for flag in (folder, *where, *flags)])
    return json.loads((output / "metrics.json").read_text())


def pooled(speakers: list) -> PooledFeatures:
    width = model_of(0).base_model.num_features
    features = torch.randn(len(speakers), width, generator=torch.Generator().manual_seed(1))
    return PooledFeatures(features, [0] * len(speakers), speakers)


@pytest.mark.slow
@pytest.mark.parametrize("adapt", ["speaker", "table"])
@pytest.mark.parametrize("relevance", [0.0, 4.0])
def test_each_clip_is_classified_relative_to_its_group(adapt, relevance):
    model, clips = model_of(1), pooled([*"aabab"])
    found = adapted_logits(model, clips, adapt, relevance)
    for row, speaker in enumerate(clips.speakers):
        group = clips.features[
            [each for each, other in enumerate(clips.speakers) if adapt == "table" or other == speaker]
        ]
        shift = group.mean(0) * len(group) / (len(group) + relevance)  # the population's mean is 0
        with torch.no_grad():
            expected = model.classify_features(clips.features[row : row + 1] - shift)[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_clips_without_speakers_and_models_without_statistics_are_refused():
    with pytest.raises(DataError, match="2 of 5 have none: use --adapt table"):
        adapted_logits(model_of(1), pooled(["a", None, "b", None, "a"]), "speaker", 4.0)
    with pytest.raises(DataError, match="--adapt table: .* keeps no statistics"):
        adapted_logits(model_of(1, has_statistics=False), pooled(["a", None]), "table", 4.0)


@pytest.mark.slow
def test_an_adapted_score_has_its_own_protocol(run_folder, demo_corpus, feature_cache, tmp_path):
    model = run_folder / "fold_1"
    tested = ["--test_speakers", *VOICES[:2]]
    plain = evaluated(model, demo_corpus, feature_cache, tmp_path / "plain", *tested)
    scores = {
        adapt: evaluated(model, demo_corpus, feature_cache, tmp_path / adapt, *tested, "--adapt", adapt)
        for adapt in ("speaker", "table")
    }
    assert "adapt" not in plain and "adapted" not in plain["protocol"]
    for adapt, report in scores.items():
        assert report["protocol"] == f"{plain['protocol']}+adapted-{adapt}" and report["relevance"] == 4
    rows = {}
    for name in ("plain", "speaker", "table"):
        with open(tmp_path / name / "predictions.csv", newline="") as file:
            rows[name] = [[float(row[f"p_{label}"]) for label in NAMES] for row in csv.DictReader(file)]
    for one, other in (("plain", "speaker"), ("plain", "table"), ("speaker", "table")):
        assert np.abs(np.subtract(rows[one], rows[other])).max() > 1e-3


@pytest.mark.slow
def test_the_benchmark_gives_the_scores_of_evaluation(run_folder, demo_corpus, feature_cache, tmp_path, capsys):
    flags = ["--model_dir", str(run_folder), "--json", str(tmp_path / "out.json"), "--draws", "2"]
    # All clips are scored, and none is left to enroll.
    adaptation.main(["enrollment", *flags, "--scored", "8", "--sizes", "1"])
    assert "left out: 1, of which a speaker has 0 clips" in capsys.readouterr().err
    rows = {row["enrolled"]: row for row in json.loads((tmp_path / "out.json").read_text())["figures"]["rows"]}
    tested = ["--test_speakers", *VOICES[:2]]
    for name, more in (("none", []), (adaptation.ALL, ["--adapt", "speaker"])):
        report = evaluated(
            run_folder / "fold_1", demo_corpus, feature_cache, tmp_path / name.split()[0], *tested, *more
        )
        assert rows[name]["folds"][0] == pytest.approx(report["UA"]) and rows[name]["std"] == 0
    assert rows["none"]["folds"] != rows[adaptation.ALL]["folds"]


@pytest.mark.slow
def test_the_benchmark_prints_a_row_for_each_number_of_clips(run_folder, tmp_path, capsys):
    flags = ["--model_dir", str(run_folder), "--json", str(tmp_path / "out.json"), "--draws", "3"]
    adaptation.main(["enrollment", *flags, "--scored", "4", "--sizes", "1", "2", "32", "--relevance", "2"])
    printed = capsys.readouterr()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in printed.out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["none", "1", "2", adaptation.OTHERS, "1 neutral", adaptation.ALL]
    assert "left out: 32" in printed.err and "left out: 2 neutral" in printed.err
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["relevance"] == 2 and all(0 <= row["UA"] <= 1 and len(row["folds"]) == 2 for row in figures["rows"])


def test_a_folder_without_folds_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no fold_1"):
        adaptation.main(["enrollment", "--model_dir", str(tmp_path)])


@pytest.mark.parametrize(
    "labels, count, expected",
    [([0] * 4 + [1] * 8 + [2] * 8, 10, [2, 4, 4]), ([0, 1, 0, 1, 0, 1], 4, [2, 2]), ([0, 0, 1], 3, [2, 1])],
)
def test_scored_clips_are_of_all_classes_in_proportion(labels, count, expected):
    chosen = adaptation.stratified(labels, count)
    assert np.bincount([labels[place] for place in chosen]).tolist() == expected
