import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import ablation, streaming
from benchmarks.results import take_json, write_results
from benchmarks.speakers import speakers_of
from ser.models import make_config
from ser.training.run import parse_arguments

ROOT = Path(__file__).parents[2]
DRAW_ONLY = {"features_pictures"}


def test_json_is_taken_out_of_flags_that_are_handed_on():
    assert take_json(["configs/demo.yaml", "--json", "a.json", "--fold", "2"]) == (
        Path("a.json"),
        ["configs/demo.yaml", "--fold", "2"],
    )
    assert take_json(["--js", "a.json"]) == (None, ["--js", "a.json"])


def test_nothing_is_written_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_results(None, {"took_s": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"results", "speakers"} - DRAW_ONLY)
)
def test_every_benchmark_keeps_its_figures(name):
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert "write_results(" in source and ("add_json(" in source or "take_json(" in source)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_an_ablation_names_the_part_that_a_run_lacks(tmp_path, part):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(
        SystemExit, match=f"has no .*predictions.csv, since it has no {part} set: compare by another --part"
    ):
        ablation.run(Path("recipe.yaml"), {}, [], tmp_path, part)


def test_an_empty_part_has_no_speakers(tmp_path):
    clips = [{"file": "a.wav", "part": "train", "speaker": "a"}]
    (tmp_path / "splits.json").write_text(json.dumps({"clips": clips}))
    assert speakers_of(tmp_path, "train") == ["a"]
    with pytest.raises(SystemExit, match="the test part of .* is empty"):
        speakers_of(tmp_path)


@pytest.mark.slow
def test_figures_come_with_command_machine_and_versions(tmp_path):
    flags = ["--clips", "2", "--batch_size", "2", "--seconds", "0.1", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.pipeline_overhead", *flags, "--json", tmp_path / "made" / "a.json"]
    printed = subprocess.run(command, cwd=ROOT, env=os.environ, check=True, capture_output=True, text=True).stdout
    kept = json.loads((tmp_path / "made" / "a.json").read_text())
    assert kept["command"].startswith("python -m benchmarks.pipeline_overhead --clips 2")
    assert kept["machine"]["cores"] == os.cpu_count() and "torch" in kept["versions"]
    assert f"model {kept['figures']['model_s'] * 1e3:.1f} ms" in printed


def test_the_variations_that_come_with_the_code_are_of_flags_that_there_are():
    recipes = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = ROOT / "configs" / f"{path.stem.partition('-')[0]}.yaml"
        for name, changes in ablation.read_variations(path, recipe.stem).items():
            flags = [str(recipe), "--output_dir", "unused", *ablation.flags_of(changes)]
            model_args, data_args, args = parse_arguments(flags)
            assert make_config(model_args).branch_names, name


@pytest.mark.slow
def test_memory_of_a_fusion_with_a_head(tmp_path):
    small = {"cqt_backbone": "convnet", "mel_backbone": "convnet", "image_size": 64, "hidden_size": 16}
    flags = ["--pairs", "gated+mlp", "attention+decoder", "--config", json.dumps(small)]
    command = [sys.executable, "-m", "benchmarks.base_model_memory", *flags, "--json", tmp_path / "a.json"]
    printed = subprocess.run(command, cwd=ROOT, env=os.environ, check=True, capture_output=True, text=True).stdout
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert list(figures) == ["gated+mlp", "attention+decoder"] and "attention+decoder:" in printed
    assert figures["gated+mlp"]["parameters"] < figures["attention+decoder"]["parameters"]
    assert all(0.1 < taken["peak_gib"] < 3 for taken in figures.values())


def test_the_memory_of_a_process_has_that_of_its_children():
    before = streaming.memory_of(psutil.Process())
    held = "held = b'1' * 2**28; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        after = streaming.memory_of(psutil.Process())
        child.communicate(b"\n")
    for kind in ("rss_gib", "pss_gib"):
        assert 0.25 < after[kind] - before[kind] < 0.35
