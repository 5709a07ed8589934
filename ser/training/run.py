"""Steps of the training command, from options to a report."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import set_seed
from transformers.utils import logging

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.arguments import (
    DataArguments,
    ModelArguments,
)
from ser.data.altered_copies import WaveformCopies
from ser.data.augmentation import make_augmentation, make_spectrogram_augmentation
from ser.data.batches import PairCollator
from ser.data.corpora.combine import balanced_rows
from ser.data.corpora.corpus import VOTES, Corpus, with_one_label
from ser.data.corpora.dimensions import DIMENSIONS, dimensions_of
from ser.data.corpora.label_map import format_label_map
from ser.data.embedding_cache import can_cache_embeddings, layer_statistics_of
from ser.data.features import rearranged
from ser.data.prepare import extracted
from ser.data.protocols import Split, make_split, n_folds, resolve_protocol
from ser.distributed import first_process_first
from ser.evaluation.calibration import fit_temperature
from ser.evaluation.class_mapping import SharedClasses, shared_classes
from ser.evaluation.dimensions import DimensionMetrics
from ser.evaluation.metrics import compute_metrics, scores
from ser.evaluation.report import format_report, splits_table, summarize_folds, write_predictions, write_report
from ser.evaluation.soft_labels import compute_distribution_metrics
from ser.evaluation.windows import mean_over_windows, training_lengths, windows_of
from ser.models import make_model, name_classes, starting_weights
from ser.training.arguments import SERTrainingArguments
from ser.training.closed_form import check_closed_form, fit_speech_classifier
from ser.training.pooled_statistics import fit_feature_statistics
from ser.training.run_settings import (
    RunClock,
    check_folds,
    check_named_checkpoint,
    check_output_folder,
    earlier_run,
    fold_folder,
    mark_finished,
    quoted_scores,
    run_settings,
)
from ser.training.streaming import StreamingTrainer
from ser.training.tracking import RunTracking
from ser.training.trainer import SERTrainer
from ser.utils import DataError

logger = logging.get_logger(__name__)
NOT_TESTED = "The test part was not scored, since the run was training only (--do_train without --do_predict)."


def with_copies(
    corpus: Corpus,
    indices: list[int],
    feature_extractor: MaxMViTFeatureExtractor,
    data_args: DataArguments,
    args: SERTrainingArguments,
) -> datasets.Dataset:
    """Returns the training part with `--waveform_copies`; the collator chooses the original or a copy of each clip."""
    copies = WaveformCopies(args.waveform_copies, args.waveform_chain, args.seed)
    assert corpus.recordings is not None  # set by with_features
    return extracted(corpus.recordings.select(indices), feature_extractor, data_args, args, copies=copies)


def plan_folds(
    corpus: Corpus, data_args: DataArguments, args: SERTrainingArguments
) -> dict[int, SERTrainingArguments]:
    """Returns the folds to run, each with its own output directory if there are several."""
    if len(corpus.label_names) < 2 and (corpus.label_names or not corpus.dimensions):
        raise DataError(
            f"All clips of {corpus.source} are {corpus.label_names[0]!r}, and training needs two classes: keep more "
            "with --labels."
        )
    protocol = "test speakers" if data_args.test_speakers else resolve_protocol(corpus, data_args.protocol)
    count = n_folds(corpus, data_args.protocol, data_args.test_speakers)
    print_main(args, f"Corpus {corpus.name}, {len(corpus):,} clips from {corpus.source}; protocol {protocol}, "
        f"fold {data_args.fold} of {count}")  # fmt: skip
    if "label_map" in corpus.options:
        print_main(args, format_label_map(corpus.options["label_map"]["classes"], corpus.label_names))
    for reason, clips in corpus.dropped.items():
        print_main(args, f"Left out: {clips:,} clips: {reason}")
    folder = Path(args.output_dir)
    args.run_name = args.run_name or folder.name  # trackers identify the run by it, and continue a resumed one
    if data_args.fold.isdecimal() and 1 <= int(data_args.fold) <= count:
        return {int(data_args.fold): args}
    if data_args.fold != "all":
        raise DataError(f"--fold must be a number from 1 to {count}, or all, not {data_args.fold!r}.")
    if args.resume_from_checkpoint and count > 1:
        raise DataError("--resume_from_checkpoint is for a single fold: leave it out, or name the fold with --fold.")
    return {
        fold: dataclasses.replace(
            args,
            output_dir=str(fold_folder(folder, fold)),
            run_name=f"{args.run_name}-fold{fold}",
            hub_model_id=f"{args.hub_model_id or folder.name}-fold{fold}" if args.push_to_hub else None,
        )
        for fold in range(1, count + 1)
    }


def check_runs(
    corpus: Corpus,
    runs: Mapping[int, SERTrainingArguments],
    config: MaxMViTConfig,
    feature_extractor: MaxMViTFeatureExtractor,
    model_args: ModelArguments,
    data_args: DataArguments,
) -> None:
    """
    Checks, before the first clip is decoded, everything else that may fail in a run: builds the model with its weights
    and the augmentation, divides the corpus for each fold, and compares the output directories.

    Raises:
        ValueError: A part of this fails; the message names it.
    """
    args = next(iter(runs.values()))
    make_augmentation(args, len(corpus.label_names) + len(corpus.dimensions))
    make_spectrogram_augmentation(args, feature_extractor)
    config = name_classes(config, corpus.label_names, corpus.dimensions)
    if args.closed_form_classifier:
        check_closed_form(config, args, data_args.cache_features)
    start = starting_weights(make_model(config, model_args), model_args)
    unread = dataclasses.replace(corpus)
    unread.contents = corpus.files  # equal audio is found later, when clips are decoded
    for fold, fold_args in runs.items():
        split = split_of(unread, fold, data_args, fold_args)
        batch = args.per_device_train_batch_size * args.world_size
        if corpus.shards is None and len(split.train) < batch and data_args.corpus_sampling == "natural":
            raise DataError(
                f"{len(split.train)} training clips do not fill one batch of {args.per_device_train_batch_size} on "
                f"each of {args.world_size} process(es): lower --per_device_train_batch_size."
            )
        settings = run_settings(config, feature_extractor, corpus, data_args, fold_args, start)
        check_output_folder(fold_args, settings)
        if fold_args.resume_from_checkpoint:
            check_named_checkpoint(fold_args, settings)
        quoted_scores(data_args.scores_from or (), settings)


def split_of(corpus: Corpus, fold: int, data_args: DataArguments, args: SERTrainingArguments) -> Split:
    """Returns the parts of one fold, limited by `--max_train_samples` and `--max_eval_samples`."""
    split = make_split(
        corpus,
        data_args.protocol,
        fold,
        validation_share=data_args.validation_share,
        seed=args.seed,
        test_speakers=data_args.test_speakers,
    )
    split.train = _some(split.train, data_args.max_train_samples, args.seed)
    split.validation = _some(split.validation, data_args.max_eval_samples, args.seed)
    return split


def _some(indices: list[int], most: int | None, seed: int) -> list[int]:
    """Returns at most `most` of the indices, chosen at random."""
    if most is None or most >= len(indices):
        return indices
    order = np.random.default_rng(seed).permutation(len(indices))[:most]
    return sorted(indices[place] for place in order)


def make_trainer(
    model: MaxMViTForAudioClassification,
    parts: dict[str, datasets.Dataset],
    feature_extractor: MaxMViTFeatureExtractor,
    args: SERTrainingArguments,
    layer_statistics: Mapping[str, torch.Tensor] | None = None,
    kind: Callable[..., SERTrainer] = SERTrainer,
    **kwargs: Any,
) -> SERTrainer:
    """Returns the trainer for the part `train`, with augmentation, and the part `validation` if it has clips."""
    collator = partial(
        PairCollator,
        feature_extractor,
        layer_statistics=layer_statistics,
        branches=model.config.image_names,
        num_classes=model.config.num_classes,
    )
    metrics: Callable = compute_distribution_metrics if VOTES in parts["train"].column_names else compute_metrics
    if model.config.dimensions:
        names = [*model.config.id2label.values()][model.config.num_classes :]
        metrics = DimensionMetrics(names, model.config.num_classes)
    train_collator = collator(
        make_augmentation(args, model.config.num_labels),
        make_spectrogram_augmentation(args, feature_extractor),
        draw_versions=args.waveform_copies > 0,
    )
    return kind(
        model=model,
        args=args,
        data_collator=collator(),
        train_collator=train_collator,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"] if len(parts["validation"]) else None,
        processing_class=feature_extractor,
        compute_metrics=metrics,
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
    """Runs one fold from split to report; resumes an interrupted run in the same output directory."""
    started = time.monotonic()
    split = split_of(corpus, fold, data_args, args)
    splits = splits_table(corpus, split, args.seed)
    config = name_classes(config, corpus.label_names, corpus.dimensions)
    set_seed(args.seed)
    model = make_model(config, model_args)
    start = starting_weights(model, model_args)
    settings = run_settings(config, feature_extractor, corpus, data_args, args, start)
    quoted = quoted_scores(data_args.scores_from or (), settings)
    checkpoint = earlier_run(args, settings, splits)
    if checkpoint == "finished":
        print_main(args, f"{args.output_dir} holds a finished run. To start over, add --overwrite_output_dir.")
        return
    print_main(args, split.summary())
    parts = select_parts(corpus, split, feature_extractor, data_args, args)
    if data_args.shuffle_training_labels:
        corpus = dataclasses.replace(corpus, options=corpus.options | {"shuffled_training_labels": True})
    lengths = training_lengths(parts["train"], args.training_window, args.closed_form_classifier)
    model.config.max_clip_s, model.config.window_s = lengths["max_clip_s"], lengths["window_s"]
    clock = RunClock(args.output_dir, started)
    facts: dict[str, int | str] = {"corpus": corpus.name, "protocol": split.name, "fold": fold}
    tracking = RunTracking(facts | {f"{part}_clips": len(clips) for part, clips in parts.items()})
    trainer = trainer_for(corpus, model, parts, feature_extractor, data_args, args, callbacks=[clock, tracking])
    if any(parameter.requires_grad for parameter in model.parameters()):
        trainer.train(resume_from_checkpoint=checkpoint)
    fit_feature_statistics(trainer, parts["train"])
    is_tested = args.do_predict or not args.do_train
    logits = {
        part: trainer.predict(parts[part], metric_key_prefix=part).predictions
        for part in ("validation", "test")
        if len(parts[part]) and (part != "test" or is_tested)
    }
    if "test" in logits and model.config.fusion == "late":
        write_branch_predictions(trainer, parts["test"], corpus.label_names, [*corpus.dimensions])
    if args.calibrate:
        sure = with_one_label(parts["validation"])
        labels = np.asarray(parts["validation"]["label"][:])[sure]
        trainer.model.config.temperature = fit_temperature(labels, logits["validation"][sure])
    shared = None
    if corpus.shared_labels is not None:
        shared, parts["test"] = on_shared_classes(corpus, parts["test"])
        if "test" in logits:
            logits["test"] = shared.of_logits(logits["test"])
    over_windows = None
    if is_tested:
        over_windows = score_windows(trainer, parts["test"], corpus, shared, feature_extractor, args)
    trainer.save_model(_internal_call=True)  # does not push to the Hub yet, since the report is pushed with the model
    if args.should_save:
        report = write_report(
            args.output_dir,
            corpus,
            split,
            parts,
            logits.get("test"),
            validation_logits=logits.get("validation"),
            temperature=trainer.model.config.temperature,
            quoted=quoted,
            remarks=() if is_tested else (NOT_TESTED,),
            seed=args.seed,
            duration=clock.seconds(),
            log_history=trainer.state.log_history,
            model_id=trainer.hub_model_id if args.push_to_hub else None,
            extra={
                **({"test_windows": over_windows} if over_windows else {}),
                "data_arguments": dataclasses.asdict(data_args),
                "model_arguments": dataclasses.asdict(model_args),
                "training_arguments": args.to_sanitized_dict(),
                "starting_weights": start,
                "familiarity": trainer.model.config.familiarity,
            },
        )
        if trainer.is_world_process_zero():
            tracking.log_report(trainer, report, Path(args.output_dir) / "confusion_matrix.png")
        if over_windows:
            print_main(args, f"By windows of {args.test_window:g} s:\n{format_report(over_windows)}")
        print_main(args, f"{format_report(report)}\nReport, predictions and model: {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub()
    if args.should_save:
        mark_finished(args.output_dir)


def write_branch_predictions(
    trainer: SERTrainer, clips: datasets.Dataset, label_names: Sequence[str], dimensions: Sequence[str] = ()
) -> None:
    """Writes the predictions of the two classifiers of late fusion, `predictions_images.csv` and
    `predictions_speech.csv`."""
    head: Any = trainer.model.classifier
    share = head.share
    for name, alone in (("images", 0.0), ("speech", 1.0)):
        head.share = alone
        logits = trainer.predict(clips, metric_key_prefix=f"test_{name}").predictions
        if trainer.args.should_save:
            path = Path(trainer.args.output_dir) / f"predictions_{name}.csv"
            write_predictions(path, clips, logits, label_names, dimensions=[*dimensions])
    head.share = share


def trainer_for(
    corpus: Corpus,
    model: MaxMViTForAudioClassification,
    parts: dict[str, datasets.Dataset],
    feature_extractor: MaxMViTFeatureExtractor,
    data_args: DataArguments,
    args: SERTrainingArguments,
    **kwargs: Any,
) -> SERTrainer:
    """Returns the trainer for parts of a corpus, with balanced sampling, cached embeddings or streaming if chosen."""
    rows = parts["train"]
    if data_args.corpus_sampling == "balanced":
        rows = rearranged(rows, balanced_rows(rows["corpus"][:], args.seed))
    layer_statistics = None
    if data_args.cache_features and can_cache_embeddings(model.config, args):
        with first_process_first(args, "running the speech encoder"):
            tables = [corpus.clips, parts["train"]]
            layer_statistics = layer_statistics_of(tables, model, feature_extractor, data_args.cache_dir, args.device)
            if args.closed_form_classifier:
                fit_speech_classifier(model, parts["train"], layer_statistics)
    kind: Callable[..., SERTrainer] = SERTrainer
    if corpus.shards is not None:
        kind = partial(StreamingTrainer, shards=corpus.shards, shuffle_buffer_size=data_args.shuffle_buffer_size)
    return make_trainer(model, parts | {"train": rows}, feature_extractor, args, layer_statistics, kind, **kwargs)


def select_parts(
    corpus: Corpus,
    split: Split,
    feature_extractor: MaxMViTFeatureExtractor,
    data_args: DataArguments,
    args: SERTrainingArguments,
) -> dict[str, datasets.Dataset]:
    """
    Returns the clips of each part, with `--waveform_copies` and `--shuffle_training_labels` in the training part.

    Raises:
        DataError: No clip of the validation or test part has a label to score it by.
    """
    parts = {part: corpus.clips.select(indices) for part, indices in split.parts.items()}
    for part in ("validation", "test"):
        if len(parts[part]) and corpus.label_names and not with_one_label(parts[part]).any():
            raise DataError(
                f"No {part} clip has a majority label to score it by: choose another --fold or --protocol."
            )
    if corpus.dimensions:
        for part, clips in parts.items():
            known = (~np.isnan(dimensions_of(clips))).sum(0) if len(clips) else [2]
            if min(known) < 2:
                name = [*corpus.dimensions][int(np.argmin(known))]
                raise DataError(
                    f"The {part} part has fewer than two clips with a value of {name}: choose another --fold or "
                    "--protocol, or leave it out of --dimensions."
                )
    if args.waveform_copies:
        parts["train"] = with_copies(corpus, split.parts["train"], feature_extractor, data_args, args)
    if data_args.shuffle_training_labels:
        clips = parts["train"]
        order = np.random.default_rng(args.seed).permutation(len(clips))
        truth = {name: clips[name][:] for name in ("label", VOTES, DIMENSIONS) if name in clips.column_names}
        shuffled = {name: [values[row] for row in order] for name, values in truth.items()}
        parts["train"] = rearranged(clips, range(len(order)), **shuffled)
    return parts


def on_shared_classes(corpus: Corpus, clips: datasets.Dataset) -> tuple[SharedClasses, datasets.Dataset]:
    """Returns the classes that the training corpora share with a test corpus, and its clips with indices of these."""
    assert corpus.shared_labels is not None
    shared = shared_classes(corpus.shared_labels, {name: name for name in corpus.label_names})
    labels = [shared.names.index(corpus.label_names[label]) for label in clips["label"][:]]
    return shared, rearranged(clips, range(len(labels)), label=labels)


def score_windows(
    trainer: SERTrainer,
    clips: datasets.Dataset,
    corpus: Corpus,
    shared: SharedClasses | None,
    feature_extractor: MaxMViTFeatureExtractor,
    args: SERTrainingArguments,
) -> dict | None:
    """Scores the mean over the windows of each test clip, as in the pipeline; returns None without `--test_window`."""
    if args.test_window is None:
        return None
    hop_s = args.test_hop or args.test_window
    windows, owners = windows_of(clips, feature_extractor, args.test_window, hop_s)
    logits = trainer.predict(windows, metric_key_prefix="test_windows").predictions
    sure = with_one_label(clips)
    means = mean_over_windows(logits, owners, trainer.model.config.temperature)
    predictions = (means if shared is None else shared.of_probabilities(means)).argmax(-1)[sure]
    labels, speakers = (np.asarray(clips[name][:])[sure].tolist() for name in ("label", "speaker"))
    names = corpus.label_names if shared is None else shared.names
    return {
        "protocol": f"windows of {args.test_window:g} s every {hop_s:g} s",
        "n_windows": len(owners),
        **scores(labels, predictions, names, speakers, seed=args.seed),
    }


def report_all_folds(runs: dict[int, SERTrainingArguments], args: SERTrainingArguments) -> None:
    """Writes and prints mean, standard deviation and pooled scores over the folds."""
    if args.should_save:
        folders = [fold_args.output_dir for fold_args in runs.values()]
        check_folds(folders)
        summary = summarize_folds(args.output_dir, folders)
        for remark in summary["remarks"]:
            print_main(args, f"In every fold: {remark}")
        for name, mean in summary["mean"].items():
            pooled = {**summary["pooled"].get("dimensions", {}), **summary["pooled"]}[name]
            print_main(
                args, f"{name} ({summary['protocol']}): {mean:.3f} +- {summary['std'][name]:.3f}, pooled {pooled:.3f}"
            )


def print_main(args: SERTrainingArguments, text: str) -> None:
    if args.should_log:
        print(text, flush=True)
