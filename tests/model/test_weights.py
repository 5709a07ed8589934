"""Tests the shipped weights: their files, size, code, settings, card and predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pytest import approx

from ser.models import load_pipeline, shipped_weights
from tests.helpers.tiny import voice

ROOT = Path(__file__).parents[2]
SIZES = {"ravdess": 24e6, "ravdess_small": 12e6}  # bytes at most
RECIPES = {"ravdess": "ravdess_late", "ravdess_small": "ravdess_small"}
QUOTED = {"ravdess": {"ravdess/emobox-all"}, "ravdess_small": {"ravdess/emobox-all", "ravdess/luna-jimenez-all"}}
EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise"]


@pytest.fixture(scope="module", params=SIZES)
def weights(request) -> Path:
    return ROOT / "weights" / request.param


@pytest.fixture(scope="module")
def classify(weights):
    return load_pipeline(str(weights))


def test_the_larger_model_is_the_default():
    assert Path(shipped_weights()).resolve() == ROOT / "weights" / "ravdess"
    assert {path.name for path in (ROOT / "weights").iterdir() if path.is_dir()} == set(SIZES)


def test_the_weights_are_small_and_contain_no_training_state(weights):
    names = {path.name for path in weights.iterdir()}
    assert {"config.json", "preprocessor_config.json", "model.safetensors", "README.md", "metrics.json"} <= names
    assert not names & {"runs", "checkpoints.json"} and not [name for name in names if name.startswith("checkpoint-")]
    assert sum(path.stat().st_size for path in weights.iterdir()) <= SIZES[weights.name]


def test_the_code_beside_the_weights_links_to_the_root(weights):
    """Links avoid a second copy to maintain; an installation has files instead."""
    links = {path.name: path.readlink().as_posix() for path in weights.glob("*.py")}
    assert links == {path.name: f"../../{path.name}" for path in ROOT.glob("*_maxmvit.py")}


@pytest.mark.slow
def test_each_folder_predicts_with_its_own_code_and_without_slow_imports():
    """Neither timm, of which these models use nothing, nor the filters of librosa and scipy are imported."""
    code = """
import sys
import numpy as np
from transformers import pipeline
before = set(sys.modules)
y = np.sin(np.arange(88_200) * 0.03).astype("float32")
for folder in sys.argv[1:]:
    classify = pipeline("audio-classification", model=folder, trust_remote_code=True)
    rows = classify({"array": y, "sampling_rate": 44_100}, top_k=8)
    assert len(rows) == 8 and abs(sum(row["score"] for row in rows) - 1) < 1e-5, rows
    assert type(classify.model).__module__.startswith("transformers_modules."), type(classify.model)
    print(folder, *sorted({"timm", "numba", "scipy.signal", "sklearn"} & (set(sys.modules) - before)))
"""
    folders = [f"weights/{name}" for name in SIZES]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, folders), done.stderr


def test_the_settings_are_those_of_the_recipe(weights, classify):
    recipe = yaml.safe_load((ROOT / "configs" / f"{RECIPES[weights.name]}.yaml").read_text())
    run = json.loads((weights / "metrics.json").read_text())
    assert run["corpus"]["name"] == "ravdess" and run["corpus"]["rows_used"]["train"] == 1440
    trained = run["training_arguments"]
    for name in ("num_train_epochs", "learning_rate", "ema_decay", "waveform_copies", "training_window"):
        assert trained[name] == recipe[name], name
    extractor, config = classify.feature_extractor, classify.model.config
    chosen = recipe["feature_extractor_kwargs"]
    assert {name: getattr(extractor, name) for name in chosen} == chosen
    for name in ("fusion", "speech_share", "speech_encoder", "speech_pooling", "hidden_size"):
        assert name not in recipe or getattr(config, name) == recipe[name], name
    assert [*config.id2label.values()] == EMOTIONS
    assert all(tensor.dtype == torch.float32 for tensor in classify.model.parameters())


def test_the_card_quotes_the_folds_and_the_licence(weights):
    card = (weights / "README.md").read_text(encoding="utf-8")
    quoted = json.loads((weights / "metrics.json").read_text())["quoted_scores"]
    assert {quote["protocol"] for quote in quoted} == QUOTED[weights.name]
    for quote in quoted:
        assert f"{quote['mean']['UA']:.3f}" in card and f"{quote['pooled']['UA']:.3f}" in card
    assert "license: cc-by-nc-sa-4.0" in card
    assert f"python run_ser.py configs/{RECIPES[weights.name]}.yaml" in card


def test_only_the_larger_model_supports_enrollment_and_familiarity(weights, classify):
    config = classify.model.config
    assert config.familiarity == config.feature_statistics == (weights.name == "ravdess")


def test_any_clip_is_classified(classify):
    rows = classify(voice(2.0), top_k=8)
    assert sorted(row["label"] for row in rows) == sorted(EMOTIONS) and sum(row["score"] for row in rows) == approx(1)
    rows = classify(np.concatenate([voice(4.0), np.zeros(3 * 44_100, np.float32)]), window_s=3.0, hop_s=1.0)
    assert rows[-1]["label"] == "silence" and {row["label"] for row in rows} <= {*EMOTIONS, "silence"}


@pytest.mark.slow
@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR is not set")
def test_the_weights_recognise_their_training_clips(classify):
    clips = sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))[::29]
    results = classify([str(clip) for clip in clips])
    right = [EMOTIONS[int(clip.stem[6:8]) - 1] == rows[0]["label"] for clip, rows in zip(clips, results, strict=True)]
    assert np.mean(right) > 0.75
