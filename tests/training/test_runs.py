"""Tests that runs are resumed, averaged and quoted only with the same settings, and that damaged files are found."""

import dataclasses
import json
import os
import time

import pytest
import torch
from transformers import TrainerControl, TrainerState

from ser.arguments import DataArguments, ModelArguments
from ser.files import write_json
from ser.models import DRAWN, starting_weights
from ser.training import run_settings as runs
from ser.training.checkpoints import complete
from ser.training.run_settings import (
    RunClock,
    check_folds,
    check_named_checkpoint,
    earlier_run,
    mark_finished,
    quoted_scores,
    resume_or_start,
    run_settings,
)
from ser.utils import DataError
from tests.helpers.clips import corpus_of
from tests.helpers.tiny import save_tiny, tiny_config, tiny_feature_extractor, tiny_model
from tests.helpers.training import make_arguments

SPLITS = {"protocol": "mine/random", "seed": 42, "clips": [{"file": "a.wav", "part": "train", "label": "up"}]}


@pytest.fixture
def corpus():
    return corpus_of([0, 1])


def settings_of(corpus, folder, start=DRAWN, data=None, config=None, extractor=None, **changes):
    args = make_arguments(folder, **changes)
    model, extractor = config or tiny_config(), extractor or tiny_feature_extractor()
    return args, run_settings(model, extractor, corpus, DataArguments(**(data or {})), args, start)


def begin(corpus, folder, finished=False, **changes):
    """Writes a run that has stopped after its first checkpoint, or has finished; returns the checkpoint."""
    assert earlier_run(*settings_of(corpus, folder, **changes), SPLITS) is None
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    if finished:
        mark_finished(folder)
    return str(checkpoint)


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_with_the_same_settings_is_resumed_or_finished(corpus, tmp_path, finished):
    checkpoint = begin(corpus, tmp_path, finished)
    assert earlier_run(*settings_of(corpus, tmp_path), SPLITS) == ("finished" if finished else checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rate": 1.0}, "learning_rate: 0.001 -> 1.0"),
        ({"seed": 1}, "seed: 42 -> 1"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size: 4 -> 2"),
        ({"specaugment_masks": 2, "mixup_alpha": 0.5}, "mixup_alpha: 0.0 -> 0.5; specaugment_masks: 0 -> 2"),
        ({"data": {"shuffle_training_labels": True}}, "shuffle_training_labels: false -> true"),
        ({"start": "sha256-1234"}, 'starting_weights: "drawn at random" -> "sha256-1234"'),
        ({"config": tiny_config(hidden_dropout=0.5)}, "hidden_dropout: 0.2 -> 0.5"),
        ({"extractor": tiny_feature_extractor(image_size=96)}, "image_size: 64 -> 96"),
    ],
)
def test_other_settings_are_refused_by_name(corpus, tmp_path, changes, message, finished):
    begin(corpus, tmp_path, finished)
    with pytest.raises(DataError) as caught:
        earlier_run(*settings_of(corpus, tmp_path, **changes), SPLITS)
    error = str(caught.value)
    assert all(part in error for part in message.split("; ")) and error.count(" -> ") == message.count(" -> ")
    assert "--output_dir" in error and "--overwrite_output_dir" in error
    fresh = settings_of(corpus, tmp_path, overwrite_output_dir=True, **changes)
    assert earlier_run(*fresh, SPLITS) is None
    assert json.loads((tmp_path / "run.json").read_text())["training"]["seed"] == fresh[0].seed


def test_settings_that_do_not_affect_the_result_may_change(corpus, tmp_path):
    checkpoint = begin(corpus, tmp_path)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    changes = {
        "per_device_eval_batch_size": 2, "dataloader_num_workers": 2, "logging_strategy": "steps", "logging_steps": 3,
        "save_total_limit": 1, "report_to": "tensorboard", "disable_tqdm": False, "activation_checkpointing": True,
        "data": {"data_dir": "elsewhere", "cache_dir": "there", "preprocessing_num_workers": 4},
    }  # fmt: skip
    assert earlier_run(*settings_of(corpus, moved, **changes), SPLITS) == checkpoint.replace(str(tmp_path), str(moved))


