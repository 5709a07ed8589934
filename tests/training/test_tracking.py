"""Tests what a run logs to TensorBoard, and to replacements of other trackers, which would need a server."""

import importlib.machinery
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import integration_utils

from ser.data.corpora.demo import write_demo_corpus
from ser.training.tracking import RunTracking
from tests.helpers.commands import CONVNET_FLAGS, ROOT, main

pytestmark = pytest.mark.slow


class Tracker(ModuleType):
    """Replaces the package of a tracker and records what is logged, by run."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__version__ = "9.9"
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.runs: dict[str, dict] = {}
        self.current: str | None = None

    def begin(self, name: str | None) -> None:
        self.current = name or f"unnamed {len(self.runs)}"
        self.runs.setdefault(self.current, {"config": {}, "logs": [], "files": [], "ends": 0})

    @property
    def own(self) -> dict:
        assert self.current is not None, "no run is active"
        return self.runs[self.current]

    @property
    def config(self) -> SimpleNamespace:
        return _Config(self.own["config"])

    def log(self, values: dict) -> None:
        self.own["logs"].append(values)

    def finish(self) -> None:
        self.own["ends"] += 1
        self.current = None

    Image = staticmethod(lambda path: imread(path))


class _Config(SimpleNamespace):
    def __init__(self, values: dict):
        super().__init__(update=lambda more, **_: values.update(more))
        self.values = values

    def __setitem__(self, name, value) -> None:
        self.values[name] = value


def make_trackio(monkeypatch):
    module = Tracker("trackio")
    module.init = lambda name=None, **_: module.begin(name)
    module.context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
    return installed(module, monkeypatch)


def make_wandb(monkeypatch):
    module = Tracker("wandb")
    module.init = lambda name=None, **_: module.begin(name)
    module.termwarn = lambda *_, **__: None
    module.define_metric = lambda *_, **__: None
    summary = SimpleNamespace(summary={}, _label=lambda **_: None)
    monkeypatch.setattr(Tracker, "run", property(lambda self: summary if self.current else None), raising=False)
    errors = ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = type("ConfigError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    return installed(module, monkeypatch)


def make_mlflow(monkeypatch):
    module = Tracker("mlflow")
    module.utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100))
    module.is_tracking_uri_set = module.get_tracking_uri = lambda: "here"
    module.active_run = lambda: module.current and SimpleNamespace(info=SimpleNamespace(run_id=module.current))
    module.start_run = lambda run_name=None, run_id=None, nested=False: module.begin(run_id or run_name)
    module.log_params = lambda params, synchronous=True: module.own["config"].update(params)
    module.log_metrics = lambda metrics, step, synchronous=True: module.log(metrics)
    module.log_artifact = lambda path: module.own["files"].append(imread(path))
    module.end_run = module.finish
    return installed(module, monkeypatch)


def installed(module: Tracker, monkeypatch) -> Tracker:
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(integration_utils, f"is_{module.__name__}_available", lambda: True)
    return module


def train(corpus, cache, out, *flags) -> None:
    main([str(ROOT / "configs" / "demo.yaml"), "--learning_rate=1e-3", "--num_train_epochs=1", f"--data_dir={corpus}",
          f"--cache_dir={cache}", f"--output_dir={out}", "--preprocessing_num_workers=1", "--dataset_name=demo",
          "--per_device_train_batch_size=4", *CONVNET_FLAGS, *flags])  # fmt: skip


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory):
    """Writes three voices, so that leaving one speaker out makes three folds."""
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_demo_corpus(folder, n_voices=3, clips_per_emotion=1)
    return folder


@pytest.fixture(scope="module")
def folds(small_corpus, feature_cache, tmp_path_factory):
    """Runs three folds, logged to three trackers at once; yields the folder of each fold and the trackers."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        trackers = [make(monkeypatch) for make in (make_trackio, make_wandb, make_mlflow)]
        folder = tmp_path_factory.mktemp("runs") / "mine"
        flags = ["--protocol", "loso", "--fold", "all", "--validation_share=0", "--max_train_samples=6"]
        names = [tracker.__name__ for tracker in trackers]
        train(small_corpus, feature_cache, folder, "--report_to", *names, *flags)
        yield [folder / f"fold_{fold}" for fold in (1, 2, 3)], dict(zip(names, trackers, strict=True))


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_each_fold_is_a_run_with_its_settings_losses_scores_and_image(name, folds):
    folders, trackers = folds
    tracker = trackers[name]
    assert list(tracker.runs) == [f"mine-fold{fold}" for fold in (1, 2, 3)]
    assert tracker.current is None
    for fold, (folder, run) in enumerate(zip(folders, tracker.runs.values(), strict=True), start=1):
        report = json.loads((folder / "metrics.json").read_text())
        config = run["config"]
        settings = {name: config[name] for name in ("corpus", "protocol", "fold", "train_clips", "test_clips")}
        assert settings == {"corpus": "demo", "protocol": report["protocol"], "fold": fold, "train_clips": 6,
                            "test_clips": report["n_clips"]}  # fmt: skip
        logged = {name: value for values in run["logs"] for name, value in values.items()}
        assert logged["test/UA"] == report["UA"] and logged["test/WA"] == report["WA"]
        assert logged["loss" if name == "mlflow" else "train/loss"] > 0
        image = run["files"][0] if name == "mlflow" else logged["test/confusion_matrix"]
        assert np.array_equal(image, imread(folder / "confusion_matrix.png"))


def test_tensorboard_has_scores_image_and_settings_with_the_losses(demo_corpus, feature_cache, tmp_path):
    train(demo_corpus, feature_cache, tmp_path / "mine", "--report_to", "tensorboard")
    report = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    (folder,) = (tmp_path / "mine" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "eval/loss", "eval/UA"} <= {*events.Tags()["scalars"]}
    (scalar,) = events.Scalars("test/UA")
    assert scalar.value == pytest.approx(report["UA"])
    (image,) = events.Images("test/confusion_matrix")
    height, width, _ = imread(tmp_path / "mine" / "confusion_matrix.png").shape
    assert (image.height, image.width) == (height, width)
    (text,) = events.Tensors("run/text_summary")
    (summary,) = (value.decode() for value in text.tensor_proto.string_val)
    assert f"- protocol: {report['protocol']}" in summary and "- fold: 1" in summary


def test_a_run_that_is_not_tested_is_closed_without_scores(monkeypatch, small_corpus, feature_cache, tmp_path):
    trackio = make_trackio(monkeypatch)
    flags = ["--protocol", "loso", "--validation_share=0", "--do_train"]
    train(small_corpus, feature_cache, tmp_path / "mine", "--report_to", "trackio", *flags)
    (run,) = trackio.runs.values()
    assert run["config"]["fold"] == 1 and run["ends"] == 2 and trackio.current is None
    assert not any(name.startswith("test/") for values in run["logs"] for name in values)


def test_an_mlflow_run_is_started_if_there_was_no_training(monkeypatch, tmp_path):
    mlflow = make_mlflow(monkeypatch)
    args = SimpleNamespace(report_to=["mlflow"], output_dir=str(tmp_path))
    callback = integration_utils.MLflowCallback()
    callback.setup = lambda args, state, model: mlflow.begin("mine")
    trainer = SimpleNamespace(
        args=args, state=SimpleNamespace(global_step=0), model=None,
        callback_handler=SimpleNamespace(callbacks=[callback]),
    )  # fmt: skip
    RunTracking({"fold": 2}).log_report(trainer, {}, tmp_path / "none.png")
    assert mlflow.runs["mine"] == {"config": {"fold": 2}, "logs": [{}], "files": [], "ends": 1}
