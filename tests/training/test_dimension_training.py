"""Tests training on dimensions, alone and with classes: losses, ridge regression, options, runs and predictions."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.cli import find_recipe, parse_arguments
from ser.commands import evaluate as evaluate_ser
from ser.commands import predict as predict_ser
from ser.commands.train import main
from ser.data.augmentation import Mixup
from ser.models import load_config, load_model, load_pipeline, name_classes
from ser.training.closed_form import PENALTIES, fit_ridge
from ser.training.losses import ClassificationLoss, DimensionLoss, absolute_error, concordance_loss
from ser.utils import DataError, UsageError
from tests.evaluation.test_dimension_scores import lin
from tests.helpers.clips import write_sound
from tests.helpers.commands import read_predictions, run
from tests.helpers.originals import TINY
from tests.helpers.tiny import tiny_config, tiny_feature_extractor, tiny_images, voice

NAMES = {0: "calm", 1: "angry", 2: "sad", 3: "valence", 4: "arousal"}
BOTH = {"id2label": NAMES, "dimensions": {"arousal": [1, 5], "valence": [1, 7]}}
ALONE = {"id2label": {0: "valence", 1: "arousal"}, "dimensions": BOTH["dimensions"], "problem_type": "regression"}


def targets(clips: int = 12, seed: int = 0) -> torch.Tensor:
    """Returns values of two dimensions, some of them unknown."""
    values = torch.rand(clips, 2, generator=torch.Generator().manual_seed(seed))
    values[::3, 0] = math.nan
    values[1, 1] = math.nan
    return values


# ---- losses ----


@pytest.mark.parametrize("seed", [0, 5])
def test_the_concordance_loss_is_1_minus_the_mean_coefficient_of_known_values(seed):
    truth, outputs = targets(seed=seed), torch.rand(12, 2, requires_grad=True)
    expected = []
    for place in range(2):
        known = ~truth[:, place].isnan()
        expected.append(1 - lin(outputs[known, place].detach().double().numpy(), truth[known, place].double().numpy()))
    loss = concordance_loss(outputs, truth)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)
    loss.backward()
    assert outputs.grad.isfinite().all() and (outputs.grad[truth.isnan()] == 0).all()
    assert (outputs.grad[~truth.isnan()] != 0).all()


def test_a_dimension_with_fewer_than_two_values_in_a_batch_is_ignored():
    truth, outputs = targets(), torch.rand(12, 2)
    truth[1:, 1] = math.nan
    assert concordance_loss(outputs, truth) == pytest.approx(concordance_loss(outputs[:, :1], truth[:, :1]).item())
    nothing = torch.full((3, 2), math.nan)
    for loss in (concordance_loss, absolute_error, DimensionLoss("mse")):
        outputs = torch.rand(3, 2, requires_grad=True)
        value = loss(outputs, nothing)
        value.backward()
        assert value == 0 and (outputs.grad == 0).all()


@pytest.mark.parametrize("kind", ["ccc", "mse", "mae"])
def test_the_losses_of_classes_and_dimensions_are_weighted_and_masked(kind):
    truth, logits = targets(), torch.randn(12, 5)
    classes = F.one_hot(torch.arange(12) % 3, 3).float()
    classes[2::4] = math.nan
    known = ~classes[:, 0].isnan()
    found = DimensionLoss(kind, 3, weight=0.3)(logits, torch.cat([classes, truth], 1))
    rated = ~truth.isnan()
    differences = (logits[:, 3:] - truth)[rated]
    of_dimensions = {"mse": differences.square().mean(), "mae": differences.abs().mean()}
    of_dimensions["ccc"] = concordance_loss(logits[:, 3:], truth)
    entropy = F.cross_entropy(logits[known, :3], classes[known])
    assert found.item() == pytest.approx((entropy + 0.3 * of_dimensions[kind]).item(), abs=1e-5)
    smooth = ClassificationLoss(label_smoothing=0.2)
    found = DimensionLoss(kind, 3, classification=smooth)(logits, torch.cat([classes, truth], 1))
    expected = smooth(logits[known, :3], classes[known]) + of_dimensions[kind]
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("fields", [ALONE, BOTH])
def test_the_model_itself_has_a_loss_for_plain_transformers(fields):
    model = MaxMViTForAudioClassification(tiny_config(len(fields["id2label"]), **fields)).eval()
    values, images = targets(4), tiny_images(4)
    count = model.config.num_classes
    classes = F.one_hot(torch.tensor([0, 2, 1, 1]), 3).float()[:, :count]
    classes[1] = math.nan
    output = model(**images, labels=torch.cat([classes, values], 1))
    expected = F.mse_loss(output.logits[:, count:][~values.isnan()], values[~values.isnan()])
    if count:
        known = [0, 2, 3]
        expected += F.cross_entropy(output.logits[known, :count], classes[known])
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    if count:
        with pytest.raises(ValueError, match="a float probability for each class and a value for each dimension"):
            model(**images, labels=torch.tensor([0, 1, 2, 0]))


def test_mixup_blends_values_and_leaves_unknown_ones_unknown():
    labels = torch.cat([F.one_hot(torch.arange(12) % 3, 3).float(), targets()], 1)
    torch.manual_seed(0)
    _, blended = Mixup(1.0, 5)({"cqt": torch.rand(12, 1, 4, 4)}, labels)
    assert blended.shape == labels.shape and blended[labels.isnan()].isnan().all()
    assert blended[~blended.isnan()].min() >= 0 and blended[~blended.isnan()].max() <= 1
    assert not torch.equal(blended[:, :3], labels[:, :3])


# ---- configuration ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**BOTH, "dimensions": {"arousal": [5, 1], "valence": [1, 5]}}, "'arousal' needs the two ends of its scale"),
        ({**ALONE, "dimensions": {"arousal": [1, 2], "valence": [1]}}, "'valence' needs the two ends of its scale"),
        ({**BOTH, "dimensions": {"power": [1, 5]}}, "dimensions are the last labels"),
        ({**ALONE, "dimensions": {"arousal": [1, 5]}}, "after two or more classes or none"),
        ({**BOTH, "problem_type": "regression"}, "problem_type='regression' does not work with dimensions"),
        ({**ALONE, "problem_type": None}, "problem_type=None does not work with dimensions"),
        ({**ALONE, "dimensions": ["arousal"]}, "it must be a dictionary or None"),
    ],
)
def test_dimensions_that_do_not_fit_the_labels_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(len(fields["id2label"]), **fields)


def test_dimensions_are_saved_and_can_be_replaced_by_classes(tmp_path):
    config = tiny_config(5, **BOTH)
    config.save_pretrained(tmp_path)  # which sorts the names
    loaded = load_config(tmp_path)
    assert loaded.id2label == NAMES and loaded.dimensions == BOTH["dimensions"] and loaded.num_classes == 3
    assert tiny_config(2, **ALONE).num_classes == 0 and MaxMViTConfig(num_labels=4).num_classes == 4
    classes = name_classes(tiny_config(2, **ALONE), ["happy", "sad"])
    assert (classes.dimensions, classes.problem_type, classes.num_classes) == (None, None, 2)
    alone = name_classes(config, [], {"power": (0, 1)})
    assert (alone.problem_type, alone.num_classes, alone.id2label) == ("regression", 0, {0: "power"})
    MaxMViTForAudioClassification(config).save_pretrained(tmp_path)
    start = load_model(tmp_path, alone)
    assert start.config.dimensions == {"power": [0, 1]} and start.classifier.out_proj.weight.shape[0] == 1


# ---- options ----


def test_the_metric_is_ccc_and_options_of_classes_have_no_effect(tmp_path, caplog):
    line = ["--target", "dimensions", "--class_weights", "balanced", "--calibrate", "--labels", "sad", "angry"]
    _, data_args, args = parse_arguments([*line, "--test_window", "2", "--output_dir", str(tmp_path)])
    assert args.metric_for_best_model == "CCC" and args.greater_is_better and args.class_weights == "none"
    assert not args.calibrate and args.test_window is None and data_args.labels is None
    for name in ("class_weights", "labels"):
        assert f"--{name} has no effect with --target dimensions." in caplog.text
    for name in ("calibrate", "test_window"):
        assert f"--{name} has no effect without --target emotion." in caplog.text
    both = parse_arguments(["--target", "both", "--class_weights", "balanced", "--metric_for_best_model", "UA"])[2]
    assert both.class_weights == "balanced" and both.metric_for_best_model == "UA"
    error = parse_arguments(["--target", "dimensions", "--metric_for_best_model", "MAE"])[2]
    assert not error.greater_is_better and error.lr_scheduler_kwargs["mode"] == "min"
    _, plain, args = parse_arguments(["--dimensions", "arousal", "--dimension_weight", "2"])
    assert args.metric_for_best_model == "UA" and plain.dimensions is None and args.dimension_weight == 1
    with pytest.raises(ValueError, match="metric_for_best_model UA is not computed with --target dimensions"):
        parse_arguments(["--target", "dimensions", "--metric_for_best_model", "UA"])


# ---- closed form ----


def test_ridge_regression_equals_that_of_scikit_learn_and_generalises_to_new_speakers():
    rng = np.random.default_rng(0)
    speakers, features = rng.integers(12, size=240), rng.normal(size=(240, 400))
    features[:, :5] += 3 * rng.normal(size=(12, 5))[speakers]
    values = 0.5 + 0.1 * features[:, 10:14].sum(1) + 0.05 * rng.normal(size=240)
    train = speakers < 9
    ratings = torch.tensor(np.where(rng.uniform(size=240) < 0.1, math.nan, values))
    x, y = torch.tensor(features[train], dtype=torch.float32), ratings[train]
    weight, bias = fit_ridge(x, y, speakers[train].tolist())
    estimates = features[~train] @ weight.numpy() + bias.numpy()
    assert lin(estimates, values[~train]) > 0.5
    known = ~y.isnan()
    centred = (x[known].double() - x[known].double().mean(0)).square().sum(1).mean().item()
    fits = [Ridge(alpha=penalty * centred).fit(x[known].double(), y[known]).coef_ for penalty in PENALTIES]
    assert min(np.abs(fit - weight.numpy()).max() for fit in fits) < 1e-6


# ---- the command ----


def data_flags(corpus, cache) -> tuple:
    return "--data_dir", corpus, "--cache_dir", cache


@pytest.fixture(scope="module")
def both(demo_corpus, feature_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    run(*data_flags(demo_corpus, feature_cache), "--output_dir", folder, "--target", "both", "--mixup_alpha", "0.2",
        "--specaugment_masks", "1", "--class_weights", "balanced")  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_run_with_both_targets_reports_both_and_its_files_agree(both, demo_corpus, feature_cache, tmp_path):
    metrics, rows = json.loads((both / "metrics.json").read_text()), read_predictions(both)
    for name in ("dimensions.png", "confusion_matrix.png", "training_curves.png", "validation_predictions.csv"):
        assert (both / name).stat().st_size > 0, name
    for name in ("arousal", "valence"):
        x, y = (np.array([float(row[f"{kind}_{name}"]) for row in rows]) for kind in ("estimated", "true"))
        assert metrics["dimensions"][f"CCC_{name}"] == pytest.approx(lin(x, y), abs=1e-6)
    assert metrics["UA"] == pytest.approx(np.mean([each["recall"] for each in metrics["per_class"].values()]))
    card = (both / "README.md").read_text()
    assert (
        "Dimensions, whose scale (in brackets) becomes 0 to 1: arousal (0 to 1)" in card and "| CCC_valence |" in card
    )
    classify = load_pipeline(str(both), "cpu")
    for row in rows[:3]:
        scores = {each["label"]: each["score"] for each in classify(str(demo_corpus / row["file"]), window_s=None)}
        assert list(scores)[-2:] == ["arousal", "valence"] and sum(list(scores.values())[:4]) == pytest.approx(1)
        expected = {name: float(row[f"estimated_{name}"]) for name in ("arousal", "valence")}
        expected |= {name: float(row[f"p_{name}"]) for name in ("neutral", "happy", "angry", "sad")}
        assert scores == pytest.approx(expected, abs=2e-3)
    again = tmp_path / "again"
    flags = ["--dataset_name", "demo", "--protocol", "speaker", *map(str, data_flags(demo_corpus, feature_cache))]
    evaluate_ser.main([str(both), *flags, "--output_dir", str(again), "--use_cpu"])
    second = json.loads((again / "metrics.json").read_text())
    assert second["UA"] == pytest.approx(metrics["UA"]) and second["n_clips"] == metrics["n_clips"]
    assert second["dimensions"]["CCC_arousal"] == pytest.approx(metrics["dimensions"]["CCC_arousal"], abs=1e-4)


@pytest.mark.slow
def test_another_target_does_not_resume_the_run(both, demo_corpus, feature_cache):
    with pytest.raises(DataError, match="holds a run with other settings: .*target"):
        run(*data_flags(demo_corpus, feature_cache), "--output_dir", both)


def tones(folder, speakers: int = 4) -> str:
    """Writes clips of noise and a list of them with two dimensions, one of them often unknown; returns its path."""
    lines = ["file,speaker,power,other"]
    for index in range(8 * speakers):
        write_sound(folder / f"{index:02d}.wav", index)
        lines.append(f"{index:02d}.wav,s{index // 8},{index % 8},{'' if index % 3 else index % 8}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return str(folder / "clips.csv")


@pytest.mark.slow
def test_folds_of_dimensions_alone_are_pooled(tmp_path, capsys):
    out = tmp_path / "out"
    flags = [*TINY, "--dataset_name", tones(tmp_path), "--cache_dir", str(tmp_path / "cache"), "--use_cpu"]
    flags += ["--target", "dimensions", "--dimensions", "power", "other", "--dimension_range", "0", "10"]
    main([*flags, "--protocol", "loso", "--fold", "all", "--output_dir", str(out), "--eval_strategy", "epoch"])
    summary, rows = json.loads((out / "metrics.json").read_text()), read_predictions(out)
    assert len(rows) == 32 and list(rows[0])[:3] == ["fold", "file", "speaker"] and "prediction" not in rows[0]
    pooled = summary["pooled"]["dimensions"]
    for name, count in (("power", 32), ("other", 11)):
        rated = [row for row in rows if row[f"true_{name}"]]
        x, y = (np.array([float(row[f"{kind}_{name}"]) for row in rated]) for kind in ("estimated", "true"))
        assert len(rated) == count == pooled["n_clips"][name]
        assert pooled[f"CCC_{name}"] == pytest.approx(lin(x, y), abs=1e-6)
        folds = [fold[f"CCC_{name}"] for fold in summary["folds"]]
        assert summary["mean"][f"CCC_{name}"] == pytest.approx(np.mean(folds)) and len(folds) == 4
    assert (out / "dimensions.png").exists() and not (out / "confusion_matrix.png").exists()
    printed = capsys.readouterr().out
    assert "CCC_power (clips/loso-all): " in printed and "CCC_other (clips/loso-fold4): " in printed
    config = load_config(out / "fold_1")
    assert config.dimensions == {"power": [0, 10], "other": [0, 10]} and config.problem_type == "regression"
    assert config.familiarity and load_model(out / "fold_1").classifier.out_proj.weight.shape[0] == 2


@pytest.mark.slow
def test_closed_form_regression_of_a_speech_encoder(tmp_path, encoders):
    out = tmp_path / "out"
    flags = [*TINY, "--dataset_name", tones(tmp_path), "--cache_dir", str(tmp_path / "cache"), "--use_cpu"]
    flags += ["--speech_encoder", encoders["wavlm"], "--freeze_speech_encoder", "--closed_form_classifier"]
    flags += [
        "--speech_pooling",
        "statistics",
        "--speech_layers",
        "concat",
        "--mel_backbone",
        "none",
        "--head",
        "linear",
    ]
    flags[flags.index("--mel_backbone_kwargs") + 1] = "{}"
    flags += ["--validation_share", "0", "--lr_scheduler_type", "cosine", "--output_dir", str(out)]
    target = ["--dimensions", "power", "--dimension_range", "0", "10", "--target"]
    main([*flags, *target, "dimensions"])
    rows = read_predictions(out)
    estimates = [float(row["estimated_power"]) for row in rows]
    assert (
        len({*estimates}) == len(rows) and "CCC_power" in json.loads((out / "metrics.json").read_text())["dimensions"]
    )


# ---- pipeline and commands for recordings ----


def pipeline_of(fields, seed: int = 0) -> MaxMViTAudioClassificationPipeline:
    torch.manual_seed(seed)
    model = MaxMViTForAudioClassification(tiny_config(len(fields["id2label"]), **fields)).eval()
    return MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification"
    )


@pytest.mark.slow
@pytest.mark.parametrize("fields", [ALONE, BOTH])
def test_the_pipeline_returns_dimensions_unscaled_and_in_their_order(fields):
    classify = pipeline_of(fields)
    names, count = list(classify.model.config.id2label.values()), classify.model.config.num_classes
    clip = voice(2.4)
    logits = classify(clip, function_to_apply="none")
    rows = classify(clip, top_k=1)
    assert [row["label"] for row in rows[min(count, 1) :]] == ["valence", "arousal"]
    raw = {row["label"]: row["score"] for row in logits}
    assert {row["label"]: row["score"] for row in rows[-2:]} == {name: raw[name] for name in names[-2:]}
    windows = classify(clip, window_s=1.2, hop_s=0.4)
    assert all(list(row["scores"]) == names for row in windows)
    assert all((row["label"] is None) == (count == 0) for row in windows)
    live = list(classify.stream([clip], window_s=1.2, hop_s=0.4))
    for row, expected in zip(live, windows, strict=True):
        assert row["label"] == expected["label"] and row["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    segments = classify(clip, segments=[(0, 1.5, "anna"), (1.5, 1.6)])
    assert [row["label"] is None for row in segments] == [count == 0, False] and segments[1]["label"] == "too short"
    assert list(segments[0]["scores"]) == names
    silence = classify(np.zeros(44_100, np.float32))
    assert silence == [{"label": "silence", "score": 1.0}]
    if count:
        only = classify(clip, only=["sad", "calm"])
        assert {row["label"] for row in only} == {"sad", "calm", "valence", "arousal"}
        assert sum(row["score"] for row in only[:2]) == pytest.approx(1) and only[0]["only"] == ["calm", "sad"]
    else:
        for options in ({"only": ["valence", "arousal"]}, {"min_score": 0.5}):
            with pytest.raises(ValueError, match="is for classes, and this model has none: it estimates valence"):
                classify(clip, **options)


@pytest.mark.slow
def test_dimensions_of_recordings_are_written_to_tables_but_not_to_subtitles(both, demo_corpus, tmp_path, capsys):
    alone = tmp_path / "alone"
    pipeline_of(ALONE).save_pretrained(alone)
    files = [str(demo_corpus / "voice_00" / f"{name}_00.wav") for name in ("sad", "happy")]
    common = [*files, "--device", "cpu", "--model"]
    assert predict_ser.main([*common, str(alone), "--output", str(tmp_path / "a.csv")]) == 0
    rows = read_predictions(tmp_path, "a.csv")
    assert list(rows[0]) == ["file", "prediction", "valence", "arousal"] and rows[0]["prediction"] == ""
    classify = load_pipeline(str(alone), "cpu")
    assert [float(row["arousal"]) for row in rows] == pytest.approx([classify(f)[1]["score"] for f in files], abs=1e-5)
    again = predict_ser.main([*common, str(alone), "--output", str(tmp_path / "a.csv")])
    assert again == 0 and "holds 2 files already" in capsys.readouterr().err
    along = ["--window", "0.5", "--hop", "0.25", "--output", str(tmp_path / "along.jsonl")]
    assert predict_ser.main([*common, str(both), *along]) == 0
    lines = [json.loads(line) for line in (tmp_path / "along.jsonl").read_text().splitlines()]
    assert {"start", "prediction", "happy", "arousal", "valence"} <= {*lines[0]}
    assert {line["prediction"] for line in lines} <= {"neutral", "happy", "angry", "sad", "silence"}
    (tmp_path / "turns.csv").write_text("start,end,speaker\n0,0.6,anna\n0.6,1.2,ben\n")
    turns = ["--segments_from", str(tmp_path / "turns.csv"), "--output", str(tmp_path / "turns_out.csv")]
    assert predict_ser.main([files[0], "--device", "cpu", "--model", str(alone), *turns]) == 0
    totals = read_predictions(tmp_path, "turns_out.speakers.csv")
    assert [row["speaker"] for row in totals] == ["anna", "ben"] and float(totals[0]["other_time"]) == 0
    assert list(totals[0])[3:5] == ["valence_score", "arousal_score"]
    code = predict_ser.main([files[0], "--device", "cpu", "--model", str(alone), "--output", str(tmp_path / "x.srt")])
    assert (
        code == 2
        and "is for emotions, and the model has only dimensions (valence, arousal)" in capsys.readouterr().err
    )
    with pytest.raises(UsageError, match="min_score=0.5 is for classes"):
        load_pipeline(str(alone), "cpu", min_score=0.5)


@pytest.mark.slow
def test_the_recipe_learns_the_dimensions_of_the_demo_corpus_on_new_voices(trained_demo, tmp_path):
    recipe, cache = str(find_recipe("configs/demo_dimensions.yaml")), trained_demo.parent / "cache"
    flags = [f"--cache_dir={cache}", "--report_to=none", f"--output_dir={tmp_path / 'out'}"]
    main([recipe, *flags, "--num_train_epochs=4"])  # of the recipe's six, which is enough
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["speaker_disjoint"] and metrics["dimensions"]["intervals"]["by_speaker"]["CCC_arousal"][0] > 0.7
    assert metrics["dimensions"]["CCC_valence"] > 0.7
