"""Familiarity of recordings in the pipeline, in predict_ser.py and on the page."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.commands import predict as predict_ser
from ser.training.familiarity import fit_familiarity
from tests.helpers.marks import first_fast
from tests.helpers.tiny import convnet_model, noise, tiny_feature_extractor, voice

RATE = 44_100
LABELS = ["angry", "happy", "neutral", "sad"]


@pytest.fixture(scope="module")
def parts():
    """Returns a model whose familiarity is fitted to forty voices of 0.5 s, and its feature extractor."""
    model, feature_extractor = convnet_model(), tiny_feature_extractor()
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    features = []
    for first in range(0, 40, 8):
        waveforms = [voice(0.5, f0=80.0 + 5 * index, seed=index) for index in range(first, first + 8)]
        images = feature_extractor(waveforms, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            features.append(model.maxmvit(**images).pooler_output)
    fit_familiarity(
        model, torch.cat(features), [index % 4 for index in range(40)], [index // 4 for index in range(40)]
    )
    assert model.config.familiarity
    return {"model": model, "feature_extractor": feature_extractor}


@pytest.fixture(scope="module")
def classify(parts):
    return MaxMViTAudioClassificationPipeline(**parts, task="audio-classification", device="cpu")


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in parts.values():
        part.save_pretrained(folder)
    return str(folder)


def mixed() -> np.ndarray:
    """Returns a second of a voice, one of silence, and one of noise."""
    return np.concatenate([voice(1.0, f0=120.0, seed=50), np.zeros(RATE, np.float32), noise(RATE)])


def test_clips_like_the_training_data_are_familiar_and_noise_is_not(classify):
    voices = [prediction[0] for prediction in classify([voice(0.5, 93.0, seed=60), voice(0.5, 201.0, seed=61)],
                                               min_familiarity=0.0)]  # fmt: skip
    noises = [
        prediction[0] for prediction in classify([noise(RATE // 2, seed) for seed in (1, 2)], min_familiarity=0.0)
    ]
    assert min(row["familiarity"] for row in voices) > max(row["familiarity"] for row in noises)
    assert [row["familiarity"] for row in noises] == [0.0, 0.0]
    assert all(row["label"] in LABELS for row in voices + noises)  # 0 rejects nothing


def test_a_prediction_below_min_familiarity_is_unfamiliar_and_keeps_its_scores(classify):
    candidates = [voice(0.5, f0=float(f0), seed=f0) for f0 in range(60, 400, 20)]
    predictions = classify(candidates, min_familiarity=0)
    clip = next(
        clip for clip, prediction in zip(candidates, predictions, strict=True) if 0 < prediction[0]["familiarity"] < 1
    )
    plain = classify(clip)
    assert "familiarity" not in plain[0]
    known = classify(clip, min_familiarity=0)
    familiarity = known[0]["familiarity"]
    assert known == [row | {"familiarity": familiarity} for row in plain]
    assert classify(clip, min_familiarity=familiarity) == known
    above = float(np.nextafter(familiarity, 2))
    rejected = known[0] | {"label": "unfamiliar"}
    assert classify(clip, min_familiarity=above) == [rejected, *known]
    assert classify(clip, min_familiarity=above, min_score=1.0, top_k=1) == [rejected, known[0]]
    assert classify(clip, min_familiarity=familiarity, min_score=1.0)[0]["label"] == "uncertain"
    assert classify(np.zeros(RATE), min_familiarity=1.0) == [{"label": "silence", "score": 1.0}]


@pytest.mark.parametrize("smooth", [1, 3])
def test_windows_have_a_familiarity_and_recordings_have_their_mean(classify, smooth):
    rows = classify(mixed(), window_s=0.5, min_familiarity=0.01)
    plain = classify(mixed(), window_s=0.5)
    assert [row["scores"] for row in rows] == [row["scores"] for row in plain]
    values = [row.get("familiarity") for row in rows]
    assert [value is None for value in values] == [row["label"] == "silence" for row in rows]
    assert rows[-1]["label"] == "unfamiliar" and values[-1] == 0.0
    assert rows[0]["label"] in LABELS and values[0] > 0.01
    smoothed = classify(mixed(), window_s=0.5, min_familiarity=0.01, smooth=smooth)
    for index, row in enumerate(smoothed):
        neighbours = [
            value for value in values[max(0, index - smooth // 2) : index + smooth // 2 + 1] if value is not None
        ]
        if row["label"] != "silence":
            assert row["familiarity"] == pytest.approx(np.mean(neighbours))
    prediction = classify(mixed(), window_s=0.5, timeline=False, min_familiarity=0.0)
    mean = np.mean([value for value in values if value is not None])
    assert [row["familiarity"] for row in prediction] == pytest.approx([mean] * 4)


@pytest.mark.parametrize("value", [-0.1, 1.5, "0.5", True])
def test_a_min_familiarity_that_is_not_from_0_to_1_is_refused(classify, value):
    with pytest.raises(ValueError, match=f"min_familiarity={value!r} does not work; min_familiarity must be a share"):
        classify(voice(0.1), min_familiarity=value)


def test_a_model_without_familiarity_is_refused_before_anything_is_read(tmp_path, capsys):
    model, feature_extractor = convnet_model(), tiny_feature_extractor()
    parts = {"model": model, "feature_extractor": feature_extractor, "task": "audio-classification"}
    message = "min_familiarity=0.05 needs a checkpoint that keeps the distribution of its training data"
    with pytest.raises(ValueError, match=message):
        MaxMViTAudioClassificationPipeline(**parts, device="cpu", min_familiarity=0.05)
    plain = MaxMViTAudioClassificationPipeline(**parts, device="cpu")
    with pytest.raises(ValueError, match=message):
        plain("no such file.wav", min_familiarity=0.05)
    assert plain(voice(0.2), min_familiarity=None) == plain(voice(0.2))
    model.save_pretrained(tmp_path)
    feature_extractor.save_pretrained(tmp_path)
    assert predict_ser.main(["--model", str(tmp_path), "none.wav", "--min_familiarity", "0.05"]) == 2
    assert message in capsys.readouterr().err


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("window", first_fast([[], ["--window", "0.5"]]))
def test_the_command_adds_a_column_and_counts_unfamiliar_recordings(checkpoint, tmp_path, capsys, window):
    clips = tmp_path / "clips"
    for label, sound in (("angry", voice(1.0, f0=130.0, seed=80)), ("sad", noise(RATE)), ("happy", np.zeros(RATE))):
        (clips / label).mkdir(parents=True)
        soundfile.write(clips / label / f"{label}.wav", sound, RATE)
    plain, bounded = tmp_path / "plain.csv", tmp_path / "bounded.csv"
    arguments = ["--model", checkpoint, str(clips), *window]
    assert predict_ser.main([*arguments, "--output", str(plain)]) == 0
    for _ in range(2):  # from the start, and from the finished table
        capsys.readouterr()
        assert predict_ser.main([*arguments, "--output", str(bounded), "--min_familiarity", "0.005"]) == 0
        assert "on 1 labelled files (1 silent ones left out) (1 unfamiliar ones left out)" in capsys.readouterr().err
    for row, before in zip(rows_of(bounded), rows_of(plain), strict=True):
        familiarity = row.pop("familiarity")
        kind = Path(row["file"]).stem
        assert (familiarity == "") == (kind == "happy")
        is_rejected = kind != "happy" and float(familiarity) < 0.005
        assert is_rejected == (kind == "sad")
        assert row == before | {"prediction": "unfamiliar" if is_rejected else before["prediction"]}
    assert predict_ser.main([*arguments, "--output", str(bounded), "--min_familiarity", "0.2"]) == 2
    assert "holds rows made with another min_familiarity" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict_ser.main([*arguments, "--min_familiarity", "1.5"])


@pytest.mark.slow
def test_the_page_shows_the_familiarity_of_a_recording(classify, tmp_path):
    page = pytest.importorskip("ser.commands.app", reason="the page needs gradio")
    messages = {}
    for name, sound in (("voice", voice(0.5, f0=150.0, seed=70)), ("noise", noise(RATE // 2))):
        soundfile.write(tmp_path / f"{name}.wav", sound, RATE)
        messages[name] = page.analyse(classify, str(tmp_path / f"{name}.wav"), 0.5, 0.5, 60)["message"]
    assert "Familiarity: 0 %" in messages["noise"] and "unlike the training data" in messages["noise"]
    assert "Familiarity: " in messages["voice"] and "unlike" not in messages["voice"]
    classify.model.config.familiarity = False
    try:
        assert "amiliar" not in page.analyse(classify, str(tmp_path / "voice.wav"), 0.5, 0.5, 60)["message"]
    finally:
        classify.model.config.familiarity = True
