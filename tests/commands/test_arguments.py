"""Options of the training command: options without effect are ignored with a warning, invalid ones are refused before
any clip is read, and --help does not import torch."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from ser.arguments import DataArguments, ModelArguments, TrainingOptions, check_bounds, default_of
from ser.cli import WITHOUT_VALIDATION, command_parser, parse_arguments
from ser.commands.train import main
from ser.data.corpora.demo import write_demo_corpus
from ser.data.prepare import read_corpus
from ser.data.protocols import make_split
from ser.models import make_config
from ser.training.arguments import REFUSED, UNUSED, SERTrainingArguments
from ser.utils import DataError
from tests.helpers.clips import corpus_of, write_sound
from tests.helpers.tiny import save_tiny, tiny_config

ROOT = Path(__file__).parents[2]
OUTPUT = ["--output_dir", "out", "--use_cpu"]
NO_VALIDATION = ["--validation_share", "0", "--lr_scheduler_type", "cosine"]


def parse(*flags):
    return parse_arguments([*OUTPUT, *map(str, flags)])


# ---- recipes


def test_options_override_the_recipe_at_any_position(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output_dir: out\nlearning_rate: 1e-3\nlabels: [happy, sad]\ncqt_backbone_kwargs: {depths: [1]}\n"
    )
    flags = ["--learning_rate", "2e-4", "--overwrite_output_dir"]
    for place in range(4):
        line = [*flags[:place], str(recipe), *flags[place:]]
        if place != 1:  # there it would be the value of --learning_rate
            model_args, data_args, args = parse_arguments(line)
            assert (args.learning_rate, args.overwrite_output_dir, data_args.labels) == (2e-4, True, ["happy", "sad"])
            assert model_args.cqt_backbone_kwargs == {"depths": [1]}


def test_later_recipes_override_earlier_ones(tmp_path):
    for name, text in {"a": "seed: 1\nfold: 2", "b": "seed: 3"}.items():
        (tmp_path / f"{name}.yml").write_text(text)
    recipe, line = command_parser(False).read([str(tmp_path / "a.yml"), str(tmp_path / "b.yml"), *OUTPUT])
    assert (recipe, line) == ({"seed": 3, "fold": "2"}, {"output_dir": "out", "use_cpu": True})


@pytest.mark.parametrize("option", ["run_name", "label_map", "hub_model_id", "cache_dir", "test_speakers"])
def test_the_value_of_an_option_is_not_a_recipe(option, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("seed: 5")
    given = command_parser().read([f"--{option}", "mine.yaml", "--bf16", str(recipe), f"--{option}=mine.yml"])
    assert given[0] == {"seed": 5} and given[1]["bf16"] is True
    assert given[1][option] in ("mine.yml", ["mine.yml"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rat: 1", "unknown option learning_rat in .*recipe.yaml; did you mean --learning_rate"),
        ("- a\n- b", "option: value"),
        ("a: [", "cannot be read"),
        ("seed: 2020-99-99", "cannot be read: month must be in 1..12"),
        ("labels: &a [x]\nmerge_labels: *a", "repeats a value with .a; write it out"),
        ("seed: " + "[" * 3_000, "nests more than 10 lists and mappings"),
        ("lr_scheduler_kwargs: {day: 2020-01-01}", "lr_scheduler_kwargs cannot be written as JSON"),
        ("seed: 1\nfold: 2\nseed: 3", "it has seed twice, in lines 1 and 3"),
        ("mel_backbone_kwargs:\n  depths: [1]\n  embed_dim: 8\n  depths: [2]", "has depths twice, in lines 2 and 4"),
        ("seed: many", "argument --seed: invalid int value: 'many' in .*recipe.yaml"),
    ],
)  # fmt: skip
def test_an_invalid_recipe_is_named(tmp_path, capsys, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{text}\n")
    with pytest.raises(SystemExit) as ending:
        main([str(recipe), "--output_dir", str(tmp_path)])
    stderr = capsys.readouterr().err
    assert ending.value.code == 2 and len(stderr.splitlines()) <= 5
    assert re.search(message, stderr)


# ---- help, and defaults


def test_defaults_are_the_references(tmp_path):
    model_args, data_args, args = parse()
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.seed) == (16, 50, 42)
    assert (args.max_grad_norm, args.eval_strategy, args.lr_scheduler_type) == (1.0, "epoch", "reduce_lr_on_plateau")
    assert args.lr_scheduler_kwargs == {"mode": "max", "factor": 0.1, "patience": 2, "min_lr": 1e-6}
    assert (args.early_stopping_patience, data_args.dataset_name, model_args.imagenet_weights) == (5, ["demo"], True)
    assert args.do_train and args.do_predict


def run_without_torch(*flags):
    """Runs the command in an interpreter that can import neither torch nor transformers.utils."""
    code = "import sys; sys.modules['torch'] = sys.modules['transformers.utils'] = None; "
    code += "import runpy; runpy.run_path('run_ser.py', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)


def test_help_and_misspelt_options_are_answered_without_torch_in_two_seconds():
    start = time.monotonic()
    shown, misspelt = (
        run_without_torch("configs/demo.yaml", "--help"),
        run_without_torch("configs/demo.yaml", "--learning-rat=3", "--fold", "2"),
    )
    assert time.monotonic() - start < 2 * 2 * max(1.0, os.getloadavg()[0])  # more on a busy machine
    assert shown.returncode == 0 and misspelt.returncode == 2
    assert misspelt.stderr == (
        "error: unknown option --learning-rat; did you mean --learning_rate? --help lists the options, --help_all all "
        "of them.\n"
    )
    titles = ("Data", "Protocol", "Model", "Training of individual branches", "Augmentation", "Checkpoints and report")
    places = [shown.stdout.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    assert "--adam_beta1" not in shown.stdout and len(shown.stdout.splitlines()) < 320
    assert "--remove_unused_columns" not in shown.stdout
    for kind in (ModelArguments, DataArguments, TrainingOptions):
        for field in fields(kind):
            assert field.metadata["help"] and f"\n  --{field.name}" in shown.stdout, field.name
    assert run_without_torch("--adam_beta3", "1").stderr.startswith(
        "error: unknown option --adam_beta3; did you mean --adam_beta"
    )
    assert run_without_torch("--config_name", "x").stderr.startswith(
        "error: --config_name is not supported: --model_name_or"
    )


def test_help_all_lists_all_options(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["--help_all"])
    stdout = capsys.readouterr().out
    assert ending.value.code == 0
    assert all(f"\n  --{field.name}" in stdout for field in fields(SERTrainingArguments) if field.init)
    assert "Other options of transformers.TrainingArguments" in stdout


def test_defaults_are_within_their_bounds():
    for kind in (ModelArguments, DataArguments, SERTrainingArguments):
        unchecked = object.__new__(kind)
        for field in fields(kind):
            setattr(unchecked, field.name, default_of(field))
        check_bounds(unchecked)


# ---- options without effect


@pytest.mark.parametrize(
    "flags, name, message",
    [
        (["--dataloader_drop_last"], "dataloader_drop_last", "every clip is tested"),
        (["--label_names", "label"], "label_names", "always called labels"),
        (["--prediction_loss_only"], "prediction_loss_only", "all predictions at once"),
        (["--save_only_model"], "save_only_model", "resume from its checkpoints"),
        (["--push_to_hub", "--hub_strategy", "all_checkpoints"], "hub_strategy", "pushed once"),
        (["--remove_unused_columns"], None, "--remove_unused_columns has no effect"),
        (["--trust_remote_code", "True"], None, "the model's code is that of this project"),
        (["--specaugment_time", "0.2"], "specaugment_time", "without --specaugment_masks"),
        (["--specaugment_frequency", "0.2", "--specaugment_masks", "0"], "specaugment_frequency", "without --spec"),
        (["--time_stretch", "0.1"], "time_stretch", "without --training_window"),
        (["--waveform_chain", "voice"], "waveform_chain", "without --waveform_copies"),
        (["--test_hop", "1"], "test_hop", "without --test_window"),
        (["--hub_model_id", "me/mine"], "hub_model_id", "without --push_to_hub"),
        (["--eval_steps", "10"], "eval_steps", "without --eval_strategy steps"),
        (["--save_steps", "10"], "save_steps", "without --save_strategy steps"),
        (["--logging_steps", "10", "--logging_strategy", "no"], "logging_steps", "without --logging_strategy steps"),
        (["--unfreeze_epoch", "2"], "unfreeze_epoch", "without --freeze_backbones"),
        (["--freeze_backbones", "--layer_decay", "0.8"], "layer_decay", "with --freeze_backbones and without --"),
        (["--freeze_backbones", "--cqt_learning_rate", "1"], "cqt_learning_rate", "with --freeze_backbones"),
        (["--lr_scheduler_type", "constant", "--warmup_steps", "9"], "warmup_steps", "with --lr_scheduler_type const"),
        (["--adam_beta1", "0.8", "--optim", "sgd"], "adam_beta1", "without an optimizer with betas"),
        (["--mel_backbone", "none", "--mel_weight_decay", "0.1"], "mel_weight_decay", "without --mel_backbone"),
        ([*NO_VALIDATION, "--metric_for_best_model", "UA"], None, "metric_for_best_model has no effect"),
        ([*NO_VALIDATION, "--eval_strategy", "epoch"], None, "--eval_strategy has no effect without a validation set"),
        ([*NO_VALIDATION, "--eval_on_start"], "eval_on_start", "without a validation set"),
        ([*NO_VALIDATION, "--save_total_limit", "3"], None, "--save_total_limit has no effect without a validation"),
        (["--protocol", "loso", "--scores_from", "out"], None, "--scores_from has no effect without --protocol every"),
        (["--protocol", "everything", "--test_window=3", "--lr_scheduler_type=linear"], "test_window", "no test"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_ignored_with_one_warning(flags, name, message, caplog):
    _, data_args, args = parse(*flags)
    warnings = [record.getMessage() for record in caplog.records if message in record.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith("--")
    if name is not None:
        default = next(default_of(field) for field in fields(SERTrainingArguments) if field.name == name)
        assert getattr(args, name) == default


@pytest.mark.parametrize(
    "flags",
    [
        ["--specaugment_time", "0.2", "--specaugment_masks", "1"],
        ["--eval_steps", "9", "--save_steps", "9", "--eval_strategy", "steps", "--save_strategy", "steps"],
        ["--logging_steps", "9", "--logging_strategy", "steps"],
        ["--freeze_backbones", "--unfreeze_epoch", "2", "--layer_decay", "0.8", "--mel_learning_rate", "1e-5"],
        ["--freeze_backbones", "--head_learning_rate", "1e-3"],
        ["--lr_scheduler_type", "cosine", "--warmup_steps", "9", "--adam_beta1", "0.8"],
        ["--lr_scheduler_type", "cosine", "--adam_epsilon", "1e-6", "--optim", "rmsprop"],
        ["--eval_strategy=no", "--lr_scheduler_type=linear"],
        ["--model_name_or_path", "somewhere", "--speech_learning_rate", "1e-5"],
        [*NO_VALIDATION, "--early_stopping_patience", "0", "--no_load_best_model_at_end", "--eval_strategy", "no"],
        [*NO_VALIDATION, "--save_strategy", "steps", "--save_steps", "9"],
        ["--protocol", "everything", "--validation_share", "0.2", "--early_stopping_patience", "3"],
        ["--do_train", "--do_eval", "--do_predict", "--remove_unused_columns", "False", "--train_split_name", "train"],
        ["--push_to_hub", "--hub_strategy", "end", "--resume_from_checkpoint", "true"],
    ],
)
def test_an_option_with_an_effect_is_kept_without_a_warning(flags, caplog):
    parsed = {name: value for part in parse(*flags) for name, value in vars(part).items()}
    assert not caplog.text
    for name, value in zip(flags, flags[1:], strict=False):
        if name.startswith("--") and re.fullmatch(r"[\d.e-]+", value) and name != "--warmup_steps":
            assert parsed[name[2:]] == float(value)


@pytest.mark.parametrize(
    "recipe, flags",
    [
        ("save_strategy: steps\nsave_steps: 400", ["--save_strategy", "epoch"]),
        ("specaugment_masks: 2\nspecaugment_time: 0.3", ["--specaugment_masks", "0"]),
        ("waveform_copies: 3\nwaveform_chain: voice", ["--waveform_copies", "0"]),
        ("adam_beta1: 0.8", ["--optim", "sgd"]),
        ("fusion: attention\nfusion_size: 64", ["--fusion", "concat"]),
        ("early_stopping_patience: 3\ncalibrate: true\nlr_scheduler_type: cosine", ["--validation_share", "0"]),
        ("test_window: 3\ntest_hop: 1\nlr_scheduler_type: cosine", ["--protocol", "everything"]),
        ("hidden_size: 64\nmel_weights: nowhere", ["--model_name_or_path", "somewhere"]),
        ("eval_strategy: epoch\nsave_strategy: epoch", ["--eval_strategy", "steps", "--eval_steps", "7"]),
    ],
)
def test_recipe_values_without_effect_beside_an_option_are_ignored_without_a_warning(recipe, flags, tmp_path, caplog):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with_recipe, alone = parse(path, *flags), parse(*flags, *(NO_VALIDATION[2:] if "cosine" in recipe else ()))
    assert not caplog.text and with_recipe[:2] == alone[:2]
    assert with_recipe[2].to_dict() == alone[2].to_dict()


def test_a_recipe_whose_own_options_have_no_effect_gives_a_warning(tmp_path, caplog):
    path = tmp_path / "recipe.yaml"
    path.write_text("save_steps: 400\nunfreeze_epoch: 3")
    assert parse(path)[2].save_steps == 500
    assert "--save_steps has no effect" in caplog.text and "--unfreeze_epoch has no effect" in caplog.text


# ---- options as in transformers' examples


EXAMPLE = """--model_name_or_path facebook/wav2vec2-base --dataset_name superb --dataset_config_name ks
    --trust_remote_code --output_dir wav2vec2-base-ft-keyword-spotting --overwrite_output_dir
    --remove_unused_columns False --do_train --do_eval --learning_rate 3e-5 --max_length_seconds 1
    --attention_mask False --warmup_ratio 0.1 --num_train_epochs 5 --per_device_train_batch_size 32
    --gradient_accumulation_steps 4 --per_device_eval_batch_size 32 --dataloader_num_workers 4
    --logging_strategy steps --logging_steps 10 --eval_strategy epoch --save_strategy epoch
    --load_best_model_at_end True --metric_for_best_model accuracy --save_total_limit 3 --seed 0 --push_to_hub
    --max_train_samples 100 --max_eval_samples 50 --train_split_name train --eval_split_name validation --use_cpu"""


def test_the_command_line_of_the_audio_classification_example_works():
    model_args, data_args, args = parse_arguments(EXAMPLE.split())
    assert (model_args.model_name_or_path, data_args.dataset_config_name) == ("facebook/wav2vec2-base", "ks")
    assert (args.training_window, args.warmup_steps, args.lr_scheduler_type) == (1, 0.1, "linear")
    assert (args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end) == ("WA", True, True)
    assert (args.do_train, args.do_predict, args.remove_unused_columns) == (True, False, False)
    assert (data_args.max_train_samples, data_args.max_eval_samples) == (100, 50)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--optim", "sgd"], "sgd sgd sgd sgd"),
        (["--optim", "adamw_torch_fused", "--mel_optimizer", "radam"], "adamw radam adamw adamw"),
        (["--optim", "nadam", "--head_optimizer", "sgd", "--cqt_optimizer", "adam"], "adam nadam sgd nadam"),
        (["--head_optimizer", "rmsprop"], "adam radam rmsprop adamw"),
    ],
)
def test_optim_is_the_optimizer_of_every_branch_without_its_own(flags, expected):
    args = parse(*flags)[2]
    assert [args.by_branch("optimizer")[branch] for branch in ("cqt", "mel", "head", "speech")] == expected.split()


@pytest.mark.parametrize("flags", [[], ["--optim", "sgd"], ["--optim", "adamw_torch", "--mel_optimizer", "nadam"]])
def test_a_copy_of_the_arguments_has_the_same_optimizers(flags):
    args = parse(*flags)[2]
    copied = dataclasses.replace(args, output_dir="other")
    assert copied.by_branch("optimizer") == args.by_branch("optimizer")
    assert (copied.filter_optimizer, copied.optim) == (args.filter_optimizer, args.optim)


def test_evaluation_and_checkpoints_by_steps_as_in_transformers(caplog):
    args = parse("--eval_strategy", "steps", "--eval_steps", "25")[2]
    assert (args.save_strategy, args.save_steps, args.load_best_model_at_end) == ("steps", 25, True)
    args = parse("--logging_steps", "7", "--activation_checkpointing", "--save_strategy", "epoch")[2]
    assert (args.logging_strategy, args.logging_steps, args.activation_checkpointing) == ("steps", 7, True)
    assert not caplog.text
    args = parse("--save_strategy", "no")[2]
    assert not args.load_best_model_at_end and "The result is the last weights, not the best" in caplog.text


@pytest.mark.parametrize("chosen", [["do_train"], ["do_predict"], ["do_train", "do_eval"], ["do_train", "do_predict"]])
def test_do_train_and_do_predict_are_as_given(chosen):
    args = parse(*(f"--{name}" for name in chosen))[2]
    assert (args.do_train, args.do_predict) == ("do_train" in chosen, "do_predict" in chosen)


# ---- what is refused


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--optim", "adafactor"], "--optim adafactor is unknown: choose one of adam, .*sgd"),
        (["--optim", "sgd", "--optim_args", "momentum=0.9"], "--optim_args does not work here"),
        (["--neftune_noise_alpha", "5"], "for language models"),
        (["--test_window", "1", "--test_hop", "2"], "the hop at most as long as the window"),
        (["--cqt_weights", __file__, "--model_name_or_path", "m"], "has its own weights: leave out --cqt_weights"),
        (["--mel_weights", __file__, "--imagenet_weights", "false"], "starts from random weights: leave out"),
        (["--test_speakers", "1", "--protocol", "loso"], "leave out one of the two"),
        (["--validation_share", "0"], "lr_scheduler_type reduce_lr_on_plateau depends on the validation score"),
        (["--protocol", "everything"], "lr_scheduler_type reduce_lr_on_plateau depends on the validation score"),
        (["--validation_share", "0", "--lr_scheduler_type", "greedy"], "type greedy depends on the validation score"),
        ([*NO_VALIDATION, "--early_stopping_patience", "5"], "early_stopping_patience 5 needs a validation set"),
        ([*NO_VALIDATION, "--load_best_model_at_end", "true"], "load_best_model_at_end True needs a validation set"),
        ([*NO_VALIDATION, "--calibrate"], "calibrate True needs a validation set"),
        (["--metric_for_best_model", "JS"], "JS needs votes: add --soft_labels votes"),
        (["--metric_for_best_model", "f1"], "f1 is not computed: choose one of WA, UA, .*WA is the accuracy"),
        (["--warmup_steps", "5", "--lr_scheduler_type", "reduce_lr_on_plateau"], "has no warm-up"),
    ],
)
def test_options_that_would_silently_change_the_result_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(*flags)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_demo_corpus(folder, n_voices=6, clips_per_emotion=1)
    return folder


def write_list(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    for number, _ in enumerate(rows):
        write_sound(folder / f"{number}.wav", number)
    lines = [f"{number}.wav,{label},{speaker},{split}" for number, (label, speaker, split) in enumerate(rows)]
    (folder / "list.csv").write_text("\n".join(["file,label,speaker,split", *lines]) + "\n")
    return folder / "list.csv"


LACKS_CLASS = {
    "test": [*((label, who, "train") for label in ("up", "down") for who in "ab"), ("side", "c", "test")],
    "validation": [("up", "a", "train"), ("down", "a", "train"), ("side", "b", "validation"), ("up", "c", "test")],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seed", "-1"], "--seed -1 does not work: it must be a number at least 0"),
        (["--data_seed", "4294967296"], "--data_seed 4294967296 does not work"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0.0 does not work: it must be a number above 0"),
        (["--num_train_epochs", "-3"], "--num_train_epochs -3"),
        (["--num_train_epochs", "inf"], "--num_train_epochs inf"),
        (["--max_steps", "0"], "--max_steps 0 trains nothing"),
        (["--learning_rate", "-1"], "--learning_rate -1.0 does not work: it must be a number at least 0"),
        (["--learning_rate", "nan"], "--learning_rate nan does not work"),
        (["--mel_learning_rate", "-0.5"], "--mel_learning_rate -0.5 does not work"),
        (["--weight_decay", "-1"], "--weight_decay -1.0 does not work"),
        (["--head_weight_decay", "nan"], "--head_weight_decay nan does not work"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0 does not work"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0 does not work"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0 does not work"),
        (["--feature_cache_gib", "-1"], "--feature_cache_gib -1.0 does not work"),
        (["--preprocessing_num_workers", "0"], "--preprocessing_num_workers 0 does not work"),
        (
            ["--validation_share", "1"],
            "--validation_share 1.0 does not work: it must be a number at least 0 and below 1",
        ),
        (["--validation_share", "nan"], "--validation_share nan does not work"),
        (["--label_smoothing_factor", "1"], "--label_smoothing_factor 1.0 does not work"),
        (["--adam_beta2", "1"], "--adam_beta2 1 does not work|--adam_beta2 1.0 does not work"),
        (["--fp16"], "--fp16 needs a GPU"),
        (["--report_to", "wandb"], "--report_to wandb needs a package that is not installed: pip install wandb"),
        (["--report_to", "mlflow"], "--report_to mlflow needs a package"),
        (["--report_to", "tensorboard", "trackio"], "--report_to trackio needs a package"),
        (["--report_to", "none", "tensorboard"], "--report_to none tensorboard contradicts itself: give none alone."),
        (["--report_to", "tensorboard", "all"], "--report_to tensorboard all contradicts itself: give all alone."),
        (["--report_to", "clearml"], "--report_to clearml needs a package"),
        (["--report_to", "tensorbord"], "--report_to tensorbord is unknown: choose"),
        (["--deepspeed", "x.json"], "--deepspeed needs a package that is not installed: pip install deepspeed"),
        (["--cqt_weights", "nowhere.safetensors", "--imagenet_weights", "true"], "no file nowhere.safetensors"),
        (["--feature_extractor_kwargs", '{"n_mels": "many"}'], "--feature_extractor_kwargs .*many.* does not work"),
        (["--feature_extractor_kwargs", '{"cqt_hop_length": [1]}'], "--feature_extractor_kwargs .* does not work"),
        (["--mel_backbone_kwargs", '{"depths": "x"}'], "mel_backbone='mvitv2_base' cannot be built"),
        (["--cqt_backbone_kwargs", '{"embed_dim": 3}'], "cqt_backbone='maxvit_base_tf_224' cannot be built"),
        (["--per_device_train_batch_size", "64"], "training clips do not fill one batch of 64"),
        (["--gain_db", "3"], "has no effect on images"),
        (
            ["--resume_from_checkpoint", "nowhere"],
            "--resume_from_checkpoint nowhere is not a checkpoint of this command",
        ),
        (["--do_predict"], "name it with --model_name_or_path"),
        (["--do_eval"], "add --do_predict"),
    ],
)
def test_an_invalid_option_is_refused_before_the_first_clip_is_decoded(flags, message, corpus, tmp_path, monkeypatch):
    refuse_before_decoding(["--data_dir", str(corpus), *flags], message, tmp_path, monkeypatch)
    assert not (tmp_path / "out").exists()


def refuse_before_decoding(flags, message, tmp_path, monkeypatch):
    def decode(*_, **__):
        raise AssertionError("clips are read already")

    monkeypatch.setattr("ser.data.prepare.extract_features", decode)
    start = [str(ROOT / "configs" / "demo.yaml"), "--use_cpu", "--report_to=none", f"--cache_dir={tmp_path / 'c'}"]
    start.append("--per_device_train_batch_size=2")
    with pytest.raises(ValueError, match=message):
        main([*start, "--output_dir", str(tmp_path / "out"), *flags])


@pytest.mark.parametrize("part", LACKS_CLASS)
def test_a_class_that_training_lacks_is_named_before_the_first_clip_is_decoded(part, tmp_path, monkeypatch):
    flags = ["--dataset_name", str(write_list(tmp_path / "clips", LACKS_CLASS[part]))]
    refuse_before_decoding(flags, "has no clip of class 'side'", tmp_path, monkeypatch)


@pytest.mark.parametrize("where", ["file/out", "x" * 300, "file", "/proc/out", "/dev/null/out"])
def test_a_folder_that_cannot_be_written_is_named_before_the_first_clip_is_decoded(
    where, tmp_path, corpus, monkeypatch
):
    (tmp_path / "file").write_text("")
    flags = ["--data_dir", str(corpus), "--output_dir", os.path.join(tmp_path, where)]
    refuse_before_decoding(flags, "--output_dir .* cannot be written: ", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, message",
    [('{"training": {"seed": 7}}', "seed: 7 -> 42"), ('{"model": {"hidden_size": 8}}', "hidden_size: 8 -> 64")],
)
@pytest.mark.parametrize("marker", ["FINISHED", "checkpoint-3/trainer_state.json"])
def test_the_folder_of_a_different_run_is_refused_before_the_first_clip_is_decoded(
    before, message, marker, tmp_path, corpus, monkeypatch
):
    (tmp_path / "out" / marker).parent.mkdir(parents=True)
    (tmp_path / "out" / marker).write_text("{}")
    (tmp_path / "out" / "run.json").write_text(before)
    flags = ["--data_dir", str(corpus)]
    refuse_before_decoding(flags, f"holds a run with other settings: {message}", tmp_path, monkeypatch)
    named = [*flags, "--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint"]
    if marker != "FINISHED":
        message = f"is of a run with other settings: {message}"
        refuse_before_decoding([*named, str((tmp_path / "out" / marker).parent)], message, tmp_path, monkeypatch)


# ---- what follows from options


@pytest.mark.parametrize(
    "flags", [NO_VALIDATION, ["--protocol", "everything", "--lr_scheduler_type", "cosine"]], ids=["share", "all"]
)
def test_without_a_validation_set_nothing_is_evaluated_and_the_last_state_is_kept(flags):
    _, data_args, args = parse(*flags)
    assert data_args.validation_share == 0
    assert args.eval_strategy == "no" and not args.load_best_model_at_end and args.metric_for_best_model is None
    assert args.early_stopping_patience == 0
    assert parse()[2].eval_strategy == "epoch"


@pytest.mark.parametrize(("metric", "mode"), [("UA", "max"), ("JS", "min"), ("eval_KL", "min"), ("loss", "min")])
def test_the_best_model_has_the_metrics_own_direction(metric, mode):
    args = parse("--soft_labels", "votes", "--metric_for_best_model", metric)[2]
    assert args.greater_is_better == (mode == "max") and args.lr_scheduler_kwargs["mode"] == mode


def test_the_tables_name_existing_fields():
    assert {*UNUSED} | {*REFUSED} <= {field.name for field in fields(TrainingArguments)}
    assert {*WITHOUT_VALIDATION} <= {field.name for field in fields(SERTrainingArguments)}


def test_model_options_that_differ_from_the_checkpoint_are_refused(tmp_path):
    save_tiny(tmp_path)
    config = tiny_config()
    start = {"model_name_or_path": str(tmp_path)}
    kept = make_config(
        ModelArguments(**start, hidden_size=config.hidden_size, image_size=[64], imagenet_weights=False)
    )
    assert kept.hidden_size == config.hidden_size
    for name, value in {
        "hidden_size": 48,
        "image_size": [96],
        "cqt_backbone_kwargs": '{"depths": [2, 2, 2, 2]}',
    }.items():
        with pytest.raises(DataError, match=f"defines the whole model, with another {name}: leave out --{name}"):
            make_config(ModelArguments(**start, **{name: value}))


@pytest.mark.parametrize(
    "source, flags, message",
    [
        ("emodb", {"label_column_name": "mood"}, "emodb is a known corpus, .*: leave out --label_column_name"),
        ("demo", {"test_split_name": "final"}, "demo is a known corpus, .*: leave out --test_split_name"),
        ("demo", {"dataset_revision": "main"}, "not a Hub data set: leave out --dataset_revision"),
        ("folder", {"speaker_column_name": "who"}, "class folders: leave out --speaker_column_name"),
        ("folder", {"dataset_config_name": "x", "eval_split_name": "y"}, "--dataset_config_name, --eval_split_name"),
        ("list.csv", {"train_split_name": "mine"}, "list of files, .*: leave out --train_split_name"),
    ],
)
def test_column_and_split_options_are_refused_for_data_they_do_not_apply_to(source, flags, message, tmp_path):
    for index, label in enumerate(["up", "down"]):
        write_sound(tmp_path / "folder" / label / f"{index}.wav", index)
    (tmp_path / "list.csv").write_text("file,label\nfolder/up/0.wav,up\nfolder/down/1.wav,down\n")
    name = str(tmp_path / source) if (tmp_path / source).exists() else source
    args = SERTrainingArguments(output_dir=str(tmp_path / "out"))
    with pytest.raises(DataError, match=message):
        read_corpus(DataArguments(dataset_name=[name], **flags), args)


def test_a_validation_share_is_refused_if_the_data_has_a_validation_part():
    corpus = corpus_of([0, 1] * 3, splits=["train"] * 2 + ["validation"] * 2 + ["test"] * 2)
    assert len(make_split(corpus).validation) == 2
    with pytest.raises(DataError, match="its own validation part: leave out --validation_share"):
        make_split(corpus, validation_share=0.3)


@pytest.mark.parametrize(
    "flags, expected", [([], 224), (["--image_size", "96"], 96), (["--image_size", "64", "96"], [64, 96])]
)
def test_an_image_size_is_one_number_or_two(flags, expected):
    square_only = ["--mel_backbone", "maxvit_tiny_tf_224"] if len(flags) > 2 else []
    assert make_config(parse(*flags, *square_only)[0]).image_size == expected


def test_a_branch_is_left_out_with_none():
    assert make_config(parse("--mel_backbone", "none")[0]).branch_names == ["cqt"]
