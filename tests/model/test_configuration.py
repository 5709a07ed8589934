import importlib.metadata
import importlib.util
import json

import numpy as np
import pytest
from transformers import PretrainedConfig, Wav2Vec2Config

import configuration_maxmvit
from configuration_maxmvit import MaxMViTConfig
from tests.helpers.tiny import tiny_config


def test_defaults_are_the_papers_model():
    config = MaxMViTConfig()
    assert (config.cqt_backbone, config.mel_backbone) == ("maxvit_base_tf_224", "mvitv2_base")
    assert (config.image_size, config.hidden_size, config.hidden_dropout) == (224, 512, 0.2)


def test_json_round_trip(tmp_path):
    config = tiny_config(id2label={0: "neutral", 1: "happy"}, label2id={"neutral": 0, "happy": 1}, hidden_dropout=0.5)
    config.save_pretrained(tmp_path)
    assert MaxMViTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("saved, kind", [(Wav2Vec2Config(), "'wav2vec2'"), (PretrainedConfig(), "None")])
def test_the_configuration_of_another_model_is_refused(saved, kind, tmp_path):
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name}' holds a model of type {kind}, not 'maxmvit'"):
        MaxMViTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "size, remedy",
    [(100, "96 or 128"), (244, "224 or 256"), (0, "positive"), (7, "32 or 64"), ((64, 100), "96 or 128")],
)
def test_the_error_for_an_unsuitable_image_size_names_suitable_ones(size, remedy):
    with pytest.raises(ValueError, match=remedy):
        MaxMViTConfig(image_size=size)


def test_a_long_time_axis_is_saved_as_two_numbers_and_a_square_as_one(tmp_path):
    wide = MaxMViTConfig(mel_backbone="maxvit_tiny_tf_224", image_size=(224, 448))
    for config, size, shape in ((wide, [224, 448], (224, 448)), (tiny_config(), 64, (64, 64))):
        config.save_pretrained(tmp_path)
        loaded = MaxMViTConfig.from_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["image_size"] == loaded.image_size == size
        assert loaded.image_shape == shape


def test_the_error_for_a_size_that_a_backbone_cannot_take_names_a_remedy():
    with pytest.raises(ValueError, match="mel_backbone='mvitv2_base' takes square .*image_size=448.*maxvit_tiny_tf_2"):
        MaxMViTConfig(image_size=(224, 448))
    with pytest.raises(ValueError, match="one number, or"):
        MaxMViTConfig(image_size=(64, 64, 64))
    MaxMViTConfig(image_size=(64, 64))


def test_the_error_for_an_unknown_backbone_names_similar_ones():
    with pytest.raises(ValueError, match="cqt_backbone='maxvit_bse_tf_224'.*maxvit_base_tf_224"):
        MaxMViTConfig(cqt_backbone="maxvit_bse_tf_224")
    with pytest.raises(ValueError, match="mel_backbone"):
        MaxMViTConfig(mel_backbone="no such thing")


@pytest.mark.parametrize(
    "field, value",
    [
        ("hidden_dropout", 1.0),
        ("hidden_dropout", -0.1),
        ("hidden_size", 0),
        ("temperature", 0.0),
        ("temperature", float("inf")),
    ],
)
def test_invalid_settings_of_the_head_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        MaxMViTConfig(**{field: value})


@pytest.mark.parametrize("value", [0, -2.5, 601, float("nan"), True, "6", None])
@pytest.mark.parametrize("field", ["max_clip_s", "window_s"])
def test_invalid_lengths_of_clips_and_windows_are_refused(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        MaxMViTConfig(**{field: value})


def test_windows_longer_than_the_training_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="window_s=3.0 .* max_clip_s=2.5"):
        MaxMViTConfig(max_clip_s=2.5)
    MaxMViTConfig(max_clip_s=34.2, window_s=2).save_pretrained(tmp_path)
    loaded = MaxMViTConfig.from_pretrained(tmp_path)
    assert (loaded.max_clip_s, loaded.window_s) == (34.2, 2)


