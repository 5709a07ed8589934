"""Two processes on the CPU. Run as a program by `accelerate launch`, this file is one of them."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import DistributedType, PartialState
from transformers import AutoModelForAudioClassification

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.trainer import NonFiniteLossError, SERTrainer, mark_finished, resume_or_start
from tests.tiny import tiny_model
from tests.training import Collator, clips, compute_metrics, make_trainer

REPOSITORY = Path(__file__).parents[1]
SETTINGS = {
    "num_train": 22,
    "num_eval": 7,
    "num_train_epochs": 2,
    "specaugment_masks": 1,
    "load_best_model_at_end": False,
}
NUM_TEST = 9


def digest(model) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(name.encode() + value.cpu().numpy().tobytes())
    return whole.hexdigest()


def written_under(folder: Path) -> list[str]:
    """A list that fills up with what this process opens for writing, makes, moves or deletes under a folder."""
    written = []

    def hook(event, args):
        opened = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        changed = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        if (opened or changed) and str(args[0]).startswith(str(folder)):
            written.append(f"{event} {args[0]}")

    sys.addaudithook(hook)
    return written


def make_sharded_trainer(output_dir: Path, **changes):
    """FSDP2. accelerate quietly takes DDP for it where there are no GPUs, so it is told that there are."""
    fsdp = yaml.safe_load((REPOSITORY / "configs/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    fsdp["fsdp_transformer_cls_to_wrap"] = fsdp.pop("fsdp_transformer_layer_cls_to_wrap")
    environment = {name.upper(): str(value) for name, value in fsdp.items()} | {"ACCELERATE_USE_FSDP": "true"}
    prepare = SERTrainer.create_accelerator_and_postprocess

    def pretending(self):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        prepare(self)

    pretended = mock.patch.object(SERTrainer, "create_accelerator_and_postprocess", pretending)
    with mock.patch.dict(os.environ, environment), pretended:
        return make_trainer(output_dir, **changes)


def worker(output_dir: Path) -> None:
    torch.set_num_threads(1)
    written = written_under(output_dir)
    report = {}

    trainer = make_trainer(output_dir / "first", **SETTINGS)
    rank = trainer.args.process_index
    trainer.train()
    prediction = trainer.predict(clips(NUM_TEST, seed=5))
    report["test"] = prediction.metrics["test_UA"]
    report["predictions"] = prediction.predictions.tolist()
    report["weights"] = digest(trainer.model)
    report["evaluations"] = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    trainer.save_model()

    # A second run in the same processes, as for another fold; its backbones join in after an epoch.
    frozen = make_trainer(output_dir / "second", **SETTINGS, freeze_backbones=True, unfreeze_epoch=1)
    before = digest(frozen.model.maxmvit)
    frozen.train()
    report["second"] = digest(frozen.model)
    report["thawed"] = digest(frozen.model.maxmvit) != before

    with frozen.args.main_process_first():
        report["status"] = resume_or_start(output_dir / "first")[0]
    resumed = make_trainer(output_dir / "first", **SETTINGS, model=tiny_model(seed=9))
    resumed.train(resume_from_checkpoint=str(output_dir / "first" / "checkpoint-2"))
    report["resumed"] = digest(resumed.model)

    sharded = make_sharded_trainer(output_dir / "sharded", **SETTINGS)
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


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]
    command += ["--main_process_port", str(port), "-m", "tests.test_distributed", str(folder / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [{"folder": folder / "out"} | json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_both_processes_end_with_the_same_model(reports):
    first, second = reports
    assert first["weights"] == second["weights"]
    assert first["second"] == second["second"] and first["thawed"]


def test_metrics_are_those_of_one_process(reports):
    model = MaxMViTForAudioClassification.from_pretrained(reports[0]["folder"] / "first")
    assert digest(model) == reports[0]["weights"]
    trainer = make_trainer(reports[0]["folder"] / "alone", model=model, num_eval=7)
    alone = trainer.predict(clips(NUM_TEST, seed=5))
    for report in reports:
        assert np.shape(report["predictions"]) == (NUM_TEST, 4)
        np.testing.assert_allclose(report["predictions"], alone.predictions, rtol=0, atol=1e-5)
        assert report["test"] == alone.metrics["test_UA"]
        assert report["evaluations"][-1] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    assert compute_metrics(alone)["UA"] == alone.metrics["test_UA"]


def test_fsdp2_trains_the_same_model_and_saves_it_for_anyone(reports):
    folder = reports[0]["folder"] / "sharded"
    assert {report["sharded"] for report in reports} == {"DTensor"}
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    assert digest(model) == reports[0]["weights"]
    assert {p.name for p in folder.glob("*.py")} == {p.name for p in (folder.parent / "first").glob("*.py")}


def test_only_the_main_process_writes(reports):
    main, other = (report["written"] for report in reports)
    assert any("trainer_state.json" in line for line in main)
    assert [line for line in other if not line.startswith("os.mkdir")] == []


def test_a_resumed_run_ends_like_the_whole_one(reports):
    for report in reports:
        assert report["status"] == "resume"
        assert report["resumed"] == reports[0]["weights"]


def test_a_loss_that_one_process_finds_not_finite_stops_all(reports):
    for report in reports:
        assert "not finite at step 1; learning rates: cqt 0.001" in report["stopped"]


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
