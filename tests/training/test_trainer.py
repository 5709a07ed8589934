import copy
import json
import os
import pickle
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

import ser.training.checkpoints
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.cli import Parser
from ser.data.batches import SeededCollator
from ser.training.arguments import SERTrainingArguments
from ser.training.run_settings import mark_finished, resume_or_start
from ser.training.trainer import SERTrainer
from ser.utils import NonFiniteLossError
from tests.helpers.processes import exit_codes, start
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, tiny_model
from tests.helpers.training import (
    QUIET,
    Poisoned,
    assert_same_weights,
    clips,
    evaluations,
    make_arguments,
    make_trainer,
    train_until_killed,
    weights,
)

REPOSITORY = Path(__file__).parents[2]

# After one step of gradient descent at a learning rate of 1, equal weights mean equal gradients.
ONE_GRADIENT_STEP = {f"{branch}_optimizer": "sgd" for branch in ("cqt", "mel", "head")} | {
    "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.0, **QUIET,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the update


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_twenty_steps_equal_a_plain_loop_with_two_optimizers(tmp_path, resumed):
    rates = {"cqt_learning_rate": 1e-3, "mel_learning_rate": 2e-3, "head_learning_rate": 5e-3}
    model = tiny_model(hidden_dropout=0.0)
    plain = copy.deepcopy(model)
    batches = []

    def train(until, **kwargs):
        settings = QUIET | {"save_strategy": "steps", "save_steps": 10} if resumed else QUIET
        trainer = make_trainer(tmp_path, model=kwargs.pop("model"), max_steps=until, **rates, **settings)
        compute_loss = trainer.compute_loss

        def compute_and_record(model, inputs, *args, **kwargs):
            batches.append(dict(inputs))
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_and_record
        trainer.train(**kwargs)
        return trainer.model

    if resumed:
        train(10, model=model)
        model = tiny_model(seed=5, hidden_dropout=0.0)
        model = train(20, model=model, resume_from_checkpoint=resume_or_start(tmp_path)[1])
    else:
        model = train(20, model=model)
    assert len(batches) == 20

    adam = torch.optim.Adam(
        [
            {"params": plain.maxmvit.cqt_backbone.parameters(), "lr": 1e-3},
            {"params": plain.classifier.parameters(), "lr": 5e-3},
        ]
    )
    radam = torch.optim.RAdam(plain.maxmvit.mel_backbone.parameters(), lr=2e-3)
    plain.train()
    for batch in batches:
        plain(**batch).loss.backward()
        clip_grad_norm_(plain.parameters(), 1.0)
        for optimizer in (adam, radam):
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(weights(plain), weights(model), rtol=0, atol=1e-6)


def without_batchnorm(model):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(name, nn.Identity())
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [{}, {"class_weights": "balanced", "label_smoothing_factor": 0.1, "focal_gamma": 1.0}]
)
def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path, loss):
    ends = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = without_batchnorm(tiny_model(hidden_dropout=0.0))
        trainer = make_trainer(
            tmp_path, model=model, num_train=8, **ONE_GRADIENT_STEP, **loss,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        ends.append(weights(model))
    assert_same_weights(*ends, rtol=1e-3, atol=1e-5)


def test_the_evaluation_loss_is_plain_cross_entropy(tmp_path):
    plain, fancy = (
        make_trainer(tmp_path, **QUIET, **changes).evaluate()["eval_loss"]
        for changes in ({}, {"class_weights": "balanced", "label_smoothing_factor": 0.2, "focal_gamma": 2.0})
    )
    assert plain == fancy


# ---- data


@pytest.mark.slow
def test_incomplete_batches_are_dropped_in_training_only(tmp_path):
    trainer = make_trainer(tmp_path, num_train=14, num_eval=7)
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4]
    assert set(batches[0]) == {"cqt_values", "mel_values", "labels"}
    output = trainer.predict(clips(9, seed=3))
    assert output.predictions.shape == (9, 4)
    assert output.label_ids.tolist() == clips(9, seed=3)["label"][:].tolist()
    with pytest.raises(ValueError, match="3 training clips do not fill one batch of 4"):
        make_trainer(tmp_path, num_train=3).get_train_dataloader()