def test_settings_that_are_not_compared_exist():
    assert {field.name for field in dataclasses.fields(DataArguments)} >= runs.IGNORED_DATA
    assert set(runs.MODEL_FIELDS) >= runs.IGNORED_MODEL


def test_other_versions_and_another_revision_of_the_corpus_are_refused(corpus, tmp_path, monkeypatch):
    begin(corpus, tmp_path)
    with pytest.raises(DataError, match='revision: "r1" -> "r2"'):
        earlier_run(*settings_of(dataclasses.replace(corpus, revision="r2"), tmp_path), SPLITS)
    monkeypatch.setattr(runs, "versions", lambda: {"torch": "9.9", "python": "4.0"})
    with pytest.raises(DataError, match='torch: "[^"]+" -> "9.9"\\. '):
        earlier_run(*settings_of(corpus, tmp_path), SPLITS)


def test_other_clips_are_refused_and_counted(corpus, tmp_path):
    begin(corpus, tmp_path)
    other = SPLITS | {"clips": [SPLITS["clips"][0] | {"part": "test"}, {"file": "b.wav"}]}
    with pytest.raises(DataError, match="settings: clips: 1 -> 2, 1 of them in another part or class"):
        earlier_run(*settings_of(corpus, tmp_path), other)


def test_an_old_run_without_run_json_can_be_resumed(corpus, tmp_path, caplog):
    checkpoint = begin(corpus, tmp_path)
    (tmp_path / "run.json").unlink()
    save_tiny(tmp_path / "checkpoint-1", tiny_model())
    assert earlier_run(*settings_of(corpus, tmp_path, learning_rate=1.0), SPLITS) == checkpoint
    assert "only its model, feature extractor and clips are compared" in caplog.text
    with pytest.raises(DataError, match="hidden_size: 32 -> 48"):
        earlier_run(*settings_of(corpus, tmp_path, config=tiny_config(hidden_size=48)), SPLITS)


def test_folds_of_different_settings_are_not_averaged(corpus, tmp_path):
    folders = [tmp_path / f"fold_{fold}" for fold in (1, 2, 3)]
    for folder in folders:
        folder.mkdir()
        write_json(folder / "run.json", settings_of(corpus, folder)[1])
    check_folds(folders)
    write_json(folders[2] / "run.json", settings_of(corpus, folders[2], learning_rate=1.0)[1])
    with pytest.raises(DataError, match=r"fold_3 and .*fold_1 are folds with different settings: learning_rate: 0"):
        check_folds(folders)


def folds_of(folder, all_settings, **changes):
    """Writes the files of a run with --fold all."""
    scores = {"UA": 0.5, "WA": 0.6, "macro_f1": 0.4, "weighted_f1": 0.7}
    for fold, settings in enumerate(all_settings, start=1):
        (folder / f"fold_{fold}").mkdir(parents=True)
        write_json(folder / f"fold_{fold}" / "run.json", settings)
    pooled = {**scores, "n_clips": 24, "intervals": {"by_speaker": {"UA": [0.3, 0.7]}}, "per_class": {}}
    summary = {
        "protocol": "mine/loso-all",
        "seed": 42,
        "speaker_disjoint": True,
        "folds": [scores] * len(all_settings),
    }
    write_json(folder / "metrics.json", {**summary, "mean": scores, "std": scores, "pooled": pooled, **changes})
    return folder


