"""Tests the speech branch: its equations and inputs, and training, saving and loading with every family."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, ViTConfig, ViTModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from configuration_maxmvit import FAMILIES, MaxMViTConfig, read_encoder_config
from feature_extraction_maxmvit import MaxMViTFeatureExtractor, make_processor, read_processor
from modeling_maxmvit import SEGMENTS, MaxMViTForAudioClassification, MaxMViTModel, SpeechEncoder
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.arguments import DataArguments
from ser.cli import check_model
from ser.commands.train import main
from ser.data.augmentation import RandomGain
from ser.data.features import extract_features
from ser.data.spectrogram_cache import extractor_key, pack, unpack
from ser.export import onnx
from ser.models import load_pipeline, make_config, make_feature_extractor, make_model, starting_weights
from ser.training.arguments import SERTrainingArguments
from ser.training.run import make_trainer
from ser.training.trainer import SERTrainer
from ser.utils import DataError, UsageError
from tests.helpers.corpora import write_ravdess
from tests.helpers.marks import first_fast
from tests.helpers.processes import exit_codes, start
from tests.helpers.speech import CLIPS, RATE, assert_reloads, built, command, inputs_of, logits_of, trainer_of
from tests.helpers.tiny import tiny_config, tiny_feature_extractor, tiny_speech_encoder, voice
from tests.helpers.training import make_arguments

# ---- equations


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["attention", "mean"])
@pytest.mark.parametrize("family", first_fast(FAMILIES, 2))
def test_layers_are_summed_by_weight_and_pooled_over_time(encoders, family, pooling):
    model, extractor = built(encoders[family], speech_pooling=pooling)
    branch = model.branches()["speech"]
    torch.nn.init.normal_(branch.layer_weights)
    if pooling == "attention":
        torch.nn.init.normal_(branch.attention.weight)
    inputs = {name: value for name, value in inputs_of(extractor, CLIPS[0]).items() if "_values" not in name[:4]}
    reference = AutoModel.from_pretrained(encoders[family]).eval()
    reference = reference.encoder if family == "whisper" else reference
    with torch.no_grad():
        states = reference(inputs["input_values"], output_hidden_states=True).hidden_states
        features = branch.forward_features(inputs["input_values"], inputs["attention_mask"])
    tokens = features.tokens
    proportions = torch.exp(branch.layer_weights) / torch.exp(branch.layer_weights).sum()
    frames = sum(proportion * state[0] for proportion, state in zip(proportions, states, strict=True))
    if pooling == "mean":
        torch.testing.assert_close(tokens[0], frames.mean(0, keepdim=True))
        torch.testing.assert_close(branch.forward_head(features), tokens[:, 0])
        return
    attention = torch.exp(frames @ branch.attention.weight[0])
    torch.testing.assert_close(tokens[0, 0], (frames * attention[:, None]).sum(0) / attention.sum())
    bounds = [(k * len(frames) // SEGMENTS, -(-(k + 1) * len(frames) // SEGMENTS)) for k in range(SEGMENTS)]
    torch.testing.assert_close(tokens[0, 1:], torch.stack([frames[a:b].mean(0) for a, b in bounds]))
    torch.testing.assert_close(branch.forward_head(features), tokens[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["weighted_sum", "concat"])
@pytest.mark.parametrize("pooling", ["statistics", "attentive_statistics"])
@pytest.mark.parametrize("family", ["wavlm", "whisper"])
def test_statistics_are_mean_and_standard_deviation_of_each_layer(encoders, family, pooling, layers):
    model, extractor = built(encoders[family], speech_pooling=pooling, speech_layers=layers)
    branch = model.branches()["speech"]
    torch.nn.init.normal_(branch.layer_weights)
    inputs = inputs_of(extractor, CLIPS[1])
    scores: list[torch.Tensor] = []
    if pooling == "attentive_statistics":
        torch.nn.init.normal_(branch.attention[2].weight)
        branch.attention.register_forward_hook(lambda _, __, output: scores.append(output[:, 0]))
    with torch.no_grad():
        features, maps = branch.forward_intermediates(inputs["input_values"], inputs["attention_mask"])
    states = torch.stack([state[0, :, 0].T for state in maps]).double()
    n_frames = states.shape[1]
    weights = scores[0].softmax(0).double() if scores else torch.full((n_frames,), 1 / n_frames).double()
    assert len(weights) == n_frames and (pooling == "statistics" or weights.std() > 1e-4)
    means = (weights[:, None] * states).sum(1)
    deviations = (weights[:, None] * (states - means[:, None]) ** 2).sum(1).clamp(min=1e-10).sqrt()
    expected = torch.cat([means, deviations], dim=1)
    expected = expected.flatten() if layers == "concat" else branch.layer_weights.softmax(0).double() @ expected
    torch.testing.assert_close(features.pooled[0].double(), expected / (1 + 1e-5) ** 0.5, rtol=1e-3, atol=1e-4)
    assert branch.head_hidden_size == len(expected) == features.pooled.shape[1]


def test_statistics_are_standardised_with_the_statistics_of_training(encoders):
    model, extractor = built(encoders["hubert"], speech_pooling="statistics", speech_layers="concat")
    inputs, branch = inputs_of(extractor, *CLIPS), model.branches()["speech"]
    branch.norm.train()
    args = inputs["input_values"], inputs["attention_mask"]
    pooled = branch(*args)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(pooled.shape[1]), rtol=0, atol=1e-4)
    branch.norm.reset_running_stats()
    branch.norm.momentum = None  # so that the running statistics are those of this batch
    branch(*args)
    branch.norm.eval()
    plain = branch.layer_statistics(*args).flatten(2).flatten(1)
    expected = (plain - plain.mean(0)) / (plain.var(0) + branch.norm.eps).sqrt()
    torch.testing.assert_close(branch(*args), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="A batch of one clip cannot be trained on: statistics pooling"):
        branch.norm.train()
        branch(args[0][:1], args[1][:1])


def test_whisper_layers_are_those_of_transformers(encoders):
    """The clip has the maximum length, which is 1 s for the tiny checkpoint and 30 s for a real one."""
    model, extractor = built(encoders["whisper"])
    reference = AutoModel.from_pretrained(encoders["whisper"]).encoder.eval()
    inputs = inputs_of(extractor, voice(1.0, seed=3))
    assert inputs["input_values"].shape[-1] == reference.config.max_source_positions * 2
    states, frames = model.branches()["speech"]._layers(inputs["input_values"], inputs["attention_mask"])
    with torch.no_grad():
        expected = reference(inputs["input_values"], output_hidden_states=True)
    assert frames == [50] and len(states) == len(expected.hidden_states)
    for state, hidden in zip(states, [*expected.hidden_states[:-1], expected.last_hidden_state], strict=True):
        torch.testing.assert_close(state, hidden, rtol=0, atol=1e-5)


def test_padding_in_training_changes_no_whisper_feature(encoders):
    model, extractor = built(encoders["whisper"], speech_pooling="mean")
    branch, batch = model.branches()["speech"], inputs_of(extractor, *CLIPS)
    expected = branch(batch["input_values"], batch["attention_mask"])
    branch.encoder.train()  # its configuration has no dropout
    runs: list[tuple[int, ...]] = []
    run = branch._run_whisper
    branch._run_whisper = lambda values, lengths: runs.append(tuple(values.shape)) or run(values, lengths)
    torch.testing.assert_close(branch(batch["input_values"], batch["attention_mask"]), expected, rtol=0, atol=1e-6)
    assert runs == [(5, 8, 100)]  # one padded batch, with three pieces of the clip of 2.3 s


def test_initial_features_are_the_mean_over_layers_and_time(encoders):
    model, extractor = built(encoders["hubert"])
    branch, inputs = model.branches()["speech"], inputs_of(extractor, CLIPS[0])
    _, maps = branch.forward_intermediates(inputs["input_values"], inputs["attention_mask"])
    features = branch(inputs["input_values"], inputs["attention_mask"])
    torch.testing.assert_close(features, torch.stack(maps).mean((0, 3, 4)))


@pytest.mark.parametrize("family", first_fast(FAMILIES, 2))
def test_the_logits_of_a_clip_do_not_depend_on_the_other_clips_of_its_batch(encoders, family):
    model, extractor = built(encoders[family], backbones={}, fusion="attention", head="decoder")
    alone = torch.cat([logits_of(model, extractor, clip) for clip in CLIPS])
    torch.testing.assert_close(logits_of(model, extractor, *CLIPS), alone, rtol=0, atol=1e-6)
    assert (alone[0] - alone[1]).abs().max() > 1e-4


def test_padding_in_training_changes_no_feature(encoders):
    """The encoder normalises each frame by itself, and has neither dropout nor masking."""
    settings = {"apply_spec_augment": False, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
    settings |= dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    folder = Path(encoders["hubert"]).parent / "deterministic"
    model, extractor = built(tiny_speech_encoder(folder, "hubert", **settings))
    branch = model.branches()["speech"].train()
    batch, alone = inputs_of(extractor, *CLIPS[:2]), inputs_of(extractor, CLIPS[0])
    one = branch(alone["input_values"], alone["attention_mask"])
    torch.testing.assert_close(branch(batch["input_values"], batch["attention_mask"])[:1], one)


# ---- inputs


@pytest.mark.parametrize("normalize", [True, False])
def test_a_waveform_is_normalised_if_the_checkpoint_does_so(tmp_path, normalize):
    processor = Wav2Vec2FeatureExtractor(do_normalize=normalize)
    processor.save_pretrained(tmp_path)
    extractor = tiny_feature_extractor(speech_processor=read_processor(tmp_path))
    inputs = inputs_of(extractor, *CLIPS)
    spectrograms = extractor.spectrograms(CLIPS)
    lengths = inputs["attention_mask"].sum(-1).tolist()
    assert lengths == [16_000, 36_800, 4_000] and inputs["input_values"].shape == (3, 36_800)
    for row, length, clip in zip(inputs["input_values"], lengths, spectrograms, strict=True):
        samples = F.pad(clip["speech"], (0, max(0, 4000 - len(clip["speech"])))).numpy()
        expected = processor(samples, sampling_rate=16_000)["input_values"][0]
        np.testing.assert_array_equal(row[:length], expected)
        assert not row[length:].any()
    assert (abs(inputs["input_values"][0].std() - 1) < 0.6) == normalize
    reloaded = MaxMViTFeatureExtractor.from_dict(extractor.to_dict())
    assert reloaded.speech_processor["do_normalize"] == normalize


def test_whisper_inputs_are_its_own_spectrograms_of_consecutive_pieces(encoders):
    extractor = tiny_feature_extractor(speech_processor=read_processor(encoders["whisper"]))
    extract = WhisperFeatureExtractor.from_pretrained(encoders["whisper"])
    inputs, (clip,) = inputs_of(extractor, *CLIPS), extractor.spectrograms(CLIPS[1])
    assert inputs["input_values"].shape == (3, 8, 230) and inputs["attention_mask"].sum(-1).tolist() == [100, 230, 25]
    pieces = [
        extract(clip["speech"][i : i + 16_000].numpy(), sampling_rate=16_000, padding=False)
        for i in (0, 16_000, 32_000)
    ]
    expected = np.concatenate([piece["input_features"][0] for piece in pieces], axis=-1)
    np.testing.assert_array_equal(inputs["input_values"][1], expected)


def test_the_waveform_is_trimmed_like_the_images(encoders):
    time = np.arange(2 * RATE) / RATE
    clip = np.where((time > 0.5) & (time < 1.5), np.sin(2 * np.pi * 440 * time), 0).astype(np.float32)
    extractor = tiny_feature_extractor(speech_processor=read_processor(encoders["wavlm"]), trim_db=30)
    (spectrograms,) = extractor.spectrograms(clip)
    waveform = spectrograms["speech"].numpy()
    expected = np.where(
        np.abs(np.arange(32_000) / 16_000 - 1) < 0.5, np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000), 0
    )
    inside = slice(9_000, 23_000)
    np.testing.assert_allclose(waveform[inside], expected[inside], atol=1e-3)
    seconds = inputs_of(extractor, clip)["attention_mask"].sum() / 16_000
    assert 1.05 < seconds < 1.25


def test_blocks_of_a_stream_add_up_to_the_whole_recording(encoders):
    extractor = tiny_feature_extractor(speech_processor=read_processor(encoders["wavlm"]))
    recording = np.concatenate([voice(3.0, f0=100 + 10 * i, seed=i) for i in range(6)])
    (whole,) = extractor.spectrograms(recording)
    blocks = list(extractor.stream([recording[:50_000], recording[50_000:]], block_s=6.0))
    assert len(blocks) > 1
    for name, values in whole.items():
        joined = torch.cat([block[name] for block in blocks], dim=-1)
        assert joined.shape == values.shape
    np.testing.assert_allclose(torch.cat([block["speech"] for block in blocks]), whole["speech"], atol=1e-5)


@pytest.mark.slow
def test_the_encoder_gets_the_samples_of_each_window(encoders):
    model, extractor = built(encoders["wavlm"])
    classify = MaxMViTAudioClassificationPipeline(model=model, feature_extractor=extractor)
    recording = np.concatenate([voice(3.0, f0=100 + 10 * i, seed=i) for i in range(9)])
    inputs = []
    forward = model.maxmvit.speech_encoder.forward
    model.maxmvit.speech_encoder.forward = lambda *args: inputs.append(args[0]) or forward(*args)
    rows = classify(recording, window_s=2.0, hop_s=1.0, batch_size=4)
    assert len(rows) == 26 and [row["start"] for row in rows[:3]] == [0.0, 1.0, 2.0]
    (whole,) = extractor.spectrograms(recording)
    windows = [row for batch in inputs for row in batch]
    for second in (0, 3, 25):
        expected = whole["speech"][16_000 * second : 16_000 * (second + 2)]
        np.testing.assert_allclose(windows[second][:32_000], expected[:32_000], atol=1e-4)


def test_the_waveform_is_cached_with_the_spectrograms(encoders):
    plain = tiny_feature_extractor()
    extractors = [tiny_feature_extractor(speech_processor=read_processor(encoders[f])) for f in ("wavlm", "hubert")]
    (clip,) = extractors[0].spectrograms(CLIPS[0])
    cached = unpack(pack(clip))
    np.testing.assert_allclose(cached["speech"], clip["speech"], atol=clip["speech"].abs().max() / 60_000)
    silent = unpack(pack({"speech": torch.zeros(10)}))
    assert not silent["speech"].any()
    keys = [extractor_key(each) for each in (plain, *extractors)]
    assert keys[0] != keys[1] == keys[2]  # of the encoder, only its rate shapes what is cached
    assert "speech" not in plain.spectrograms(CLIPS[0])[0] and not plain.waveform_inputs([clip])


def test_gain_scales_the_waveform_as_it_does_the_spectrograms(encoders):
    extractor = tiny_feature_extractor(speech_processor=read_processor(encoders["wavlm"]), level="full_scale")
    (clip,) = extractor.spectrograms(CLIPS[0])
    louder = RandomGain(12.0)(clip)
    db = (louder["mel"] - clip["mel"]).mean()
    torch.testing.assert_close(louder["speech"], clip["speech"] * 10 ** (db / 20), rtol=1e-3, atol=1e-6)
    assert abs(db) > 0.1


# ---- training, saving and loading


@pytest.mark.slow
def test_every_family_reloads_in_another_process_without_the_encoder_checkpoint(tmp_path, encoders):
    for family, encoder in encoders.items():
        own = shutil.copytree(encoder, tmp_path / "encoders" / family)
        model, extractor = built(str(own))
        for part in (model, extractor):
            part.save_pretrained(tmp_path / family / "saved")
        np.savez(tmp_path / family / "clips.npz", *CLIPS)
        torch.save(logits_of(model, extractor, *CLIPS), tmp_path / family / "logits.pt")
    shutil.rmtree(tmp_path / "encoders")
    assert exit_codes([start(assert_reloads, *(tmp_path / family for family in encoders))]) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wavlm", "whisper"])  # waveform and spectrogram inputs
def test_an_encoder_trains_and_resumes_with_activation_checkpointing(encoders, family, tmp_path):
    model, extractor = built(encoders[family], fusion="gated")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"activation_checkpointing": True, "bf16": family == "wavlm"}
    whole = trainer_of(model, extractor, tmp_path, **settings)
    whole.train()
    ends = model.state_dict()
    moved = {name for name, value in ends.items() if not value.equal(before[name])}
    assert {f"maxmvit.speech_encoder.{name}" for name in ("layer_weights", "attention.weight")} < moved
    assert any(name.startswith("maxmvit.speech_encoder.encoder.") and ".layers.0." in name for name in moved)
    again, _ = built(encoders[family], fusion="gated")
    resumed = trainer_of(again, extractor, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in again.state_dict().items():
        assert value.equal(ends[name]), name


@pytest.mark.slow
def test_batches_grouped_by_length_resume_exactly(encoders, tmp_path):
    sounds = [voice(0.1 + 0.1 * (i % 5), f0=100 + 40 * (i % 4), seed=i) for i in range(24)]
    for i, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{i}.wav", sound, RATE, subtype="FLOAT")
    paths = [str(tmp_path / f"{i}.wav") for i in range(24)]
    table = Dataset.from_dict({"file": paths, "audio": paths, "label": [i % 4 for i in range(24)]})
    settings = {
        "train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "num_train_epochs": 2,
        "eval_strategy": "no", "load_best_model_at_end": False, "lr_scheduler_type": "cosine",
        "save_strategy": "steps", "save_steps": 7, "save_total_limit": None,
    }  # fmt: skip
    read: list[list[int]] = []

    def trainer(name: str) -> SERTrainer:
        model, extractor = built(encoders["wavlm"])
        features = extract_features(table, extractor, cache_dir=tmp_path / "cache")
        trainer = make_trainer(
            model, {"train": features, "validation": []}, extractor, make_arguments(tmp_path / name, **settings)
        )
        collate = trainer.train_collator
        trainer.train_collator = lambda rows: read.append([paths.index(row["file"]) for row in rows]) or collate(rows)
        return trainer

    whole = trainer("whole")
    whole.train()
    batches, read[:] = read[:], []
    first, second = sum(batches[:12], []), sum(batches[12:], [])
    assert sorted(first) == sorted(second) == list(range(24)) and first != second
    lengths = [[len(sounds[row]) for row in batch] for batch in batches]
    assert sum(max(batch) - min(batch) for batch in lengths) <= 24 * 0.1 * RATE  # 0.16 s per batch in random order
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-14"))
    assert read[-10:] == batches[14:]  # in the second epoch
    for name, value in resumed.model.state_dict().items():
        assert value.equal(whole.model.state_dict()[name]), name
    assert resumed.predict(resumed.train_dataset).label_ids.tolist() == table["label"][:]


def test_group_by_length_warns_where_it_saves_nothing_and_is_refused_without_a_cache(encoders, tmp_path, caplog):
    args = make_arguments(tmp_path, train_sampling_strategy="group_by_length")
    with_speech = tiny_config(speech_encoder=encoders["wavlm"])
    check_model(with_speech, DataArguments(), args)
    assert not caplog.text
    check_model(tiny_config(), DataArguments(), args)
    assert "group_by_length saves no time, since all images have the same size" in caplog.text
    with pytest.raises(DataError, match="group_by_length needs --cache_features"):
        check_model(with_speech, DataArguments(cache_features=False), args)
    with pytest.raises(ValueError, match="batch_rebalance counts tokens: use group_by_length"):
        command(None, "--train_sampling_strategy", "batch_rebalance")


@pytest.mark.slow
@pytest.mark.parametrize("family", first_fast(FAMILIES, 2))
def test_checkpointing_changes_no_gradient_and_bfloat16_little(encoders, family):
    model, extractor = built(encoders[family])
    inputs, labels = inputs_of(extractor, *CLIPS), torch.tensor([0, 1, 2])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.branches()["speech"].encoder.train()
        else:
            model.branches()["speech"].encoder.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(0)
        np.random.seed(0)
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    model.eval().activation_checkpointing_disable()
    expected = logits_of(model, extractor, *CLIPS)
    torch.testing.assert_close(logits_of(model.bfloat16(), extractor, *CLIPS).float(), expected, rtol=0.1, atol=0.1)


def test_missing_encoder_weights_are_initialised(encoders, tmp_path):
    model, _ = built(encoders["hubert"])
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    removed = [name for name in saved if "speech_encoder.encoder.encoder.layers.1." in name or "layer_weights" in name]
    kept = {name: value for name, value in saved.items() if name not in removed}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reloaded, info = MaxMViTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(removed)
    for name, value in reloaded.state_dict().items():
        assert value.isfinite().all() and (value.abs() < 10).all(), name


# ---- configuration


def test_a_model_can_have_a_speech_encoder_only(encoders):
    model, extractor = built(encoders["wavlm"], cqt_backbone=None, mel_backbone=None)
    assert [*model.branches()] == ["speech"] and model.config.branch_names == ["speech"]
    inputs = inputs_of(extractor, *CLIPS)
    logits = model(**inputs).logits
    assert logits.equal(model(input_values=inputs["input_values"], attention_mask=inputs["attention_mask"]).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_layers_are_not_split_between_devices(encoders, family):
    model, _ = built(encoders[family], backbones={})
    assert {name for name in model.maxmvit._no_split_modules if "EncoderLayer" in name}
    assert {"MaxxVitBlock", "MultiScaleBlock"} < {*model.maxmvit._no_split_modules}


def test_the_encoder_loads_the_weights_of_its_checkpoint(encoders, tmp_path):
    model, _ = built(encoders["wavlm"])
    expected = AutoModel.from_pretrained(encoders["wavlm"]).state_dict()
    loaded = model.pretrained_parts()["speech"].state_dict()
    assert expected.keys() == loaded.keys() and all(value.equal(expected[name]) for name, value in loaded.items())
    with pytest.raises(OSError, match="could not be loaded.*local folder"):
        model.maxmvit.load_speech_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match="lacks .* of its weights"):
        model.maxmvit.load_speech_weights(encoders["whisper"])


def test_the_saved_encoder_configuration_contains_no_local_path_or_dtype(encoders):
    config = read_encoder_config(encoders["wavlm"])
    assert config["layerdrop"] == 0 and "dtype" not in config and encoders["wavlm"] not in str(config)
    assert MaxMViTConfig(speech_encoder="gone", speech_encoder_config=config).speech_encoder_config == config


def test_unsupported_encoders_and_settings_are_refused(tmp_path, encoders):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'vit', which is not supported: choose one of wav2vec2, hubert"):
        tiny_config(speech_encoder=str(tmp_path))
    with pytest.raises(OSError, match="speech_encoder='.*nowhere' could not be loaded.*local folder"):
        tiny_config(speech_encoder=str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="has no feature extractor that could be loaded"):
        read_processor(tmp_path)
    with pytest.raises(ValueError, match="speech_pooling='max' does not work: choose one of attention, mean"):
        tiny_config(speech_encoder=encoders["wavlm"], speech_pooling="max")
    with pytest.raises(ValueError, match="speech_encoder_config was given without speech_encoder"):
        tiny_config(speech_encoder_config={"model_type": "wavlm"})
    with pytest.raises(ValueError, match="speech_processor: feature_extractor_type='ViTImageProcessor'"):
        tiny_feature_extractor(speech_processor={"feature_extractor_type": "ViTImageProcessor"})
    with pytest.raises(ValueError, match="cqt_backbone, mel_backbone and speech_encoder are all None"):
        tiny_config(cqt_backbone=None, mel_backbone=None)


def test_inputs_that_do_not_fit_the_encoder_are_refused(encoders):
    model, extractor = built(encoders["wavlm"])
    whisper, _ = built(encoders["whisper"])
    inputs = inputs_of(extractor, *CLIPS)
    with pytest.raises(ValueError, match="input_values is missing.*speech_processor"):
        model(cqt_values=inputs["cqt_values"], mel_values=inputs["mel_values"])
    with pytest.raises(ValueError, match="not what the feature extractor of this speech encoder returns"):
        whisper(**inputs)
    with pytest.raises(ValueError, match="cqt_values holds 3 clips, input_values 2"):
        model(**inputs | {"input_values": inputs["input_values"][:2], "attention_mask": inputs["attention_mask"][:2]})
    assert make_processor(extractor.speech_processor) is make_processor(dict(extractor.speech_processor))


# ---- optimizer groups and freezing


def groups(model, extractor, folder, **changes) -> dict[str, tuple[str, float, float]]:
    trainer = trainer_of(model, extractor, folder, **changes)
    return {g["branch"]: (g["algorithm"], g["lr"], g["weight_decay"]) for g in trainer.create_optimizer().param_groups
            if g["weight_decay"] or g["branch"] != "speech"}  # fmt: skip


def test_the_encoder_has_its_own_optimizer(encoders, tmp_path):
    model, extractor = built(encoders["wavlm"])
    trainer = trainer_of(model, extractor, tmp_path, speech_weight_decay=0.01)
    trainer.create_optimizer()
    found = {}
    for group in trainer.optimizer.param_groups:
        found.setdefault(group["branch"], (group["algorithm"], group["lr"]))
    adam = ("adam", 1e-3)
    assert found == {"cqt": adam, "mel": ("radam", 1e-3), "speech": ("adamw", 1e-4), "head": adam}
    speech = [g for g in trainer.optimizer.param_groups if g["branch"] == "speech"]
    assert {g["weight_decay"] for g in speech} == {0.0, 0.01}
    optimized = {id(p) for group in speech for p in group["params"]}
    assert optimized == {
        id(p) for p in model.pretrained_parts()["speech"].parameters()
    }  # the layer weights belong to the head's group


@pytest.mark.parametrize("family", first_fast(FAMILIES, 2))
def test_layer_decay_lowers_the_learning_rate_of_lower_layers(encoders, family, tmp_path):
    model, extractor = built(encoders[family])
    trainer = trainer_of(model, extractor, tmp_path, layer_decay=0.5, speech_learning_rate=1.0)
    names = {id(p): name for name, p in model.maxmvit.speech_encoder.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.create_optimizer().param_groups
             if group["branch"] == "speech" for p in group["params"]}  # fmt: skip
    layers = [{rate for name, rate in rates.items() if f"layers.{i}." in name and "q_proj" in name} for i in (0, 1)]
    assert layers == [{0.5}, {1.0}]
    assert {rate for name, rate in rates.items() if "conv" in name} == {0.25}


@pytest.mark.slow
@pytest.mark.parametrize("family", first_fast(FAMILIES, 2))
def test_the_encoder_is_frozen_as_a_whole_or_from_the_bottom(encoders, family, tmp_path):
    def trained(**changes) -> set[str]:
        model, extractor = built(encoders[family])
        trainer_of(model, extractor, tmp_path, **changes)
        part = model.pretrained_parts()["speech"]
        assert model.maxmvit.speech_encoder.layer_weights.requires_grad
        return {name for name, p in part.named_parameters() if p.requires_grad}

    everything = trained()
    assert trained(freeze_speech_encoder=True) == trained(freeze_backbones=True) == set()
    half = trained(speech_frozen_layers=1)
    assert half == {name for name in everything if "layers.1." in name and "conv" not in name}
    assert trained(speech_frozen_layers=0) == {
        name for name in everything if ".layers." in f".{name}" and "conv" not in name
    }
    unfrozen = trained(freeze_backbones=True, unfreeze_epoch=1, speech_frozen_layers=1)
    assert unfrozen == half


@pytest.mark.slow
def test_a_frozen_encoder_does_not_change(encoders, tmp_path):
    model, extractor = built(encoders["wavlm"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer_of(model, extractor, tmp_path, freeze_speech_encoder=True, num_train_epochs=1).train()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert not [name for name in moved if name.startswith("maxmvit.speech_encoder.encoder.")]
    assert "maxmvit.speech_encoder.layer_weights" in moved and "maxmvit.cqt_backbone.stages.0.1.weight" in moved
    assert not model.maxmvit.speech_encoder.encoder.training


@pytest.mark.parametrize(
    "flags",
    [
        ["--speech_optimizer", "sgd"], ["--speech_learning_rate", "1e-5"], ["--speech_weight_decay", "0.1"],
        ["--speech_pooling", "mean"], ["--freeze_speech_encoder"], ["--speech_frozen_layers", "2"],
    ],
)  # fmt: skip
def test_encoder_options_are_ignored_with_a_warning_without_an_encoder(flags, caplog):
    model_args, _, args = command(None, *flags)
    assert f"{flags[0]} has no effect without --speech_encoder" in caplog.text
    assert (model_args, args.speech_optimizer) == (command(None)[0], "adamw")
    assert args.speech_learning_rate is None and args.speech_frozen_layers is None and not args.freeze_speech_encoder


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--freeze_speech_encoder", "--speech_learning_rate", "1"], "--speech_learning_rate has no effect with"),
        (["--freeze_speech_encoder", "--speech_frozen_layers", "1"], "--speech_frozen_layers has no effect with"),
    ],
)
def test_options_without_effect_on_a_frozen_encoder_are_ignored_with_a_warning(flags, message, caplog):
    args = command("somewhere", *flags)[2]
    assert message in caplog.text and args.speech_learning_rate is None and args.speech_frozen_layers is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--speech_frozen_layers", "-1"], "--speech_frozen_layers -1 does not work: it must be a number at least 0"),
        (["--speech_optimizer", "lion"], "--speech_optimizer lion is unknown"),
    ],
)
def test_invalid_option_values_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        command("somewhere", *flags)
    other_optimizers = [f"--{branch}_optimizer=sgd" for branch in ("cqt", "mel", "head")]
    assert command("somewhere", "--adam_beta1", "0.8", *other_optimizers)[2].adam_beta1 == 0.8


def test_the_command_builds_the_encoder_and_identifies_its_starting_weights(encoders, tmp_path):
    model_args, _, args = command(encoders["wavlm"], "--mel_backbone", "none", "--cqt_backbone", "convnet")
    config, extractor = make_config(model_args), make_feature_extractor(model_args)
    model = make_model(config, model_args)
    expected = AutoModel.from_pretrained(encoders["wavlm"]).state_dict()
    assert all(value.equal(expected[name]) for name, value in model.pretrained_parts()["speech"].state_dict().items())
    assert extractor.speech_processor["do_normalize"] is False
    start = starting_weights(model, model_args)
    torch.manual_seed(5)
    assert start == starting_weights(make_model(config, model_args), model_args) and start.startswith("sha256-")
    model_args.feature_extractor_kwargs = {"speech_processor": {}}
    with pytest.raises(ValueError, match="speech_processor is set by --speech_encoder"):
        make_feature_extractor(model_args)
    args.mixup_alpha = 0.2
    with pytest.raises(DataError, match="--mixup_alpha blends images but not waveforms"):
        check_model(config, DataArguments(), args)
    assert isinstance(args, SERTrainingArguments) and isinstance(model.maxmvit.speech_encoder, SpeechEncoder)


@pytest.mark.slow
def test_the_wavlm_recipe_runs_ten_steps_with_only_another_encoder_path(encoders, tmp_path):
    write_ravdess(tmp_path / "corpus")
    recipe = Path(__file__).parents[2] / "configs" / "wavlm.yaml"
    places = {"data_dir": tmp_path / "corpus", "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}
    flags = [f"--{name}={value}" for name, value in {"speech_encoder": encoders["wavlm"], **places}.items()]
    main([str(recipe), *flags, "--max_steps=10", "--report_to=none"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n_clips"] == 32 and metrics["model_arguments"]["speech_encoder"] == Path(encoders["wavlm"]).name
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "Mel\nspectrogram, and from its waveform (" in card
        and f"speech_encoder: {Path(encoders['wavlm']).name}, " in card
        and "fusion: gated" in card
    )
    classify = load_pipeline(str(tmp_path / "out"))
    assert [*classify.model.branches()] == ["cqt", "mel", "speech"]
    assert encoders["wavlm"] not in (tmp_path / "out" / "config.json").read_text()
    rows = classify([{"array": clip, "sampling_rate": RATE} for clip in CLIPS[:2]])
    assert len(rows) == 2 and all(len(row) == 8 for row in rows)
    with pytest.raises(DataError, match="speech_encoder=.* is exported with its front end only"):
        onnx.build(classify, onnx.Form(window_s=None, front_end=False, quantize=None, opset=20))


# ---- cached outputs of a frozen encoder


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, pooling, layers",
    first_fast(
        [
            ("wavlm", "statistics", "concat"),
            ("whisper", "statistics", "weighted_sum"),
            *((family, "mean", "weighted_sum") for family in FAMILIES),
        ],
        fast=3,
    ),
)
def test_layer_statistics_replace_the_waveform(encoders, family, pooling, layers):
    chosen = {"speech_pooling": pooling, "speech_layers": layers, "fusion": "attention", "head": "decoder"}
    model, extractor = built(encoders[family], **chosen)
    branch = model.branches()["speech"]
    torch.nn.init.normal_(branch.layer_weights)
    inputs = inputs_of(extractor, *CLIPS)
    expected = model(**inputs).logits
    statistics = branch.layer_statistics(inputs["input_values"], inputs.pop("attention_mask"))
    assert statistics.shape == (3, 3, 2, 16)
    torch.testing.assert_close(model(**inputs | {"input_values": statistics}).logits, expected, rtol=0, atol=1e-6)
    halved = model(**inputs | {"input_values": statistics.half()}, output_hidden_states=True)
    torch.testing.assert_close(halved.logits, expected, rtol=0, atol=1e-3)
    assert halved.hidden_states[-1].shape == (3, 16, 1, 1)


def load_alone(encoder: Path, output: Path) -> None:
    """Loads the encoder in a model of its own; writes what the process prints to a file."""
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    config = MaxMViTConfig(cqt_backbone=None, mel_backbone=None, speech_encoder=str(encoder))
    MaxMViTModel(config).load_speech_weights()
    print("Loaded.", flush=True)


@pytest.mark.slow
def test_a_local_folder_of_an_encoder_alone_loads_without_a_warning(tmp_path, encoders):
    weights = load_file(Path(encoders["whisper"]) / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".encoder." in name}
    assert 0 < len(kept) < len(weights)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(Path(encoders["whisper"]) / name, tmp_path)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "output.txt"
    assert exit_codes([start(load_alone, tmp_path, output)]) == [0]
    printed = output.read_text()
    assert "Loaded." in printed and "decoder" not in printed and "MISSING" not in printed


@pytest.mark.slow
def test_a_frozen_encoder_runs_once_for_each_clip(encoders, tmp_path, monkeypatch):
    write_ravdess(tmp_path / "corpus")
    batch_sizes, forward = [], SpeechEncoder._run
    monkeypatch.setattr(SpeechEncoder, "_run", lambda *args: batch_sizes.append(len(args[1])) or forward(*args))
    recipe = Path(__file__).parents[2] / "configs" / "wavlm_frozen.yaml"
    places = {"speech_encoder": encoders["wavlm"], "data_dir": tmp_path / "corpus", "cache_dir": tmp_path / "cache"}
    flags = [f"--{name}={value}" for name, value in places.items()]

    def run(name: str, *more: str) -> int:
        batch_sizes.clear()
        main([str(recipe), *flags, f"--output_dir={tmp_path / name}", "--max_steps=2", "--report_to=none", *more])
        return sum(batch_sizes)

    assert run("first") == 192
    (cached,) = (tmp_path / "cache" / "maxmvit_speech").glob("*.safetensors")
    assert {value.shape for value in load_file(cached).values()} == {(3, 2, 16)} and len(load_file(cached)) == 192
    assert run("copies", "--waveform_copies=1", "--waveform_chain=recording") > 0
    others = ("--speech_pooling=statistics", "--fusion=concat")
    assert run("copies again", "--waveform_copies=1", "--waveform_chain=recording", *others) == 0
    assert run("windows", "--training_window=0.3") >= 2 * 32 + 32
    classify = load_pipeline(str(tmp_path / "first"))
    assert len(classify({"array": CLIPS[0], "sampling_rate": RATE})) == 8


WRONG_VALUES = [
    ("config.json", "speech_encoder_config", "num_hidden_layers", [2]),
    ("config.json", "speech_encoder_config", "hidden_dropout", "none"),
    ("config.json", "speech_encoder_config", "conv_dim", 8),
    ("config.json", "speech_encoder_config", "feat_extract_norm", None),
    ("preprocessor_config.json", "speech_processor", "sampling_rate", "16 kHz"),
    ("preprocessor_config.json", "speech_processor", "sampling_rate", 0),
    ("preprocessor_config.json", "speech_processor", "do_normalize", "no"),
    ("preprocessor_config.json", "speech_processor", "do_normalize", None),
    ("preprocessor_config.json", "speech_processor", "feature_extractor_type", ["Wav2Vec2FeatureExtractor"]),
    ("preprocessor_config.json", "speech_processor", "padding_value", float("inf")),
    ("preprocessor_config.json", "speech_processor", None, None),
    ("preprocessor_config.json", "speech_processor", None, 16_000),
]


@pytest.mark.parametrize(("file", "field", "key", "value"), WRONG_VALUES)
def test_values_of_the_wrong_type_in_a_checkpoint_are_named(file, field, key, value, saved):
    path = saved / file
    text = path.read_text()
    content = json.loads(text)
    if key is None:
        content[field] = value
    else:
        assert key in content[field]
        content[field][key] = value
    path.write_text(json.dumps(content))
    try:
        with pytest.raises(UsageError, match=f"(?s){saved.name}.*{key or field}") as caught:
            load_pipeline(str(saved), "cpu")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    finally:
        path.write_text(text)


def test_invalid_settings_of_whisper_are_refused(tmp_path):
    settings = read_processor(tiny_speech_encoder(tmp_path / "whisper", "whisper"))
    for name, value in (("hop_length", 0), ("chunk_length", 1.5), ("n_fft", None), ("dither", [0.0])):
        with pytest.raises(ValueError, match=f"speech_processor: {name}="):
            tiny_feature_extractor(speech_processor=settings | {name: value})
    assert make_processor(settings | {"padding_value": 0, "dither": 0}).hop_length == settings["hop_length"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wrong_values")
    model, extractor = built(tiny_speech_encoder(folder / "encoder", "wavlm"), cqt_backbone=None, mel_backbone=None)
    model.save_pretrained(folder / "model")
    extractor.save_pretrained(folder / "model")
    assert load_pipeline(str(folder / "model"), "cpu")(CLIPS[0])
    return folder / "model"
