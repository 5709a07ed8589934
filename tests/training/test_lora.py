"""Tests low-rank adapters for a speech encoder: their start, training, merging, checkpoints and options."""

import json

import pytest
import torch
from safetensors.torch import load_file

import ser.training.arguments
from configuration_maxmvit import FAMILIES
from ser.data.batches import PairCollator
from ser.models import load_model
from ser.training.finetuning import add_adapters
from ser.training.trainer import SERTrainer
from ser.utils import DataError
from tests.helpers.speech import CLIPS, Sounds, built, command, inputs_of, logits_of
from tests.helpers.training import compute_metrics, make_arguments

pytest.importorskip("peft", reason="pip install -r requirements-dev.txt")
ENCODER = "maxmvit.speech_encoder.encoder."


def trainer_of(encoder: str, folder, **changes) -> tuple[SERTrainer, dict[str, torch.Tensor]]:
    """Returns a trainer of a model without image branches, and the weights before training."""
    model, extractor = built(encoder, cqt_backbone=None, mel_backbone=None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"lora_rank": 2, "num_train_epochs": 2, "lr_scheduler_type": "cosine", "learning_rate": 0.05, **changes}
    trainer = SERTrainer(
        model=model,
        args=make_arguments(folder, **settings),
        data_collator=PairCollator(extractor),
        train_dataset=Sounds(8),
        eval_dataset=Sounds(8),
        processing_class=extractor,
        compute_metrics=compute_metrics,
    )
    return trainer, before


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_at_zero_all_get_gradients_and_are_merged_completely(encoders, family):
    model, extractor = built(encoders[family], cqt_backbone=None, mel_backbone=None)
    encoder, expected = model.pretrained_parts()["speech"], logits_of(model, extractor, *CLIPS)
    keys = list(model.state_dict())
    adapters = add_adapters(encoder, 2)
    torch.testing.assert_close(logits_of(model, extractor, *CLIPS), expected, rtol=0, atol=1e-6)
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all(".lora_" in name for name in trained)
    for name, parameter in trained.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    model(**inputs_of(extractor, *CLIPS), labels=torch.arange(3)).loss.backward()
    assert all(parameter.grad.any() for parameter in trained.values())
    adapted = logits_of(model, extractor, *CLIPS)
    assert (adapted - expected).abs().max() > 1e-4
    adapters.merge_and_unload()
    assert list(model.state_dict()) == keys and not [m for m in model.modules() if "peft" in type(m).__module__]
    torch.testing.assert_close(logits_of(model, extractor, *CLIPS), adapted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wavlm", "whisper"])
def test_of_the_encoder_only_the_adapters_are_trained(encoders, family, tmp_path):
    trainer, before = trainer_of(encoders[family], tmp_path, layer_decay=0.5)
    groups = [g for g in trainer.create_optimizer().param_groups if g["branch"] == "speech"]
    optimized = {id(p) for group in groups for p in group["params"]}
    named = {name: id(p) for name, p in trainer.model.named_parameters() if ".lora_" in name}
    assert optimized == {*named.values()} and all(name.startswith(ENCODER) for name in named)
    assert {(g["algorithm"], g["lr"]) for g in groups} == {("adamw", 0.05), ("adamw", 0.025)}
    trainer.train()
    after = trainer.model.state_dict()
    moved = {name for name in before if name.startswith(ENCODER) and not after[name].equal(before[name])}
    assert after.keys() == before.keys() and len(moved) == 4
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_best_model_is_merged_and_a_run_resumes_exactly(encoders, ema_decay, tmp_path):
    settings = {"ema_decay": ema_decay, "save_total_limit": 3, "activation_checkpointing": True}
    trainer, _ = trainer_of(encoders["wavlm"], tmp_path / "run", **settings)
    trainer.train()
    trainer.save_model()
    ends = trainer.model.state_dict()
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    best = load_file(tmp_path / "run" / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    name = f"{ENCODER}encoder.layers.1.attention.v_proj"
    a, b = (best[f"{name}.lora_{part}.default.weight"] for part in "AB")
    torch.testing.assert_close(ends[f"{name}.weight"], best[f"{name}.base_layer.weight"] + b @ a)
    assert b.any()
    loaded = load_model(tmp_path / "run").state_dict()
    assert loaded.keys() == ends.keys() and all(value.equal(ends[key]) for key, value in loaded.items())
    with pytest.raises(DataError, match="holds adapters.*--lora_rank.*finished run"):
        load_model(tmp_path / "run" / "checkpoint-2")
    resumed, _ = trainer_of(encoders["wavlm"], tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for key, value in resumed.model.state_dict().items():
        assert value.equal(ends[key]), key


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--freeze_speech_encoder"], "--lora_rank has no effect with --freeze_speech_encoder"),
        (["--speech_frozen_layers", "1"], "--speech_frozen_layers has no effect with --lora_rank"),
        (["--freeze_backbones"], "--lora_rank has no effect with --freeze_backbones and without --unfreeze_epoch"),
    ],
)
def test_options_without_effect_with_adapters_are_ignored_with_a_warning(flags, message, caplog):
    args = command("somewhere", "--lora_rank", "4", *flags)[2]
    assert message in caplog.text and (args.lora_rank is None or args.speech_frozen_layers is None)


def test_lora_rank_is_ignored_without_an_encoder_and_refused_without_peft(monkeypatch, tmp_path, caplog):
    with pytest.raises(ValueError, match="--lora_rank 0 does not work: it must be a number at least 1"):
        command("somewhere", "--lora_rank", "0")
    assert command(None, "--lora_rank", "4")[2].lora_rank is None
    assert "--lora_rank has no effect without --speech_encoder" in caplog.text
    assert command("somewhere", "--lora_rank", "4")[2].by_branch("learning_rate")["speech"] == 2e-4

    def too_old(requirement: str) -> None:
        raise ImportError(requirement)

    monkeypatch.setattr(ser.training.arguments, "require_version", too_old)
    with pytest.raises(ValueError, match="--lora_rank needs peft 0.18 or newer: pip install -U peft"):
        command("somewhere", "--lora_rank", "4")
