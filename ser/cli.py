"""Command line of training: recipes, options that override them, help, and checks before any clip is read.

Help, recipes and misspelt options are handled without torch, whose import takes seconds. The bounds of an option, and
what it needs to have an effect, are in the metadata of its field (see `ser/arguments.py`).
"""

import argparse
import difflib
import importlib.util
import inspect
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import yaml

from ser.arguments import INHERITED_NEEDS, DataArguments, ModelArguments, TrainingOptions, default_of

if TYPE_CHECKING:
    from configuration_maxmvit import MaxMViTConfig
    from ser.training.arguments import SERTrainingArguments

RECIPE_SUFFIXES = (".yaml", ".yml")
MAX_DEPTH = 10  # of lists and mappings in a recipe
SHOW_ALL = "--help_all"
LIST_CORPORA = "--list_corpora"
ARGPARSE_METADATA = {"help", "aliases"}
WITHOUT_VALIDATION: dict[str, Any] = {
    **dict.fromkeys(("load_best_model_at_end", "do_eval", "eval_on_start", "calibrate"), False),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better", "eval_steps"), None),
    **{"eval_strategy": "no", "eval_delay": 0, "early_stopping_patience": 0, "save_total_limit": 1},
}
"""Options that have no effect without a validation set, and the values that they are then set to."""
MUST_VALIDATE = {"load_best_model_at_end", "calibrate", "early_stopping_patience"}  # refused, not only ignored
BRANCH_OPTIMIZERS = ("optim", "cqt_optimizer", "mel_optimizer", "head_optimizer", "speech_optimizer")
DECIDING = {
    **dict.fromkeys(("an optimizer with betas", "an optimizer with eps"), BRANCH_OPTIMIZERS),
    "several corpora": ("dataset_name",),
}
"""Needs that are not options themselves, and the options on which they depend."""
EXAMPLE_OPTIONS = {
    "trust_remote_code": "the model's code is that of this project",
    "ignore_mismatched_sizes": "classes that the checkpoint lacks always start with new weights in the last layer",
    "freeze_feature_encoder": "the convolutions of a speech encoder are never trained",
    "attention_mask": "a speech encoder always receives the mask that it was trained with",
}
"""Options of transformers' run_audio_classification.py without effect here, and why."""
UNSUPPORTED = {
    "model_revision": "fetch that revision with `hf download NAME --revision REVISION`, and name its folder with "
    "--model_name_or_path",
    "config_name": "--model_name_or_path includes the configuration, --cqt_backbone and others describe a new model",
    "feature_extractor_name": "--model_name_or_path includes the extractor, --feature_extractor_kwargs changes it",
    "train_file": "name a CSV of file,label[,speaker][,split] with --dataset_name",
    "eval_file": "name a CSV of file,label[,speaker][,split] with --dataset_name",
    "token": "log in with `hf auth login`, or set HF_TOKEN",
}
"""Options of that script that are not supported here, and what to do instead."""


