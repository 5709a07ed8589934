import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.mvitv2 import MultiScaleVit, model_cfgs
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification, MaxMViTModel
from tests.helpers.marks import first_fast
from tests.helpers.tiny import tiny_config, tiny_feature_extractor, tiny_images, tiny_model, voice


def n_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def assert_same_state(model: torch.nn.Module, other: torch.nn.Module):
    """Compares weights bit by bit. Logits may differ, since the memory layout of the weights selects the kernels."""
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@torch.no_grad()
def logits_of(model: MaxMViTForAudioClassification, **images: torch.Tensor) -> torch.Tensor:
    return model.eval()(**images).logits


@pytest.mark.slow
def test_base_model_has_the_papers_parameters_trains_and_reloads(tmp_path):
    model = MaxMViTForAudioClassification(MaxMViTConfig(num_labels=8))
    assert n_parameters(model.maxmvit.cqt_backbone) == 118_698_708
    assert n_parameters(model.maxmvit.mel_backbone) == 50_703_744
    assert n_parameters(model.classifier) == 786_944 + 1_024 + (512 * 8 + 8)

    images = {name: torch.randn(2, 3, 244, 244) for name in ("cqt_values", "mel_values")}
    outputs = []
    model.maxmvit.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.train()(**images, labels=torch.tensor([0, 7])).loss.backward()
    (features,) = outputs
    assert features.cqt_features.shape == features.mel_features.shape == (2, 768)
    assert features.pooler_output.shape == (2, 1536)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    model.save_pretrained(tmp_path)
    reloaded, info = MaxMViTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_state(reloaded, model)
    torch.testing.assert_close(logits_of(reloaded, **images), logits_of(model, **images))


def test_outputs_shapes_and_feature_order():
    model = tiny_model(num_labels=5)
    images = tiny_images(3)
    output = model.maxmvit(**images)
    assert torch.equal(output.pooler_output, torch.cat([output.cqt_features, output.mel_features], dim=1))
    assert torch.equal(output.cqt_features, model.maxmvit.cqt_backbone(images["cqt_values"]))
    assert model(**images).logits.shape == (3, 5)
    assert model(**images).loss is None
    plain = model(**images, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], model(**images).logits)


def test_branches_are_the_backbones_by_name():
    model = tiny_model()
    assert list(model.branches()) == ["cqt", "mel"]
    assert model.branches() == model.maxmvit.branches()
    assert model.branches()["cqt"] is model.maxmvit.cqt_backbone
    assert model.branches()["mel"] is model.maxmvit.mel_backbone


def test_backbones_of_both_families_work_in_both_branches():
    """A reshaped MViTv2 takes the CQT images, and a MaxViT the Mel images."""
    default = tiny_config()
    crossed = tiny_config(
        cqt_backbone=default.mel_backbone, cqt_backbone_kwargs=default.mel_backbone_kwargs,
        mel_backbone=default.cqt_backbone, mel_backbone_kwargs=default.cqt_backbone_kwargs,
    )  # fmt: skip
    model, crossed_model = MaxMViTModel(default).eval(), MaxMViTModel(crossed).eval()
    crossed_model.cqt_backbone.load_state_dict(model.mel_backbone.state_dict())
    crossed_model.mel_backbone.load_state_dict(model.cqt_backbone.state_dict())
    images = tiny_images()
    output = model(**images)
    crossed_output = crossed_model(cqt_values=images["mel_values"], mel_values=images["cqt_values"])
    torch.testing.assert_close(crossed_output.cqt_features, output.mel_features)
    torch.testing.assert_close(crossed_output.mel_features, output.cqt_features)


@pytest.mark.parametrize("branch", ["cqt", "mel"])
def test_unknown_backbone_arguments_are_named(branch):
    with pytest.raises(ValueError, match=f"{branch}_backbone=.*no_such_argument"):
        MaxMViTModel(tiny_config(**{f"{branch}_backbone_kwargs": {"depths": [1] * 4, "no_such_argument": 1}}))


