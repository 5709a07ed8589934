"""Tests the learnable Mel filter bank: its initial images, inputs, saving, training, errors and warnings."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import feature_extraction_maxmvit
from benchmarks.recipes import flags_of, read_variations
from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor, image_settings
from modeling_maxmvit import MaxMViTForAudioClassification, MelFilterBank
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.arguments import DataArguments
from ser.cli import check_model, parse_arguments
from ser.commands.train import main
from ser.data.augmentation import RandomGain
from ser.data.spectrogram_cache import extractor_key, pack, unpack
from ser.export import onnx
from ser.models import load_pipeline, make_config, make_feature_extractor
from ser.utils import DataError
from spectrograms_maxmvit import mel_filters
from tests.helpers.corpora import write_ravdess
from tests.helpers.marks import first_fast
from tests.helpers.processes import exit_codes, start
from tests.helpers.speech import assert_reloads, inputs_of, logits_of, trainer_of
from tests.helpers.tiny import noise, tiny_config, tiny_feature_extractor, tiny_learnable, voice
from tests.helpers.training import make_arguments

ROOT = Path(__file__).parents[2]
RATE = 44_100
# Three lengths; a voice between faint noise, one far quieter and noise far louder than any recording.
CLIPS = [
    np.concatenate([noise(9_000, 1) * 1e-3, voice(0.6), noise(7_000, 2) * 1e-3]),
    voice(0.9, f0=180, seed=1) * np.float32(1e-4),
    noise(100) * np.float32(1e12),
]
GAINS = "maxmvit.filter_bank.log_gains"


def built(seed: int = 0, **changes) -> tuple[MaxMViTForAudioClassification, MaxMViTFeatureExtractor]:
    config, extractor = tiny_learnable(**changes)
    torch.manual_seed(seed)
    return MaxMViTForAudioClassification(config).eval(), extractor


# ---- images


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("backend", first_fast(["torch", "librosa"]))
@pytest.mark.parametrize(
    "trim_db, level, mel_representation, channels",
    product((None, 35.0), ("clip", "full_scale"), ("log-mel", "mfcc"), ("repeat", "deltas")),
)
def test_the_initial_images_are_those_of_the_extractor(trim_db, level, mel_representation, channels, backend):
    extractor = MaxMViTFeatureExtractor(
        trim_db=trim_db, level=level, mel_representation=mel_representation, channels=channels, backend=backend,
        image_size=(64, 96), filter_bank="learnable",
    )  # fmt: skip
    inputs = inputs_of(extractor, *CLIPS)
    assert len({*inputs["power_lengths"].tolist()}) == 3
    images = MelFilterBank(image_settings(extractor))(inputs["power_values"], inputs["power_lengths"])
    std = torch.tensor(extractor.image_std)[:, None, None]
    torch.testing.assert_close(images * std, inputs["mel_values"] * std, rtol=0, atol=1e-4)
    assert inputs["mel_values"].std() > 0.1


def test_the_initial_filters_are_slaneys_and_training_keeps_their_signs_and_bands():
    extractor = MaxMViTFeatureExtractor(filter_bank="learnable")
    bank, slaney = MelFilterBank(image_settings(extractor)), torch.from_numpy(mel_filters(RATE, 4096, 128))
    assert bank.filters().equal(slaney)
    assert len(bank.log_gains) == (slaney > 0).sum() < 2 * 2049
    torch.nn.init.normal_(bank.log_gains)
    assert ((bank.filters() > 0) == (slaney > 0)).all()
    torch.testing.assert_close(bank.filters()[slaney > 0], slaney[slaney > 0] * bank.log_gains.exp())


@pytest.mark.parametrize(
    "level, mel_representation", [("clip", "log-mel"), ("clip", "mfcc"), ("full_scale", "log-mel")]
)
def test_the_gradient_of_a_filter_is_that_of_its_image(level, mel_representation):
    """Compares with a central difference in a random direction. For level "clip", the clip has one loudest frame."""
    model, extractor = built(level=level, channels="deltas", mel_representation=mel_representation, n_mfcc=20)
    swelling = np.linspace(0, 1, RATE // 2, dtype=np.float32) ** 4 if level == "clip" else 1
    bank, inputs = model.maxmvit.filter_bank, inputs_of(extractor, voice(0.5) * swelling)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 32, 32, generator=generator, dtype=torch.float64)
    direction = torch.randn(bank.log_gains.shape, generator=generator)

    def score(step: float) -> torch.Tensor:
        with torch.no_grad():
            bank.log_gains.copy_(step * direction)
        return (bank(inputs["power_values"])[0].double() * weights).sum()

    numeric = (score(5e-3) - score(-5e-3)).item() / 1e-2
    score(0.0).backward()
    assert (bank.log_gains.grad * direction).sum().item() == pytest.approx(numeric, rel=0.01) and abs(numeric) > 0.1


def test_an_untrained_filter_bank_gives_the_logits_of_fixed_filters():
    model, extractor = built(trim_db=30.0)
    fixed = MaxMViTConfig(**{**model.config.to_dict(), "filter_bank": "fixed", "filter_bank_config": None})
    other = MaxMViTForAudioClassification(fixed).eval()
    other.load_state_dict({name: value for name, value in model.state_dict().items() if name != GAINS})
    inputs = inputs_of(extractor, *CLIPS)
    expected = other(cqt_values=inputs["cqt_values"], mel_values=inputs["mel_values"]).logits
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-6)
    torch.nn.init.normal_(model.maxmvit.filter_bank.log_gains)
    assert (model(**inputs).logits - expected).abs().max() > 1e-4


def test_the_logits_of_a_clip_do_not_depend_on_the_other_clips_of_its_batch():
    model, extractor = built(trim_db=30.0)
    torch.nn.init.normal_(model.maxmvit.filter_bank.log_gains)
    alone = torch.cat([logits_of(model, extractor, clip) for clip in CLIPS])
    torch.testing.assert_close(logits_of(model, extractor, *CLIPS), alone, rtol=0, atol=1e-6)


def test_filters_stay_float32_in_a_bfloat16_model_and_in_autocast():
    model, extractor = built()
    inputs = inputs_of(extractor, *CLIPS)
    expected = model.maxmvit.filter_bank(inputs["power_values"], inputs["power_lengths"])
    with torch.autocast("cpu", torch.bfloat16):
        assert model.maxmvit.filter_bank(inputs["power_values"], inputs["power_lengths"]).equal(expected)
    logits = logits_of(model, extractor, *CLIPS)
    halved = model.bfloat16()
    assert halved.maxmvit.filter_bank(inputs["power_values"], inputs["power_lengths"]).equal(expected)
    torch.testing.assert_close(logits_of(halved, extractor, *CLIPS).float(), logits, rtol=0.1, atol=0.1)


# ---- inputs


def test_the_power_is_cached_with_the_spectrograms_and_raised_by_a_gain():
    plain, extractor = tiny_feature_extractor(), tiny_feature_extractor(filter_bank="learnable", level="full_scale")
    (clip,) = extractor.spectrograms(CLIPS[0])
    assert clip["power"].shape == (2049, clip["mel"].shape[-1]) and "power" not in plain.spectrograms(CLIPS[0])[0]
    assert not plain.waveform_inputs([clip]) and {*extractor.waveform_inputs([clip])} == {
        "power_values",
        "power_lengths",
    }
    cached = unpack(pack(clip))
    loud = clip["power"] > clip["power"].max() - 128
    assert (cached["power"] - clip["power"])[loud].abs().max() < 0.04
    assert extractor_key(plain) != extractor_key(extractor)
    louder = RandomGain(12.0)(clip)
    torch.testing.assert_close(
        louder["power"] - clip["power"],
        (louder["mel"] - clip["mel"]).mean().expand(2049, clip["mel"].shape[-1]),
        rtol=0,
        atol=1e-3,
    )


def test_the_filters_of_a_pipeline_window_get_the_power_of_its_segment():
    model, extractor = built()
    classify = MaxMViTAudioClassificationPipeline(model=model, feature_extractor=extractor)
    recording = np.concatenate([voice(1.5, f0=100 + 20 * i, seed=i) for i in range(4)])
    rows = classify(recording, window_s=2.0, hop_s=1.0, batch_size=3)
    assert [row["start"] for row in rows] == [0.0, 1.0, 2.0, 3.0, 4.0]
    (whole,) = extractor.spectrograms(recording)
    for row in rows:
        segment = extractor.cut(whole, row["start"], row["end"])
        images = {name: extractor.normalize(image) for name, image in extractor.images([segment]).items()}
        scores = model(**images, **extractor.waveform_inputs([segment])).logits.softmax(-1)[0].tolist()
        assert list(row["scores"].values()) == pytest.approx(scores, abs=1e-3)


# ---- saving and loading


@pytest.mark.slow
def test_the_filter_bank_reloads_in_another_process(tmp_path):
    model, extractor = built(trim_db=30.0)
    torch.nn.init.normal_(model.maxmvit.filter_bank.log_gains)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "saved")
    np.savez(tmp_path / "clips.npz", *CLIPS)
    torch.save(logits_of(model, extractor, *CLIPS), tmp_path / "logits.pt")
    assert exit_codes([start(assert_reloads, tmp_path)]) == [0]


def test_missing_filters_get_their_initial_values(tmp_path):
    model, _ = built()
    torch.nn.init.normal_(model.maxmvit.filter_bank.log_gains)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.pop(GAINS).any()
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reloaded, info = MaxMViTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {GAINS} and not reloaded.maxmvit.filter_bank.log_gains.any()


# ---- training


def test_the_filter_bank_has_its_own_optimizer(tmp_path):
    def groups(**changes) -> dict[str, tuple]:
        model, extractor = built()
        found = trainer_of(model, extractor, tmp_path, **changes).create_optimizer().param_groups
        own = [group for group in found if group["branch"] == "filter"]
        assert [p for group in own for p in group["params"]] == [model.maxmvit.filter_bank.log_gains]
        return {
            g["branch"]: (g["algorithm"], g["lr"], g["weight_decay"])
            for g in found
            if g["params"][0].ndim > 1 or g in own
        }

    plain = groups()
    assert plain == {
        "cqt": ("adam", 1e-3, 0.0),
        "mel": ("radam", 1e-3, 0.0),
        "filter": ("radam", 1e-3, 0.0),
        "head": ("adam", 1e-3, 0.0),
    }
    assert groups(weight_decay=0.1, mel_optimizer="adamw", layer_decay=0.5)["filter"] == ("adamw", 1e-3, 0.1)
    own = {"filter_optimizer": "sgd", "filter_learning_rate": 0.5, "filter_weight_decay": 0.2}
    assert groups(**own) == plain | {"filter": ("sgd", 0.5, 0.2)}


@pytest.mark.slow
def test_the_filter_bank_trains_and_resumes_exactly(tmp_path):
    model, extractor = built(trim_db=30.0)
    settings = {"activation_checkpointing": True, "bf16": True, "ema_decay": 0.5, "filter_optimizer": "adam"}
    trainer_of(model, extractor, tmp_path, **settings).train()
    ends = model.state_dict()
    assert ends[GAINS].abs().mean() > 1e-4
    restarted, _ = built(trim_db=30.0)
    resumed = trainer_of(restarted, extractor, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in restarted.state_dict().items():
        assert value.equal(ends[name]), name


def test_the_filter_bank_is_frozen_and_unfrozen_with_the_backbones(tmp_path):
    for unfreeze_epoch, branches in ((None, {"head"}), (0, {"cqt", "mel", "filter", "head"})):
        model, extractor = built()
        trainer = trainer_of(model, extractor, tmp_path, freeze_backbones=True, unfreeze_epoch=unfreeze_epoch)
        assert {group["branch"] for group in trainer.create_optimizer().param_groups} == branches


def test_checkpointing_changes_no_gradient():
    model, extractor = built()
    inputs, gradients = inputs_of(extractor, *CLIPS), []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model.train().zero_grad()
        model(**inputs, labels=torch.arange(3)).loss.backward()
        gradients.append(model.maxmvit.filter_bank.log_gains.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


@pytest.mark.slow
def test_the_variation_of_the_ablation_runs_ten_steps(tmp_path):
    write_ravdess(tmp_path / "corpus")
    variation = read_variations(ROOT / "configs/ablations/ravdess_small-filters.yaml", "ravdess_small")[
        "learnable filters"
    ]
    places = {"data_dir": tmp_path / "corpus", "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}
    flags = [*flags_of(variation), *flags_of(places), "--max_steps", "10", "--report_to", "none"]
    flags += ["--waveform_copies=0", "--waveform_chain=all", "--mixup_alpha=0", "--per_device_train_batch_size=8"]
    main([str(ROOT / "configs/ravdess_small.yaml"), *flags])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["model_arguments"]["filter_bank"] == "learnable"
    assert load_file(tmp_path / "out" / "model.safetensors")[GAINS].abs().mean() > 1e-4
    classify = load_pipeline(str(tmp_path / "out"))
    assert len(classify({"array": CLIPS[0], "sampling_rate": RATE})) == 8
    with pytest.raises(DataError, match="filter_bank='learnable' cannot be exported"):
        onnx.build(classify, onnx.Form(window_s=None, front_end=True, quantize=None, opset=20))
    start = ["--model_name_or_path", str(tmp_path / "out"), "--output_dir", "again", "--use_cpu"]
    model_args = parse_arguments([*start, "--filter_learning_rate", "0.1"])[0]
    assert make_config(model_args).filter_bank == make_feature_extractor(model_args).filter_bank == "learnable"
    model_args = parse_arguments([*start, "--feature_extractor_kwargs", '{"top_db": 80, "trim_db": 30}'])[0]
    with pytest.raises(DataError, match="computes its Mel images itself, .* another top_db: leave it out"):
        make_config(model_args)


# ---- errors and warnings


def command(*flags: str):
    return parse_arguments(["--output_dir", "out", "--imagenet_weights", "false", "--use_cpu", *flags])


def test_the_command_builds_a_matching_model_and_extractor():
    flags = [
        "--filter_bank",
        "learnable",
        "--feature_extractor_kwargs",
        '{"channels": "deltas"}',
        "--filter_optimizer",
        "sgd",
    ]
    model_args, _, args = command(*flags, "--cqt_backbone", "convnet", "--mel_backbone", "convnet")
    config, extractor = make_config(model_args), make_feature_extractor(model_args)
    assert config.filter_bank_config == image_settings(extractor) and extractor.filter_bank == "learnable"
    assert args.by_branch("optimizer")["filter"] == "sgd" and config.filter_bank_config["channels"] == "deltas"
    model_args.feature_extractor_kwargs = {"filter_bank": "learnable"}
    with pytest.raises(ValueError, match="filter_bank is set by --filter_bank; leave it out"):
        make_feature_extractor(model_args)


@pytest.mark.parametrize("name, value", [("optimizer", "sgd"), ("learning_rate", 0.1), ("weight_decay", 0.1)])
def test_filter_options_are_ignored_with_a_warning_if_filters_are_fixed(name, value, caplog):
    args = command(f"--filter_{name}", str(value))[2]
    assert f"--filter_{name} has no effect without --filter_bank learnable" in caplog.text
    assert getattr(args, f"filter_{name}") is None


def test_mixup_and_masks_of_learnable_images_are_refused(tmp_path, caplog):
    config = built()[0].config
    with pytest.raises(
        DataError, match="--mixup_alpha blends images, and learnable filters compute their image later"
    ):
        check_model(config, DataArguments(), make_arguments(tmp_path, mixup_alpha=0.2))
    config.cqt_backbone = None
    with pytest.raises(DataError, match="--specaugment_masks masks images.* the only image of this model"):
        check_model(config, DataArguments(), make_arguments(tmp_path, specaugment_masks=1))
    check_model(tiny_config(), DataArguments(), make_arguments(tmp_path, filter_learning_rate=0.1))
    assert "--filter_learning_rate has no effect: the model has no such part" in caplog.text


def test_invalid_settings_and_inputs_are_refused():
    model, extractor = built()
    settings = image_settings(extractor)
    for fields, message in (
        ({"filter_bank": "gabor"}, "filter_bank='gabor' does not work: choose one of fixed, learnable"),
        ({"filter_bank": "learnable"}, "needs a filter_bank_config"),
        ({"filter_bank_config": settings}, "filter_bank_config is for filter_bank='learnable'"),
        ({"filter_bank": "learnable", "filter_bank_config": settings, "mel_backbone": None}, "without a mel_backbone"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_config(**fields)
    for wrong, message in (
        ({"n_mels": 9}, "needs a filter_bank_config"),
        (settings | {"loudness": 3.0}, "needs a filter_bank_config"),
        ({name: value for name, value in settings.items() if name != "level"}, "needs a filter_bank_config"),
        (settings | {"n_mfcc": "many"}, "filter_bank_config: n_mfcc='many' does not work"),
        (settings | {"image_shape": 32}, "filter_bank_config: image_shape=32 does not work"),
    ):
        config = tiny_config(filter_bank="learnable", filter_bank_config=wrong)
        with pytest.raises(ValueError, match=message):
            MaxMViTForAudioClassification(config)
    with pytest.raises(ValueError, match="filter_bank must be 'fixed' or 'learnable'"):
        tiny_feature_extractor(filter_bank="gabor")
    inputs = inputs_of(extractor, *CLIPS)
    with pytest.raises(ValueError, match="power_values is missing.*filter_bank is 'learnable'"):
        model(cqt_values=inputs["cqt_values"], mel_values=inputs["mel_values"])
    for wrong in (inputs["power_values"][:, 1:], inputs["power_values"][:2], inputs["power_values"][..., :9]):
        with pytest.raises(ValueError, match="power_values has shape .*257 bins, frames"):
            model(**inputs | {"power_values": wrong})
    with pytest.raises(ValueError, match="cqt_values holds 2 clips, power_values 3"):
        model(**inputs | {"cqt_values": inputs["cqt_values"][:2]})


def test_settings_that_an_older_model_lacks_have_their_defaults(monkeypatch):
    settings = image_settings(tiny_feature_extractor(filter_bank="learnable", n_mfcc=11, top_db=70.0))
    for name, value in (("n_mfcc", 40), ("top_db", 80.0)):
        older = {other: setting for other, setting in settings.items() if other != name}
        monkeypatch.setattr(feature_extraction_maxmvit, "FIRST_SETTINGS", {*older})
        assert MelFilterBank(older).settings == settings | {name: value}
