"""Tests training, prediction and resuming in two processes on the CPU."""

import csv
import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from accelerate.state import DistributedType, PartialState
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.data.corpora.loading import load_corpus
from ser.data.spectrogram_cache import FOLDER
from ser.distributed import first_process_first
from ser.training.checkpoints import last_checkpoint
from ser.training.pooled_statistics import pooled_features
from ser.training.run_settings import mark_finished, resume_or_start
from ser.training.trainer import SERTrainer
from ser.utils import DataError, NonFiniteLossError
from tests.helpers.commands import CONVNET_FLAGS
from tests.helpers.processes import exit_codes, start_group
from tests.helpers.streaming import KEEPING, trainer_of, write_shards
from tests.helpers.tiny import tiny_images, tiny_model, tiny_speech_encoder
from tests.helpers.training import Collator, clips, compute_metrics, make_trainer

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {
    "num_train": 22,
    "num_eval": 7,
    "num_train_epochs": 2,
    "specaugment_masks": 1,
}
NUM_TEST = 9


def digest(model) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(name.encode() + value.cpu().numpy().tobytes())
    return whole.hexdigest()


def written_under(folder: Path) -> list[str]:
    """Returns a list that records every path under `folder` that this process writes, creates, moves or deletes."""
    written = []

    def hook(event, args):
        opened = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        changed = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        if (opened or changed) and str(args[0]).startswith(str(folder)):
            written.append(f"{event} {args[0]}")

    def watching(module, name):
        write = getattr(module, name)

        def watched(content, path, *args, **kwargs):
            if str(path).startswith(str(folder)):
                written.append(f"{name} {path}")
            return write(content, path, *args, **kwargs)

        setattr(module, name, watched)

    sys.addaudithook(hook)
    # These two open their files outside Python, which raises no audit event.
    watching(torch, "save")
    watching(safetensors.torch, "serialize_file")
    return written