INDICES = torch.tensor([0, 3, 1])
PER_CLASS = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem_type, num_labels, labels, expected",
    [
        (None, 4, INDICES, F.cross_entropy),
        ("single_label_classification", 4, INDICES, F.cross_entropy),
        (None, 4, INDICES.int(), lambda logits, labels: F.cross_entropy(logits, labels.long())),
        (None, 4, PER_CLASS / PER_CLASS.sum(1, keepdim=True), F.cross_entropy),
        ("multi_label_classification", 4, PER_CLASS.float(), F.binary_cross_entropy_with_logits),
        ("multi_label_classification", 4, PER_CLASS, lambda x, y: F.binary_cross_entropy_with_logits(x, y.float())),
        ("regression", 4, PER_CLASS * 0.3, F.mse_loss),
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
        ("regression", 1, torch.tensor([[0.5], [-1.0], [2.0]]), F.mse_loss),
    ],
)
def test_loss_is_that_of_the_problem_type(problem_type, num_labels, labels, expected):
    model = tiny_model(num_labels, problem_type=problem_type)
    output = model(**tiny_images(3), labels=labels)
    torch.testing.assert_close(output.loss, expected(output.logits, labels))
    output.loss.backward()
    assert model.config.problem_type == problem_type  # the configuration is not changed


def test_one_hot_labels_give_the_same_loss_as_class_indices():
    model, images = tiny_model(), tiny_images(3)
    one_hot = model(**images, labels=F.one_hot(INDICES, 4).float()).loss
    torch.testing.assert_close(one_hot, model(**images, labels=INDICES).loss)


@pytest.mark.parametrize(
    "problem_type, num_labels, labels, needed",
    [
        (None, 4, PER_CLASS, "the index of a class for each clip, or a float"),
        (None, 4, INDICES.float(), "the index of a class for each clip, or a float"),
        (None, 4, INDICES[:2], "the index of a class for each clip, or a float"),
        (None, 1, INDICES, "two classes or more.*'regression'"),
        ("multi_label_classification", 4, INDICES, "0 or 1 for each class"),
        ("multi_label_classification", 4, PER_CLASS[:, :3], "0 or 1 for each class"),
        ("regression", 4, INDICES.float(), "one number per output"),
    ],
)
def test_labels_that_do_not_fit_the_problem_type_are_refused(problem_type, num_labels, labels, needed):
    model = tiny_model(num_labels, problem_type=problem_type)
    with pytest.raises(ValueError, match=f"problem_type={problem_type!r} needs {needed}.*labels are {labels.dtype}"):
        model(**tiny_images(3), labels=labels)


def test_hidden_states_are_the_stages_of_both_branches():
    model, images = tiny_model(), tiny_images(3)
    assert model(**images).hidden_states is None
    output = model(**images, output_hidden_states=True)
    torch.testing.assert_close(output.logits, model(**images).logits)
    n_maps = {branch: len(backbone.feature_info) for branch, backbone in model.branches().items()}
    assert n_maps == {"cqt": 5, "mel": 4} and len(output.hidden_states) == 9
    cqt, mel = output.hidden_states[:5], output.hidden_states[5:]
    assert [tuple(x.shape[1:]) for x in cqt] == [(16, 32, 32), (32, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2)]
    assert [tuple(x.shape[1:]) for x in mel] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]

    base = model.maxmvit(**images, output_hidden_states=True)
    assert all(torch.equal(*pair) for pair in zip(base.hidden_states, output.hidden_states, strict=True))
    torch.testing.assert_close(model.maxmvit.cqt_backbone.head(cqt[-1]), base.cqt_features)
    tokens = model.maxmvit.mel_backbone.norm(mel[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens.mean(1), base.mel_features)

    model.config.output_hidden_states = True
    assert len(model(**images).hidden_states) == 9
    assert model(**images, output_hidden_states=False).hidden_states is None


def test_unknown_and_unsupported_keywords_are_refused():
    model, images = tiny_model(), tiny_images()
    with pytest.raises(TypeError, match="no argument 'label'"):
        model(**images, label=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="leave out output_attentions=True"):
        model(**images, output_attentions=True)
    model(**images, output_attentions=False, num_items_in_batch=torch.tensor(2))


def test_trainer_treats_the_loss_as_a_mean_over_the_batch():
    assert not MaxMViTForAudioClassification.accepts_loss_kwargs


def test_a_batch_of_one_is_refused_in_training_only():
    model, one = tiny_model(), tiny_images(1)
    assert model(**one).logits.shape == (1, 4)
    with pytest.raises(ValueError, match="A batch of one clip cannot be trained on"):
        model.train()(**one)
    model.classifier.norm.eval()  # frozen statistics do not depend on the batch
    model(**one, labels=torch.tensor([0])).loss.backward()


@pytest.mark.slow
def test_the_exported_model_accepts_any_batch_size():
    model = tiny_model()
    images = tiny_images(3)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"cqt_values": {0: batch}, "mel_values": {0: batch}}
    exported = torch.export.export(model, (), images, dynamic_shapes=shapes).module()
    for size in (1, 5):
        other = tiny_images(size, seed=1)
        with torch.no_grad():
            torch.testing.assert_close(exported(**other).logits, model(**other).logits)


