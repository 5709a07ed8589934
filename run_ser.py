#!/usr/bin/env python
"""Trains and tests MaxMViT-MLP on a corpus of emotional speech.

    python run_ser.py configs/demo.yaml                              a recipe
    python run_ser.py configs/ravdess.yaml --data_dir RAVDESS        a recipe, and flags over it
    accelerate launch run_ser.py --dataset_name AbstractTTS/IEMOCAP --output_dir out

`python run_ser.py --help` lists every flag. The output directory ends up holding the trained model as any user of
transformers can load it, what it scored on clips that chose nothing, and each clip's prediction.
"""

import copy
import dataclasses
import inspect
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import torch
import yaml
from transformers import HfArgumentParser, set_seed
from transformers.utils import logging

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import AudioError
from ser.augmentation import make_augmentation
from ser.corpora import Corpus, DataError, load_corpus
from ser.features import PairCollator, extract_features, relabel
from ser.metrics import compute_metrics
from ser.protocols import make_split, n_folds, resolve_protocol
from ser.report import REPORT_FILES, describe, splits_table, summarize_folds, write_json, write_report
from ser.trainer import NonFiniteLossError, SERTrainer, SERTrainingArguments, mark_finished, resume_or_start

logger = logging.get_logger("run_ser")

FINISHED = "finished"
MODEL_FIELDS = [*MaxMViTConfig.__annotations__, "id2label"]
EXTRACTOR_FIELDS = [name for name in inspect.signature(MaxMViTFeatureExtractor).parameters if name != "kwargs"]