def test_scores_of_the_same_recipe_are_quoted(corpus, tmp_path):
    other_seed = settings_of(corpus, tmp_path, seed=1, test_window=3.0)[1]
    other_seed["versions"] = {"torch": "9.9"}
    folders = [folds_of(tmp_path / name, [other_seed] * count) for name, count in (("six", 6), ("five", 5))]
    first, second = quoted_scores(folders, settings_of(corpus, tmp_path, data={"validation_share": 0.15})[1])
    assert (first["protocol"], first["seed"], first["models"], second["models"]) == ("mine/loso-all", 42, 6, 5)
    assert first["measured_on"] == "6 models trained with the same recipe, each tested on unseen speakers"
    assert first["mean"]["UA"] == 0.5 and first["std"]["WA"] == 0.6
    assert first["pooled"]["intervals"]["by_speaker"]["UA"] == [0.3, 0.7] and "per_class" not in first["pooled"]
    assert quoted_scores([], {}) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rate": 1.0}, "learning_rate: 0.001 -> 1.0"),
        ({"data": {"validation_share": 0.0}}, "validation_share: 0.15 -> 0.0"),
        ({"data": {"labels": ["up"]}}, 'labels: null -> \\["up"\\]'),
        ({"config": tiny_config(id2label={0: "a", 1: "b", 2: "c", 3: "d"})}, "id2label: "),
        ({"start": "sha256-1234"}, 'starting_weights: "drawn at random" -> "sha256-1234"'),
        ({"extractor": tiny_feature_extractor(image_size=96)}, "image_size: 64 -> 96"),
    ],
)
def test_scores_of_another_recipe_are_not_quoted(corpus, tmp_path, changes, message):
    folder = folds_of(tmp_path / "folds", [settings_of(corpus, tmp_path)[1]] * 2)
    with pytest.raises(DataError, match=f"folds is of another recipe, .*: {message}"):
        quoted_scores([folder], settings_of(corpus, tmp_path, **changes)[1])


def test_scores_of_another_corpus_are_not_quoted(corpus, tmp_path):
    folder = folds_of(tmp_path / "folds", [settings_of(corpus, tmp_path)[1]])
    with pytest.raises(DataError, match='of another recipe, .*revision: "r1" -> "r2"'):
        quoted_scores([folder], settings_of(dataclasses.replace(corpus, revision="r2"), tmp_path)[1])


def test_a_folder_without_a_summary_of_folds_is_not_quoted(corpus, tmp_path):
    settings = settings_of(corpus, tmp_path)[1]
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            DataError, match="holds no pooled scores: name the output directory of a finished run with"
        ):
            quoted_scores([folder], settings)
        write_json(tmp_path / "metrics.json", {"protocol": "mine/loso-fold1", "UA": 0.5})
    shared = folds_of(tmp_path / "shared", [settings], speaker_disjoint=False)
    with pytest.raises(DataError, match="its folds share speakers"):
        quoted_scores([shared], settings)
    lost = folds_of(tmp_path / "lost", [settings] * 2)
    (lost / "fold_2" / "run.json").unlink()
    with pytest.raises(DataError, match="fold_2 has no run.json with the settings of its recipe"):
        quoted_scores([lost], settings)


def test_the_clock_adds_up_the_parts_of_a_killed_run(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    args = make_arguments(tmp_path)

    def run_part(started, *steps):
        clock, now[0] = RunClock(tmp_path, started), started
        for seconds in steps:
            now[0] += seconds
            clock.on_step_end(args, TrainerState(), TrainerControl())
        return clock

    run_part(100, 8, 8, 5)  # killed; the saved time is at most ten seconds old
    assert json.loads((tmp_path / "duration.json").read_text()) == {"seconds": 16.0}
    run_part(500, 4).on_save(args, TrainerState(), TrainerControl())
    assert run_part(900, 3).seconds() == 16 + 4 + 3


def test_a_fresh_run_starts_its_clock_at_zero(corpus, tmp_path):
    write_json(tmp_path / "duration.json", {"seconds": 50.0})
    begin(corpus, tmp_path)
    assert RunClock(tmp_path, time.monotonic()).seconds() < 1


def test_starting_weights_identify_the_weights_loaded_from_files(tmp_path):
    start = ModelArguments(model_name_or_path=str(save_tiny(tmp_path, tiny_model(seed=1))))
    model = tiny_model(seed=1)
    known = starting_weights(model, start)
    assert known == starting_weights(tiny_model(seed=1), start) != starting_weights(tiny_model(seed=2), start)
    model.config.id2label = {index: f"other{index}" for index in range(4)}  # so that the last layer is initialised
    renamed = starting_weights(model, start)
    torch.nn.init.ones_(model.classifier.out_proj.weight)
    assert starting_weights(model, start) == renamed != known
    assert starting_weights(model, ModelArguments(imagenet_weights=False)) == DRAWN
    imagenet = starting_weights(model, ModelArguments())
    torch.nn.init.ones_(model.classifier.dense.weight)
    assert starting_weights(model, ModelArguments()) == imagenet
    torch.nn.init.ones_(model.maxmvit.mel_backbone.patch_embed.proj.weight)
    assert starting_weights(model, ModelArguments()) != imagenet


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"seconds": "x"}', b'{"seconds": NaN}', b"\xff", b'{"seconds": -5}']
)
def test_a_damaged_duration_file_causes_only_a_warning(content, tmp_path, caplog):
    (tmp_path / "duration.json").write_bytes(content)
    clock = RunClock(tmp_path, time.monotonic())
    assert 0 <= clock.seconds() < 5 and "duration.json cannot be read" in caplog.text
    clock.keep()
    assert json.loads((tmp_path / "duration.json").read_text())["seconds"] < 5