def test_one_channel_is_repeated_to_three():
    model, images = tiny_model(), tiny_images(2, channels=1)
    torch.testing.assert_close(
        logits_of(model, **images), logits_of(model, **{k: v.repeat(1, 3, 1, 1) for k, v in images.items()})
    )


def test_images_with_a_long_time_axis_are_not_resized_to_a_square():
    """Swapping neighbouring columns would change nothing in an image that is first resized to half its width."""
    narrow = tiny_config().cqt_backbone_kwargs
    maxvit = {"cqt_backbone": "maxvit_tiny_tf_224", "mel_backbone": "maxvit_tiny_tf_224"}
    model = tiny_model(**maxvit, mel_backbone_kwargs=narrow, image_size=(64, 128))
    images = {name: torch.randn(2, 3, 64, 128) for name in ("cqt_values", "mel_values")}
    swapped = {name: values.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) for name, values in images.items()}
    logits = logits_of(model, **images)
    assert logits.isfinite().all() and not torch.allclose(logits, logits_of(model, **swapped), atol=1e-4)
    square = tiny_model(**maxvit, mel_backbone_kwargs=narrow)
    torch.testing.assert_close(logits_of(square, **images), logits_of(square, **swapped))


def test_other_sizes_are_resized_bilinearly():
    model = tiny_model()
    large = {name: torch.randn(2, 3, 91, 70) for name in ("cqt_values", "mel_values")}
    resized = {k: F.interpolate(v, size=(64, 64), mode="bilinear", align_corners=False) for k, v in large.items()}
    torch.testing.assert_close(logits_of(model, **large), logits_of(model, **resized))


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 2, 64, 64), (2, 64)])
def test_images_of_wrong_shapes_are_refused(shape):
    images = tiny_images(2)
    with pytest.raises(ValueError, match="mel_values has shape"):
        tiny_model()(images["cqt_values"], torch.randn(shape))


def test_inputs_with_different_batch_sizes_are_refused():
    with pytest.raises(ValueError, match="cqt_values holds 3 clips, mel_values 2"):
        tiny_model()(tiny_images(3)["cqt_values"], tiny_images(2)["mel_values"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns a tiny model trained for one step, the folder it is saved in, and its logits for fixed images."""
    folder = tmp_path_factory.mktemp("checkpoint")
    names = ["neutral", "happy", "angry", "sad"]
    model = tiny_model(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(**tiny_images(4), labels=torch.arange(4)).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return model, folder, logits_of(model, **tiny_images())


def test_a_reloaded_model_has_exactly_the_saved_weights(checkpoint):
    model, folder, logits = checkpoint
    reloaded, info = MaxMViTForAudioClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(reloaded, model)
    torch.testing.assert_close(logits_of(reloaded, **tiny_images()), logits)


SHIPPED = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["", "shipped."])
@pytest.mark.parametrize(
    "name, sibling",
    [
        ("modeling_maxmvit", "configuration_maxmvit"),
        ("feature_extraction_maxmvit", "configuration_maxmvit"),
        ("pipeline_maxmvit", "audio_maxmvit"),
    ],
)
def test_an_import_error_in_a_sibling_module_is_not_hidden(name, sibling, package, tmp_path, monkeypatch):
    folder = tmp_path / package.rstrip(".")
    folder.mkdir(exist_ok=True)
    shutil.copy(SHIPPED / f"{name}.py", folder)
    (folder / f"{sibling}.py").write_text("raise ImportError('libsndfile is too old')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in (name, sibling):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match="libsndfile is too old"):
        importlib.import_module(package + name)


ELSEWHERE = """
import sys
import numpy as np
import torch
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline,
)
assert not any("maxmvit" in name for name in sys.modules)
folder, again = sys.argv[1:]
images, waveform = torch.load("images.pt"), np.load("waveform.npy")
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
assert config.model_type == "maxmvit" and config.id2label[1] == "happy"
base = AutoModel.from_pretrained(folder, **trust).eval()
assert type(base).__name__ == "MaxMViTModel" and base(**images).pooler_output.isfinite().all()
model = AutoModelForAudioClassification.from_pretrained(folder, **trust).eval()
extractor = AutoFeatureExtractor.from_pretrained(folder, **trust)
with torch.no_grad():
    torch.save(model(**images).logits, "logits.pt")
    inputs = extractor(waveform, sampling_rate=44100, return_tensors="pt")
    scores = model(**inputs).logits.softmax(-1)[0]
classify = pipeline("audio-classification", model=folder, trust_remote_code=True)
rows = classify({"array": waveform, "sampling_rate": 44100})
assert rows[0]["label"] == config.id2label[int(scores.argmax())]
assert abs(rows[0]["score"] - float(scores.max())) < 1e-5
batch = classify([waveform, waveform[:20000], waveform[5000:]], batch_size=2)
assert len(batch) == 3 and all(abs(sum(row["score"] for row in rows) - 1) < 1e-4 for rows in batch)
model.save_pretrained(again)
extractor.save_pretrained(again)
"""


@pytest.mark.slow
def test_every_auto_class_and_the_pipeline_load_and_save_the_checkpoint_in_another_process(checkpoint, tmp_path):
    """The first process loads a folder and saves into the Hub's cache, from which the second process loads."""
    _, folder, logits = checkpoint
    torch.save(tiny_images(), tmp_path / "images.pt")
    np.save(tmp_path / "waveform.npy", voice())
    cached = tmp_path / "hub/models--some-one--tiny.maxmvit"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }  # fmt: skip
    for source, again in ((folder, cached / "snapshots" / ("0" * 40)), ("some-one/tiny.maxmvit", tmp_path / "third")):
        command = [sys.executable, "-c", ELSEWHERE, source, again]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits)