@pytest.mark.slow
def test_augmentation_depends_on_seed_and_clips_not_on_workers(tmp_path):
    def batches(**changes):
        trainer = make_trainer(tmp_path, specaugment_masks=2, mixup_alpha=0.4, **changes)
        torch.manual_seed(changes.get("dataloader_num_workers", 0))
        loader = trainer.get_train_dataloader()
        return [batch["mel_values"] for batch in loader] + [batch["mel_values"] for batch in loader]

    serial, parallel, reseeded = batches(), batches(dataloader_num_workers=2), batches(seed=43, data_seed=42)
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))
    assert not torch.equal(serial[0], serial[3]) and not torch.equal(serial[0], reseeded[0])
    collate = SeededCollator(lambda features: {"x": torch.rand(3)}, seed=0)
    before = torch.get_rng_state()
    draws = [collate([(i, None), (j, None)])["x"].tolist() for i, j in ((0, 1), (1, 0), (0, 2), (0, 1))]
    assert draws[0] == draws[3] and len({tuple(draw) for draw in draws}) == 3
    assert torch.equal(torch.get_rng_state(), before)


# ---- resume

KILLED = {
    "specaugment_masks": 2, "mixup_alpha": 0.4, "early_stopping_patience": 4, "num_train_epochs": 4,
    "lr_scheduler_kwargs": {"patience": 0}, "layer_decay": 0.7, "num_eval": 5,
}  # fmt: skip
STEPWISE = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize("saving", [{}, STEPWISE], ids=["every epoch", "within epochs"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, saving):
    settings = KILLED | saving
    whole = make_trainer(tmp_path / "whole", **settings, model=tiny_model())
    whole.train()
    kill_step = random.SystemRandom().randint(4, whole.state.global_step - 1)
    killed = start(train_until_killed, tmp_path / "killed", kill_step, settings)
    assert exit_codes([killed]) == [-signal.SIGKILL]
    status, checkpoint = resume_or_start(tmp_path / "killed")
    saved_every = saving.get("save_steps", 3)
    assert (status, Path(checkpoint).name) == ("resume", f"checkpoint-{(kill_step - 1) // saved_every * saved_every}")
    resumed = make_trainer(tmp_path / "killed", **settings, model=tiny_model(seed=7))
    resumed.train(resume_from_checkpoint=checkpoint)

    message = f"killed after step {kill_step}"
    assert_same_weights(weights(whole.model), weights(resumed.model))
    assert evaluations(whole) == evaluations(resumed), message
    assert whole.lr_scheduler.state_dict() == resumed.lr_scheduler.state_dict(), message
    assert whole.lr_scheduler.state_dict()["num_bad_epochs"] or whole.branch_learning_rates()["cqt"] < 1e-3
    counters = [trainer.state.stateful_callbacks["EarlyStopping"] for trainer in (whole, resumed)]
    assert counters[0] == counters[1], message
    newest = [resume_or_start(tmp_path / name)[1] for name in ("whole", "killed")]
    states = [torch.load(Path(each) / "optimizer.pt", weights_only=True)["state"] for each in newest]
    for key, state in states[0].items():
        assert_same_weights(state, states[1][key])


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    settings = {"num_train_epochs": 3, "num_train": 8}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()

    class Killed(BaseException):
        pass

    save_rng_state = SERTrainer._save_rng_state

    def killed(self, folder):
        if self.state.global_step == 4:
            raise Killed
        save_rng_state(self, folder)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SERTrainer, "_save_rng_state", killed)
        make_trainer(tmp_path / "killed", **settings).train()
    unfinished = [p.name for p in (tmp_path / "killed").iterdir() if "4" in p.name]
    assert unfinished == ["tmp-checkpoint-4"]
    status, checkpoint = resume_or_start(tmp_path / "killed")
    assert (status, Path(checkpoint).name) == ("resume", "checkpoint-2")
    resumed = make_trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        ".lock", "checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoints.json",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("model.safetensors", 100), ("optimizer.pt", 0), ("scheduler.pt", 9)])
