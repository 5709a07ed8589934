"""Every flag is heard, or refused in a sentence; and what can be said without torch is said at once."""

import ast
import os
import re
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from run_ser import main
from ser.arguments import ModelArguments, SERTrainingArguments
from ser.data_arguments import DataArguments
from ser.errors import DataError
from ser.flags import as_flags, inherited_flags, own_groups
from ser.models import make_config
from ser.protocols import make_split
from ser.training import parse_arguments, read_corpus
from ser.unheard import UNHEARD, WITHOUT_VALIDATION
from tests.clips import corpus_of, write_sound
from tests.test_models import save
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent
OUTPUT = ["--output_dir", "out"]
NOBODY_VALIDATES = ["--validation_share", "0", "--lr_scheduler_type", "cosine"]


def test_flags_go_over_the_recipe_wherever_it_stands(tmp_path):
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


def test_of_several_recipes_the_later_goes_over_the_earlier(tmp_path):
    for name, text in {"a": "seed: 1\nfold: 2", "b": "seed: 3"}.items():
        (tmp_path / f"{name}.yml").write_text(text)
    line = [str(tmp_path / "a.yml"), str(tmp_path / "b.yml"), *OUTPUT]
    assert as_flags(line) == ["--seed", "1", "--fold", "2", "--seed", "3", *OUTPUT]
    assert parse_arguments(line)[2].seed == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rat: 1", "learning_rat in .*recipe.yaml is no flag; did you mean --learning_rate"),
        ("- a\n- b", "flag: value"),
        ("a: [", "cannot be read"),
        ("seed: 2020-99-99", "cannot be read: month must be in 1..12"),
        ("labels: &a [x]\nmerge_labels: *a", "repeats a value by .a; write it out"),
        ("seed: " + "[" * 3_000, "nests over 10 lists and mappings"),
        ("lr_scheduler_kwargs: {day: 2020-01-01}", "lr_scheduler_kwargs cannot be written as JSON"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_named(tmp_path, capsys, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{text}\n")
    with pytest.raises(SystemExit) as ending:
        main([str(recipe), "--output_dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert ending.value.code == 2 and len(said.splitlines()) <= 5
    assert re.search(message, said)


def test_defaults_are_the_references(tmp_path):
    model_args, data_args, args = parse_arguments(["--output_dir", str(tmp_path)])
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.seed) == (16, 50, 42)
    assert (args.max_grad_norm, args.eval_strategy, args.lr_scheduler_type) == (1.0, "epoch", "reduce_lr_on_plateau")
    assert args.lr_scheduler_kwargs == {"mode": "max", "factor": 0.1, "patience": 2, "min_lr": 1e-6}
    assert (args.early_stopping_patience, data_args.dataset_name, model_args.imagenet_weights) == (5, ["demo"], True)


def at_once(*flags):
    """Runs the command in a Python that has no torch to import."""
    code = "import sys; sys.modules['torch'] = None; "
    code += "import runpy; runpy.run_path('run_ser.py', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)


def test_help_and_slips_of_the_pen_are_answered_without_torch_in_two_seconds():
    start = time.monotonic()
    helped, slip = (
        at_once("configs/demo.yaml", "--help"),
        at_once("configs/demo.yaml", "--learning-rat=3", "--fold", "2"),
    )
    assert time.monotonic() - start < 2 * 2 * max(1.0, os.getloadavg()[0])  # on a machine with other work
    assert helped.returncode == 0 and slip.returncode == 2
    assert slip.stderr == (
        "error: --learning-rat is no flag; did you mean --learning_rate? --help lists the flags, --help_all all of "
        "them.\n"
    )
    places = [helped.stdout.index(f"\n{title}") for title in ("Data", "Protocol", "Model", "Training by branch",
              "Augmentation", "Checkpoints and report")]  # fmt: skip
    assert places == sorted(places)
    assert "--adam_beta1" not in helped.stdout and len(helped.stdout.splitlines()) < 280


def test_help_all_has_the_rest():
    said = at_once("--help_all").stdout
    assert all(f"--{field.name}" in said for field in fields(TrainingArguments) if field.init)


def test_what_is_read_from_the_text_is_what_the_dataclasses_have():
    read = {flag.name: flag for flags in own_groups().values() for flag in flags}
    inherited = {flag.name for flag in inherited_flags()}
    have = {
        field.name: field for group in (ModelArguments, DataArguments, SERTrainingArguments) for field in fields(group)
    }
    assert {*read} | inherited == {name for name, field in have.items() if field.init}
    assert not {*read} & inherited
    for name, flag in read.items():
        assert flag.help and flag.help == have[name].metadata["help"]
        default = have[name].default
        assert ast.literal_eval(flag.default) == (have[name].default_factory() if default is MISSING else default)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--optim", "sgd"], "--optim is not used here.*--cqt_optimizer"),
        (["--resume_from_checkpoint", "x"], "goes on by itself"),
        (["--dataloader_drop_last"], "no clip is left untested"),
        (["--do_train"], "always trains"),
        (["--save_only_model"], "no run can go on from"),
        (["--specaugment_time", "0.2"], "changes nothing without --specaugment_masks"),
        (["--specaugment_frequency", "0.2", "--specaugment_masks", "0"], "without --specaugment_masks"),
        (["--time_stretch", "0.1"], "without --training_window"),
        (["--whole_clip_share", "0.1"], "without --training_window"),
        (["--waveform_chain", "voice"], "without --waveform_copies"),
        (["--test_hop", "1"], "without --test_window"),
        (["--test_window", "1", "--test_hop", "2"], "the hop no longer than the window"),
        (["--test_window", "0"], "seconds above 0"),
        (["--remove_unused_columns"], "would remove the spectrograms"),
        (["--hub_model_id", "me/mine"], "without --push_to_hub"),
        (["--eval_steps", "10"], "without --eval_strategy steps"),
        (["--save_steps", "10"], "without --save_strategy steps"),
        (["--logging_steps", "10"], "without --logging_strategy steps"),
        (["--unfreeze_epoch", "2"], "without --freeze_backbones"),
        (["--freeze_backbones", "--layer_decay", "0.8"], "--layer_decay changes nothing without backbones"),
        (["--freeze_backbones", "--mel_optimizer", "sgd"], "--mel_optimizer changes nothing without backbones"),
        (["--freeze_backbones", "--cqt_learning_rate", "1"], "--cqt_learning_rate changes nothing without backbones"),
        (["--lr_scheduler_type", "constant", "--warmup_steps", "9"], "--warmup_steps changes nothing without another"),
        (["--adam_beta1", "0.8", *(f"--{branch}_optimizer=sgd" for branch in ("cqt", "mel", "head"))], "with betas"),
        (["--cqt_weights", "w", "--model_name_or_path", "m"], "brings its own weights: leave out --cqt_weights"),
        (["--mel_weights", "w", "--imagenet_weights", "false"], "starts at random: leave it out"),
        (["--test_speakers", "1", "--protocol", "loso"], "leave out one of the two"),
        (["--validation_share", "0"], "lr_scheduler_type reduce_lr_on_plateau follows the validation score"),
        (["--protocol", "everything"], "lr_scheduler_type reduce_lr_on_plateau follows the validation score"),
        (["--validation_share", "0", "--lr_scheduler_type", "greedy"], "type greedy follows the validation score"),
        ([*NOBODY_VALIDATES, "--early_stopping_patience", "5"], "early_stopping_patience 5 changes nothing where nob"),
        ([*NOBODY_VALIDATES, "--load_best_model_at_end", "true"], "load_best_model_at_end True changes nothing"),
        ([*NOBODY_VALIDATES, "--metric_for_best_model", "UA"], "metric_for_best_model UA changes nothing"),
        ([*NOBODY_VALIDATES, "--greater_is_better", "true"], "greater_is_better True changes nothing"),
        ([*NOBODY_VALIDATES, "--eval_strategy", "epoch"], "eval_strategy epoch changes nothing"),
        ([*NOBODY_VALIDATES, "--eval_steps", "5"], "eval_steps 5.* changes nothing where nobody validates"),
        ([*NOBODY_VALIDATES, "--eval_on_start"], "eval_on_start True changes nothing"),
        ([*NOBODY_VALIDATES, "--calibrate"], "calibrate True changes nothing where nobody validates"),
        ([*NOBODY_VALIDATES, "--save_total_limit", "3"], "save_total_limit 3 changes nothing"),
        (["--metric_for_best_model", "JS"], "JS is a score of votes: add --soft_labels votes"),
        (["--scores_from", "out"], "--scores_from quotes .* leave it out, or train by --protocol everything"),
        (["--protocol", "loso", "--scores_from", "out"], "--scores_from quotes what others scored"),
        (["--protocol", "everything", "--test_window", "3"], "--test_window scores test clips, and .* tests nobody"),
    ],
)  # fmt: skip
def test_a_flag_that_nothing_would_heed_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*OUTPUT, *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ["--specaugment_time", "0.2", "--specaugment_masks", "1"],
        ["--eval_steps", "9", "--save_steps", "9", "--eval_strategy", "steps", "--save_strategy", "steps"],
        ["--logging_steps", "9", "--logging_strategy", "steps"],
        ["--freeze_backbones", "--unfreeze_epoch", "2", "--layer_decay", "0.8", "--mel_learning_rate", "1e-5"],
        ["--freeze_backbones", "--head_learning_rate", "1e-3"],
        ["--lr_scheduler_type", "cosine", "--warmup_steps", "9", "--adam_beta1", "0.8"],
        [
            "--early_stopping_patience=0",
            "--eval_strategy=no",
            "--lr_scheduler_type=linear",
            "--no_load_best_model_at_end",
        ],
        ["--cqt_weights", "w"],
        [*NOBODY_VALIDATES, "--early_stopping_patience", "0", "--no_load_best_model_at_end", "--eval_strategy", "no"],
        [*NOBODY_VALIDATES, "--save_strategy", "steps", "--save_steps", "9"],
        ["--protocol", "everything", "--validation_share", "0.2", "--early_stopping_patience", "3"],
    ],
)
def test_a_flag_that_is_heeded_is_not(flags):
    parse_arguments([*OUTPUT, *flags])


