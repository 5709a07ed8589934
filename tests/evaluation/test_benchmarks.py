"""The benchmarks: their common interface, shared helpers, and small runs of those without a separate test file."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import soundfile
import torch

from audio_maxmvit import read_audio
from benchmarks import baselines, export, memory, pipeline, recipes, results, robustness
from benchmarks.results import speakers_of, write_results
from ser.cli import parse_arguments
from ser.data.corpora.ravdess import RAVDESS_EMOTIONS
from ser.models import load_pipeline, make_config
from ser.training.familiarity import fit_familiarity
from tests.helpers.corpora import write_ravdess
from tests.helpers.speech import built
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

ROOT = Path(__file__).parents[2]
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"results"})


def start(module, monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    module.main()


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_help_and_writes_its_figures(name, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit, match="^0$"):
        start(module, monkeypatch, "--help")
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert any(f"{call}(" in source for call in ("add_json", "add_command"))
    assert "write_results(" in source or "    run(parser" in source


def measurements_of(name: str) -> list[str]:
    """Returns the sub-commands of a benchmark, read from its source."""
    source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    return re.findall(r'add_command\(\s*commands,\s*"(\w+)"', source)


@pytest.mark.parametrize(("name", "measured"), [(name, each) for name in NAMES for each in measurements_of(name)])
def test_every_measurement_has_help_and_is_listed_by_its_benchmark(name, measured, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"python -m benchmarks.{name} {measured}" in module.__doc__
    with pytest.raises(SystemExit, match="^0$"):
        start(module, monkeypatch, measured, "--help")
    assert "--json FILE" in capsys.readouterr().out


def test_mentioned_commands_of_benchmarks_exist():
    """Except in the changelog of earlier versions, which keeps their commands."""
    texts = {}
    for pattern in ("*.md", "docs/*.md", "weights/*/README.md", "configs/**/*.yaml", "ser/**/*.py", "tests/**/*.py"):
        texts |= {path: path.read_text(encoding="utf-8").partition("\n## 0.2.0")[0] for path in ROOT.glob(pattern)}
    found = [
        (path.name, *mention)
        for path, text in texts.items()
        for mention in re.findall(r"(python -m )?\bbenchmarks[./]([a-z]\w*)(?:\.py)?(?:\s+(\w+))?", text)
    ]
    assert len(found) > 30
    for file, command, name, measured in found:
        assert name in [*NAMES, "results"], f"{file}: benchmarks.{name}"
        if command and measurements_of(name):
            assert measured in measurements_of(name), f"{file}: benchmarks.{name} {measured}"


def test_unknown_options_of_a_measurement_are_passed_on_or_refused(tmp_path, monkeypatch):
    found = []
    for takes_flags in (True, False):
        parser, commands = results.parser_of("doc")
        measure = lambda args: found.append(args.flags) or {"n": len(args.flags)}  # noqa: E731
        results.add_command(commands, "speed", measure, "How fast.", takes_flags=takes_flags)
        flags = ["a.yaml", "--data_dir", "b", "--json", str(tmp_path / f"{takes_flags}.json"), "--fold", "2"]
        monkeypatch.setattr(sys, "argv", ["x.py", "speed", *flags, "--js", "c"])
        if takes_flags:
            results.run(parser)
        else:
            with pytest.raises(SystemExit):
                results.run(parser)
    assert found == [["a.yaml", "--data_dir", "b", "--fold", "2", "--js", "c"]]
    assert json.loads((tmp_path / "True.json").read_text())["figures"] == {"n": 7}
    assert not (tmp_path / "False.json").exists()


@pytest.mark.parametrize(
    ("name", "measured"),
    [("features", "accuracy"), ("features", "scale"), ("pipeline", "live"), ("baselines", "classical")],
)
def test_a_missing_corpus_is_an_error_that_names_the_remedy(name, measured, monkeypatch, capsys):
    monkeypatch.delenv("SER_RAVDESS_DIR", raising=False)
    with pytest.raises(SystemExit, match="^2$"):
        start(importlib.import_module(f"benchmarks.{name}"), monkeypatch, measured)
    assert "name the folder of RAVDESS, or set SER_RAVDESS_DIR" in capsys.readouterr().err


def test_nothing_is_written_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_results(None, {"took_s": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["validation", "test"])
def test_an_ablation_names_the_part_that_a_run_lacks(tmp_path, part):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(
        SystemExit, match=f"has no .*predictions.csv, since it has no {part} set: compare by another --part"
    ):
        recipes.train_variation(Path("recipe.yaml"), {}, [], tmp_path, part)


def test_an_empty_part_has_no_speakers(tmp_path):
    clips = [{"file": "a.wav", "part": "train", "speaker": "a"}]
    (tmp_path / "splits.json").write_text(json.dumps({"clips": clips}))
    assert speakers_of(tmp_path, "train") == ["a"]
    with pytest.raises(SystemExit, match="the test part of .* is empty"):
        speakers_of(tmp_path)


def test_figures_come_with_command_machine_and_versions(tmp_path, monkeypatch, capsys):
    flags = ["--clips", 2, "--batch_size", 2, "--seconds", 0.1, "--rounds", 1]
    start(pipeline, monkeypatch, "overhead", *flags, "--json", tmp_path / "made" / "a.json")
    kept = json.loads((tmp_path / "made" / "a.json").read_text())
    assert kept["command"].startswith("python -m benchmarks.pipeline overhead --clips 2")
    assert kept["machine"]["cores"] == os.cpu_count() and "torch" in kept["versions"]
    assert f"model {kept['figures']['model_s'] * 1e3:.1f} ms" in capsys.readouterr().out


@pytest.mark.slow
def test_the_shipped_variations_use_existing_options():
    paths = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
    assert paths
    for path in paths:
        recipe = ROOT / "configs" / f"{path.stem.partition('-')[0]}.yaml"
        for name, changes in recipes.read_variations(path, recipe.stem).items():
            flags = [str(recipe), "--output_dir", "unused", *recipes.flags_of(changes)]
            model_args, data_args, args = parse_arguments(flags)
            assert make_config(model_args).branch_names, name


@pytest.mark.slow
def test_memory_of_a_fusion_with_a_head(tmp_path, monkeypatch, capsys):
    small = {"cqt_backbone": "convnet", "mel_backbone": "convnet", "image_size": 64, "hidden_size": 16}
    flags = ["--pairs", "attention+decoder", "--config", json.dumps(small), "--json", tmp_path / "a.json"]
    start(memory, monkeypatch, "model", *flags)
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert list(figures) == ["attention+decoder"] and "attention+decoder:" in capsys.readouterr().out
    assert 0.1 < figures["attention+decoder"]["peak_gib"] < 3
    other = memory.step("gated+mlp", 2, small)
    assert other["parameters"] < figures["attention+decoder"]["parameters"]


def test_the_memory_of_a_process_includes_that_of_its_children():
    """The parent is a separate process, since this one may have children of other tests."""
    held = "held = b'1' * 2**28; print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        own, both = psutil.Process(process.pid).memory_full_info(), memory.memory_of(psutil.Process(process.pid))
        process.communicate(b"\n")
    assert 0.25 < both["rss_gib"] - own.rss / 2**30 < 0.35
    assert 0.25 < both["pss_gib"] - own.pss / 2**30 < 0.35


@pytest.mark.slow
def test_familiarity_of_changed_clips_and_of_sounds(tmp_path, monkeypatch, capsys):
    """Two test speakers and eight others; familiarity is fitted to clips like the test clips."""
    folder, model, extractor = tmp_path / "model", convnet_model(8), tiny_feature_extractor()
    for actor in range(1, 11):
        (tmp_path / "ravdess" / f"Actor_{actor:02d}").mkdir(parents=True)
        for emotion in range(1, 9):
            clip = voice(0.5, f0=80.0 + 9 * actor, sampling_rate=16_000, seed=emotion)
            name = f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav"
            soundfile.write(tmp_path / "ravdess" / f"Actor_{actor:02d}" / name, clip, 16_000)
    waveforms = [voice(0.5, f0=80.0 + 5 * index, seed=index) for index in range(40)]
    with torch.no_grad():
        images = extractor(waveforms, sampling_rate=44_100, return_tensors="pt")
        features = model.maxmvit(**images).pooler_output
    model.config.id2label = dict(enumerate(RAVDESS_EMOTIONS))
    fit_familiarity(model, features, [index % 4 for index in range(40)], [index // 4 for index in range(40)])
    for part in (model, extractor):
        part.save_pretrained(folder)
    with pytest.raises(SystemExit, match="has no splits.json"):
        robustness.main(["familiarity", str(folder), str(tmp_path / "ravdess")])
    clips = [{"file": f"{actor}.wav", "part": "test", "speaker": actor} for actor in ("03", "04")]
    (folder / "splits.json").write_text(json.dumps({"clips": clips}))
    monkeypatch.setattr(robustness, "SOUNDS", 3)
    monkeypatch.setattr(robustness, "BABBLE", 3)
    robustness.main(["familiarity", str(folder), str(tmp_path / "ravdess"), "--json", str(tmp_path / "a.json")])
    rows = {row["input"]: row for row in json.loads((tmp_path / "a.json").read_text())["figures"]["inputs"]}
    assert rows["clean"] == {
        "input": "clean",
        "inputs": 16,
        "AUROC": None,
        "turned_away": rows["clean"]["turned_away"],
    }
    assert {name: rows[name]["inputs"] for name in ("sounds without speech", "babble of 6 voices", "vorbis")} == {
        "sounds without speech": 3, "babble of 6 voices": 3, "vorbis": 16,
    }  # fmt: skip
    # The level of a clip changes its images by rounding alone, which decides in 16 of 256 pairs, those of a clip and
    # itself, which one is more familiar.
    assert rows["gain +10 dB"]["AUROC"] == pytest.approx(0.5, abs=0.5 * 16 / 256 + 1e-9)
    classify = load_pipeline(str(folder), "cpu")
    clips = [read_audio(path, 44_100) for path in sorted((tmp_path / "ravdess" / "Actor_03").iterdir())]
    louder = [10**0.5 * clip for clip in clips]
    clean, changed = (robustness.distances(classify, each) for each in (clips, louder))
    torch.testing.assert_close(changed, clean, rtol=1e-4, atol=0)
    assert rows["babble of 6 voices"]["AUROC"] > 0.9 > rows["gain -20 dB"]["AUROC"]
    assert "16 clips of actors 03, 04" in capsys.readouterr().out


@pytest.mark.slow
def test_classifiers_of_an_encoder_are_compared_on_validation_speakers(encoders, tmp_path, monkeypatch, capsys):
    write_ravdess(tmp_path / "corpus")
    flags = [
        "--dataset_name=ravdess", f"--data_dir={tmp_path / 'corpus'}", f"--cache_dir={tmp_path / 'cache'}",
        f"--speech_encoder={encoders['whisper']}", "--freeze_speech_encoder", "--closed_form_classifier",
        "--speech_pooling=statistics", "--speech_layers=concat", "--cqt_backbone=none", "--mel_backbone=none",
        "--head=linear", "--validation_share=0.2", "--use_cpu", f"--output_dir={tmp_path / 'out'}", "--folds", "2",
        "--eval_strategy=no", "--load_best_model_at_end=false", "--lr_scheduler_type=cosine",
        "--early_stopping_patience=0",
    ]  # fmt: skip
    monkeypatch.setattr(baselines, "C", (1e-3,))
    monkeypatch.setattr(baselines, "SHRINKAGES", (0.1, 0.9))
    start(baselines, monkeypatch, "speech", *flags, "--json", tmp_path / "a.json")
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    analysis = [f"discriminant analysis, shrinkage {kind}" for kind in ("0.1", "0.9", "chosen in training")]
    assert list(figures) == [f"{name}, without copies" for name in ("logistic regression, C 0.001", *analysis)]
    assert all(list(by_fold) == ["2"] and 0 <= by_fold["2"] <= 1 for by_fold in figures.values())
    assert f"{analysis[0]}, without copies: UA {figures[f'{analysis[0]}, without copies']['2']:.3f}" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_the_padded_side_pads_the_inputs_of_the_encoder(encoders, tmp_path, seconds):
    """To 30 s for a real Whisper encoder, to 1 s for the tiny one."""
    for part in built(encoders["whisper"]):
        part.save_pretrained(tmp_path)
    lengths = {}
    for side in ("pipeline", export.PADDED):
        classify = load_pipeline(str(tmp_path), "cpu")
        export.prepare_side(classify, side)
        (clip,) = classify.feature_extractor.spectrograms([voice(seconds)])
        lengths[side] = classify.feature_extractor.waveform_inputs([clip])["input_values"].shape[-1]
    assert lengths["pipeline"] < lengths[export.PADDED] == 100