def make_sharded_trainer(output_dir: Path, **changes):
    """Returns a trainer with FSDP2. Without GPUs, accelerate silently falls back to DDP, so GPUs are simulated."""
    fsdp = yaml.safe_load((REPOSITORY / "configs/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    fsdp["fsdp_transformer_cls_to_wrap"] = fsdp.pop("fsdp_transformer_layer_cls_to_wrap")
    environment = {name.upper(): str(value) for name, value in fsdp.items()} | {"ACCELERATE_USE_FSDP": "true"}
    prepare = SERTrainer.create_accelerator_and_postprocess

    def simulate_gpus(self):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        prepare(self)

    simulated = mock.patch.object(SERTrainer, "create_accelerator_and_postprocess", simulate_gpus)
    with mock.patch.dict(os.environ, environment), simulated:
        return make_trainer(output_dir, **changes)


def stream(output_dir: Path) -> dict:
    """Trains on streamed clips; returns the clips read, and predictions and weights of the whole and a resumed run."""
    clips_read: list[list[str]] = []
    corpus = load_corpus(str(output_dir.parent / "shards"), cache_dir=str(output_dir.parent), streaming=True)
    trainer = trainer_of(corpus, output_dir / "streamed", **KEEPING)
    collate = trainer.train_collator
    trainer.train_collator = lambda rows: clips_read.append([row["file"] for row in rows]) or collate(rows)
    trainer.train()
    resumed = trainer_of(corpus, output_dir / "resumed", **KEEPING)
    resumed.train(resume_from_checkpoint=str(output_dir / "streamed" / "checkpoint-3"))
    outputs = [each.predict(corpus.clips.select(range(NUM_TEST))) for each in (trainer, resumed)]
    return {
        "clips_read": clips_read,
        "predictions": [each.predictions.tolist() for each in outputs],
        "labels": outputs[0].label_ids.tolist(),
        "features": pooled_features(trainer, corpus.clips.select(range(NUM_TEST))).features.tolist(),
        "weights": [digest(each.model) for each in (trainer, resumed)],
    }


def worker(output_dir: Path) -> None:
    torch.set_num_threads(1)
    written = written_under(output_dir)
    report = {}

    trainer = make_trainer(output_dir / "first", model=tiny_model(), **SETTINGS)
    rank = trainer.args.process_index
    trainer.train()
    prediction = trainer.predict(clips(NUM_TEST, seed=5))
    report["test"] = prediction.metrics["test_UA"]
    report["predictions"] = prediction.predictions.tolist()
    part = clips(NUM_TEST, seed=5).add_column("speaker", ["a"] * NUM_TEST).with_format("torch")
    report["features"] = pooled_features(trainer, part).features.tolist()
    report["weights"] = digest(trainer.model)
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    report["best_loss"] = losses[trainer.state.best_global_step]
    trainer.save_model()

    # A second run in the same processes, as for another fold; its backbones are unfrozen after one epoch.
    unfreezing = {"freeze_backbones": True, "unfreeze_epoch": 1, "load_best_model_at_end": False}
    frozen = make_trainer(output_dir / "second", **SETTINGS, **unfreezing)
    before = digest(frozen.model.maxmvit)
    frozen.train()
    report["second"] = digest(frozen.model)
    report["unfrozen"] = digest(frozen.model.maxmvit) != before

    averaging = make_trainer(output_dir / "averaged", **SETTINGS, ema_decay=0.8, load_best_model_at_end=False)
    averaging.train()
    averaging.evaluate()
    averaging.save_model()
    report["averaged"] = digest(averaging.model)

    with first_process_first(frozen.args, "reading the status"):
        report["status"] = resume_or_start(output_dir / "first")[0]
    resumed = make_trainer(output_dir / "first", **SETTINGS, model=tiny_model(seed=9))
    # Only the first process names the checkpoint.
    resumed.train(resume_from_checkpoint=str(output_dir / "first" / "checkpoint-2") if rank == 0 else None)
    report["resumed"] = digest(resumed.model)

    # Each process has its own output folder, as on machines without a shared disk.
    unshared = make_trainer(output_dir / f"of-rank-{rank}", **SETTINGS)
    if rank == 0:
        shutil.copytree(output_dir / "first" / "checkpoint-2", output_dir / "of-rank-0" / "checkpoint-2")
    try:
        unshared.train(resume_from_checkpoint=last_checkpoint(output_dir / f"of-rank-{rank}"))
    except DataError as error:
        report["not shared"] = str(error)

    report["streamed"] = stream(output_dir)

    sharded = make_sharded_trainer(output_dir / "sharded", model=tiny_model(), **SETTINGS)
    sharded.train()
    sharded.save_model()
    report["sharded"] = type(next(sharded.model.parameters())).__name__

    poisoned = make_trainer(output_dir / "third", **SETTINGS)
    if rank == 1:
        poisoned.train_collator = lambda features: {
            name: value * float("nan") if name == "mel_values" else value
            for name, value in Collator()(features).items()
        }
    try:
        poisoned.train()
    except NonFiniteLossError as error:
        report["stopped"] = str(error)
    if trainer.is_world_process_zero():
        mark_finished(output_dir / "first")
    report["written"] = [line for line in written if "tmp-checkpoint" not in line or "rng_state" not in line]
    (output_dir.parent / f"rank{rank}.json").write_text(json.dumps(report))


def launch(*program: str | Path) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]
    command += ["--main_process_port", str(port), *map(str, program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("distributed")
    write_shards(folder / "shards", 46)
    assert exit_codes(start_group(2, worker, folder / "out")) == [0, 0]
    return [{"folder": folder / "out"} | json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_both_processes_end_with_the_same_model(reports):
    first, second = reports
    assert first["weights"] == second["weights"]
    assert first["second"] == second["second"] and first["unfrozen"]


def test_both_processes_have_the_same_averaged_weights(reports):
    first, second = reports
    saved = MaxMViTForAudioClassification.from_pretrained(first["folder"] / "averaged")
    assert first["averaged"] == second["averaged"] == digest(saved) != first["weights"]


def test_predictions_and_metrics_equal_those_of_one_process(reports):
    model = MaxMViTForAudioClassification.from_pretrained(reports[0]["folder"] / "first")
    assert digest(model) == reports[0]["weights"]
    trainer = make_trainer(reports[0]["folder"] / "alone", model=model, num_eval=7)
    single = trainer.predict(clips(NUM_TEST, seed=5))
    for report in reports:
        assert np.shape(report["predictions"]) == (NUM_TEST, 4)
        np.testing.assert_allclose(report["predictions"], single.predictions, rtol=0, atol=1e-5)
        assert report["test"] == single.metrics["test_UA"]
        assert report["best_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    assert compute_metrics(single)["UA"] == single.metrics["test_UA"]
    part = clips(NUM_TEST, seed=5).add_column("speaker", ["a"] * NUM_TEST).with_format("torch")
    features = pooled_features(trainer, part).features
    for report in reports:
        np.testing.assert_allclose(report["features"], features, rtol=0, atol=1e-5)


def test_streamed_clips_are_divided_between_the_processes(reports):
    runs, folder = [report["streamed"] for report in reports], reports[0]["folder"]
    for epoch in range(2):
        files = [name for each in runs for batch in each["clips_read"][2 * epoch : 2 * epoch + 2] for name in batch]
        assert len(files) == len({*files}) == 16
    assert runs[0]["clips_read"][:2] != runs[0]["clips_read"][2:] and {len(each["clips_read"]) for each in runs} == {4}
    assert len({each for report in runs for each in report["weights"]}) == 1
    corpus = load_corpus(str(folder.parent / "shards"), cache_dir=str(folder.parent), streaming=True)
    model = MaxMViTForAudioClassification.from_pretrained(folder / "streamed" / "checkpoint-4")
    trainer = trainer_of(corpus, folder / "alone", model=model)
    single = trainer.predict(corpus.clips.select(range(NUM_TEST)))
    features = pooled_features(trainer, corpus.clips.select(range(NUM_TEST))).features
    for each in runs:
        np.testing.assert_allclose(each["features"], features, rtol=0, atol=1e-5)
        assert each["labels"] == single.label_ids.tolist()
        for predictions in each["predictions"]:
            np.testing.assert_allclose(predictions, single.predictions, rtol=0, atol=1e-5)


def test_fsdp2_trains_the_same_model_and_saves_a_plain_checkpoint(reports):
    folder = reports[0]["folder"] / "sharded"
    assert {report["sharded"] for report in reports} == {"DTensor"}
    sharded = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    replicated = MaxMViTForAudioClassification.from_pretrained(reports[0]["folder"] / "first")
    # Rounding depends on the memory layout of the tensors, and Adam amplifies it where the gradient is nothing but
    # rounding error (a bias before BatchNorm), so the logits are compared, not the weights.
    with torch.no_grad():
        logits = [model.eval()(**tiny_images(8)).logits for model in (sharded, replicated)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-3)
    assert {p.name for p in folder.glob("*.py")} == {p.name for p in (folder.parent / "first").glob("*.py")}


def test_only_the_main_process_writes(reports):
    main, other = (report["written"] for report in reports)
    for name in ("trainer_state.json", "optimizer.pt", "model.safetensors"):
        assert any(name in line for line in main), name
    assert [line for line in other if not line.startswith("os.mkdir")] == []


def test_a_resumed_run_equals_the_uninterrupted_one(reports):
    for report in reports:
        assert report["status"] == "resume"
        assert report["resumed"] == reports[0]["weights"]


def test_a_process_that_does_not_find_the_checkpoint_raises_instead_of_waiting(reports):
    first, second = (report["not shared"] for report in reports)
    assert "checkpoint-2, which another process does not find" in first
    assert "of-rank-1/checkpoint-2, which process 1 does not find" in second


def test_a_nonfinite_loss_in_one_process_stops_all(reports):
    for report in reports:
        assert "not finite at step 1 (noticed at step 2); learning rates: cqt 0.001" in report["stopped"]


@pytest.fixture(scope="module")
def all_folds(demo_corpus, tmp_path_factory) -> Path:
    """Runs all folds with a speech encoder that masks nothing, so that one of its weights gets no gradient."""
    folder = tmp_path_factory.mktemp("all_folds")
    encoder = tiny_speech_encoder(folder / "encoder", "wavlm", apply_spec_augment=False)
    flags = [
        "--data_dir",
        demo_corpus,
        "--cache_dir",
        folder / "cache",
        "--output_dir",
        folder / "out",
        "--fold",
        "all",
    ]
    flags += ["--speech_encoder", encoder, "--speech_learning_rate", "1e-3", "--fusion", "gated", *CONVNET_FLAGS]
    flags += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--report_to", "none"]
    launch("run_ser.py", "configs/demo.yaml", "--use_cpu", "--preprocessing_num_workers", "1", *flags)
    return folder


def test_the_command_runs_all_folds_on_two_processes(all_folds, demo_corpus):
    out = all_folds / "out"
    assert len([path for path in (all_folds / "cache" / FOLDER).rglob("*") if path.is_file()]) == 48
    summary = json.loads((out / "metrics.json").read_text())
    metrics = [json.loads((out / f"fold_{fold}" / "metrics.json").read_text()) for fold in range(1, 6)]
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    clips = sorted(path.relative_to(demo_corpus).as_posix() for path in demo_corpus.rglob("*.wav"))
    assert sorted(row["file"] for row in rows) == clips and len(clips) == 48
    assert summary["pooled"]["n_clips"] == sum(each["n_clips"] for each in metrics) == 48
    for row in rows:
        assert all(math.isfinite(float(value)) for name, value in row.items() if name.startswith("p_")), row


def test_a_speech_encoder_is_fine_tuned_by_two_processes(all_folds):
    model = MaxMViTForAudioClassification.from_pretrained(all_folds / "out" / "fold_1")
    before = AutoModel.from_pretrained(all_folds / "encoder").state_dict()
    after = model.pretrained_parts()["speech"].state_dict()
    moved = [name for name, value in after.items() if not value.equal(before[name])]
    assert any("layers.0" in name for name in moved) and "masked_spec_embed" not in moved