@pytest.mark.parametrize("name", ["run.json", "splits.json"])
@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_damaged_file_of_a_run_is_named(corpus, tmp_path, name, content):
    begin(corpus, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name} .*restore it from a copy, or remove it"):
        earlier_run(*settings_of(corpus, tmp_path), SPLITS)


# --- damaged checkpoints ---


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def checkpoint_at(folder, step):
    """Writes a complete checkpoint with arbitrary contents; returns its folder."""
    unfinished = folder / f"tmp-checkpoint-{step}"
    (unfinished / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "deep/shard.bin"):
        (unfinished / name).write_bytes(f"{name} of {step}".encode() * 1_000)
    (unfinished / "trainer_state.json").write_text(json.dumps({"step": step}))
    complete(unfinished, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


@pytest.mark.parametrize("damage", [cut, flip, empty, os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "deep/shard.bin", "checksums.json"])
def test_a_run_resumes_from_the_newest_undamaged_checkpoint(damage, name, tmp_path, caplog):
    if name == "checksums.json" and damage in (os.unlink, flip):
        pytest.skip("a checkpoint of an earlier version has no checksums; a flipped bit may leave them valid JSON")
    paths = [checkpoint_at(tmp_path, step) for step in (2, 10, 30)]
    for path in paths[1:]:
        damage(path / name)
    assert resume_or_start(tmp_path) == ("resume", str(paths[0]))
    assert caplog.text.count("resuming from") == 1
    assert all(str(path / name) in caplog.text for path in paths[1:]) and str(paths[0]) in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2", "damaged-checkpoint-10", "damaged-checkpoint-30",
    ]  # fmt: skip
    caplog.clear()
    assert resume_or_start(tmp_path) == ("resume", str(paths[0])) and not caplog.text


def test_an_error_names_the_damaged_files_if_no_checkpoint_is_undamaged(tmp_path):
    paths = [checkpoint_at(tmp_path, step) for step in (1, 2)]
    (paths[0] / "optimizer.pt").unlink()
    (paths[1] / "trainer_state.json").write_text("{")
    with pytest.raises(DataError, match="only damaged checkpoints: .*trainer_state.*optimizer.pt is missing.*--over"):
        resume_or_start(tmp_path)
    assert all(path.is_dir() for path in paths)  # not renamed


def test_a_checkpoint_without_checksums_is_accepted(tmp_path, caplog):
    path = checkpoint_at(tmp_path, 4)
    (path / "checksums.json").unlink()
    cut(path / "optimizer.pt")
    assert resume_or_start(tmp_path) == ("resume", str(path)) and not caplog.text


def test_a_damaged_checkpoint_is_refused_as_resume_from_checkpoint(corpus, tmp_path):
    earlier_run(*settings_of(corpus, tmp_path), SPLITS)
    for step, damage in ((3, cut), (5, os.unlink)):
        path = checkpoint_at(tmp_path, step)
        arguments = settings_of(corpus, tmp_path, resume_from_checkpoint=str(path))
        check_named_checkpoint(*arguments, SPLITS)
        damage(path / "optimizer.pt")
        with pytest.raises(DataError, match=f"checkpoint-{step}/optimizer.pt is .*Name an earlier checkpoint"):
            check_named_checkpoint(*arguments, SPLITS)
