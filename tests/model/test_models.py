"""Tests loading checkpoints: unsuitable and damaged ones are refused, and classes and temperatures are adapted."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import ser.models
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.arguments import ModelArguments
from ser.commands import predict as predict_ser
from ser.models import (
    LAST_LAYER,
    load_feature_extractor,
    load_model,
    load_pipeline,
    make_config,
    make_feature_extractor,
    make_model,
    name_classes,
    shipped_weights,
)
from ser.utils import DataError, UsageError
from tests.helpers.marks import first_fast
from tests.helpers.tiny import save_tiny, tiny_config, tiny_feature_extractor, tiny_images, tiny_model, voice

LAST_WEIGHT = "classifier.out_proj.weight"


def change_weights(folder: Path, change) -> Path:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without_a_head(folder):
    return save_tiny(folder, tiny_model().maxmvit)


def of_another_model(folder):
    save_tiny(folder)
    Wav2Vec2Config(num_labels=4).save_pretrained(folder)
    return folder


def with_another_extractor(folder):
    save_tiny(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def without_a_backbone_weight(folder):
    return change_weights(
        save_tiny(folder, tiny_model()),
        lambda weights: weights.pop("maxmvit.mel_backbone.patch_embed.proj.weight"),
    )


def without_a_weight_of_the_head(folder):
    return change_weights(save_tiny(folder), lambda weights: weights.pop("classifier.out_proj.weight"))


def with_an_extra_weight(folder):
    return change_weights(save_tiny(folder), lambda weights: weights.update({"maxmvit.third.weight": torch.zeros(3)}))


def with_another_hidden_size(folder):
    save_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    return folder


def with_other_classes(folder):
    return change_weights(save_tiny(folder), lambda weights: weights.update({LAST_WEIGHT: torch.zeros(5, 32)}))


def with_nonfinite_weights(folder):
    return change_weights(save_tiny(folder), lambda weights: weights["classifier.dense.weight"].fill_(float("nan")))


def truncated(folder):
    weights = save_tiny(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    return folder


CLASSES = [f"class{index}" for index in range(6)]
DAMAGES = {
    without_a_head: "holds no classification head.*: name a checkpoint of MaxMViTForAudioClassification",
    of_another_model: "holds a model of type 'wav2vec2'.* Name a checkpoint of MaxMViT",
    with_another_extractor: "holds a 'Wav2Vec2FeatureExtractor' as feature_extractor_type, not a MaxMViTFeatureE",
    without_a_backbone_weight: r"lacks 1 weight.* maxmvit.mel_backbone.patch_embed.proj.weight: copy all of it again",
    without_a_weight_of_the_head: "lacks 1 weight.* classifier.out_proj.weight: copy all of it again",
    with_an_extra_weight: "weights of another model than its config.json describes, such as maxmvit.third.weight",
    with_another_hidden_size: "weights of another model than its config.json describes, such as classifier.dense.bias",
    with_other_classes: "another model than its config.json describes, such as classifier.out_proj.weight",
    with_nonfinite_weights: "weights that are not finite, such as classifier.dense.weight",
    truncated: "cannot use",
}


def damage_parameters(damages: Iterable[Callable]) -> list:
    """Returns the functions as parameters; all but three are marked as slow."""
    fast = (without_a_head, without_a_backbone_weight, truncated)
    return [damage if damage in fast else pytest.param(damage, marks=pytest.mark.slow) for damage in damages]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "voice.wav"
    soundfile.write(path, voice(0.5), 44_100)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("damage", damage_parameters(DAMAGES), ids=lambda damage: damage.__name__)
def test_an_invalid_checkpoint_is_refused_for_prediction(damage, recording, tmp_path, capsys):
    folder = damage(tmp_path / "checkpoint")
    output = tmp_path / "out.csv"
    capsys.readouterr()  # the output of saving it
    assert predict_ser.main(["--model", str(folder), str(recording), "--output", str(output)]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(DAMAGES[damage], error) and str(folder) in error
    assert len(error.splitlines()) == 1
    assert not output.exists()
    with pytest.raises(UsageError):
        load_pipeline(str(folder))  # as the page does


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    damage_parameters(damage for damage in DAMAGES if damage is not with_other_classes),
    ids=lambda damage: damage.__name__,
)
def test_an_invalid_checkpoint_is_refused_for_training(damage, tmp_path):
    start = ModelArguments(model_name_or_path=str(damage(tmp_path / "checkpoint")))
    with pytest.raises(ValueError, match=DAMAGES[damage]):
        make_feature_extractor(start)
        make_model(name_classes(make_config(start), CLASSES[:4]), start)


def test_a_valid_checkpoint_is_loaded_completely(tmp_path):
    model = tiny_model()
    loaded = load_model(save_tiny(tmp_path, model)).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fusion, head", first_fast([("concat", "mlp"), ("concat", "decoder"), ("late", "linear")]))
def test_classes_of_the_checkpoint_keep_their_weights_and_new_ones_start_from_the_mean(
    fusion, head, encoders, tmp_path
):
    encoder = encoders["whisper"] if fusion == "late" else None
    names = ["calm", "sad", "angry", "happy"]
    config = name_classes(tiny_config(speech_encoder=encoder, fusion=fusion, head=head), names)
    before = MaxMViTForAudioClassification(config).eval()
    start = ModelArguments(model_name_or_path=str(save_tiny(tmp_path, before)))
    model = make_model(name_classes(make_config(start), ["angry", "bored", "sad", "tired", "calm"]), start).eval()
    assert model.config.id2label == dict(enumerate(["angry", "bored", "sad", "tired", "calm"]))
    kept, new = before.state_dict(), model.state_dict()
    last = [name for name in kept if LAST_LAYER.fullmatch(name)]
    assert len(last) == {"mlp": 2, "decoder": 3, "linear": 4}[head]
    for name in last:
        assert new[name][[0, 2, 4]].equal(kept[name][[2, 1, 0]])
        np.testing.assert_allclose(new[name][[1, 3]].numpy(), kept[name].mean(0).expand_as(new[name][:2]), atol=0.1)
    assert all(new[name].equal(kept[name]) for name in kept if name not in last)
    inputs = tiny_images() | ({"input_values": torch.randn(2, 8, 50)} if encoder else {})
    logits, former = (each(**inputs).logits for each in (model, before))
    assert logits.shape[1] == 5 and torch.allclose(logits[:, [0, 2, 4]], former[:, [2, 1, 0]], atol=1e-5)


@pytest.mark.slow
def test_the_last_layer_of_the_same_classes_is_kept(tmp_path):
    config = tiny_config(2, id2label={0: "class0", 1: "class1"}, label2id={"class0": 0, "class1": 1})
    before = MaxMViTForAudioClassification(config)
    start = ModelArguments(model_name_or_path=str(save_tiny(tmp_path, before)))
    after = make_model(name_classes(make_config(start), CLASSES[:2]), start)
    assert torch.equal(after.classifier.out_proj.weight, before.classifier.out_proj.weight)


@pytest.mark.slow
def test_the_shipped_weights_are_the_default_model(recording, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ser.models, "ROOTS", (tmp_path / "clone", tmp_path / "installed"))
    with pytest.raises(UsageError, match="lacks weights/ravdess: name a checkpoint"):
        load_pipeline(None)
    (tmp_path / "clone" / "weights" / "ravdess").mkdir(parents=True)  # an empty folder
    assert predict_ser.main([str(recording)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no model is named") and "--model" in error and "run_ser.py" in error
    for root in ("installed", "clone"):
        save_tiny(tmp_path / root / "weights" / "ravdess", tiny_model(seed=len(root)))
        folder = shipped_weights()
        assert folder == str(tmp_path / root / "weights" / "ravdess")
        outputs = []
        for model in ([], ["--model", folder]):
            assert predict_ser.main([*model, str(recording)]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]


def test_pipeline_refuses_a_checkpoint_without_a_head(tmp_path):
    folder = without_a_head(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="without the head of MaxMViTForAudioClassification"):
        pipeline("audio-classification", model=str(folder), trust_remote_code=True)


def test_nonfinite_scores_raise_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.classifier.out_proj.bias[1] = float("inf")
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification"
    )
    with pytest.raises(FloatingPointError, match="Input 0: the model's scores are not finite.* try float32"):
        classify(voice(0.5))
    with pytest.raises(FloatingPointError, match="not finite"):
        classify(voice(0.5), window_s=0.25)
    results = classify([voice(0.5), voice(0.6)], on_error="skip")
    assert [result["error"].partition(".")[0] for result in results] == [
        f"Input {index}: the model's scores are not finite" for index in range(2)
    ]


def test_a_pipeline_can_be_built_from_an_unsaved_model():
    classify = MaxMViTAudioClassificationPipeline(
        model=tiny_model(), feature_extractor=tiny_feature_extractor(), task="audio-classification"
    )
    assert len(classify(voice(0.5))) == 4


@pytest.mark.parametrize(
    "cqt, mel, expected",
    [
        ("maxvit_base_tf_224", "mvitv2_base", None),
        ("tf_efficientnet_lite0", "mvitv2_tiny", {"cqt": [0.5] * 3, "mel": [0.485, 0.456, 0.406]}),
        ("convnext_atto", "vit_tiny_patch16_224", {"cqt": [0.485, 0.456, 0.406], "mel": [0.5] * 3}),
        ("convnet", "none", None),
    ],
)
def test_images_are_normalised_as_the_backbones_were_pretrained(cqt, mel, expected):
    extractor = make_feature_extractor(ModelArguments(cqt_backbone=cqt, mel_backbone=mel))
    plain = MaxMViTFeatureExtractor()
    assert extractor.image_mean == (expected or plain.image_mean)
    reloaded = MaxMViTFeatureExtractor.from_dict(extractor.to_dict())
    image = torch.rand(1, 1, 8, 8)
    for branch in ("cqt", "mel"):
        mean, std = (torch.tensor(values)[:, None, None] for values in extractor.normalization(branch))
        torch.testing.assert_close(reloaded.normalize(image, branch), (image - mean) / std)
    scratch = ModelArguments(cqt_backbone=cqt, mel_backbone=mel, imagenet_weights=False)
    assert make_feature_extractor(scratch).image_mean == plain.image_mean


def test_means_by_branch_must_name_both_branches():
    with pytest.raises(ValueError, match="must name cqt and mel, got cqt"):
        MaxMViTFeatureExtractor(image_mean={"cqt": [0.5] * 3})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_tiny(folder / "out" / "demo")
    save_tiny(folder / "out" / "demo" / "checkpoint-2")
    (folder / "out" / "empty").mkdir()
    (folder / "out" / "note").touch()
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out/dmo", "there is no folder out/dmo: did you mean out/demo?"),
        ("out/demo/checkpoint-3", "there is no folder out/demo/checkpoint-3: did you mean out/demo/checkpoint-2?"),
        ("demo", "there is no folder demo: name an existing folder, or OWNER/NAME on the Hub."),
        ("a/b/c", "there is no folder a/b/c: name an existing folder"),
        ("/nowhere/model", "there is no folder /nowhere/model: name an existing folder"),
        ("out", "out holds no config.json, so it is not a checkpoint: did you mean out/demo?"),
        ("out/empty", "out/empty holds no config.json, so it is not a checkpoint: name a folder that training"),
        ("out/note", "out/note is a file: name the folder of a checkpoint."),
    ],
)
def test_a_path_that_is_not_a_checkpoint_is_refused_without_network_access(name, message, runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(ser.models, "_named", None)  # which could access the network
    for load in (load_model, load_feature_extractor, load_pipeline):
        with pytest.raises((DataError, UsageError), match=re.escape(message)):
            load(name)


def test_a_name_on_the_hub_is_requested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot use 'owner/model': .*couldn't connect|cannot use 'owner/model'"):
        load_model("owner/model")


@pytest.mark.parametrize("device", ["meta", "cuda:99", "gpu", "cpu:x", ""])
def test_a_device_that_cannot_compute_is_refused(device):
    with pytest.raises(UsageError, match=f"the device '{device}' cannot be used; name another, such as cpu"):
        load_pipeline(None, device)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", "[]"),
        ("config.json", "5"),
        ("preprocessor_config.json", "null"),
        ("preprocessor_config.json", '"text"'),
    ],
)
def test_json_that_is_not_an_object_is_refused(name, content, tmp_path):
    folder = save_tiny(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match="cannot use .*(JSON object|preprocessor_config.json file)"):
        load_pipeline(str(folder))


# --- a fitted temperature ---


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny_images()).logits


@pytest.mark.slow
@pytest.mark.parametrize("head, temperature", [("mlp", 0.4), ("decoder", 3.0)])
def test_a_temperature_is_folded_into_the_last_layer_that_is_saved(head, temperature, tmp_path):
    model = tiny_model(head=head)
    torch.nn.init.normal_(model.classifier.out_proj.bias)
    model.config.temperature = temperature
    before = logits_of(model)
    loaded = load_model(save_tiny(tmp_path, model))
    assert loaded.config.temperature == 1
    assert torch.allclose(logits_of(loaded), before / temperature, atol=1e-6)
    assert model.config.temperature == temperature and torch.equal(logits_of(model), before)  # not changed
    extractor = tiny_feature_extractor()
    pipelines = [
        MaxMViTAudioClassificationPipeline(model=each, feature_extractor=extractor, task="audio-classification")
        for each in (model, loaded)
    ]
    expected, found = (classify(voice(0.4)) for classify in pipelines)
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-6)
    plain = pipeline("audio-classification", model=loaded, feature_extractor=extractor)  # the class of transformers
    assert {row["label"]: row["score"] for row in plain(voice(0.4), top_k=4)} == pytest.approx(
        {row["label"]: row["score"] for row in expected}, abs=1e-5
    )


@pytest.mark.slow
def test_a_temperature_without_softmax_is_not_folded(tmp_path):
    for kind in ("regression", "multi_label_classification"):
        model = tiny_model(problem_type=kind, temperature=2.0)
        loaded = load_model(save_tiny(tmp_path / kind, model))
        assert loaded.config.temperature == 2
        torch.testing.assert_close(logits_of(loaded), logits_of(model))


def test_the_temperature_of_an_older_checkpoint_still_divides_the_logits(tmp_path):
    model = tiny_model()
    folder = save_tiny(tmp_path, model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"temperature": 2.5}))
    classify = load_pipeline(str(folder), "cpu")
    raw = {row["label"]: row["score"] for row in classify(voice(0.4), function_to_apply="none")}
    expected = torch.softmax(torch.tensor([*raw.values()], dtype=torch.float64) / 2.5, 0)
    assert {row["label"]: row["score"] for row in classify(voice(0.4))} == pytest.approx(
        dict(zip(raw, expected.tolist(), strict=True)), abs=1e-6
    )


@pytest.mark.slow
def test_pipeline_class_builds_the_projects_pipeline_from_objects(tmp_path):
    """As in README: transformers ignores `custom_pipelines` if it gets objects, so `pipeline_class` is needed."""
    folder = str(save_tiny(tmp_path))
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    kind = get_class_from_dynamic_module("pipeline_maxmvit.MaxMViTAudioClassificationPipeline", folder)
    classify = pipeline("audio-classification", model=model, feature_extractor=extractor, pipeline_class=kind)
    stereo = np.stack([voice(0.6), voice(0.6, f0=200)])
    expected = load_pipeline(folder, "cpu")
    assert classify(stereo)[0]["score"] == pytest.approx(expected(stereo)[0]["score"], abs=1e-6)
    assert len(classify(stereo, window_s=0.3)) == 2
