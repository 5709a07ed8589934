"""Tests the closed-form linear classifier of a frozen speech encoder, and its late fusion with an image classifier."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import LateFusionHead, MaxMViTForAudioClassification
from ser.commands.train import main
from ser.models import load_model, load_pipeline
from ser.training.closed_form import ABSENT, check_closed_form, fit_discriminant
from ser.training.finetuning import compact_weights
from ser.utils import DataError
from tests.helpers.corpora import write_ravdess
from tests.helpers.tiny import tiny_config, voice
from tests.helpers.training import make_arguments


def clips_of_speakers(clips: int, speakers: int, features: int = 40, spread: float = 3.0, seed: int = 0):
    """Returns features, labels of four classes, and speakers, who differ more than the classes do."""
    rng = np.random.default_rng(seed)
    labels, speaker = rng.integers(4, size=clips), rng.integers(speakers, size=clips)
    of_class, of_speaker = rng.normal(size=(4, features)), spread * rng.normal(size=(speakers, features))
    values = of_class[labels] + of_speaker[speaker] * (np.arange(features) < 5) + rng.normal(size=(clips, features))
    return torch.tensor(values, dtype=torch.float32) + 7, torch.tensor(labels), speaker.tolist()


def test_the_classifier_is_the_discriminant_analysis_of_scikit_learn_up_to_the_scale():
    features, labels, speakers = clips_of_speakers(300, 10)
    fitted = fit_discriminant(features, labels, speakers, 4)
    counts = np.bincount(labels)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=fitted.shrinkage, priors=counts / counts.sum())
    reference.fit(features.numpy(), labels.numpy())
    expected = reference.decision_function(features.numpy()) - np.log(counts / counts.sum())
    found = (features @ fitted.weight.T + fitted.bias).numpy()
    expected, found = (scores - scores.mean(1, keepdims=True) for scores in (expected, found))
    scale = (expected * found).sum() / (found * found).sum()
    assert scale > 0
    np.testing.assert_allclose(scale * found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_the_classifier_generalises_to_new_speakers_with_calibrated_probabilities():
    features, labels, speakers = clips_of_speakers(600, 12)
    is_new = np.array(speakers) >= 9
    known, new = np.flatnonzero(~is_new), np.flatnonzero(is_new)
    fitted = fit_discriminant(features[known], labels[known], [speakers[i] for i in known], 4)
    scores = features[new] @ fitted.weight.T + fitted.bias
    accuracy = (scores.argmax(1) == labels[new]).float().mean()
    assert accuracy > 0.9
    confidence = scores.softmax(1).amax(1).mean()
    assert abs(confidence - accuracy) < 0.1
    few = fit_discriminant(features[known[:60]], labels[known[:60]], [speakers[i] for i in known[:60]], 4)
    assert few.shrinkage >= fitted.shrinkage


def test_a_class_without_clips_is_never_predicted():
    features, labels, speakers = clips_of_speakers(200, 6)
    fitted = fit_discriminant(features, labels, speakers, 5)
    scores = features @ fitted.weight.T + fitted.bias
    assert set(scores.argmax(1).tolist()) == {0, 1, 2, 3} and (scores[:, 4] < ABSENT / 1e3).all()


def late(encoder: str, **changes) -> MaxMViTForAudioClassification:
    torch.manual_seed(0)
    return MaxMViTForAudioClassification(tiny_config(speech_encoder=encoder, fusion="late", **changes)).eval()


def test_late_fusion_is_the_weighted_mean_of_two_classifiers_each_with_its_own_loss(encoders, tmp_path):
    model = late(encoders["whisper"], speech_share=0.7)
    head = model.classifier
    assert isinstance(head, LateFusionHead)
    widths = {name: branch.head_hidden_size for name, branch in model.branches().items()}
    features = torch.randn(3, sum(widths.values()))
    images, _ = head.images(features[:, : widths["cqt"] + widths["mel"]], {})
    speech = F.linear(features[:, -widths["speech"] :], head.speech.out_proj.weight, head.speech.out_proj.bias)
    torch.testing.assert_close(head(features, {})[0], 0.3 * images + 0.7 * speech)

    inputs = {
        "cqt_values": torch.randn(3, 3, 64, 64), "mel_values": torch.randn(3, 3, 64, 64),
        "input_values": torch.randn(3, 8, 50), "labels": torch.tensor([0, 1, 2]),
    }  # fmt: skip
    output = model(**inputs)
    assert output.branch_logits is None
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, inputs["labels"]))
    model.train()
    torch.manual_seed(3)
    output = model(**inputs)
    torch.testing.assert_close(
        output.loss, sum(F.cross_entropy(logits, inputs["labels"]) for logits in output.branch_logits)
    )
    torch.testing.assert_close(output.logits, 0.3 * output.branch_logits[0] + 0.7 * output.branch_logits[1])

    model.eval().config.temperature = 2.5
    model.save_pretrained(tmp_path)
    loaded = MaxMViTForAudioClassification.from_pretrained(tmp_path)
    assert loaded.config.temperature == 1
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits / 2.5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cqt_backbone": None, "mel_backbone": None}, "a model with one branch has nothing to fuse"),
        ({"speech_encoder": None}, "fusion='late' does not work: it needs an image backbone and a speech encoder"),
        ({"speech_share": 1.5}, "speech_share=1.5 does not work"),
    ],
)
def test_late_fusion_without_two_classifiers_is_refused(encoders, changes, message):
    with pytest.raises(ValueError, match=message):
        MaxMViTConfig(**{"speech_encoder": encoders["whisper"], "fusion": "late", **changes})


@pytest.mark.parametrize(
    "changes, settings, message",
    [
        ({}, {"freeze_speech_encoder": False}, "--freeze_speech_encoder and .*"),
        ({"speech_pooling": "attention"}, {}, ".* --speech_pooling mean or statistics"),
        ({"speech_layers": "weighted_sum"}, {}, "--speech_layers concat"),
        ({"fusion": "gated"}, {}, "--fusion late, or --head linear of a model without images"),
        ({"feature_dropout": 0.1}, {}, "no --feature_dropout"),
    ],
)
def test_models_that_cannot_be_fitted_in_closed_form_are_refused(encoders, changes, settings, message, tmp_path):
    chosen = {"speech_pooling": "statistics", "speech_layers": "concat", "fusion": "late"}
    config = tiny_config(**{"speech_encoder": encoders["whisper"], **chosen, **changes})
    args = make_arguments(tmp_path, **{"freeze_speech_encoder": True, "closed_form_classifier": True, **settings})
    with pytest.raises(DataError, match=f"^--closed_form_classifier needs {message}[.]$"):
        check_closed_form(config, args, keeps_features=True)
    with pytest.raises(DataError, match="--cache_features"):
        check_closed_form(config, args, keeps_features=False)


@pytest.mark.slow
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_half_precision_encoder_is_saved_in_half_precision_unless_it_was_trained(encoders, tmp_path, is_frozen):
    model = late(encoders["whisper"])
    encoder = model.branches()["speech"].encoder.requires_grad_(not is_frozen)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(parameter.half().float())
        next(encoder.parameters()).view(-1)[0] = 0.1  # a value that float16 cannot represent
    model.save_pretrained(tmp_path, state_dict=compact_weights(model))
    saved, expected = load_file(tmp_path / "model.safetensors"), model.state_dict()
    halved = {name for name, tensor in saved.items() if tensor.dtype == torch.float16}
    inexact = f"maxmvit.speech_encoder.encoder.{next(name for name, _ in encoder.named_parameters())}"
    names = {f"maxmvit.speech_encoder.encoder.{name}" for name, _ in encoder.named_parameters()} - {inexact}
    assert halved == (names if is_frozen else set())
    for loaded in (load_model(tmp_path), MaxMViTForAudioClassification.from_pretrained(tmp_path)):
        assert all(
            tensor.dtype == expected[name].dtype and tensor.equal(expected[name])
            for name, tensor in loaded.state_dict().items()
        )


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_fits_the_classifier_alone_and_with_images(encoders, tmp_path):
    write_ravdess(tmp_path / "corpus")
    common = [
        "--dataset_name=ravdess", f"--data_dir={tmp_path / 'corpus'}", f"--cache_dir={tmp_path / 'cache'}",
        f"--speech_encoder={encoders['whisper']}", "--freeze_speech_encoder", "--closed_form_classifier",
        "--speech_pooling=statistics", "--speech_layers=concat", "--imagenet_weights=false", "--validation_share=0",
        "--image_size", "32", "48", '--feature_extractor_kwargs={"image_size": [32, 48]}', "--eval_strategy=no",
        "--load_best_model_at_end=false", "--lr_scheduler_type=cosine", "--report_to=none", "--waveform_copies=1",
        "--use_cpu", "--max_steps=3", "--early_stopping_patience=0",
    ]  # fmt: skip
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert not main([*common, f"--output_dir={alone}", "--cqt_backbone=none", "--mel_backbone=none", "--head=linear"])
    images = ["--cqt_backbone=convnet", "--mel_backbone=none", "--fusion=late", "--mixup_alpha=0.2"]
    assert not main([*common, f"--output_dir={both}", *images, "--training_window=0.05"])
    trained_on_all = tmp_path / "all"
    assert not main([*common, f"--output_dir={trained_on_all}", *images, "--protocol=everything"])
    assert (trained_on_all / "model.safetensors").exists() and not list(trained_on_all.glob("predictions*"))
    single, joint = load_file(alone / "model.safetensors"), load_file(both / "model.safetensors")
    for name in ("weight", "bias"):
        assert single[f"classifier.out_proj.{name}"].equal(joint[f"classifier.speech.out_proj.{name}"])
    assert single["classifier.out_proj.weight"].abs().sum() > 0
    encoder = {key: value for key, value in single.items() if ".encoder." in key or ".norm." in key}
    assert encoder and all(joint[key].equal(value) for key, value in encoder.items())

    assert rows_of(alone / "predictions.csv") == rows_of(both / "predictions_speech.csv")
    of_images, of_both = rows_of(both / "predictions_images.csv"), rows_of(both / "predictions.csv")
    assert len(of_images) == len(of_both) == json.loads((both / "metrics.json").read_text())["n_clips"] == 32
    rows = load_pipeline(str(both))({"array": voice(0.5), "sampling_rate": 44_100})
    assert sum(row["score"] for row in rows) == pytest.approx(1)