def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_previous_one(name, length, tmp_path):
    settings = {"num_train_epochs": 3, "num_train": 8}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoint-6"))
    file = tmp_path / "damaged" / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[:length])
    resumed = make_trainer(tmp_path / "damaged", **settings, model=convnet_model(seed=5))
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    kept = {path.name for path in (tmp_path / "damaged").glob("*checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-4", "checkpoint-6", "damaged-checkpoint-4"}


@pytest.mark.slow
def test_a_checkpoint_is_synced_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    synced, renamed = set(), {}
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def recording_fsync(descriptor):
        fsync(descriptor)
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    def recording(move):
        def moved(source, target):
            parts = [Path(source), *Path(source).rglob("*")]
            renamed[Path(target).name] = {str(part) for part in parts} - synced
            synced.discard(str(tmp_path))
            move(source, target)

        return moved

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording(rename))
    monkeypatch.setattr(os, "replace", recording(replace))
    complete_checkpoint = ser.training.checkpoints.complete

    def complete(*args):
        complete_checkpoint(*args)
        assert str(tmp_path) in synced

    monkeypatch.setattr(ser.training.checkpoints, "complete", complete)
    make_trainer(tmp_path, num_train=4, num_train_epochs=1).train()
    assert renamed == {"checksums.json": set(), "checkpoint-1": set(), "checkpoints.json": set()}
    assert str(tmp_path) in synced
    assert (tmp_path / "checkpoint-1" / "optimizer.pt").is_file()


@pytest.mark.slow
def test_nothing_is_unpickled_and_no_checkpoint_contains_training_args(tmp_path, monkeypatch):
    settings = {"num_train": 4, "num_train_epochs": 2}
    make_trainer(tmp_path, **settings).train()
    loaded, load = [], torch.load

    def watched(file, *args, weights_only=None, **kwargs):
        loaded.append((Path(file).name, weights_only))
        return load(file, *args, weights_only=weights_only, **kwargs)

    def refused(*args, **kwargs):
        raise AssertionError("something is unpickled")

    monkeypatch.setattr(torch, "load", watched)
    monkeypatch.setattr(pickle, "load", refused)
    monkeypatch.setattr(pickle, "loads", refused)
    (tmp_path / "training_args.bin").touch()  # earlier versions wrote this file
    trainer = make_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer.save_model()
    assert trainer.state.global_step == 2
    assert sorted(loaded) == [(name, True) for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt")]
    assert not any(tmp_path.rglob("training_args.bin")) and (tmp_path / "checkpoint-2" / "model.safetensors").exists()


@pytest.mark.slow
def test_only_the_model_and_its_report_are_pushed(tmp_path, monkeypatch):
    pushed = []

    def upload_folder(self, *, folder_path, allow_patterns, ignore_patterns, **kwargs):
        paths = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        pushed.extend(filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))

    repository = SimpleNamespace(repo_id="me/mine")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *args, **kwargs: repository)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    settings = {"num_train": 4, "num_train_epochs": 1, "push_to_hub": True}
    start = tmp_path / "start"
    convnet_model().save_pretrained(start)
    start = MaxMViTForAudioClassification.from_pretrained(start)
    trainer = make_trainer(tmp_path / "out", model=start, processing_class=tiny_feature_extractor(), **settings)
    trainer.train()
    assert not pushed
    for name in ("training_args.bin", "run.json", ".lock", "runs/events.out.tfevents.1.host.1.0", "README.md"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).touch()
    trainer.push_to_hub()
    code = {path.name for path in REPOSITORY.glob("*_maxmvit.py")}
    assert set(pushed) == code | {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}
    for name in pushed:
        assert str(tmp_path).encode() not in (tmp_path / "out" / name).read_bytes(), name


def test_resume_or_start_returns_the_status_of_an_output_directory(tmp_path):
    folder = tmp_path / "run"
    assert resume_or_start(folder) == ("fresh", None)
    for name in ("checkpoint-9", "checkpoint-10", "tmp-checkpoint-11", "checkpoint-12", "tmp-removed-checkpoint-9"):
        (folder / name).mkdir(parents=True)
        if name != "checkpoint-12":
            (folder / name / "trainer_state.json").write_text("{}")
    (folder / "metrics.json").write_text("{}")
    assert resume_or_start(folder) == ("resume", str(folder / "checkpoint-10"))
    mark_finished(folder)
    assert resume_or_start(folder) == ("finished", str(folder / "checkpoint-10"))
    assert resume_or_start(folder, overwrite=True) == ("fresh", None)
    assert (folder / "metrics.json").exists()
    assert resume_or_start(folder) == ("fresh", None)


