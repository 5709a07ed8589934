"""ONNX files of checkpoints: they give the pipeline's scores, use plain operators only, and describe themselves."""

import csv
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

import onnx_ser
import ser.export.onnx
import ser.models
from benchmarks.export import crops_of_speech, pipeline_scores, profiled_scores
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.commands import export as export_ser
from ser.commands import predict as predict_ser
from ser.export.onnx import Form, WholeModel, build, export, save
from ser.models import load_pipeline
from ser.utils import DataError, UsageError
from tests.helpers.onnx_files import PLAIN, operators, session_of
from tests.helpers.tiny import CONVNETS, FEW_STAGES, noise, tiny_feature_extractor, tiny_model, voice

pytestmark = pytest.mark.slow
SMALL_NET = {"stem_width": 8, "channels": [8, 8, 16, 16]}
# A timm model for one image and a plain ConvNet for the other, or the latter alone, which is exported faster.
ONE_BRANCH = CONVNETS | {"cqt_backbone": None, "cqt_backbone_kwargs": None}
NETS = ONE_BRANCH | {"cqt_backbone": "resnet10t", "cqt_backbone_kwargs": SMALL_NET}


def classifier(extractor: dict, **config) -> MaxMViTAudioClassificationPipeline:
    """Returns a pipeline whose head has weights as large as trained ones; a new head gives nearly equal scores."""
    model = tiny_model(**config)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(8)
    return MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(**extractor), task="audio-classification", device="cpu"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Exports two branches with trimmed images of three channels, for any length; returns pipeline and path."""
    classify = classifier({"trim_db": 35.0, "channels": "deltas", "image_size": (48, 80)}, temperature=0.6, **NETS)
    path = tmp_path_factory.mktemp("exported") / "whole.onnx"
    export(classify, path, Form(window_s=None, front_end=True, quantize=None, opset=20))
    return classify, path


def test_waveforms_of_any_length_get_the_pipelines_probabilities(whole):
    classify, path = whole
    session = session_of(path)
    lengths = (4_410, 22_051, 61_737, 132_300, 300_000)
    found = []
    for samples in lengths:
        clip = np.concatenate([noise(9_000) * 1e-3, voice(samples / 44_100, f0=90 + samples / 2_000)])[:samples]
        (own,) = session.run(["probabilities"], {"waveform": clip[None]})
        np.testing.assert_allclose(own[0], pipeline_scores(classify, clip), atol=1e-3)
        found.append(own[0])
    assert np.ptp(found, axis=0).max() > 0.05  # else all clips would have equal scores


def test_a_batch_and_all_outputs(whole):
    classify, path = whole
    clips = np.stack([voice(1.0, f0=f0) for f0 in (90, 150, 240)])
    names = ["probabilities", "logits", "embedding", "cqt_values", "mel_values", "shown"]
    session = session_of(path)
    outputs = session.get_outputs()
    assert [output.name for output in outputs] == names
    assert {output.shape[0] for output in outputs} == {"batch"}
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("waveform", ["batch", "samples"])]
    probabilities, logits, embedding, *images, shown = session.run(names, {"waveform": clips})
    inputs = classify.feature_extractor(list(clips), sampling_rate=44_100, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(logits, classify.model(**inputs).logits, atol=2e-3)
        np.testing.assert_allclose(embedding, classify.model.base_model(**inputs).pooler_output, atol=2e-3)
    tempered = torch.tensor(logits) / classify.model.config.temperature
    np.testing.assert_allclose(probabilities, tempered.softmax(-1), atol=1e-6)
    for image, name in zip(images, names[3:5], strict=True):
        assert np.abs(image - inputs[name].numpy()).mean() < 1e-3
    assert shown.shape == (3, 2) and (shown[:, 0] < shown[:, 1]).all()


def test_the_exported_program_gives_the_same_scores(whole):
    classify, path = whole
    program = torch.export.load(path.with_suffix(".pt2")).module()
    clip = voice(0.7)
    own = program(torch.from_numpy(clip)[None])["probabilities"]
    np.testing.assert_allclose(own[0].detach(), pipeline_scores(classify, clip), atol=1e-3)


def test_the_file_describes_itself(whole):
    classify, path = whole
    about = session_of(path).get_modelmeta().custom_metadata_map
    assert about["sampling_rate"] == "44100" and about["samples"] == "" and about["min_length"] == "4096"
    assert json.loads(about["labels"]) == list(classify.model.config.id2label.values())
    assert json.loads(about["extractor"])["trim_db"] == 35.0
    assert json.loads(about["model"])["cqt_backbone"] == "resnet10t"
    assert (about["scores"], about["licence"], about["quantized"]) == ("softmax", "unknown", "")
    assert ".py" not in str(onnx.load(path).graph.node)  # neither lines of code nor their folder


def test_onnx_ser_prints_the_table_of_predict_ser(whole, tmp_path, capsys):
    classify, path = whole
    classify.model.save_pretrained(tmp_path / "model")
    classify.feature_extractor.save_pretrained(tmp_path / "model")
    for number, rate in enumerate((16_000, 44_100, 48_000)):
        clip = tmp_path / "clips" / classify.model.config.id2label[number] / f"{number}.wav"
        clip.parent.mkdir(parents=True)
        soundfile.write(clip, voice(0.06 + number, f0=90 + 60 * number, sampling_rate=rate), rate)
    for window in ([], ["--window", "0.9", "--smooth", "3"]):
        capsys.readouterr()
        assert predict_ser.main([str(tmp_path / "clips"), "--model", str(tmp_path / "model"), *window]) == 0
        theirs = capsys.readouterr()
        assert onnx_ser.main([str(path), str(tmp_path / "clips"), *window]) == 0
        ours = capsys.readouterr()
        assert ours.err.splitlines() == theirs.err.splitlines()[-2:]
        for own, expected in zip(
            *(list(csv.DictReader(io.StringIO(text.out))) for text in (ours, theirs)), strict=True
        ):
            assert list(own) == list(expected)
            for name, value in own.items():
                if name in classify.model.config.label2id:
                    assert float(value) == pytest.approx(float(expected[name]), abs=1e-3)
                else:
                    assert value == expected[name]


def test_operators_are_plain(whole):
    assert operators(whole[1]) <= PLAIN


def test_a_maxvit_and_an_mvitv2_are_exported_for_any_length(tmp_path):
    classify = classifier({}, **FEW_STAGES)
    path = tmp_path / "paper.onnx"
    assert export(classify, path, Form(window_s=None, front_end=True, quantize=None, opset=20)) < 1e-3
    assert operators(path) <= PLAIN
    inputs = onnx.load(path).graph.input
    assert [size.dim_param for size in inputs[0].type.tensor_type.shape.dim] == ["batch", "samples"]


def test_int8_of_one_branch_and_a_window(tmp_path):
    classify = classifier({}, **ONE_BRANCH | {"mel_backbone": "resnet10t", "mel_backbone_kwargs": SMALL_NET})
    path = tmp_path / "small.onnx"
    export(classify, path, Form(window_s=0.4, front_end=True, quantize="int8", opset=20))
    assert {"ConvInteger", "MatMulInteger"} <= operators(path) <= PLAIN
    weights = {weight.name: weight.data_type for weight in onnx.load(path).graph.initializer}
    own = {name: kind for name, kind in weights.items() if name.startswith("front_end.")}
    assert own and set(own.values()) == {onnx.TensorProto.FLOAT}
    session = session_of(path)
    assert session.get_inputs()[0].shape == ["batch", 17_640]
    assert session.get_modelmeta().custom_metadata_map["samples"] == "17640"
    clip = voice(0.4)
    (own,) = session.run(["probabilities"], {"waveform": clip[None]})
    np.testing.assert_allclose(own[0], pipeline_scores(classify, clip), atol=0.1)


def test_fp16_of_a_model_of_images_with_attention_and_queries(tmp_path):
    choices = {
        "fusion": "attention",
        "fusion_size": 16,
        "head": "decoder",
        "problem_type": "multi_label_classification",
    }
    classify = classifier({}, **NETS, **choices)
    path = tmp_path / "images.onnx"
    assert export(classify, path, Form(window_s=3.0, front_end=False, quantize="fp16", opset=20)) < 1e-2
    kinds = {weight.data_type for weight in onnx.load(path).graph.initializer if math.prod(weight.dims) >= 1024}
    assert kinds == {onnx.TensorProto.FLOAT16} and operators(path) <= PLAIN
    session = session_of(path)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("cqt_values", ["batch", 3, 64, 64]),
        ("mel_values", ["batch", 3, 64, 64]),
    ]
    assert session.get_modelmeta().custom_metadata_map["scores"] == "sigmoid"


@pytest.mark.parametrize("count", [0, 3])
def test_dimensions_are_exported_as_they_are_after_the_classes(tmp_path, capsys, count):
    names = ["calm", "angry", "sad"][:count] + ["valence", "arousal"]
    given = {"id2label": dict(enumerate(names)), "dimensions": {"arousal": [1, 5], "valence": [1, 7]}}
    kind = None if count else "regression"
    classify = classifier({}, **ONE_BRANCH, num_labels=len(names), problem_type=kind, **given)
    path, clip = tmp_path / "dimensions.onnx", tmp_path / "a.wav"
    assert export(classify, path, Form(window_s=None, front_end=True, quantize=None, opset=20)) < 1e-3
    about = session_of(path).get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == names and about["classes"] == str(count)
    soundfile.write(clip, voice(1.3), 44_100)
    assert onnx_ser.main([str(path), str(clip)]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    expected = {each["label"]: each["score"] for each in classify(str(clip))}
    assert {name: float(row[name]) for name in names} == pytest.approx(expected, abs=1e-3)
    assert row["prediction"] == (max(names[:count], key=expected.get) if count else "")


@pytest.fixture(scope="module")
def real_speech():
    """Returns the pipeline of the smaller shipped weights, 100 pieces of real speech, and their scores."""
    classify = load_pipeline(str(Path(__file__).parents[2] / "weights" / "ravdess_small"), "cpu")
    clips = crops_of_speech(Path(os.environ["SER_RAVDESS_DIR"]), 100, 44_100)
    return classify, clips, np.stack([pipeline_scores(classify, clip) for clip in clips])


@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR does not name a RAVDESS folder")
@pytest.mark.parametrize("window_s, front_end", [(None, True), (3.0, True), (None, False)], ids=str)
def test_the_shipped_weights_give_the_scores_of_the_pipeline_for_real_speech(
    real_speech, tmp_path, window_s, front_end
):
    """With trimming, deltas and a range of 50 dB: all steps from the waveform to the images are in the graph."""
    classify, clips, expected = real_speech
    if window_s is not None:
        clips = [clip[: round(window_s * 44_100)] for clip in clips if len(clip) >= window_s * 44_100]
        expected = np.stack([pipeline_scores(classify, clip) for clip in clips])
    inputs = [{"waveform": clip[None]} for clip in clips]
    if not front_end:
        inputs = [dict(classify.feature_extractor(clip, sampling_rate=44_100)) for clip in clips]
    second, first = np.sort(expected)[:, -2:].T
    _, graph = build(classify, Form(window_s, front_end, None, 20))
    for quantize, tolerance in {None: 1e-3, "fp16": 1e-3, "int8": 0.05}.items():
        path = tmp_path / f"{quantize}.onnx"
        save(graph, path, quantize)
        assert operators(path) <= PLAIN and path.stat().st_size < 12e6
        session = session_of(path)
        own = np.concatenate([session.run(["probabilities"], given)[0] for given in inputs])
        if front_end:  # only some, since profiling takes as long again
            again, shares = profiled_scores(path, clips[::20], tmp_path / "profile")
            assert sum(shares.values()) == pytest.approx(1) and {"Conv", "ConvInteger"} & set(shares)
            np.testing.assert_allclose(again, own[::20], atol=1e-6)
        np.testing.assert_allclose(own, expected, atol=tolerance)
        is_other = own.argmax(1) != expected.argmax(1)
        assert not (is_other & (first - second > 2 * tolerance)).any(), quantize
    assert len(set(expected.argmax(1))) > 4  # else the predictions would hardly differ


class Louder(WholeModel):
    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(*(2 * image for image in inputs))


def test_a_file_with_other_scores_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(ser.export.onnx, "WholeModel", Louder)
    with pytest.raises(
        DataError, match=r"differ from the pipeline's by up to 0\.\d+, and at most 0\.001 is tolerated"
    ):
        export(classifier({}, **ONE_BRANCH), tmp_path / "a.onnx", Form(3.0, front_end=False, quantize=None, opset=20))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "extractor, message",
    [({"backend": "librosa"}, "backend='librosa'"), ({"min_length": 9_000}, "0.20 s with zeros")],
)
def test_settings_that_cannot_be_exported_are_named(tmp_path, extractor, message):
    with pytest.raises(DataError, match=message):
        export(classifier(extractor, **ONE_BRANCH), tmp_path / "a.onnx", Form(None, True, None, 20))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["a.txt"], "must end in .onnx"),
        (["nowhere/a.onnx"], "no folder nowhere"),
        (["a.onnx", "--window", "0.01"], "from 0.1 to 600"),
        (["a.onnx", "--window", "2", "--dynamic"], "not allowed with"),
    ],
)
def test_invalid_options_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        export_ser.parse_arguments(["model", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/proc/out.onnx", "/dev/null/out.onnx", "x" * 250 + ".onnx", "folder.onnx"])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ser.models, "load_pipeline", None)
    (tmp_path / "folder.onnx").mkdir()
    try:
        with pytest.raises(UsageError, match=f"{place} cannot be written: "):
            export_ser.main(["out/model", str(tmp_path / place)])
    except SystemExit as refused:  # raised by the parser: the folder does not exist
        assert refused.code == 2
