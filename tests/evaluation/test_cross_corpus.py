"""A small run of the benchmark that trains on each of two corpora and tests on each."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import recipes
from ser.commands.train import main
from tests.helpers.clips import write_sound
from tests.helpers.commands import ROOT
from tests.helpers.originals import TINY, recomputed, write_emodb, write_ravdess


def train_in_this_process(command: list[str], check: bool) -> subprocess.CompletedProcess:
    assert command[:2] == [sys.executable, str(ROOT / "run_ser.py")]
    main(command[2:])
    return subprocess.CompletedProcess(command, 0)


@pytest.mark.slow
def test_the_matrix_of_two_corpora(tmp_path, monkeypatch):
    recipe = tmp_path / "tiny.yaml"
    settings = {flag.removeprefix("--"): value for flag, value in zip(TINY[::2], TINY[1::2], strict=True)}
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    folders = [write_ravdess(tmp_path / "ravdess", 24), write_emodb(tmp_path / "emodb", ("03", "08", "09", "10"))]
    flags = [str(recipe), "--dataset_name", "ravdess", "emodb", "--data_dir", *folders, "--use_cpu"]
    flags += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    flags += ["--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(recipes, "subprocess", SimpleNamespace(run=train_in_this_process))
    recipes.main(["cross_corpus", *flags])
    with open(tmp_path / "out" / "table.csv", newline="", encoding="utf-8") as file:
        cells = {(row["trained_on"], row["tested_on"]): row for row in csv.DictReader(file)}
    assert {place: (row["protocol"], row["classes"], row["clips"]) for place, row in cells.items()} == {
        ("ravdess", "ravdess"): ("ravdess->ravdess/emobox-fold1-shared-8", "8", "32"),
        ("ravdess", "emodb"): ("ravdess->emodb/shared-6", "6", "24"),
        ("emodb", "ravdess"): ("emodb->ravdess/shared-6", "6", "144"),
        ("emodb", "emodb"): ("emodb->emodb/loso-fold1-shared-7", "7", "7"),
    }
    for (trained, tested), row in cells.items():
        with open(tmp_path / "out" / trained / f"on_{tested}" / "predictions.csv", newline="") as file:
            assert float(row["WA"]) == pytest.approx(recomputed(list(csv.DictReader(file)))["WA"], abs=1e-9)
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| ravdess | {float(cells['ravdess', 'ravdess']['UA']):.3f} (8) |" in table
    assert (tmp_path / "out" / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "found.json").read_text())["figures"]["cells"]) == 4

    def train_nothing(*args, **kwargs):
        raise AssertionError("trained twice")

    monkeypatch.setattr(recipes, "subprocess", SimpleNamespace(run=train_nothing))
    recipes.main(["cross_corpus", *flags])  # all runs are finished
    assert (tmp_path / "out" / "table.md").read_text() == table


def test_each_corpus_needs_a_folder(tmp_path: Path):
    write_sound(tmp_path / "a.wav", 0)
    with pytest.raises(SystemExit, match="names 1 folder.s. for 2 corpora"):
        corpora = ["--dataset_name", "ravdess", "emodb", "--data_dir", str(tmp_path)]
        recipes.main(["cross_corpus", "recipe.yaml", *corpora])