# ---- best checkpoint, learning-rate schedule, early stopping


class ScriptedMetric:
    """Returns given metric values, one for each evaluation."""

    def __init__(self, name, values):
        self.name, self.values = name, list(values)

    def __call__(self, prediction):
        return {self.name: self.values.pop(0)}


UA = [0.3, 0.5, 0.4, 0.45, 0.4, 0.4, 0.4, 0.9]


@pytest.mark.slow
@pytest.mark.parametrize("metric, values", [("UA", UA), ("my_loss", [1 - value for value in UA])])
def test_the_metric_decides_kept_checkpoints_learning_rate_and_early_stopping(tmp_path, metric, values):
    settings = {"num_train": 4, "num_train_epochs": 8, "metric_for_best_model": metric, "learning_rate": 1e-3}
    trainer = make_trainer(tmp_path, **settings)
    trainer.compute_metrics = ScriptedMetric(metric, values)
    trainer.train()

    # The second value is the best; five evaluations without improvement follow, so the last, 0.9, is never reached.
    assert trainer.state.global_step == 7
    assert trainer.state.best_metric == values[1] and trainer.state.best_global_step == 2
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = MaxMViTForAudioClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert_same_weights(weights(best), weights(trainer.model))

    # Of the checkpoints tied at 0.4, the first is kept, and so is the newest.
    listing = json.loads((tmp_path / "checkpoints.json").read_text())
    kept = [(entry["checkpoint"], entry[f"eval_{metric}"]) for entry in listing["kept"]]
    assert kept == [(f"checkpoint-{step}", values[step - 1]) for step in (2, 3, 4, 7)]
    assert listing["newest"] == "checkpoint-7"
    assert sorted(p.name for p in tmp_path.glob("*checkpoint-*")) == [name for name, _ in kept]

    # Three evaluations without improvement exceed the schedule's patience of two: the rate is lowered after epoch 5.
    rates = [entry["mel_learning_rate"] for entry in trainer.state.log_history if "mel_learning_rate" in entry]
    assert rates == pytest.approx([1e-3] * 5 + [1e-4] * 2)
    assert trainer.lr_scheduler.mode == ("max" if metric == "UA" else "min")

    # A run that early stopping has ended takes no further step when it is resumed.
    again = make_trainer(tmp_path, **settings, model=convnet_model(seed=3))
    again.compute_metrics = ScriptedMetric(metric, [])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert again.state.global_step == 7
    assert_same_weights(weights(best), weights(again.model))


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_save_total_limit_of_one_keeps_the_best_and_the_newest(tmp_path, resumed):
    settings = {"num_train": 4, "save_total_limit": 1}
    trainer = make_trainer(tmp_path, num_train_epochs=3, **settings)
    trainer.compute_metrics = ScriptedMetric("UA", [0.3, 0.5, 0.4])
    trainer.train()
    if resumed:
        trainer = make_trainer(tmp_path, num_train_epochs=4, **settings)
        trainer.compute_metrics = ScriptedMetric("UA", [0.4])
        trainer.train(resume_from_checkpoint=resume_or_start(tmp_path)[1])
    listing = json.loads((tmp_path / "checkpoints.json").read_text())
    kept = ["checkpoint-2", "checkpoint-4" if resumed else "checkpoint-3"]
    assert [entry["checkpoint"] for entry in listing["kept"]] == kept and listing["newest"] == kept[1]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == kept
    assert trainer.args.save_total_limit == 1