@pytest.mark.parametrize(
    "flags", [NOBODY_VALIDATES, ["--protocol", "everything", "--lr_scheduler_type", "cosine"]], ids=["share", "all"]
)
def test_where_nobody_validates_nothing_is_evaluated_and_the_last_state_is_kept(flags):
    _, data_args, args = parse_arguments([*OUTPUT, *flags])
    assert data_args.validation_share == 0
    assert args.eval_strategy == "no" and not args.load_best_model_at_end and args.metric_for_best_model is None
    assert args.early_stopping_patience == 0
    assert parse_arguments(OUTPUT)[2].eval_strategy == "epoch"


@pytest.mark.parametrize(("metric", "mode"), [("UA", "max"), ("JS", "min"), ("eval_KL", "min"), ("loss", "min")])
def test_the_best_model_has_the_metrics_own_direction(metric, mode):
    args = parse_arguments([*OUTPUT, "--soft_labels", "votes", "--metric_for_best_model", metric])[2]
    assert args.greater_is_better == (mode == "max") and args.lr_scheduler_kwargs["mode"] == mode


def test_what_is_never_heard_are_fields_that_there_are():
    assert {*UNHEARD} <= {field.name for field in fields(TrainingArguments)}
    assert {*WITHOUT_VALIDATION} <= {field.name for field in fields(SERTrainingArguments)}


