"""ONNX files of models with a speech encoder: they give the pipeline's scores for clips of any length."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

import onnx_ser
from benchmarks.export import crops_of_speech, pipeline_scores
from feature_extraction_maxmvit import read_processor
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.commands import predict as predict_ser
from ser.export.onnx import Form, WholeModel, build, export, save
from ser.utils import DataError
from tests.helpers.onnx_files import PLAIN, operators, session_of
from tests.helpers.tiny import CONVNETS, noise, tiny_feature_extractor, tiny_model, voice

pytestmark = pytest.mark.slow
ALONE = {"cqt_backbone": None, "mel_backbone": None, "cqt_backbone_kwargs": None, "mel_backbone_kwargs": None}
BESIDE_CQT = CONVNETS | {"mel_backbone": None, "mel_backbone_kwargs": None}
BESIDE_MEL = CONVNETS | {"cqt_backbone": None, "cqt_backbone_kwargs": None}
ATTENTION = {"fusion": "attention", "fusion_size": 16, "head": "decoder"}
STATISTICS = {"speech_pooling": "statistics", "speech_layers": "concat"}
# The test encoders split clips into pieces of 1 s, as a real Whisper does into pieces of 30 s.
LENGTHS = (4_410, 22_051, 44_100, 44_101, 61_737, 132_300)  # samples at 44.1 kHz
DYNAMIC = Form(window_s=None, front_end=True, quantize=None, opset=20)


def classifier(encoder: str, extractor: dict, **config) -> MaxMViTAudioClassificationPipeline:
    """Returns a pipeline with large weights in its head, statistics of some clips, and unequal pooling weights."""
    model = tiny_model(**{"speech_encoder": encoder, **config})
    model.maxmvit.load_speech_weights()
    processor = read_processor(encoder)
    features = tiny_feature_extractor(**{"speech_processor": processor, **extractor})
    branch = model.branches()["speech"]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(4)
        branch.layer_weights.normal_()
        if branch.attention is not None:
            for parameter in branch.attention.parameters():
                parameter.normal_()
        if branch.norm is not None:
            branch.norm.train().momentum = None  # the plain mean over batches
            clips = [voice(0.6 + 0.2 * i, f0=100 + 40 * i, seed=i) for i in range(4)]
            given = features(clips, sampling_rate=features.sampling_rate, return_tensors="pt")
            branch(given["input_values"], given["attention_mask"])
    return MaxMViTAudioClassificationPipeline(
        model=model.eval(), feature_extractor=features, task="audio-classification", device="cpu"
    )


def clip_of(samples: int) -> np.ndarray:
    """Returns a voice of this many samples, with another pitch for every length."""
    return np.concatenate([noise(4_410) * 1e-3, voice(samples / 44_100, f0=90 + samples / 900)])[-samples:]


def assert_scores(path: Path, clips: list[np.ndarray], expected: list[np.ndarray]) -> None:
    session = session_of(path)
    scores = np.concatenate([session.run(["probabilities"], {"waveform": clip[None]})[0] for clip in clips])
    # Differences must be far smaller than between clips, or a file that ignores its input would pass.
    spread = np.ptp(scores, axis=0).max()
    assert spread > 5e-3 and np.abs(scores - expected).max() < min(1e-3, spread / 5)


@pytest.fixture(scope="module")
def whisper(encoders, tmp_path_factory):
    """Exports an encoder alone, for trimmed clips of any length; returns its pipeline and the path of the file."""
    classify = classifier(encoders["whisper"], {"trim_db": 35.0}, **ALONE, **STATISTICS)
    path = tmp_path_factory.mktemp("exported") / "whisper.onnx"
    assert export(classify, path, DYNAMIC) < 1e-3
    return classify, path


def test_whisper_alone_classifies_clips_of_any_length_in_pieces(whisper):
    classify, path = whisper
    clips = [clip_of(samples) for samples in LENGTHS]
    clips += [np.concatenate([noise(20_000, 3) * 1e-4, voice(1.3), noise(9_000, 4) * 1e-4]), np.zeros(9_000, "f4")]
    expected = [pipeline_scores(classify, clip) for clip in clips]
    assert_scores(path, clips, expected)
    program = torch.export.load(path.with_suffix(".pt2")).module()
    for clip, scores in list(zip(clips, expected, strict=True))[-2:]:
        own = program(torch.from_numpy(clip)[None])["probabilities"]
        np.testing.assert_allclose(own[0].detach(), scores, atol=1e-3)


def test_the_file_of_whisper_takes_one_clip_and_returns_the_inputs_of_the_encoder(whisper):
    classify, path = whisper
    session = session_of(path)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("waveform", [1, "samples"])]
    outputs = {value.name: value.shape for value in session.get_outputs()}
    assert list(outputs) == ["probabilities", "logits", "embedding", "input_values", "shown"]
    assert operators(path) <= PLAIN
    clip = clip_of(100_000)
    own = dict(zip(outputs, session.run(list(outputs), {"waveform": clip[None]}), strict=True))
    expected = classify.feature_extractor(clip, sampling_rate=44_100, return_tensors="pt")
    frames = expected["input_values"].shape[-1]
    assert own["input_values"].shape[:3] == (1, -(-frames // 100), 8) and 100 < frames < 230
    pieces = np.concatenate(list(own["input_values"][0]), axis=-1)[:, :frames]
    np.testing.assert_allclose(pieces, expected["input_values"][0], atol=1e-3)
    with torch.no_grad():
        np.testing.assert_allclose(own["logits"], classify.model(**expected).logits, atol=5e-3)


def test_onnx_ser_prints_the_table_of_predict_ser_whole_and_along_windows(whisper, tmp_path, capsys):
    classify, path = whisper
    classify.model.save_pretrained(tmp_path / "model")
    classify.feature_extractor.save_pretrained(tmp_path / "model")
    for number, (rate, seconds) in enumerate(((16_000, 0.05), (44_100, 1.4), (48_000, 7.3))):
        clip = tmp_path / "clips" / f"{number}.wav"
        clip.parent.mkdir(exist_ok=True)
        soundfile.write(clip, voice(seconds, f0=90 + 60 * number, sampling_rate=rate), rate)
    for window in ([], ["--window", "0.9", "--smooth", "3"]):
        capsys.readouterr()
        assert predict_ser.main([str(tmp_path / "clips"), "--model", str(tmp_path / "model"), *window]) == 0
        theirs = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert onnx_ser.main([str(path), str(tmp_path / "clips"), *window]) == 0
        ours = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert len(ours) == len(theirs) == (12 if window else 3)
        for own, expected in zip(ours, theirs, strict=True):
            assert {name: own[name] for name in ("file", "prediction")} == {
                name: expected[name] for name in ("file", "prediction")
            }
            for label in classify.model.config.label2id:
                assert float(own[label]) == pytest.approx(float(expected[label]), abs=1e-3)


@pytest.mark.parametrize(
    "family, extractor, config",
    [
        ("wavlm", {"trim_db": 35.0}, CONVNETS | ATTENTION),
        (
            "hubert",
            {"sampling_rate": 16_000, "min_length": 1_000, "n_mels": 40, "cqt_n_bins": 60},
            ALONE | {"speech_pooling": "mean"},
        ),
        ("wav2vec2", {}, BESIDE_CQT | {"speech_pooling": "attentive_statistics"}),
    ],
    ids=["wavlm", "hubert", "wav2vec2"],
)
def test_encoders_of_waveforms_give_the_scores_of_the_pipeline(encoders, tmp_path, family, extractor, config):
    classify = classifier(encoders[family], extractor, **config)
    assert export(classify, tmp_path / "any.onnx", DYNAMIC) < 1e-3
    assert operators(tmp_path / "any.onnx") <= PLAIN
    clips = [clip_of(samples) for samples in LENGTHS]
    assert_scores(tmp_path / "any.onnx", clips, [pipeline_scores(classify, clip) for clip in clips])


def test_int8_of_windows_leaves_the_front_end_in_float32(encoders, tmp_path):
    classify = classifier(encoders["data2vec-audio"], {"trim_db": 35.0}, **ALONE, **STATISTICS)
    form = Form(window_s=0.8, front_end=True, quantize="int8", opset=20)
    path = tmp_path / "small.onnx"
    save(build(classify, form)[1], path, "int8")
    assert {"ConvInteger", "MatMulInteger"} <= operators(path) <= PLAIN
    weights = {weight.name: weight.data_type for weight in onnx.load(path).graph.initializer}
    own = {name: kind for name, kind in weights.items() if name.startswith("front_end.")}
    assert own and set(own.values()) == {onnx.TensorProto.FLOAT}
    session = session_of(path)
    assert session.get_inputs()[0].shape == [1, 35_280]
    clip = clip_of(35_280)
    np.testing.assert_allclose(
        session.run(["probabilities"], {"waveform": clip[None]})[0][0], pipeline_scores(classify, clip), atol=0.15
    )


def test_a_checkpoint_in_half_precision_is_computed_in_float32(encoders):
    classify = classifier(encoders["whisper"], {"trim_db": 35.0}, **CONVNETS, **ATTENTION)
    clips = [clip_of(samples) for samples in LENGTHS]
    classify.model.half().float()  # the weights are rounded
    expected = [pipeline_scores(classify, clip) for clip in clips]
    classify.model.half()
    whole = WholeModel(classify, has_front_end=True).eval()
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in classify.model.parameters()} == {torch.float16}
    with torch.no_grad():
        own = np.concatenate([whole(torch.from_numpy(clip)[None])["probabilities"].numpy() for clip in clips])
    np.testing.assert_allclose(own, expected, atol=1e-3)
    assert np.ptp(own, axis=0).max() > 5e-3  # else all clips would have equal scores


@pytest.mark.parametrize("family, config", [("whisper", ALONE), ("hubert", CONVNETS)])
def test_an_encoder_cannot_be_exported_without_the_front_end(encoders, tmp_path, family, config):
    classify = classifier(encoders[family], {}, **config)
    with pytest.raises(DataError, match="with its front end only.*: leave out --without_front_end"):
        export(classify, tmp_path / "a.onnx", Form(window_s=3.0, front_end=False, quantize=None, opset=20))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not {"SER_RAVDESS_DIR", "SER_PRETRAINED_DIR"} <= os.environ.keys(),
    reason="SER_RAVDESS_DIR and SER_PRETRAINED_DIR do not name RAVDESS and the pretrained encoder",
)
def test_the_real_whisper_gives_the_scores_of_the_pipeline_for_real_speech(tmp_path):
    encoder = str(Path(os.environ["SER_PRETRAINED_DIR"]) / "whisper-tiny.en")
    classify = classifier(encoder, {"trim_db": 35.0}, num_labels=8, **BESIDE_MEL, **STATISTICS)
    with torch.no_grad():
        for parameter in classify.model.classifier.parameters():
            parameter.div_(8)  # since it has thousands of features
    ravdess = Path(os.environ["SER_RAVDESS_DIR"])
    clips = [*crops_of_speech(ravdess, 5, 44_100), *crops_of_speech(ravdess, 2, 44_100, (29.0, 35.0))]
    expected = [pipeline_scores(classify, clip) for clip in clips]
    _, graph = build(classify, DYNAMIC)
    for quantize in (None, "fp16"):
        path = tmp_path / f"{quantize}.onnx"
        save(graph, path, quantize)
        assert_scores(path, clips, expected)
    # The statistics of BatchNorm, one number for each of 3,840 features, are not halved.
    kinds = {len(weight.dims) > 1: set() for weight in onnx.load(path).graph.initializer}
    for weight in onnx.load(path).graph.initializer:
        if np.prod(weight.dims) >= 1024 and not weight.name.startswith("front_end."):
            kinds[len(weight.dims) > 1].add(weight.data_type)
    assert kinds == {True: {onnx.TensorProto.FLOAT16}, False: {onnx.TensorProto.FLOAT}}