@pytest.mark.parametrize("branch", ["cqt", "mel"])
def test_kwargs_of_an_mvitv2_override_the_named_variant(branch):
    def reshaped(**kwargs):
        fields = {f"{branch}_backbone": "mvitv2_base", f"{branch}_backbone_kwargs": kwargs}
        return MaxMViTConfig(**fields).reshaped_mvitv2(branch)

    architecture, rest = reshaped(depths=[1, 1, 1, 1], drop_path_rate=0.1)
    assert list(architecture.depths) == [1, 1, 1, 1]
    assert tuple(architecture.embed_dim) == (96, 192, 384, 768)
    assert rest == {"drop_path_rate": 0.1}
    assert reshaped(drop_path_rate=0.1) is None
    assert MaxMViTConfig(mel_backbone="maxvit_tiny_tf_224").reshaped_mvitv2("mel") is None


def test_configurations_do_not_share_their_kwargs():
    kwargs = {"drop_path_rate": 0.1}
    config = MaxMViTConfig(cqt_backbone_kwargs=kwargs)
    kwargs["drop_path_rate"] = 0.9
    assert config.cqt_backbone_kwargs == {"drop_path_rate": 0.1}


@pytest.mark.parametrize("package, old, needed", [("timm", "1.0.22", "1.0.23"), ("transformers", "5.3.0", "5.4")])
def test_versions_of_libraries_that_are_too_old_are_refused_with_the_remedy(package, old, needed, monkeypatch):
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old if name == package else installed(name))
    spec = importlib.util.spec_from_file_location("configuration_again", configuration_maxmvit.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=rf"found {package}=={old}(.|\n)*pip install -U '{package}>={needed}'"):
        spec.loader.exec_module(module)
        module.MaxMViTConfig()


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("hidden_size", "many", "a whole number"),
        ("hidden_size", 32.5, "a whole number"),
        ("head_layers", True, "a whole number"),
        ("hidden_dropout", None, "a finite number"),
        ("temperature", float("nan"), "a finite number"),
        ("cqt_backbone", ["maxvit_tiny_tf_224"], "a string or None"),
        ("mel_backbone_kwargs", [1], "a dictionary or None"),
        ("image_size", [64.0, 64.0], "a whole number or a list of whole numbers"),
        ("image_size", "64", "a whole number or a list of whole numbers"),
        ("speech_encoder_config", "x", "a dictionary or None"),
        ("architectures", [1], "a list of strings or None"),
        ("problem_type", "clustering", "'regression' or"),
        ("output_hidden_states", "yes", "true or false or None"),
        ("dtype", "nn", "a dtype of torch"),
        ("num_labels", "four", "a whole number"),
        ("id2label", ["sad"], "a dictionary or None"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_field(field, value, wanted, tmp_path):
    fields = {"num_labels": 4} | {field: value}
    for kind in (MaxMViTConfig, MaxMViTConfig.from_dict):
        with pytest.raises(ValueError, match=rf"{field}=.* does not work: it .*{wanted}"):
            kind(**fields) if kind is MaxMViTConfig else kind(fields)
    config = tiny_config()
    with pytest.raises(ValueError, match=f"{field}="):
        setattr(config, field, value)


def test_numpy_numbers_and_integers_for_floats_are_accepted():
    config = tiny_config(hidden_size=np.int64(16), hidden_dropout=0, temperature=np.float32(2), image_size=(64, 64))
    assert (config.hidden_size, config.hidden_dropout, config.temperature, config.image_size) == (16, 0, 2, [64, 64])


@pytest.mark.parametrize("names", [["sad", "happy"], [f"class {index}" for index in range(12)]])
def test_label_indices_given_as_strings_become_integers(names, tmp_path):
    by_string = dict(sorted((str(index), name) for index, name in enumerate(names)))  # "10" before "2"
    config = tiny_config(len(names))
    config.save_pretrained(tmp_path)
    later = tiny_config(len(names))
    later.id2label = by_string
    for other in (
        MaxMViTConfig(id2label=by_string), MaxMViTConfig.from_pretrained(tmp_path, id2label=by_string), later
    ):  # fmt: skip
        assert other.id2label == dict(enumerate(names)) and [*other.id2label] == [*range(len(names))]


@pytest.mark.parametrize(
    "labels",
    [
        {1: "sad", 2: "happy"},
        {"a": "sad"},
        {0: "sad", 1: "sad"},
        {0: "sad", 1: 2},
        {0: "sad", "0": "happy"},
        {0: ""},
        {},
    ],
)
def test_an_invalid_id2label_is_refused(labels):
    with pytest.raises(ValueError, match="id2label=.* must map 0, 1, "):
        MaxMViTConfig(id2label=labels)