@pytest.mark.slow
@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_the_best_checkpoint_is_found_after_the_run_was_moved_or_copied(tmp_path, copied):
    settings = {"num_train": 4, "num_train_epochs": 3}
    trainer = make_trainer(tmp_path / "before", **settings)
    trainer.compute_metrics = ScriptedMetric("UA", [0.3, 0.5, 0.4])
    trainer.train()
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    if not copied:
        shutil.rmtree(tmp_path / "before")

    resumed = make_trainer(tmp_path / "after", model=convnet_model(seed=3), **settings)
    resumed.train(resume_from_checkpoint=resume_or_start(tmp_path / "after")[1])
    assert resumed.state.global_step == 3
    assert resumed.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-2")
    assert_same_weights(weights(trainer.model), weights(resumed.model))


@pytest.mark.slow
def test_a_run_without_its_best_checkpoint_is_refused(tmp_path):
    settings = {"num_train": 4, "num_train_epochs": 3}
    trainer = make_trainer(tmp_path, **settings)
    trainer.compute_metrics = ScriptedMetric("UA", [0.3, 0.5, 0.4])
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-2")
    checkpoint = resume_or_start(tmp_path)[1]
    with pytest.raises(FileNotFoundError, match="checkpoint-2, the best so far, .*it is missing in"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=checkpoint)
    last = make_trainer(tmp_path, load_best_model_at_end=False, **settings, model=convnet_model(seed=3))
    last.train(resume_from_checkpoint=checkpoint)
    saved = MaxMViTForAudioClassification.from_pretrained(tmp_path / "checkpoint-3")
    assert_same_weights(weights(saved), weights(last.model))


# ---- non-finite losses


@pytest.mark.slow
def test_a_nonfinite_loss_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path, num_train=8, mel_learning_rate=0.02)
    trainer.train_collator = Poisoned(4)
    with pytest.raises(NonFiniteLossError, match=r"step 4; learning rates: cqt 0.001, mel 0.02, .*checkpoint-2"):
        trainer.train()
    assert resume_or_start(tmp_path)[1] == str(tmp_path / "checkpoint-2")
    assert [entry["step"] for entry in evaluations(trainer)] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, noticed",
    [
        ({**QUIET, "logging_strategy": "no"}, 32),
        ({**QUIET, "logging_strategy": "no", "max_steps": 7}, 7),
        ({**QUIET, "logging_strategy": "steps", "logging_steps": 5}, 5),
        ({**QUIET, "save_strategy": "steps", "save_steps": 6}, 6),
    ],
    ids=["never logged", "at the end", "logged", "saved"],
)
def test_a_nonfinite_loss_is_reported_before_anything_is_logged_or_saved(tmp_path, settings, noticed):
    trainer = make_trainer(tmp_path, num_train=160, num_train_epochs=1, **settings)
    trainer.train_collator = Poisoned(3)
    with pytest.raises(NonFiniteLossError, match=rf"at step 3 \(noticed at step {noticed}\)"):
        trainer.train()
    assert not any(tmp_path.glob("*checkpoint*")) and not any("loss" in entry for entry in trainer.state.log_history)