@dataclass
class DataArguments:
    """Which clips, and who is tested."""

    dataset_name: str = field(
        default="demo",
        metadata={
            "help": "demo, iemocap, ravdess, emodb; the Hub id of one of their copies; or a data set of your own: Hub "
            "id, folder with a sub-folder per class, CSV of file,label[,speaker][,split]."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder where the data of dataset_name lies."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of the Hub data set."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and features are kept."})
    train_split_name: str = field(default="train", metadata={"help": "Training split of your own data set."})
    eval_split_name: str = field(default="validation", metadata={"help": "Its validation split."})
    test_split_name: str = field(default="test", metadata={"help": "Its test split."})
    audio_column_name: str | None = field(default=None, metadata={"help": "Its column of audio."})
    label_column_name: str | None = field(default=None, metadata={"help": "Its column of classes."})
    speaker_column_name: str | None = field(default=None, metadata={"help": "Its column of speakers."})
    labels: list[str] | None = field(default=None, metadata={"help": "Classes to keep, in this order."})
    merge_labels: list[str] | None = field(default=None, metadata={"help": "Such as excited=happy."})
    unique_vote: bool = field(default=False, metadata={"help": "IEMOCAP: keep clips whose highest vote is unique."})
    drop_duplicates: bool = field(default=False, metadata={"help": "Keep one of several clips of equal sound."})
    protocol: str | None = field(
        default=None,
        metadata={
            "help": "predefined, random, speaker, loso, or the name of published folds (emobox, luna-jimenez, "
            "sessions). Default: the data set's test split if it has one, else speaker folds, else random."
        },
    )
    fold: str = field(default="1", metadata={"help": "Which fold of the protocol, counted from 1; or all."})
    test_speakers: list[str] | None = field(default=None, metadata={"help": "Test these, instead of a protocol."})
    validation_share: float = field(
        default=0.15, metadata={"help": "Share of the training part (of its speakers) that chooses the checkpoint."}
    )
    shuffle_training_labels: bool = field(
        default=False, metadata={"help": "A control: what is learnt from shuffled labels must score at chance."}
    )
    on_bad_audio: Literal["error", "skip"] = field(
        default="error", metadata={"help": "Stop at a clip that cannot be read, or leave it out and count it."}
    )
    cache_features: bool = field(
        default=True, metadata={"help": "Extract once and keep on disk, or compute in the loader's workers each time."}
    )
    preprocessing_num_workers: int = field(default=1, metadata={"help": "Processes that extract features."})


@dataclass
class ModelArguments:
    """Which model. `model_name_or_path` brings all of it; only `feature_extractor_kwargs` goes over what it holds."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from."})
    cqt_backbone: str = field(default="maxvit_base_tf_224", metadata={"help": "timm model that sees the CQT."})
    mel_backbone: str = field(default="mvitv2_base", metadata={"help": "timm model that sees the Mel spectrogram."})
    cqt_backbone_kwargs: str | None = field(default=None, metadata={"help": "JSON: changes to it."})
    mel_backbone_kwargs: str | None = field(default=None, metadata={"help": "JSON: changes to it."})
    image_size: int = field(default=224, metadata={"help": "Height and width that the backbones see."})
    hidden_size: int = field(default=512, metadata={"help": "Width of the head's hidden layer."})
    hidden_dropout: float = field(default=0.2, metadata={"help": "Dropout of the head."})
    feature_extractor_kwargs: str | None = field(
        default=None, metadata={"help": 'JSON: changes to the feature extractor, such as {"image_size": 128}.'}
    )
    imagenet_weights: bool = field(default=True, metadata={"help": "Start from timm's ImageNet weights."})
    cqt_weights: str | None = field(default=None, metadata={"help": "Local file of those of the CQT backbone."})
    mel_weights: str | None = field(default=None, metadata={"help": "Local file of those of the Mel backbone."})

    def __post_init__(self) -> None:
        for name in ("cqt_backbone_kwargs", "mel_backbone_kwargs", "feature_extractor_kwargs"):
            if text := getattr(self, name):
                try:
                    setattr(self, name, json.loads(text))
                except json.JSONDecodeError as error:
                    raise ValueError(f"--{name} {text!r} is not JSON: {error}.") from error
                if not isinstance(getattr(self, name), dict):
                    raise ValueError(f'--{name} {text!r} is no JSON object, such as {{"image_size": 128}}.')


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, SERTrainingArguments]:
    """Reads an optional YAML recipe, then the flags over it. A key that is no flag is an error, as a flag would be."""
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        recipe, arguments = arguments[0], arguments[1:]
        try:
            settings = yaml.safe_load(Path(recipe).read_text())
        except (OSError, yaml.YAMLError) as error:
            sys.exit(f"error: recipe {recipe} cannot be read: {error}")
        if not isinstance(settings, dict):
            sys.exit(f"error: recipe {recipe} is not a list of `flag: value` lines.")
        arguments = [*_as_flags(settings), *arguments]
    parser = HfArgumentParser((ModelArguments, DataArguments, SERTrainingArguments), description=__doc__)
    model_args, data_args, args = parser.parse_args_into_dataclasses(arguments)
    if not data_args.cache_features:
        args.dataloader_num_workers = args.dataloader_num_workers or data_args.preprocessing_num_workers
    return model_args, data_args, args


def _as_flags(settings: dict) -> list[str]:
    flags = []
    for name, value in settings.items():
        if isinstance(value, dict):
            value = json.dumps(value)
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def main(arguments: list[str] | None = None) -> None:
    model_args, data_args, training_args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    set_up_logging(training_args)
    corpus = read_corpus(data_args, training_args)
    runs = plan_folds(corpus, data_args, training_args)
    config = make_config(corpus, model_args)
    feature_extractor = make_feature_extractor(model_args)
    corpus = with_features(corpus, feature_extractor, data_args, training_args)
    for fold, fold_args in runs.items():
        train_and_test(corpus, fold, config, feature_extractor, model_args, data_args, fold_args)
    if len(runs) > 1:
        report_all_folds(runs, training_args)


def set_up_logging(args: SERTrainingArguments) -> None:
    """One process speaks, at the level of `--log_level`."""
    level = args.get_process_log_level()
    logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(max(level, logging.WARNING))
    logging.enable_explicit_format()
    if not args.should_log:
        datasets.disable_progress_bars()


def read_corpus(data_args: DataArguments, args: SERTrainingArguments) -> Corpus:
    """The clips, their classes and speakers, as the flags choose them."""
    with args.main_process_first(desc="reading the corpus"):
        corpus = load_corpus(
            data_args.dataset_name,
            data_args.data_dir,
            dataset_config_name=data_args.dataset_config_name,
            dataset_revision=data_args.dataset_revision,
            cache_dir=data_args.cache_dir,
            train_split_name=data_args.train_split_name,
            eval_split_name=data_args.eval_split_name,
            test_split_name=data_args.test_split_name,
            audio_column_name=data_args.audio_column_name,
            label_column_name=data_args.label_column_name,
            speaker_column_name=data_args.speaker_column_name,
            labels=data_args.labels,
            merge_labels=data_args.merge_labels,
            unique_vote=data_args.unique_vote,
            drop_duplicates=data_args.drop_duplicates,
        )
    return corpus


def make_feature_extractor(model_args: ModelArguments) -> MaxMViTFeatureExtractor:
    """The extractor of the checkpoint to start from, or a new one, with the changes that the flags ask for."""
    changes = model_args.feature_extractor_kwargs or {}
    if unknown := set(changes) - set(EXTRACTOR_FIELDS):
        raise ValueError(f"--feature_extractor_kwargs: the extractor has no parameter {', '.join(sorted(unknown))}.")
    if model_args.model_name_or_path:
        return MaxMViTFeatureExtractor.from_pretrained(model_args.model_name_or_path, **changes)
    return MaxMViTFeatureExtractor(**changes)


def make_config(corpus: Corpus, model_args: ModelArguments) -> MaxMViTConfig:
    """What the model is: as the flags say, or as the checkpoint to start from was; with this corpus's classes."""
    labels = {
        "id2label": dict(enumerate(corpus.label_names)),
        "label2id": {name: index for index, name in enumerate(corpus.label_names)},
    }
    if model_args.model_name_or_path:
        return MaxMViTConfig.from_pretrained(model_args.model_name_or_path, **labels)
    return MaxMViTConfig(
        cqt_backbone=model_args.cqt_backbone,
        mel_backbone=model_args.mel_backbone,
        cqt_backbone_kwargs=model_args.cqt_backbone_kwargs,
        mel_backbone_kwargs=model_args.mel_backbone_kwargs,
        image_size=model_args.image_size,
        hidden_size=model_args.hidden_size,
        hidden_dropout=model_args.hidden_dropout,
        **labels,
    )


def make_model(
    config: MaxMViTConfig, model_args: ModelArguments, resuming: bool = False
) -> MaxMViTForAudioClassification:
    """From a checkpoint (with a new last layer if its classes are others), from ImageNet weights, or from scratch."""
    start = None if resuming else model_args.model_name_or_path
    if start:
        model = MaxMViTForAudioClassification.from_pretrained(start, config=config, ignore_mismatched_sizes=True)
        if MaxMViTConfig.from_pretrained(start).id2label != config.id2label:
            torch.nn.init.normal_(model.classifier.out_proj.weight, std=0.02)
            torch.nn.init.zeros_(model.classifier.out_proj.bias)
        return model
    model = MaxMViTForAudioClassification(config)
    if model_args.imagenet_weights and not resuming and not model_args.model_name_or_path:
        model.maxmvit.load_imagenet_weights(model_args.cqt_weights, model_args.mel_weights)
    return model


def with_features(
    corpus: Corpus, feature_extractor: MaxMViTFeatureExtractor, data_args: DataArguments, args: SERTrainingArguments
) -> Corpus:
    """The corpus with images in place of audio, less the clips that cannot be read where `--on_bad_audio skip`."""
    if not data_args.cache_features:
        if data_args.on_bad_audio == "skip":
            raise DataError("--on_bad_audio skip needs --cache_features: only then is every clip read beforehand.")
        return corpus
    with args.main_process_first(desc="extracting features"):
        clips = extract_features(
            corpus.clips,
            feature_extractor,
            num_workers=data_args.preprocessing_num_workers,
            cache_dir=data_args.cache_dir,
            on_bad_audio=data_args.on_bad_audio,
        )
    unreadable = len(corpus) - len(clips)
    dropped = {**corpus.dropped, **({"cannot be decoded": unreadable} if unreadable else {})}
    return dataclasses.replace(corpus, clips=clips, dropped=dropped)


def plan_folds(
    corpus: Corpus, data_args: DataArguments, args: SERTrainingArguments
) -> dict[int, SERTrainingArguments]:
    """The folds to run, each with its own output directory if there are several."""
    protocol = "test speakers" if data_args.test_speakers else resolve_protocol(corpus, data_args.protocol)
    count = n_folds(corpus, data_args.protocol, data_args.test_speakers)
    say(args, f"Corpus {corpus.name}, {len(corpus):,} clips from {corpus.source}; protocol {protocol}, "
        f"fold {data_args.fold} of {count}")  # fmt: skip
    for reason, clips in corpus.dropped.items():
        say(args, f"Left out: {clips:,} clips: {reason}")
    if data_args.fold.isdecimal() and 1 <= int(data_args.fold) <= count:
        return {int(data_args.fold): args}
    if data_args.fold != "all":
        raise DataError(f"--fold takes a number from 1 to {count}, or all; not {data_args.fold!r}.")
    folder = Path(args.output_dir)
    return {
        fold: dataclasses.replace(
            args,
            output_dir=str(folder / f"fold_{fold}"),
            hub_model_id=f"{args.hub_model_id or folder.name}-fold{fold}" if args.push_to_hub else None,
        )
        for fold in range(1, count + 1)
    }


def earlier_run(
    args: SERTrainingArguments, config: MaxMViTConfig, feature_extractor: MaxMViTFeatureExtractor, splits: dict
) -> str | None:
    """The checkpoint to go on from, None to start afresh, or `FINISHED`; refuses to go on from a run of other clips,
    images or another model, whose weights may have been trained on what is tested here."""
    folder = Path(args.output_dir)
    with args.main_process_first(local=False, desc="looking for an earlier run"):
        if args.overwrite_output_dir and args.should_save:
            for name in REPORT_FILES:
                (folder / name).unlink(missing_ok=True)
        state, checkpoint = resume_or_start(folder, args.overwrite_output_dir and args.should_save)
    if state == "fresh":
        return None
    source = checkpoint if state == "resume" else folder
    before = MaxMViTConfig.from_pretrained(source), MaxMViTFeatureExtractor.from_pretrained(source)
    same = json.loads((folder / "splits.json").read_text()) == splits
    for earlier, now, names in zip(before, (config, feature_extractor), (MODEL_FIELDS, EXTRACTOR_FIELDS), strict=True):
        same = same and all(getattr(earlier, name) == getattr(now, name) for name in names)
    if not same:
        raise DataError(
            f"{folder} holds an earlier run with another model or feature extractor, other classes, or other clips to "
            "train and test on. Name another --output_dir, or start over in this one by --overwrite_output_dir."
        )
    return FINISHED if state == "finished" else checkpoint


def make_trainer(
    model: MaxMViTForAudioClassification,
    parts: dict[str, datasets.Dataset],
    feature_extractor: MaxMViTFeatureExtractor,
    args: SERTrainingArguments,
    **kwargs,
) -> SERTrainer:
    """Trains on the part `train`, augmented as the flags say, and is steered by the part `validation`."""
    augmentation = make_augmentation(
        model.config.num_labels,
        specaugment_masks=args.specaugment_masks,
        specaugment_time=args.specaugment_time,
        specaugment_frequency=args.specaugment_frequency,
        mixup_alpha=args.mixup_alpha,
    )
    return SERTrainer(
        model=model,
        args=args,
        data_collator=PairCollator(feature_extractor),
        train_collator=PairCollator(feature_extractor, augmentation),
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=feature_extractor,
        compute_metrics=compute_metrics,
        **kwargs,
    )


def train_and_test(
    corpus: Corpus,
    fold: int,
    config: MaxMViTConfig,
    feature_extractor: MaxMViTFeatureExtractor,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: SERTrainingArguments,
) -> None:
    """One fold from split to report; goes on where an earlier run of the same output directory was stopped."""
    started = time.monotonic()
    split = make_split(
        corpus,
        data_args.protocol,
        fold,
        validation_share=data_args.validation_share,
        seed=args.seed,
        test_speakers=data_args.test_speakers,
    )
    splits = splits_table(corpus, split, args.seed)
    checkpoint = earlier_run(args, config, feature_extractor, splits)
    if checkpoint == FINISHED:
        say(args, f"{args.output_dir} holds a finished run. To start over, add --overwrite_output_dir.")
        return
    say(args, split.describe())
    parts = {part: corpus.clips.select(indices) for part, indices in split.parts.items()}
    if data_args.shuffle_training_labels:
        labels = np.random.default_rng(args.seed).permutation(parts["train"]["label"][:])
        parts["train"] = relabel(parts["train"], labels)
        corpus = dataclasses.replace(corpus, options=corpus.options | {"shuffled_training_labels": True})
    set_seed(args.seed)
    model = make_model(copy.deepcopy(config), model_args, resuming=checkpoint is not None)
    trainer = make_trainer(model, parts, feature_extractor, args)
    if args.should_save:
        write_json(Path(args.output_dir) / "splits.json", splits)
    trainer.train(resume_from_checkpoint=checkpoint)
    logits = trainer.predict(parts["test"], metric_key_prefix="test").predictions
    trainer.save_model(_internal_call=True)  # without the push to the Hub, for which the report is wanted first
    if args.should_save:
        report = write_report(
            args.output_dir,
            corpus,
            split,
            parts,
            logits,
            seed=args.seed,
            duration=time.monotonic() - started,
            log_history=trainer.state.log_history,
            model_id=trainer.hub_model_id if args.push_to_hub else None,
            extra={
                "data_arguments": dataclasses.asdict(data_args),
                "model_arguments": dataclasses.asdict(model_args),
                "training_arguments": args.to_sanitized_dict(),
            },
        )
        say(args, f"{describe(report)}\nReport, predictions and model: {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub()
    if args.should_save:
        mark_finished(args.output_dir)


def report_all_folds(runs: dict[int, SERTrainingArguments], args: SERTrainingArguments) -> None:
    """Mean, standard deviation and pooled scores over the folds."""
    if args.should_save:
        summary = summarize_folds(args.output_dir, [fold_args.output_dir for fold_args in runs.values()])
        for name, mean in summary["mean"].items():
            pooled = summary["pooled"][name]
            say(args, f"{name} ({summary['protocol']}): {mean:.3f} +- {summary['std'][name]:.3f}, pooled {pooled:.3f}")


def say(args: SERTrainingArguments, text: str) -> None:
    if args.should_log:
        print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (DataError, AudioError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
    except (ValueError, OSError) as error:
        logger.debug("Where it came from:", exc_info=True)
        sys.exit(f"error: {error} (--log_level debug shows where it came from.)")
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command, without --overwrite_output_dir, goes on from the last checkpoint.")
