"""Flags of training that nothing would heed: each is refused in a sentence."""

import argparse
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, Literal

from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from ser.optimizer import ALGORITHMS
from ser.protocols import EVERYTHING, default_validation_share

if TYPE_CHECKING:
    from ser.arguments import ModelArguments, SERTrainingArguments

UNHEARD = {
    "optim": "every branch has its own: --cqt_optimizer, --mel_optimizer, --head_optimizer",
    **dict.fromkeys(("optim_args", "optim_target_modules"), "the branches' optimizers take none"),
    "activation_checkpointing_kwargs": "timm's checkpointing takes none",
    "gradient_checkpointing_kwargs": "timm's checkpointing takes none",
    "average_tokens_across_devices": "there are no tokens: the loss is the mean over clips",
    **dict.fromkeys(("use_cache", "use_liger_kernel", "liger_kernel_config"), "it is for language models"),
    **dict.fromkeys(("neftune_noise_alpha", "include_num_input_tokens_seen"), "it is for language models"),
    "length_column_name": "the length of a clip is its seconds",
    "label_names": "the labels are always called labels",
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics"), "the scores need all predictions at once"),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches"), "the scores need all predictions at once"),
    "dataloader_drop_last": "training leaves out the last short batch by itself, and no clip is left untested",
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_in_order"), "the order of batches is fixed"),
    **dict.fromkeys(("do_train", "do_predict"), "this command always trains and tests"),
    "resume_from_checkpoint": "the same command goes on by itself, from the newest checkpoint of --output_dir",
    "remove_unused_columns": "it would remove the spectrograms that pictures are drawn from",
    **dict.fromkeys(("hub_strategy", "hub_always_push"), "the finished model is pushed once, with its report"),
    "save_only_model": "it makes checkpoints that no run can go on from",
}
"""Fields of `TrainingArguments` that this engine does not heed, and why."""


WITHOUT_VALIDATION = {
    **dict.fromkeys(("load_best_model_at_end", "do_eval", "eval_on_start", "calibrate"), False),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better", "eval_steps"), None),
    **{"eval_strategy": "no", "eval_delay": 0, "early_stopping_patience": 0, "save_total_limit": 1},
}
"""Fields of `TrainingArguments` that follow the validation part, as they are where there is none."""


def settle_missing_parts(parser: argparse.ArgumentParser, flags: Sequence[str]) -> None:
    """
    Where nobody validates, makes the flags that follow validation say so by themselves.

    Args:
        parser: Of the training command; its defaults are changed.
        flags: The command line, recipes read.

    Raises:
        ValueError: A flag was given that follows a part of the clips which this run does not have.
    """
    given, _ = parser.parse_known_args(flags)
    if given.streaming:
        parser.set_defaults(cache_features=False)
    if given.protocol == EVERYTHING and given.test_window is not None:
        raise ValueError(f"--test_window scores test clips, and --protocol {EVERYTHING} tests nobody: leave it out.")
    if given.protocol != EVERYTHING and given.scores_from:
        raise ValueError(
            "--scores_from quotes what others scored for a model that has no score of its own: leave it out, or train "
            f"by --protocol {EVERYTHING}."
        )
    share = given.validation_share
    share = default_validation_share(given.protocol) if share is None else share
    if share != 0:
        return
    parser.set_defaults(validation_share=share, **WITHOUT_VALIDATION)
    given, _ = parser.parse_known_args(flags)
    remedy = "or keep clips to validate on by a --validation_share above 0"
    schedule = SchedulerType(given.lr_scheduler_type)
    if schedule in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        raise ValueError(
            f"--lr_scheduler_type {schedule.value} follows the validation score, and nobody validates: name another, "
            f"such as cosine, {remedy}."
        )
    for name, value in WITHOUT_VALIDATION.items():
        if getattr(given, name) != value:
            raise ValueError(
                f"--{name} {getattr(given, name)} changes nothing where nobody validates: leave it out (it is {value} "
                f"then), {remedy}."
            )


def refuse_unheard(args: "SERTrainingArguments") -> None:
    """
    Raises:
        ValueError: a field differs from its default, and would change nothing; says why.
    """
    given = given_flags(args)
    for name in given:
        if name in UNHEARD:
            raise ValueError(f"--{name} is not used here: {UNHEARD[name]}. Leave it out.")
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError("--train_sampling_strategy batch_rebalance counts tokens: take group_by_length.")
    needs = _needs(args)
    for name in given:
        wanted = needs.get(name)
        if name.startswith("hub_") and not args.push_to_hub:
            wanted = "--push_to_hub"
        if wanted:
            raise ValueError(f"--{name} changes nothing without {wanted}: leave it out, or add that.")


def refuse_unheard_of_streaming(args: "SERTrainingArguments") -> None:
    """
    Raises:
        ValueError: a flag is about spectrograms that are kept, or about loaders that read clips in any order.
    """
    given = given_flags(args)
    for name in ("waveform_copies", "test_window"):
        if name in given:
            raise ValueError(f"--{name} works on spectrograms that are kept: leave it out, or --streaming.")
    own = [name for name in given if name == "train_sampling_strategy"]
    if own or args.accelerator_config != AcceleratorConfig():
        name = "train_sampling_strategy" if own else "accelerator_config"
        raise ValueError(f"--{name} is not used with --streaming, whose order is its own: leave it out.")


