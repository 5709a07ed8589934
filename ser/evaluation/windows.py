"""Predicts clips by the mean over windows, as the pipeline does for long recordings."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from datasets import Dataset

from audio_maxmvit import AudioError, decode_audio
from configuration_maxmvit import SHORTEST_S, MaxMViTConfig
from ser.data.augmentation import seconds_of
from ser.data.features import rearranged
from ser.evaluation.calibration import probabilities_of


def training_lengths(clips: Dataset, training_window: float | None, whole_clips: bool = False) -> dict[str, float]:
    """
    Returns the configuration's `max_clip_s` and `window_s`, which the pipeline uses for long recordings.

    Args:
        clips: The training part. If there is no column `seconds`, clips are decoded for their lengths.
        training_window (`float`, *optional*): Length in seconds of the windows in training, if any.
        whole_clips (`bool`, defaults to False): Whether a classifier was fitted on whole clips. It is much less
            accurate on shorter windows: on recordings of two clips each of unseen RAVDESS actors, UA is 0.67 with
            windows of 2 s, and 0.82 with windows of the median length of a clip.

    Returns:
        `max_clip_s`: the length of the longest untrimmed clip, rounded up to the millisecond; and `window_s`: with
        `whole_clips` the median length, otherwise `training_window` or the configuration's default; at most
        `max_clip_s`.

    Raises:
        AudioError: A clip cannot be decoded (the message names its `file`).
    """
    seconds = clips["seconds"][:] if "seconds" in clips.column_names else [*map(_duration, clips)]
    longest = max(SHORTEST_S, math.ceil(1000 * max(seconds) - 1e-6) / 1000)
    if whole_clips:
        training_window = max(SHORTEST_S, round(median(seconds), 3))
    return {"max_clip_s": longest, "window_s": min(training_window or MaxMViTConfig.window_s, longest)}


def _duration(clip: Mapping[str, Any]) -> float:
    try:
        pieces, rate = decode_audio(clip["audio"])
        return sum(map(len, pieces)) / rate
    except AudioError as error:
        raise AudioError(f"{clip['file']}: {error}") from error


def window_starts(seconds: float, window_s: float, hop_s: float) -> list[float]:
    """Returns the starts of a clip's windows: every `hop_s` seconds and, if an end remains, the last place at which a
    window fits. A clip no longer than a window has a single window, from 0."""
    spare = seconds - window_s
    if spare <= 0:
        return [0.0]
    starts = [i * hop_s for i in range(int(spare / hop_s) + 1)]
    return starts if spare - starts[-1] < 1e-6 else [*starts, spare]


def windows_of(features: Dataset, feature_extractor: Any, window_s: float, hop_s: float) -> tuple[Dataset, list[int]]:
    """
    Returns a table with a row for each window of clips from `extract_features`, with its `start` and `end`, for the
    collator; and the row of each window's clip. With `trim_db`, windows are those of the trimmed clip.

    Args:
        window_s (`float`): length in seconds; a shorter clip is a single window.
        hop_s (`float`): seconds from one window's start to the next.
    """
    owners, starts = [], []
    for row, versions in enumerate(features["spectrograms"]):
        clip = feature_extractor.trim(versions[0])
        places = window_starts(seconds_of(clip, feature_extractor), window_s, hop_s)
        owners += [row] * len(places)
        starts += places
    return rearranged(features, owners, start=starts, end=[start + window_s for start in starts]), owners


def mean_over_windows(logits: np.ndarray, owners: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """Returns the mean probabilities over each clip's windows, `(clips, classes)`, from logits `(windows, classes)`,
    as the pipeline does for a recording of several windows."""
    rows = np.asarray(owners)
    sums = np.zeros((rows[-1] + 1, logits.shape[1]))
    np.add.at(sums, rows, probabilities_of(logits, temperature))
    return sums / np.bincount(rows)[:, None]