def test_model_flags_beside_a_checkpoint_are_refused_unless_they_say_the_same(tmp_path):
    save(tmp_path)
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
        with pytest.raises(DataError, match=f"brings the whole model, and with another {name}: leave out --{name}"):
            make_config(ModelArguments(**start, **{name: value}))


@pytest.mark.parametrize(
    "source, flags, message",
    [
        ("emodb", {"label_column_name": "mood"}, "emodb is known, .*: leave out --label_column_name"),
        ("demo", {"test_split_name": "final"}, "demo is known, .*: leave out --test_split_name"),
        ("demo", {"dataset_revision": "main"}, "no Hub data set: leave out --dataset_revision"),
        ("folder", {"speaker_column_name": "who"}, "class folders: leave out --speaker_column_name"),
        ("folder", {"dataset_config_name": "x", "eval_split_name": "y"}, "--dataset_config_name, --eval_split_name"),
        ("list.csv", {"train_split_name": "mine"}, "list of files, .*: leave out --train_split_name"),
    ],
)
def test_column_and_split_flags_are_refused_where_the_data_has_no_use_for_them(source, flags, message, tmp_path):
    for index, label in enumerate(["up", "down"]):
        write_sound(tmp_path / "folder" / label / f"{index}.wav", index)
    (tmp_path / "list.csv").write_text("file,label\nfolder/up/0.wav,up\nfolder/down/1.wav,down\n")
    name = str(tmp_path / source) if (tmp_path / source).exists() else source
    args = SERTrainingArguments(output_dir=str(tmp_path / "out"))
    with pytest.raises(DataError, match=message):
        read_corpus(DataArguments(dataset_name=[name], **flags), args)


def test_a_share_for_validation_is_refused_where_the_data_has_such_a_part():
    corpus = corpus_of([0, 1] * 3, splits=["train"] * 2 + ["validation"] * 2 + ["test"] * 2)
    assert len(make_split(corpus).validation) == 2
    with pytest.raises(DataError, match="validation part of its own: leave out --validation_share"):
        make_split(corpus, validation_share=0.3)


@pytest.mark.parametrize(
    "flags, expected", [([], 224), (["--image_size", "96"], 96), (["--image_size", "64", "96"], [64, 96])]
)
def test_an_image_size_is_one_number_or_two(flags, expected):
    square_only = ["--mel_backbone", "maxvit_tiny_tf_224"] if len(flags) > 2 else []
    assert make_config(parse_arguments([*OUTPUT, *flags, *square_only])[0]).image_size == expected


def test_a_model_of_one_branch_is_asked_for_by_name():
    assert make_config(parse_arguments([*OUTPUT, "--mel_backbone", "none"])[0]).branch_names == ["cqt"]
