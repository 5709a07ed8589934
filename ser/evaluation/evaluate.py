"""Scores a checkpoint on clips that it was not trained on."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers.utils.hub import cached_file

from configuration_maxmvit import MaxMViTConfig
from pipeline_maxmvit import RELEVANCE
from ser.arguments import ClipArguments, DataArguments, ModelArguments, check_bounds, values_of
from ser.cli import Parser
from ser.data.batches import PairCollator
from ser.data.corpora.corpus import VOTES, Corpus
from ser.data.corpora.label_map import read_label_map
from ser.data.prepare import read_corpus, set_up_logging, with_features
from ser.data.protocols import EVERYTHING, Split, n_folds, resolve_protocol, test_part
from ser.evaluation.adaptation import adapted_logits
from ser.evaluation.class_mapping import SharedClasses, shared_classes
from ser.evaluation.report import write_report
from ser.files import check_writable
from ser.models import load_config, load_feature_extractor, load_model, weights_digest
from ser.training.arguments import SERTrainingArguments
from ser.training.pooled_statistics import pooled_features
from ser.training.trainer import SERTrainer
from ser.utils import DataError

ALL = "all"


@dataclass
class EvaluationArguments:
    """Scoring of a checkpoint"""

    output_dir: str = field(metadata={"help": "Folder of the report: metrics.json, predictions.csv, plots."})
    allow_training_clips: bool = field(
        default=False,
        metadata={"help": "Whether to score speakers and clips that the checkpoint may have been trained on."},
    )
    adapt: Literal["speaker", "table"] | None = field(
        default=None,
        metadata={"help": "Classify relative to the mean features of each speaker's clips, or of all (transductive)."},
    )
    relevance: float = field(
        default=RELEVANCE,
        metadata={"help": "Weight of the training clips' mean in --adapt, as a number of clips.", "at_least": 0},
    )
    batch_size: int = field(default=16, metadata={"help": "Clips in one forward pass.", "at_least": 1})
    use_cpu: bool = field(default=False, metadata={"help": "Whether to compute on the CPU."})
    seed: int = field(
        default=42,
        metadata={"help": "Random seed of the protocol random and of the bootstrap.", "at_least": 0, "below": 2**32},
    )

    def __post_init__(self) -> None:
        check_bounds(self)


def parse_arguments(
    arguments: Sequence[str] | None, description: str
) -> tuple[str, ClipArguments, EvaluationArguments]:
    """Parses a command line into the checkpoint, the options about clips, and those about scoring."""
    usage = "evaluate_ser.py CHECKPOINT --output_dir OUT [--OPTION VALUE ...]"
    parser = Parser((ClipArguments, EvaluationArguments), usage=usage, description=description, add_help=True)
    parser.add_argument("checkpoint", help="A folder written by training, or its name on the Hub.")
    parser.check_names(sys.argv[1:] if arguments is None else arguments)
    clip_args, args, others = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    _check_fold(clip_args)
    return others.checkpoint, clip_args, args


def _check_fold(clip_args: ClipArguments) -> None:
    if clip_args.protocol or clip_args.test_speakers:
        if clip_args.protocol == EVERYTHING:
            raise DataError(f"--protocol {EVERYTHING} has no test set: leave it out to score all clips.")
        if not clip_args.fold.isdecimal():
            raise DataError(f"--fold {clip_args.fold!r} is not a number: a checkpoint is scored on one fold.")
    elif clip_args.fold != "1":
        raise DataError("--fold needs --protocol: without one, all clips are scored.")


def predict_only(model_args: ModelArguments, data_args: DataArguments, args: SERTrainingArguments) -> dict:
    """
    Runs the training command without `--do_train`: scores a checkpoint on the test part, like `evaluate_ser.py`.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: No checkpoint is named, or no test is requested; or as in [`evaluate`].
    """
    if not args.do_predict:
        raise DataError("--do_eval without --do_train scores nothing: add --do_predict to score the test part.")
    if model_args.model_name_or_path is None:
        raise DataError("--do_predict without --do_train scores a checkpoint: name it with --model_name_or_path.")
    clip_args = ClipArguments(**values_of(ClipArguments, data_args))
    if data_args.test_dataset_name:
        clip_args.dataset_name, clip_args.data_dir = data_args.test_dataset_name, data_args.test_data_dir
    elif not clip_args.protocol and not clip_args.test_speakers:
        target = target_of(load_config(model_args.model_name_or_path))
        clip_args.protocol = resolve_protocol(read_corpus(clip_args, args, **target))
    _check_fold(clip_args)
    wanted = EvaluationArguments(
        args.output_dir, batch_size=args.per_device_eval_batch_size, use_cpu=args.use_cpu, seed=args.seed
    )
    return evaluate(model_args.model_name_or_path, clip_args, wanted)


def evaluate(checkpoint: str, clip_args: ClipArguments, args: EvaluationArguments) -> dict:
    """
    Scores a checkpoint on the test part of a protocol or, without one, on all clips, and writes the report.

    Args:
        checkpoint: A folder written by training, one of its `checkpoint-*`, or a name on the Hugging Face Hub.
        clip_args: Options about the clips.
        args: Options about scoring and the report.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: The checkpoint is incomplete, was trained on a speaker or clip that is tested, or lacks a class; or
            the output directory is in use.
    """
    started = time.monotonic()
    folder = Path(args.output_dir)
    check_writable(folder / "metrics.json")
    if used := [name for name in ("metrics.json", "config.json") if (folder / name).exists()]:
        raise DataError(f"{folder} already holds a {used[0]} of another report or model: name another --output_dir.")
    trainer_args = SERTrainingArguments(
        output_dir=args.output_dir,
        per_device_eval_batch_size=args.batch_size,
        use_cpu=args.use_cpu,
        report_to=["none"],
    )
    set_up_logging(trainer_args)
    model, feature_extractor = load_model(checkpoint), load_feature_extractor(checkpoint)
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    target = target_of(model.config)
    names = labels[: model.config.num_classes]
    splits = splits_of(checkpoint)
    is_mapped = clip_args.label_map is not None or len(clip_args.dataset_name) > 1
    corpus = read_corpus(clip_args, trainer_args, names if is_mapped else (), **target)
    split = _split(corpus, clip_args, args.seed)
    if is_mapped:
        shared = shared_classes(corpus.label_names, read_label_map(clip_args.label_map).of("the model", names))
        split.name = _name_of_shared(split.name, len(shared.names), splits)
    else:
        columns = _columns(corpus, names, checkpoint)
        shared = SharedClasses([names[column] for column in columns], [[column] for column in columns])
    overlap = training_overlap(corpus, split.test, splits)
    if not args.allow_training_clips:
        _refuse_overlap(overlap, checkpoint)
    split.speaker_disjoint = overlap is not None and not overlap["speakers"] and None not in corpus.speakers
    files = [corpus.files[i] for i in split.test]
    corpus = with_features(corpus, feature_extractor, clip_args, trainer_args)
    place = {file: i for i, file in enumerate(corpus.files)}  # some may have been left out as unreadable
    test = corpus.clips.select([place[file] for file in files if file in place])
    trainer = SERTrainer(
        model=model,
        args=trainer_args,
        data_collator=PairCollator(feature_extractor, num_classes=model.config.num_classes),
        eval_dataset=test,
        processing_class=feature_extractor,
    )
    without_votes = test.remove_columns([name for name in (VOTES,) if name in test.column_names])  # no loss is needed
    if args.adapt:
        logits = adapted_logits(model, pooled_features(trainer, without_votes), args.adapt, args.relevance)
        split.name = f"{split.name}+adapted-{args.adapt}"  # not comparable with scores without adaptation
    else:
        logits = np.asarray(trainer.predict(without_votes).predictions)
    temperature = model.config.temperature
    if is_mapped:  # the pipeline's probabilities are added
        logits, temperature = shared.of_logits(logits / temperature), 1.0
    else:
        logits = logits[:, [*columns, *map(labels.index, corpus.dimensions)]]
    return write_report(
        folder,
        dataclasses.replace(corpus, label_names=shared.names),
        split,
        {"test": test},
        logits,
        temperature=temperature,
        seed=args.seed,
        duration=time.monotonic() - started,
        card=False,
        extra={
            "checkpoint": checkpoint,
            "checkpoint_weights": weights_digest(model.state_dict()),
            "heard_in_training": overlap,
            **({"adapt": args.adapt, "relevance": args.relevance} if args.adapt else {}),
            "clip_arguments": dataclasses.asdict(clip_args),
        },
    )


def target_of(config: MaxMViTConfig) -> dict[str, Any]:
    """Returns what a model predicts, as `target` and `dimensions` of [`load_corpora`]."""
    if not config.dimensions:
        return {}
    dimensions = [*config.id2label.values()][config.num_classes :]
    return {"target": "both" if config.num_classes else "dimensions", "dimensions": dimensions}


def splits_of(checkpoint: str) -> dict | None:
    """Returns the `splits.json` of the run that a checkpoint comes from, or None if there is none."""
    if os.path.isdir(checkpoint):
        places = [Path(checkpoint) / "splits.json", Path(checkpoint).resolve().parent / "splits.json"]
        found = next((path for path in places if path.is_file()), None)
    else:
        found = cached_file(checkpoint, "splits.json", _raise_exceptions_for_missing_entries=False)
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def training_overlap(corpus: Corpus, test: Sequence[int], splits: dict | None) -> dict[str, list[str]] | None:
    """
    Returns the speakers and clips of a test part that a run was trained or validated on; None without `splits.json`.

    Speakers are compared within one corpus, since other corpora use the same names for other people; clips of
    different tables are the same if file, speaker and class are equal.
    """
    if splits is None:
        return None
    known = [clip for clip in splits["clips"] if clip["part"] != "test"]
    # Tables of several corpora prefix files and speakers by the corpus, those of one do not.
    trained_on = splits.get("corpora", [splits["protocol"].partition("/")[0]])
    theirs = "" if "corpora" in splits else f"{trained_on[0]}/"
    mine = "" if "corpus" in corpus.clips.column_names else f"{corpus.name}/"
    speakers = {theirs + clip["speaker"] for clip in known if clip["speaker"] is not None}
    files, who, classes = corpus.files, corpus.speakers, corpus.classes
    is_known = mine == "" or corpus.name in trained_on
    fields = ("file",) if is_known else ("file", "speaker", "label")
    prefix = theirs if is_known else ""
    clips = {(prefix + clip["file"], *(clip[name] for name in fields[1:])) for clip in known}
    found: dict[str, list[str]] = {"speakers": [], "clips": []}
    for i in test:
        speaker = who[i]
        fact = {"speaker": speaker, "label": classes[i]}
        if speaker is not None and mine + speaker in speakers:
            found["speakers"].append(speaker)
        if ((mine if is_known else "") + files[i], *(fact[name] for name in fields[1:])) in clips:
            found["clips"].append(files[i])
    return found | {"speakers": sorted({*found["speakers"]})}


def _refuse_overlap(overlap: dict[str, list[str]] | None, checkpoint: str) -> None:
    if overlap is None:
        raise DataError(
            f"{checkpoint} has no splits.json, which lists the clips that it was trained on: put that file beside it, "
            "or accept the risk with --allow_training_clips."
        )
    for kind, found in overlap.items():
        if found:
            raise DataError(
                f"{checkpoint} was trained or validated on {len(found):,} of the {kind} to be tested, such as "
                f"{found[0]}: test others with --protocol and --fold or --test_speakers, or score these anyway with "
                "--allow_training_clips."
            )


def _split(corpus: Corpus, clip_args: ClipArguments, seed: int) -> Split:
    name, test = ALL, list(range(len(corpus)))
    if clip_args.protocol or clip_args.test_speakers:
        count = n_folds(corpus, clip_args.protocol, clip_args.test_speakers)
        fold = int(clip_args.fold)
        if not 1 <= fold <= count:
            raise DataError(f"--fold takes a number from 1 to {count}, not {fold}.")
        name, test, _, _ = test_part(corpus, clip_args.protocol, fold, seed, clip_args.test_speakers)
    return Split(f"{corpus.name}/{name}", [], [], test, speaker_disjoint=False)


def _name_of_shared(name: str, count: int, splits: dict | None) -> str:
    """Returns a name such as `ravdess->emodb/shared-6`: training corpus, test corpus, number of shared classes."""
    tested, _, protocol = name.partition("/")
    trained = f"{splits['protocol'].partition('/')[0].partition('->')[0]}->" if splits else ""
    return f"{trained}{tested}/{'' if protocol == ALL else f'{protocol}-'}shared-{count}"


def _columns(corpus: Corpus, names: Sequence[str], checkpoint: str) -> list[int]:
    """Returns the model's classes in the order of the report: those of the corpus in its order, then the others."""
    if unknown := [name for name in corpus.label_names if name not in names]:
        raise DataError(
            f"{checkpoint} has no class {', '.join(map(repr, unknown))}; it has {', '.join(names)}. Leave out "
            f"clips with --labels, or rename their class with --merge_labels {unknown[0]}={names[0]}."
        )
    own = [names.index(name) for name in corpus.label_names]
    return [*own, *(column for column in range(len(names)) if column not in own)]