def test_the_auto_map_of_a_saved_base_model_is_complete(tmp_path):
    tiny_model().maxmvit.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_maxmvit.MaxMViTModel"
    assert auto_map["AutoModelForAudioClassification"] == "modeling_maxmvit.MaxMViTForAudioClassification"


@pytest.mark.slow
def test_the_head_is_resized_and_initialised_for_other_classes(checkpoint):
    _, folder, _ = checkpoint
    model, info = MaxMViTForAudioClassification.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert logits_of(model, **tiny_images()).shape == (2, 7)
    assert 0.01 < model.classifier.out_proj.weight.std() < 0.03
    kept = MaxMViTForAudioClassification.from_pretrained(folder).state_dict()
    assert torch.equal(model.classifier.dense.weight, kept["classifier.dense.weight"])


def test_the_state_dict_keys_are_those_of_earlier_checkpoints():
    config = tiny_config()
    cqt = timm.create_model(config.cqt_backbone, num_classes=0, img_size=64, **config.cqt_backbone_kwargs)
    architecture = replace(model_cfgs["mvitv2_base"], stride_kv=None, **config.mel_backbone_kwargs)
    mel = MultiScaleVit(architecture, img_size=64, num_classes=0)
    head = ["dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"]
    head += [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert tiny_model().state_dict().keys() == {
        *(f"maxmvit.cqt_backbone.{name}" for name in cqt.state_dict()),
        *(f"maxmvit.mel_backbone.{name}" for name in mel.state_dict()),
        *(f"classifier.{name}" for name in head),
    }


def test_backbones_keep_the_initialisation_of_timm():
    """transformers would draw the weights of every layer from N(0, 0.02), unlike timm."""
    torch.manual_seed(0)
    model = MaxMViTModel(tiny_config())
    torch.manual_seed(0)
    config = tiny_config()
    expected = timm.create_model(config.cqt_backbone, num_classes=0, img_size=64, **config.cqt_backbone_kwargs)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.cqt_backbone.state_dict()[name], value), name