def refuse(message: str) -> NoReturn:
    """Prints an error and ends the command with code 2, like `argparse`."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# ---- The parser ----


def _module_of_transformers(name: str) -> ModuleType:
    """Imports a self-contained module of transformers without the package itself, whose import takes seconds."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        raise ImportError("transformers is not installed: pip install -r requirements.txt")
    spec = importlib.util.spec_from_file_location(
        f"_transformers_{name}", Path(package.origin).with_name(f"{name}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_hf_argparser: Any = _module_of_transformers("hf_argparser")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size().columns, 110))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        values = " ..." if action.nargs == "+" else ""
        values = f" {{{', '.join(map(str, action.choices))}}}" if action.choices else values
        return (action.option_strings or [action.dest])[0] + values

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default in (None, False, "", argparse.SUPPRESS) or not action.option_strings:
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        off = f"; --no_{action.dest} turns it off" if default is True else ""
        return f"{action.help} (default: {shown.replace('%', '%%')}{off})"


class Parser(_hf_argparser.HfArgumentParser):
    """
    `transformers.HfArgumentParser` with recipes, a group in help for each class that defines fields, and suggestions
    for misspelt options.

    Args:
        dataclass_types (iterable of `type`): Dataclasses. If several have a field, the first one defines it.
        hidden (iterable of `str`): Further options with at most one value, which help does not list.
        kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Iterable[type], hidden: Iterable[str] = (), **kwargs: Any):
        self._reading = ""
        settings: dict[str, Any] = {"add_help": False, "allow_abbrev": False, "formatter_class": _HelpFormatter}
        super().__init__(dataclass_types, **{**settings, **kwargs})
        for name in hidden:
            self.add_argument(f"--{name}", nargs="?", help=argparse.SUPPRESS)
        for action in self._actions:
            if isinstance(action, argparse._StoreFalseAction):
                action.help = argparse.SUPPRESS
            elif _is_switch(action) and action.nargs is None:  # `bool | None`, whose value may be omitted, too
                action.nargs, action.const = "?", True

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints, groups = get_type_hints(dtype), {group.title: group for group in self._action_groups}
        for each in fields(dtype):
            if not each.init or f"--{each.name}" in self._option_string_actions:
                continue
            owner = next(kind for kind in dtype.__mro__ if each.name in inspect.get_annotations(kind))
            title = (owner.__doc__ or "").strip().partition("\n")[0]
            if owner.__module__.startswith("transformers."):
                title = f"Other options of transformers.{owner.__name__}"
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            each = copy(each)
            each.type = hints[each.name]
            each.metadata = {name: value for name, value in each.metadata.items() if name in ARGPARSE_METADATA}  # type: ignore
            self._parse_dataclass_field(groups[title], each)

    def read(self, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Reads the options of a command line.

        Args:
            arguments: The command line. An argument that ends in .yaml or .yml is a recipe, wherever it is, unless it
                is the value of an option.

        Returns:
            The values in recipes, of which later ones override earlier ones, and the values of options, both by the
            names of their fields.

        Raises:
            SystemExit: An option is unknown, its value cannot be read, or a recipe cannot be read.
        """
        self.check_names(arguments)
        recipe: dict[str, Any] = {}
        places = [place for place in range(len(arguments)) if self._is_recipe(arguments, place)]
        for place in places:
            self._reading = f" in {arguments[place]}"
            settings = [[f"--{name}", *values] for name, values in read_recipe(arguments[place]).items()]
            recipe |= self._given([text for texts in settings for text in texts])
        self._reading = ""
        return recipe, self._given([argument for place, argument in enumerate(arguments) if place not in places])

    def _is_recipe(self, arguments: Sequence[str], place: int) -> bool:
        argument, before = arguments[place], arguments[place - 1] if place else ""
        option = self._option_string_actions.get(before)
        takes_it = before.startswith("--") and "=" not in before and not (option and _is_switch(option))
        return argument.endswith(RECIPE_SUFFIXES) and not argument.startswith("--") and not takes_it

    def _given(self, flags: list[str]) -> dict[str, Any]:
        unset = object()
        namespace = argparse.Namespace(**{action.dest: unset for action in self._actions})
        namespace, rest = self.parse_known_args(flags, namespace)
        if rest:
            self.error(f"{rest[0]!r} does not belong to any option")
        return {name: value for name, value in vars(namespace).items() if value is not unset}

    def check_names(self, arguments: Sequence[str], others: Iterable[str] = ()) -> None:
        """Ends the command if an argument or a line of a recipe names neither an option nor one of the `others`, and
        suggests the nearest one."""
        known = {option[2:] for option in self._option_string_actions if "-" not in option[2:]} | {*others}
        for place, argument in enumerate(arguments):
            if self._is_recipe(arguments, place):
                for name in read_recipe(argument):
                    _check_name(name, known, f"{name} in {argument}")
            elif argument.startswith("--"):
                written = argument.partition("=")[0]
                _check_name(written[2:].replace("-", "_"), known, written)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # without the second spelling, with hyphens
        refuse(f"{message[:500]}{self._reading}. --help lists the options.")


def _check_name(name: str, known: set[str], written: str) -> None:
    if name in known:
        return
    if name in UNSUPPORTED:
        refuse(f"{written} is not supported: {UNSUPPORTED[name]}.")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else "."
    refuse(f"unknown option {written}{hint} --help lists the options, {SHOW_ALL} all of them.")


def _is_switch(action: argparse.Action) -> bool:
    return action.type is _hf_argparser.string_to_bool or action.nargs == 0


def command_parser(with_inherited: bool = True) -> Parser:
    """
    Returns the parser of the training command.

    Args:
        with_inherited (`bool`, defaults to True): Whether to include the options of `transformers.TrainingArguments`
            that this project does not change, whose import takes seconds.
    """
    kinds: list[type] = [DataArguments, ModelArguments, TrainingOptions]
    if with_inherited:
        from ser.training.arguments import SERTrainingArguments

        kinds.append(SERTrainingArguments)
    return Parser(kinds, EXAMPLE_OPTIONS, usage="run_ser.py [RECIPE.yaml] [--OPTION VALUE ...]")


def handle_help(arguments: Sequence[str], description: str) -> None:
    """
    Handles `--help`, `--help_all` and `--list_corpora`, and refuses misspelt options and unreadable recipes.

    Args:
        arguments: The command line.
        description: First paragraph of the help.

    Raises:
        SystemExit: 0 after help or the table of corpora, 2 after an error.
    """
    if LIST_CORPORA in arguments:
        from ser.data.corpora.registry import list_corpora  # an import that takes a second

        print(list_corpora())
        raise SystemExit(0)
    parser = command_parser(with_inherited=SHOW_ALL in arguments)
    if {"-h", "--help", SHOW_ALL} & {*arguments}:
        parser.description = description.strip()
        parser.epilog = f"{SHOW_ALL} also lists the other options of transformers.TrainingArguments.\n"
        parser.epilog += f"{LIST_CORPORA} lists the known corpora."
        parser.print_help()
        raise SystemExit(0)
    parser.check_names(arguments, _inherited_names())


def _inherited_names() -> set[str]:
    """Returns the names of the fields of `transformers.TrainingArguments`, read from its source code."""
    package = importlib.util.find_spec("transformers")
    assert package is not None and package.origin is not None
    text = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
    body = text.partition("\nclass TrainingArguments")[2].partition("\n    def ")[0]
    names = {*re.findall(r"^    (\w+): ", body, re.MULTILINE)}
    return names | {f"no_{name}" for name in names}


# ---- Recipes ----


def read_recipe(path: str) -> dict[str, list[str]]:
    """
    Reads the options in a YAML file, each with its values as on a command line.

    Raises:
        SystemExit: The file cannot be read, is not a list of options, or has an option twice.
    """
    try:
        settings = _parse_yaml(find_recipe(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or an invalid number or date
        refuse(f"recipe {path} cannot be read: {error}")
    if not isinstance(settings, dict):
        refuse(f"recipe {path} is not a list of `option: value` lines.")
    found = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            try:
                value = json.dumps(value)
            except (TypeError, ValueError) as error:
                refuse(f"recipe {path}: {name} cannot be written as JSON: {error}.")
        if value is not None:
            found[str(name)] = [str(each) for each in (value if isinstance(value, list) else [value])]
    return found


def _parse_yaml(text: str) -> object:
    """Parses YAML; raises if a key occurs twice, or aliases or nesting could take minutes or gigabytes."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it nests more than {MAX_DEPTH} lists and mappings")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it repeats a value with *{event.anchor}; write it out")
    nodes = [yaml.compose(text, yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, line) != line:
                    raise yaml.YAMLError(f"it has {key.value} twice, in lines {first[key.value]} and {line}")
                nodes.append(value)
    return yaml.safe_load(text)


def find_recipe(name: str) -> Path:
    """Returns the file of that name or, if it does not exist and is named like `configs/demo.yaml`, the recipe that is
    installed with this code."""
    path, root = Path(name), Path(__file__).parents[1]
    if path.parent != Path("configs") or path.exists():
        return path
    return next((p for p in (root / path, root / "ser" / "recipes" / path.name) if p.is_file()), path)


# ---- Combinations of options ----


@dataclass
class Given:
    """
    The options of a run, and warnings about them.

    Args:
        recipe: Options in recipes, by the names of their fields.
        line: Options on the command line.
        values: All options, with the changes made below.
        overridden: Options on the command line, and options of recipes that have no effect because of them.
        notes: Warnings.
    """

    recipe: dict[str, Any]
    line: dict[str, Any]
    values: dict[str, Any] = field(init=False)
    overridden: set[str] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values, self.overridden = self.recipe | self.line, {*self.line}

    def is_moot(self, name: str, because: Iterable[str]) -> bool:
        """Returns whether an option of a recipe has no effect `because` of options on the command line."""
        return name not in self.line and bool({*because} & self.overridden)

    def drop(self, name: str, note: str, because: Iterable[str]) -> None:
        """Leaves out an option without effect, with a warning unless it [`is_moot`]."""
        if self.is_moot(name, because):
            self.overridden.add(name)
        else:
            self.notes.append(f"--{name} {note}.")
        self.values.pop(name, None)


def parse_arguments(arguments: Sequence[str]) -> tuple["ModelArguments", "DataArguments", "SERTrainingArguments"]:
    """
    Parses the recipes and options of a command line.

    Returns:
        Model, data and training arguments. Options without effect are left out, with a warning.

    Raises:
        SystemExit: An option is unknown or cannot be read.
        ValueError: A value is out of range, or options contradict each other.
    """
    from transformers.utils import logging

    from ser.training.arguments import SERTrainingArguments

    kinds = (ModelArguments, DataArguments, SERTrainingArguments)
    given = Given(*command_parser().read(arguments))
    defaults = {each.name: default_of(each) for kind in kinds for each in fields(kind) if each.init}
    _resolve_example_options(given)
    _resolve_parts_to_do(given)
    _resolve_model(given)
    _resolve_schedule(given)
    _resolve_validation(given)
    _resolve_target(given)
    while (unused := next(_unused(given, defaults), None)) is not None:
        given.drop(*unused)
    names = [{each.name for each in fields(kind) if each.init} for kind in kinds]
    model_args, data_args, args = (
        kind(**{name: value for name, value in given.values.items() if name in own})
        for kind, own in zip(kinds, names, strict=True)
    )
    _check_metric(args, data_args)
    if data_args.streaming:
        _check_streaming(args)
    if not data_args.cache_features:
        args.dataloader_num_workers = args.dataloader_num_workers or data_args.preprocessing_num_workers
    if args.should_log:
        for note in given.notes:
            logging.get_logger(__name__).warning(note)
    return model_args, data_args, args


def _resolve_example_options(given: Given) -> None:
    for name, reason in EXAMPLE_OPTIONS.items():
        if name in given.values:
            given.drop(name, f"has no effect: {reason}", ())
    if given.values.get("remove_unused_columns"):
        given.drop("remove_unused_columns", "has no effect: images are computed from columns that forward lacks", ())


def _resolve_parts_to_do(given: Given) -> None:
    """Applies `--do_train`, `--do_eval` and `--do_predict` as in transformers' examples; none of them means all."""
    chosen = [name for name in ("do_train", "do_eval", "do_predict") if given.values.get(name)]
    for name in ("do_train", "do_predict"):
        given.values[name] = name in chosen or not chosen


def _resolve_model(given: Given) -> None:
    """Drops a recipe's options about the model if the command line names a checkpoint, which has its own."""
    if given.line.get("model_name_or_path"):
        for each in fields(ModelArguments):
            if each.name != "feature_extractor_kwargs" and each.name not in given.line:
                given.values.pop(each.name, None)


def _validation_share(chosen: Mapping[str, Any]) -> float:
    from ser.data.protocols import default_validation_share

    share = chosen.get("validation_share")
    return default_validation_share(chosen.get("protocol")) if share is None else share


def _resolve_schedule(given: Given) -> None:
    """Sets defaults that depend on other options, so that these work as in transformers."""
    chosen = dict(given.values)
    if chosen.get("warmup_steps") and "lr_scheduler_type" not in chosen:
        given.values["lr_scheduler_type"] = "linear"
        given.notes.append("--lr_scheduler_type is linear, since the default, reduce_lr_on_plateau, has no warm-up.")
    if "logging_steps" in chosen and "logging_strategy" not in chosen:
        given.values["logging_strategy"] = "steps"
    evaluates = chosen.get("eval_strategy", "epoch")
    follows = "save_strategy" not in chosen or "eval_strategy" in given.line and "save_strategy" not in given.line
    if "eval_strategy" in chosen and follows and evaluates != "no":
        given.values["save_strategy"] = evaluates
        if evaluates == "steps" and "save_steps" not in given.line:
            given.values["save_steps"] = chosen.get("eval_steps") or chosen.get("logging_steps") or 500
    if evaluates == "no":
        for name in ("load_best_model_at_end", "early_stopping_patience"):
            if name not in chosen:
                given.values[name] = WITHOUT_VALIDATION[name]
    elif _validation_share(chosen) and "load_best_model_at_end" not in chosen:
        saves = given.values.get("save_strategy", "epoch")
        if saves not in (evaluates, "best"):
            given.values["load_best_model_at_end"] = False
            given.notes.append(
                f"The result is the last weights, not the best: --save_strategy {saves} keeps no checkpoint of those."
            )


def _resolve_target(given: Given) -> None:
    """Sets the metric for dimensions, unless there is no validation set or the command line names one."""
    if given.values.get("target", "emotion") == "emotion" or "metric_for_best_model" in given.line:
        return
    if given.values.get("metric_for_best_model", "UA") in ("UA", "WA", "accuracy"):
        given.values["metric_for_best_model"] = "CCC"


def _resolve_validation(given: Given) -> None:
    """Without a validation set, resets the options that depend on it."""
    from ser.data.protocols import EVERYTHING

    chosen = dict(given.values)
    if chosen.get("protocol") == EVERYTHING and chosen.get("test_window") is not None:
        given.drop("test_window", f"has no effect: --protocol {EVERYTHING} has no test set", ("protocol",))
    if _validation_share(chosen) != 0:
        return
    given.values["validation_share"] = 0.0
    remedy = "or set --validation_share above 0"
    if (schedule := chosen.get("lr_scheduler_type", "reduce_lr_on_plateau")) in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError(
            f"--lr_scheduler_type {schedule} depends on the validation score, and there is no validation set: choose "
            f"another, such as cosine, {remedy}."
        )
    for name, value in WITHOUT_VALIDATION.items():
        if name in chosen and chosen[name] != value:
            because = ("validation_share", "protocol")
            if name in MUST_VALIDATE and not given.is_moot(name, because):
                raise ValueError(f"--{name} {chosen[name]} needs a validation set: leave it out, {remedy}.")
            given.drop(name, "has no effect without a validation set", because)
        given.values[name] = value


def _unused(given: Given, defaults: Mapping[str, Any]) -> Iterator[tuple[str, str, set[str]]]:
    """Yields options without effect: the name, a message, and the options on which that depends."""
    values = {**defaults, **given.values}
    facts = values | _facts(values)
    own = {each.name: each for kind in (ModelArguments, TrainingOptions, DataArguments) for each in fields(kind)}
    # The configuration of a checkpoint is not known yet; see `check_model`.
    unknown = {"speech_encoder", "filter_bank", "fusion"} if values["model_name_or_path"] else set()
    for name, value in given.values.items():
        if value in (defaults.get(name), None, False, 0, "{}"):
            continue
        needs = [*(own[name].metadata.get("needs", ()) if name in own else ())]
        needs += [need for start, wanted in INHERITED_NEEDS.items() if name.startswith(start) for need in wanted]
        for need in needs:
            terms = [_Term.read(text) for text in need.split(" or ")]
            subjects = {each for term in terms for each in DECIDING.get(term.name, (term.name,))}
            if name not in subjects and not subjects & unknown and not any(term.holds(facts) for term in terms):
                yield name, _without(terms, defaults), subjects


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    from ser.training.arguments import algorithms_of

    with_speech = values["speech_encoder"] or values["model_name_or_path"]
    taken = {
        parameter
        for branch, algorithm in algorithms_of(values).items()
        if branch != "speech" or with_speech
        for parameter in inspect.signature(algorithm).parameters
    }
    betas = {f"an optimizer with {name}": name in taken for name in ("betas", "eps")}
    keeps = values["cache_features"] and not values["streaming"]
    return betas | {"several corpora": len(values["dataset_name"]) > 1, "cache_features": keeps}


@dataclass(frozen=True)
class _Term:
    """One condition of a need: `name` or `name=value`, negated by a leading `no `."""

    name: str
    value: str | None
    negated: bool

    @classmethod
    def read(cls, text: str) -> "_Term":
        negated = text.startswith("no ")
        name, _, value = text.removeprefix("no ").partition("=")
        return cls(name, value or None, negated)

    def holds(self, facts: Mapping[str, Any]) -> bool:
        given = facts[self.name]
        found = given not in (None, False, 0, "", "none", "None") and given != []
        if self.value is not None:
            found = str(getattr(given, "value", given)) == self.value
        return found != self.negated


def _without(terms: Sequence[_Term], options: Iterable[str]) -> str:
    """Describes the unmet need of an option."""
    shown: dict[bool, list[str]] = {False: [], True: []}
    for term in terms:
        name = f"--{term.name}" if term.name in options else term.name
        shown[term.negated].append(f"{name} {term.value}" if term.value else name)
    parts = [f"with {' and '.join(shown[True])}"] if shown[True] else []
    parts += [f"without {' or '.join(shown[False])}"] if shown[False] else []
    return f"has no effect {' and '.join(parts)}"


def _check_metric(args: "SERTrainingArguments", data_args: "DataArguments") -> None:
    from ser.evaluation.dimensions import DIMENSION_SCORES
    from ser.evaluation.metrics import SCORES
    from ser.evaluation.soft_labels import DISTRIBUTION_SCORES

    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if data_args.target != "emotion":
        known = (*DIMENSION_SCORES, "loss", *(SCORES if data_args.target == "both" else ()))
        if metric and metric not in known:
            raise ValueError(
                f"--metric_for_best_model {metric} is not computed with --target {data_args.target}: choose one of "
                f"{', '.join(known)}."
            )
        return
    if metric in DISTRIBUTION_SCORES and data_args.soft_labels == "none":
        raise ValueError(f"--metric_for_best_model {metric} needs votes: add --soft_labels votes.")
    known = (*SCORES, "loss", *DISTRIBUTION_SCORES)
    if metric and metric not in known:
        raise ValueError(
            f"--metric_for_best_model {metric} is not computed: choose one of {', '.join(known)} (WA is the accuracy)."
        )


def _check_streaming(args: "SERTrainingArguments") -> None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    for name in ("waveform_copies", "test_window"):
        if getattr(args, name):
            raise ValueError(f"--{name} needs cached spectrograms, which --streaming lacks: leave one out.")
    if args.train_sampling_strategy != "random":
        raise ValueError("--train_sampling_strategy has no effect on the order of --streaming: leave it out.")
    if args.accelerator_config != AcceleratorConfig():
        raise ValueError("--accelerator_config has no effect on the order of --streaming: leave it out.")


def check_model(config: "MaxMViTConfig", data_args: "DataArguments", args: "SERTrainingArguments") -> None:
    """
    Checks that the options are compatible with the model, before any clip is read.

    Raises:
        DataError: They are not compatible; the message names the option to leave out.
    """
    from transformers.utils import logging

    from ser.data.embedding_cache import can_cache_embeddings
    from ser.utils import DataError

    learns_filters, has_speech = config.filter_bank == "learnable", "speech" in config.branch_names
    has = {"cqt": "cqt" in config.branch_names, "mel": "mel" in config.branch_names, "speech": has_speech}
    for each in fields(args):
        part = each.name.partition("_")[0]
        has_part = (has | {"filter": learns_filters}).get(part, True)
        if not has_part and not each.name.endswith("_optimizer") and getattr(args, each.name) != default_of(each):
            logging.get_logger(__name__).warning_once(
                f"--{each.name} has no effect: the model has no such part ({', '.join(config.branch_names)})."
            )
    if args.mixup_alpha and has_speech and not args.closed_form_classifier:
        raise DataError("--mixup_alpha blends images but not waveforms: leave out either it or --speech_encoder.")
    if args.mixup_alpha and learns_filters:
        raise DataError(
            "--mixup_alpha blends images, and learnable filters compute their image later: leave out either it or "
            "--filter_bank learnable."
        )
    if args.specaugment_masks and learns_filters and not has["cqt"]:
        raise DataError(
            "--specaugment_masks masks images, and learnable filters compute the only image of this model later: "
            "leave out either it or --filter_bank learnable."
        )
    if args.train_sampling_strategy == "group_by_length":
        runs_each_time = has_speech and not (data_args.cache_features and can_cache_embeddings(config, args))
        if not learns_filters and not runs_each_time:
            logging.get_logger(__name__).warning_once(
                "--train_sampling_strategy group_by_length saves no time, since all images have the same size."
            )
        if not data_args.cache_features:
            raise DataError(
                "--train_sampling_strategy group_by_length needs --cache_features, which determines the lengths of "
                "clips beforehand."
            )


def check_writable(folder: str | Path) -> None:
    """
    Checks that a folder can be created and written to, without creating it.

    Raises:
        DataError: It cannot be written to; the message gives the reason.
    """
    from ser.utils import DataError

    path = Path(folder)
    try:
        while not path.exists():
            path = path.parent
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise DataError(
            f"--output_dir {str(folder)[:200]} cannot be written: {error.strerror}. Name another."
        ) from error
