"""Tests that checkpoints of earlier versions load completely and give the same logits and probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.models import load_pipeline

FOLDERS = sorted(path for path in (Path(__file__).parent / "checkpoints").iterdir() if path.is_dir())


def test_there_is_a_checkpoint_of_each_version():
    assert [folder.name for folder in FOLDERS] == ["0.1.0", "0.2.0"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_saved_weight_is_loaded_under_its_name(folder):
    model, report = MaxMViTForAudioClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, file.get_tensor(name), rtol=0, atol=0)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_logits_of_a_waveform_are_the_same(folder):
    saved = np.load(folder / "answer.npz")
    extractor = MaxMViTFeatureExtractor.from_pretrained(folder)
    model = MaxMViTForAudioClassification.from_pretrained(folder).eval()
    waveform = saved["waveform"].astype(np.float32) / 2**15
    with torch.no_grad():
        logits = model(**extractor(waveform, sampling_rate=44_100, return_tensors="pt")).logits[0]
    np.testing.assert_allclose(logits.numpy(), saved["logits"], rtol=0, atol=2e-5)
    assert np.abs(saved["logits"] - saved["logits"].mean()).max() > 0.05  # so that other logits are noticed


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_pipeline_gives_the_same_probabilities(folder):
    saved = np.load(folder / "answer.npz")
    classify = load_pipeline(str(folder), "cpu")
    rows = classify({"array": saved["waveform"] / np.float32(2**15), "sampling_rate": 44_100}, top_k=4)
    scores = {row["label"]: row["score"] for row in rows}
    found = [scores[label] for label in ("neutral", "happy", "sad", "angry")]
    np.testing.assert_allclose(found, saved["scores"], rtol=0, atol=1e-5)