def given_flags(args: "SERTrainingArguments") -> list[str]:
    """Names of the fields that differ from their defaults."""
    return [each.name for each in fields(args) if each.init and getattr(args, each.name) != _default(each)]


def refuse_unheard_of_model(model_args: "ModelArguments", args: "SERTrainingArguments") -> None:
    """
    Raises:
        ValueError: a flag is about a branch or a fusion that the model does not have, or optimizers that take it.
    """
    defaults = {each.name: _default(each) for part in (model_args, args) for each in fields(part) if each.init}
    values = {name: getattr(model_args if hasattr(model_args, name) else args, name) for name in defaults}
    given = {name: value for name, value in values.items() if value != defaults[name] and value != {}}
    for branch in ("cqt", "mel"):
        if str(given.pop(f"{branch}_backbone", "")).lower() == "none":
            for name in given:
                if name.startswith(f"{branch}_"):
                    raise ValueError(
                        f"--{name} changes nothing in a model without this branch: leave it out, or where a recipe "
                        f"has it, give {'{}' if name.endswith('kwargs') else defaults[name]} instead."
                    )
    may_hear = bool(model_args.speech_encoder or model_args.model_name_or_path)
    if not may_hear:
        refuse_flags_of("speech", given)
    if model_args.filter_bank == "fixed" and not model_args.model_name_or_path:
        refuse_flags_of("filter", given)
    used = [name for branch, name in args.by_branch("optimizer").items() if may_hear or branch != "speech"]
    taken = {name for algorithm in used for name in inspect.signature(ALGORITHMS[algorithm]).parameters}
    for name, parameter in (("adam_beta1", "betas"), ("adam_beta2", "betas"), ("adam_epsilon", "eps")):
        if name in given and parameter not in taken:
            raise ValueError(
                f"--{name} changes nothing without an optimizer with {parameter}, such as adam: leave it out, or add "
                "that."
            )
    if "fusion_size" in given and model_args.fusion not in ("attention", "bilinear"):
        raise ValueError("--fusion_size changes nothing without --fusion attention or bilinear: leave it out.")


def refuse_flags_of(part: Literal["speech", "filter"], given: Iterable[str]) -> None:
    """
    For a model without a speech encoder, or without learnable filters.

    Raises:
        ValueError: one of the flags `given` is about it.
    """
    wanted = {"speech": "--speech_encoder", "filter": "--filter_bank learnable"}[part]
    for name in given:
        if name.removeprefix("freeze_").startswith(f"{part}_") or part == "speech" and name == "lora_rank":
            raise ValueError(f"--{name} changes nothing without {wanted}: leave it out, or add that.")


def _needs(args: "SERTrainingArguments") -> dict[str, str]:
    """Field that is not heeded as things stand -> what it would need."""
    missing: dict[str, str] = {}
    if args.eval_strategy != IntervalStrategy.STEPS:
        missing["eval_steps"] = "--eval_strategy steps"
    if args.save_strategy != SaveStrategy.STEPS:
        missing["save_steps"] = "--save_strategy steps"
    if args.logging_strategy != IntervalStrategy.STEPS:
        missing["logging_steps"] = "--logging_strategy steps"
    if args.eval_strategy == IntervalStrategy.NO and args.early_stopping_patience:
        missing["early_stopping_patience"] = "--eval_strategy epoch or steps"
    if args.lr_scheduler_type == SchedulerType.CONSTANT:
        missing["warmup_steps"] = "another --lr_scheduler_type, such as constant_with_warmup"
    if not args.specaugment_masks:
        missing |= dict.fromkeys(("specaugment_time", "specaugment_frequency"), "--specaugment_masks")
    if args.training_window is None:
        missing |= dict.fromkeys(("whole_clip_share", "time_stretch"), "--training_window")
    if args.test_window is None:
        missing["test_hop"] = "--test_window"
    if not args.waveform_copies:
        missing["waveform_chain"] = "--waveform_copies"
    if not args.freeze_backbones:
        missing["unfreeze_epoch"] = "--freeze_backbones"
    elif args.unfreeze_epoch is None:
        settings = [f"{branch}_{kind}" for branch in args.by_branch("optimizer") if branch != "head" for kind in OWN]
        settings += ["layer_decay", "lora_rank"]
        missing |= dict.fromkeys(settings, "backbones that are trained (--unfreeze_epoch)")
    if args.freeze_speech_encoder:
        settings = ["lora_rank", *(f"speech_{kind}" for kind in (*OWN, "frozen_layers"))]
        missing |= dict.fromkeys(settings, "a speech encoder that is trained (no --freeze_speech_encoder)")
    elif args.lora_rank:
        missing["speech_frozen_layers"] = "a speech encoder that is trained itself (no --lora_rank)"
    return missing


OWN = ("learning_rate", "weight_decay", "optimizer")


def _default(each: Field) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()
