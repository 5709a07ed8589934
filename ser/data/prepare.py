"""Reads the clips that the options of a command choose, and computes their spectrograms."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
from transformers import TrainingArguments
from transformers.utils import logging

from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.arguments import (
    ClipArguments,
    CorpusArguments,
    DataArguments,
    SeveralCorporaArguments,
    TargetArguments,
    values_of,
)
from ser.data.corpora.combine import load_corpora
from ser.data.corpora.corpus import UNREADABLE, Corpus
from ser.data.corpora.streamed import Shards
from ser.data.features import extract_features, read_clip
from ser.distributed import first_process_first
from ser.utils import DataError


def set_up_logging(args: TrainingArguments) -> None:
    """Sets the level of `--log_level`, and disables progress bars in all processes except one."""
    level = args.get_process_log_level()
    logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(max(level, logging.WARNING))
    logging.enable_explicit_format()
    if not args.should_log:
        datasets.disable_progress_bars()


def read_corpus(
    data_args: ClipArguments, args: TrainingArguments, model_classes: Sequence[str] = (), **target: Any
) -> Corpus:
    """Reads the corpora that the options choose.

    Args:
        model_classes: classes of a model to be tested on the corpora, which a label map may contain.
        target: `target` and `dimensions` of such a model; in training, they are options.
    """
    others: dict[str, Any] = {"model_classes": model_classes, **target}
    if isinstance(data_args, DataArguments):
        others |= values_of(SeveralCorporaArguments, data_args) | values_of(TargetArguments, data_args)
        others.pop("corpus_sampling")
        others["streaming"] = data_args.streaming
    with first_process_first(args, "reading the corpus"):
        return load_corpora(**values_of(CorpusArguments, data_args), **others)


def with_features(
    corpus: Corpus, feature_extractor: MaxMViTFeatureExtractor, data_args: ClipArguments, args: TrainingArguments
) -> Corpus:
    """Returns the corpus with spectrograms instead of audio; `--on_bad_audio skip` leaves out unreadable clips."""
    if corpus.shards is not None:
        refuse_unreadable(corpus.clips, corpus.shards, feature_extractor)
    if not data_args.cache_features:
        if data_args.on_bad_audio == "skip":
            raise DataError("--on_bad_audio skip needs --cache_features, which reads every clip beforehand.")
        for name in ("test_window", "waveform_copies"):
            if getattr(args, name):
                raise DataError(f"--{name} needs --cache_features, since it works on cached spectrograms.")
        return corpus
    clips = extracted(corpus.clips, feature_extractor, data_args, args)
    readable = set(clips["file"])
    unreadable = len(corpus) - len(clips)
    dropped = {**corpus.dropped, **({"cannot be decoded": unreadable} if unreadable else {})}
    rows = [row for row, file in enumerate(corpus.files) if file in readable]
    return dataclasses.replace(corpus, clips=clips, recordings=corpus.clips.select(rows), dropped=dropped)


def extracted(
    clips: datasets.Dataset,
    feature_extractor: MaxMViTFeatureExtractor,
    data_args: ClipArguments,
    args: TrainingArguments,
    **kwargs: Any,
) -> datasets.Dataset:
    """Returns clips with their spectrograms, from [`extract_features`] with the options about features."""
    return extract_features(
        clips,
        feature_extractor,
        num_workers=data_args.preprocessing_num_workers,
        cache_dir=data_args.cache_dir,
        cache_gib=data_args.feature_cache_gib,
        on_bad_audio=data_args.on_bad_audio,
        args=args,
        **kwargs,
    )


def refuse_unreadable(clips: datasets.Dataset, shards: Shards, feature_extractor: Any) -> None:
    """
    Checks that all clips of a table are readable.

    Raises:
        AudioError: a clip could not be decoded when the table was made; the message names it and the reason.
    """
    for row, content in enumerate(clips["content"][:]):
        if content.startswith(UNREADABLE):
            clip = clips[row]
            read_clip(clip | {"audio": next(shards.read([clip["place"]]))}, feature_extractor)