class HostCopies(TorchDispatchMode):
    """Counts the values copied from the device to the host; on a GPU, each copy waits for all queued operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def counting(copies, method):
    def counted(*args, **kwargs):
        with copies:
            return method(*args, **kwargs)

    return counted


@pytest.mark.slow
@pytest.mark.parametrize("skipping", [0, 1])
def test_an_update_waits_for_the_device_only_if_it_may_be_skipped(tmp_path, monkeypatch, skipping):
    trainer = make_trainer(tmp_path, num_train=40, num_train_epochs=1, skip_nonfinite_steps=skipping, **QUIET)
    trainer.args.logging_nan_inf_filter = False
    gathered, copies = [], HostCopies()
    gather = trainer.accelerator.gather
    monkeypatch.setattr(trainer.accelerator, "gather", lambda value: gathered.append(value) or gather(value))
    for name in ("training_step", "_get_grad_norm"):
        monkeypatch.setattr(trainer, name, counting(copies, getattr(trainer, name)))
    trainer.train()
    assert trainer.state.global_step == 10
    if skipping:
        assert copies.count == len(gathered) == 10
    else:
        assert copies.count == 0 and len(gathered) <= 2  # when the epoch is logged, and at the end


@pytest.mark.slow
def test_skipped_steps_change_nothing(tmp_path):
    settings = {"num_train": 8, "skip_nonfinite_steps": 1, **QUIET}
    model = convnet_model(hidden_dropout=0.0)
    plain = copy.deepcopy(model).train()
    trainer = make_trainer(tmp_path, model=model, max_steps=2, **settings)
    trainer.train_collator = Poisoned(1)
    trainer.train()
    assert trainer.state.global_step == 2
    plain_optimizer = make_trainer(tmp_path, model=plain, **settings).create_optimizer()
    plain(**trainer.train_collator.batch).loss.backward()
    clip_grad_norm_(plain.parameters(), 1.0)
    plain_optimizer.step()
    assert_same_weights(weights(plain), weights(model), rtol=0, atol=1e-6)

    trainer = make_trainer(tmp_path, max_steps=4, **settings)
    trainer.train_collator = Poisoned(2, 3)
    with pytest.raises(NonFiniteLossError, match="step 3"):
        trainer.train()


@pytest.mark.slow
def test_a_resumed_run_continues_to_count_skipped_steps(tmp_path):
    settings = {"num_train": 8, "num_train_epochs": 2, "skip_nonfinite_steps": 1}
    whole = make_trainer(tmp_path, **settings)
    whole.train_collator = Poisoned(1)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train_collator = Poisoned(1)
    with pytest.raises(NonFiniteLossError, match="step 3"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- other options


@pytest.mark.slow
def test_frozen_backbones_do_not_change_before_unfreeze_epoch(tmp_path):
    model = tiny_model()
    start = weights(model)

    def changed(now):
        return {name.split(".")[1] for name in start if not torch.equal(start[name], now[name])}

    settings = {"num_train": 8, "freeze_backbones": True, **QUIET}
    make_trainer(tmp_path, model=model, num_train_epochs=1, unfreeze_epoch=1, **settings).train()
    assert changed(weights(model)) == {"dense", "norm", "out_proj"}
    model.load_state_dict(start)
    make_trainer(tmp_path, model=model, num_train_epochs=2, unfreeze_epoch=1, **settings).train()
    assert {"cqt_backbone", "mel_backbone"} < changed(weights(model))
    model.load_state_dict(start)
    trainer = make_trainer(tmp_path, model=model, num_train_epochs=1, **settings)
    trainer.train()
    assert changed(weights(model)) == {"dense", "norm", "out_proj"}
    assert {group["branch"] for group in trainer.optimizer.param_groups} == {"head"}


def test_every_branch_of_the_model_is_frozen_and_trained_as_a_branch(tmp_path):
    @dataclass
    class Arguments(SERTrainingArguments):
        dense_optimizer: str = "sgd"
        dense_learning_rate: float | None = 0.5
        dense_weight_decay: float | None = None

    model = tiny_model()
    branches = model.branches()
    model.branches = lambda: {**branches, "dense": model.classifier.dense}
    trainer = make_trainer(tmp_path, model=model, kind=Arguments)
    trainer.create_optimizer()
    assert trainer.branch_learning_rates() == {"cqt": 1e-3, "mel": 1e-3, "dense": 0.5, "head": 1e-3}
    make_trainer(tmp_path, model=model, freeze_backbones=True, kind=Arguments)
    assert not any(p.requires_grad for p in model.classifier.dense.parameters())


@pytest.mark.slow
def test_a_run_resumes_before_and_after_its_backbones_are_unfrozen(tmp_path):
    settings = {"num_train": 8, "freeze_backbones": True, "unfreeze_epoch": 2, "num_train_epochs": 3}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    for step in (2, 4):
        resumed = make_trainer(tmp_path / f"from-{step}", model=convnet_model(seed=4), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert evaluations(whole) == evaluations(resumed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"channels_last": True},
        {"activation_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_for_speed_and_memory_do_not_change_the_update(tmp_path, changes):
    ends = []
    for each in ({}, changes):
        model = tiny_model(hidden_dropout=0.0)
        trainer = make_trainer(tmp_path, model=model, num_train=4, **ONE_GRADIENT_STEP, **each)
        trainer.train()
        trainer.save_model(tmp_path / "saved")
        ends.append(weights(model))
        assert_same_weights(weights(MaxMViTForAudioClassification.from_pretrained(tmp_path / "saved")), ends[-1])
    ends = [{name: value for name, value in end.items() if "num_batches_tracked" not in name} for end in ends]
    assert_same_weights(*ends, rtol=1e-3, atol=1e-5)


def momenta(model):
    return [m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["activation_checkpointing", "gradient_checkpointing", "the model's own method"])
def test_a_second_trainer_does_not_change_the_batchnorm_momentum_again(tmp_path, by):
    model = tiny_model()
    before = momenta(model)
    changes = {by: True}
    if by == "the model's own method":
        model.activation_checkpointing_enable()
        changes = {}
    ends = []
    for _ in range(2):
        make_trainer(tmp_path, model=model, num_train=4, **ONE_GRADIENT_STEP, **changes).train()
        ends.append(momenta(model))
    assert before != ends[0] == ends[1] and model.is_activation_checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_that_trainer_ignores_is_refused_and_changes_no_momentum(tmp_path, monkeypatch, name):
    model = tiny_model()
    before = momenta(model)
    monkeypatch.setattr(type(model), "activation_checkpointing_enable", lambda *args, **kwargs: None)
    trainer = make_trainer(tmp_path, model=model, num_train=4, **ONE_GRADIENT_STEP, **{name: True})
    with pytest.raises(ValueError, match=r"has not enabled --activation_checkpointing: leave it out, or pip install"):
        trainer.train()
    assert momenta(model) == before


@pytest.mark.slow
def test_bfloat16_trains(tmp_path):
    trainer = make_trainer(tmp_path, model=tiny_model(), num_train=8, max_steps=2, bf16=True)
    trainer.train()
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in trainer.model.parameters())


def test_arguments_come_from_flags_and_from_yaml(tmp_path):
    parser = Parser((SERTrainingArguments,))
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--use_cpu"])
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.seed, args.max_grad_norm) == (
        16,
        50,
        42,
        1.0,
    )
    assert args.lr_scheduler_kwargs == {"mode": "max", "factor": 0.1, "patience": 2, "min_lr": 1e-6}
    plain = {"cqt": "adam", "mel": "radam", "head": "adam", "speech": "adamw", "filter": "radam"}
    assert args.by_branch("optimizer") == plain
    rates = {"cqt": 2e-4, "mel": 2e-4, "head": 2e-4, "speech": 2e-5, "filter": 2e-4}
    assert args.by_branch("learning_rate") == rates
    assert set(args.by_branch("weight_decay").values()) == {0}
    flags = ["--mel_optimizer", "adamw", "--mel_learning_rate", "0.02", "--metric_for_best_model", "loss"]
    flags += ["--lr_scheduler_kwargs", '{"patience": 7}', "--no_load_best_model_at_end"]
    (args,) = parser.parse_args_into_dataclasses([*flags, "--use_cpu"])
    assert args.by_branch("learning_rate") == rates | {"mel": 0.02}
    assert args.mel_optimizer == "adamw" and not args.load_best_model_at_end
    assert args.lr_scheduler_kwargs["mode"] == "min" and args.lr_scheduler_kwargs["patience"] == 7
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1.0e-3\nclass_weights: balanced\nuse_cpu: true\nlr_scheduler_kwargs: {patience: 4}\n"
    )
    (args,) = parser.parse_yaml_file(str(recipe))
    assert (
        args.learning_rate == 1e-3 and args.class_weights == "balanced" and args.lr_scheduler_kwargs["patience"] == 4
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mel_optimizer": "ranger"}, "mel_optimizer ranger is unknown.*radam"),
        ({"optim": "lion_32bit"}, "--optim lion_32bit is unknown.*radam"),
        ({"optim_args": "momentum=0.9"}, "--optim_args does not work here"),
        ({"lr_scheduler_kwargs": {"mode": "min"}}, "mode must be 'max'"),
        ({"warmup_steps": 10}, "no warm-up"),
        ({"save_total_limit": 0}, "--save_total_limit 0 does not work: it must be a number at least 1"),
        ({**STEPWISE, "save_steps": 4}, "save_steps 4 and --eval_steps 2 to the same number"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **changes)