MISSING = [
    "cqt_backbone.stem.conv1.weight",
    "cqt_backbone.stages.0.blocks.0.conv.norm1.running_var",
    "cqt_backbone.stages.0.blocks.0.attn_block.attn.rel_pos.relative_position_bias_table",
    "mel_backbone.stages.1.blocks.0.attn.rel_pos_h",
    "mel_backbone.stages.1.blocks.0.mlp.fc1.weight",
    "mel_backbone.norm.weight",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing", first_fast([MISSING, ["mel_backbone.norm.bias"], None]), ids=["some", "one", "all"]
)
@pytest.mark.parametrize("model_class", [MaxMViTModel, MaxMViTForAudioClassification])
def test_missing_backbone_weights_are_initialised_by_timm(model_class, missing, tmp_path):
    saved_model = model_class(tiny_config())
    with torch.no_grad():
        for parameter in saved_model.parameters():
            parameter.fill_(3.0)
    saved_model.save_pretrained(tmp_path)
    prefix = "" if model_class is MaxMViTModel else "maxmvit."
    saved = load_file(tmp_path / "model.safetensors")
    removed = {key for key in saved if "backbone." in key} if missing is None else {prefix + name for name in missing}
    kept = {key: value for key, value in saved.items() if key not in removed}
    save_file(kept or {"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})

    torch.manual_seed(0)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == removed
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    torch.manual_seed(0)
    initial = MaxMViTModel(tiny_config()).state_dict()
    for key in removed:
        assert torch.equal(state[key], initial[key.removeprefix(prefix)]), key


def test_backbones_are_built_once(monkeypatch):
    """The weight initialisation of transformers must not build backbones again that are initialised already."""
    built = []
    create_model = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **kwargs: built.append(name) or create_model(name, **kwargs)
    )
    model = tiny_model()
    assert built == [model.config.cqt_backbone]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'vit', not 'maxmvit'"):
        MaxMViTForAudioClassification.from_pretrained(tmp_path)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        model.classifier.dropout.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
            backbones = model.maxmvit.cqt_backbone, model.maxmvit.mel_backbone
            assert all(stage.grad_checkpointing for backbone in backbones for stage in backbone.stages)
        model(**tiny_images(3), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_checkpointing_some_of_the_blocks_is_refused():
    with pytest.raises(ValueError, match="every_n_layers=2"):
        tiny_model().activation_checkpointing_enable(every_n_layers=2)


def test_bfloat16(checkpoint):
    _, folder, logits = checkpoint
    model = MaxMViTForAudioClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    torch.testing.assert_close(logits_of(model, **tiny_images()).float(), logits, atol=0.1, rtol=0.1)


@pytest.mark.slow
def test_torch_compile_gives_the_same_logits(checkpoint):
    _, folder, logits = checkpoint
    model = MaxMViTForAudioClassification.from_pretrained(folder)
    compiled = torch.compile(model.eval(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**tiny_images()).logits, logits)


SMALL_NAMES = {"cqt_backbone": "maxvit_rmlp_pico_rw_256", "mel_backbone": "mvitv2_tiny", "image_size": 64}


@pytest.mark.slow
def test_imagenet_weights_come_from_local_files(tmp_path):
    """The files are in the format timm publishes: the state dict of the named model, its 1000-class head included."""
    config = MaxMViTConfig(**SMALL_NAMES)
    files, states = {}, {}
    for branch in ("cqt", "mel"):
        published = timm.create_model(getattr(config, f"{branch}_backbone"), img_size=64)
        states[branch] = published.state_dict()
        files[f"{branch}_weights"] = tmp_path / f"{branch}.safetensors"
        save_file({k: v.contiguous() for k, v in states[branch].items()}, files[f"{branch}_weights"])
    model = MaxMViTModel(config)
    model.load_imagenet_weights(**files)
    for branch, state in states.items():
        loaded = getattr(model, f"{branch}_backbone").state_dict()
        assert loaded and all(torch.equal(value, state[name]) for name, value in loaded.items())
    assert model.eval()(**tiny_images()).pooler_output.isfinite().all()


@pytest.mark.slow
def test_the_error_for_unavailable_imagenet_weights_names_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = MaxMViTModel(MaxMViTConfig(**{**SMALL_NAMES, "cqt_backbone": "maxvit_tiny_tf_224"}))
    with pytest.raises(OSError, match="maxvit_tiny_tf_224.*Hub can be reached.*local file as cqt_weights"):
        model.load_imagenet_weights()
    with pytest.raises(OSError, match="cqt_weights='.*absent.safetensors' is not a file"):
        model.load_imagenet_weights(cqt_weights=tmp_path / "absent.safetensors")


@pytest.mark.slow
def test_imagenet_weights_for_a_reshaped_backbone_are_refused(tmp_path):
    file = tmp_path / "mvitv2.safetensors"
    save_file(timm.create_model("mvitv2_base", pretrained=False, num_classes=0).state_dict(), file)
    with pytest.raises(ValueError, match="remove what reshapes it from (cqt|mel)_backbone_kwargs"):
        tiny_model().maxmvit.load_imagenet_weights(cqt_weights=file, mel_weights=file)
