"""Tables of scores: what is collected from runs, and scores that equal those of scikit-learn."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from benchmarks import tables

CLASSES = ["angry", "calm", "sad"]


def write_run(folder, fold: int, seed: int, skill: float) -> list[tuple[str, str]]:
    rng = np.random.default_rng(100 * seed + fold)
    rows, pairs = [], []
    for clip in range(60):
        label = CLASSES[clip % 3 if clip < 45 else 0]
        prediction = label if rng.random() < skill else CLASSES[rng.integers(3)]
        pairs.append((label, prediction))
        probabilities = {f"p_{name}": 0.7 if name == prediction else 0.15 for name in CLASSES}
        speaker = f"{fold}{clip % 4}"
        rows.append({"file": f"/data/f{fold}-{clip:02}.wav", "speaker": speaker, "label": label,
                     "prediction": prediction, **probabilities})  # fmt: skip
    path = folder / f"fold{fold}"
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps({"protocol": f"toy/two-groups-fold{fold}", "seed": seed}))
    with open(path / "predictions.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return pairs


@pytest.fixture
def results(tmp_path):
    pairs = {}
    for recipe, skill in (("good", 0.9), ("poor", 0.2)):
        for seed in (1, 2):
            folder = tmp_path / "out" / f"{recipe}{seed}"
            pairs[recipe, seed] = write_run(folder, 1, seed, skill) + write_run(folder, 2, seed, skill)
            tables.collect(folder, recipe, tmp_path / "results")
    return tmp_path / "results", pairs


def test_scores_are_those_of_scikit_learn(results):
    folder, pairs = results
    rows = {row["recipe"]: row for row in tables.rows_of(folder / "toy" / "two-groups")}
    assert list(rows) == ["good", "poor"]
    for recipe, row in rows.items():
        both = [tuple(zip(*pairs[recipe, seed], strict=True)) for seed in (1, 2)]
        assert row["UA"] == pytest.approx(np.mean([balanced_accuracy_score(*each) for each in both]))
        assert row["WA"] == pytest.approx(np.mean([accuracy_score(*each) for each in both]))
        assert (row["seeds"], row["folds"], row["clips"]) == (2, 2, 120)
        for unit in ("by_clip", "by_speaker"):
            low, high = row[unit]
            assert low < row["UA"] < high and high - low < 0.3


def test_differences_are_paired(results):
    folder, _ = results
    good, poor = tables.rows_of(folder / "toy" / "two-groups", against="poor")
    assert good["difference"] == pytest.approx(good["UA"] - poor["UA"]) and "difference" not in poor
    low, high = good["difference_interval"]
    assert low < good["difference"] < high and low > 0
    assert f"+{good['difference']:.3f}" in tables.markdown([good, poor])


def test_only_folds_of_all_seeds_count_and_files_name_no_folder(results):
    folder, _ = results
    (folder / "toy" / "two-groups" / "good" / "seed2" / "fold2.csv").unlink()
    (row,) = (row for row in tables.rows_of(folder / "toy" / "two-groups") if row["recipe"] == "good")
    assert (row["folds"], row["clips"]) == (1, 60)
    assert "/data" not in (folder / "toy" / "two-groups" / "good" / "seed1" / "fold1.csv").read_text()
