"""Tests that the examples train, and that the pipeline loads the models that they save."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples import train_with_ser_trainer, train_with_trainer
from ser.data.corpora.demo import write_demo_corpus
from ser.models import load_pipeline

TINY = {"image_size": 32, "num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes class folders with one clip of each emotion for each of four voices."""
    path = tmp_path_factory.mktemp("demo")
    write_demo_corpus(path / "voices", n_voices=4, clips_per_emotion=1)
    for clip in sorted(path.glob("voices/**/*.wav")):
        emotion = next(name for name in ("neutral", "happy", "angry", "sad") if name in str(clip.relative_to(path)))
        (path / "classes" / emotion).mkdir(parents=True, exist_ok=True)
        clip.rename(path / "classes" / emotion / f"{clip.parent.name}_{clip.name}")
    return path / "classes"


@pytest.mark.slow
@pytest.mark.parametrize("example", [train_with_trainer, train_with_ser_trainer], ids=["Trainer", "SERTrainer"])
def test_an_example_trains_and_saves_a_model_that_predicts(example, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    trainer = example.main(str(folder), str(tmp_path / "out"), **TINY)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses and all(loss < 10 for loss in losses)
    drops_last = example is train_with_ser_trainer
    assert trainer.state.global_step == (2 if drops_last else 4)  # twelve clips, in batches of eight, twice
    classify = load_pipeline(str(tmp_path / "out"), "cpu")
    clip = next(folder.glob("sad/*.wav"))
    scores = {row["label"]: row["score"] for row in classify(str(clip), top_k=None)}
    assert {*scores} == {"angry", "happy", "neutral", "sad"} and sum(scores.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_second_example_has_an_optimizer_for_each_branch(folder, tmp_path):
    trainer = train_with_ser_trainer.main(str(folder), str(tmp_path / "out"), **TINY)
    groups = {group["branch"]: (group["algorithm"], group["lr"]) for group in trainer.optimizer.param_groups}
    assert groups == {"cqt": ("adamw", 1e-3), "mel": ("radam", 5e-4), "head": ("adam", 1e-3)}
    assert json.loads((tmp_path / "out" / "checkpoints.json").read_text())["newest"] == "checkpoint-2"


def test_the_plain_example_is_short():
    lines = Path(train_with_trainer.__file__).read_text().partition("\ndef ")[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 45
