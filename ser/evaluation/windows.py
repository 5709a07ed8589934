"""Clips answered window by window, as the pipeline answers a long recording."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from audio_maxmvit import AudioError, decode_audio
from configuration_maxmvit import SHORTEST_S, MaxMViTConfig
from ser.data.augmentation import seconds_of
from ser.data.features import rearranged
from ser.evaluation.calibration import probabilities_of


def training_lengths(clips: Dataset, training_window: float | None) -> dict[str, float]:
    """
    The configuration's `max_clip_s` and `window_s`, by which the pipeline answers long recordings.

    Args:
        clips: The training part. Clips without a column `seconds` are decoded for their lengths.
        training_window (`float`, *optional*): Length in seconds of the windows that were trained on, if any.

    Returns:
        `max_clip_s`, the length of the longest clip as it was recorded, rounded up to the millisecond; and `window_s`,
        `training_window` or the configuration's default, at most `max_clip_s`.

    Raises:
        AudioError: A clip cannot be decoded (its `file` is in the message).
    """
    seconds = clips["seconds"][:] if "seconds" in clips.column_names else map(_duration, clips)
    longest = max(SHORTEST_S, math.ceil(1000 * max(seconds) - 1e-6) / 1000)
    return {"max_clip_s": longest, "window_s": min(training_window or MaxMViTConfig.window_s, longest)}


def _duration(clip: Mapping[str, Any]) -> float:
    try:
        pieces, rate = decode_audio(clip["audio"])
        return sum(map(len, pieces)) / rate
    except AudioError as error:
        raise AudioError(f"{clip['file']}: {error}") from error


def window_starts(seconds: float, window_s: float, hop_s: float) -> list[float]:
    """Where the windows of a clip begin: every `hop_s` seconds and, where that leaves an end over, at the last place
    that a window fits. A clip no longer than a window has one, from 0."""
    spare = seconds - window_s
    if spare <= 0:
        return [0.0]
    starts = [i * hop_s for i in range(int(spare / hop_s) + 1)]
    return starts if spare - starts[-1] < 1e-6 else [*starts, spare]


def windows_of(features: Dataset, feature_extractor: Any, window_s: float, hop_s: float) -> tuple[Dataset, list[int]]:
    """
    All windows of the clips of a table of `extract_features`: a row each with its `start` and `end`, for the
    collator; and the row of the clip that each is of. With `trim_db`, they are windows of the trimmed clip.

    Args:
        window_s (`float`): length in seconds; shorter clips are one window, the whole of them.
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
    """`(clips, classes)`: the mean probabilities over each clip's windows, `(windows, classes)` logits over a
    temperature, which is how the pipeline answers a recording of several windows."""
    rows = np.asarray(owners)
    sums = np.zeros((rows[-1] + 1, logits.shape[1]))
    np.add.at(sums, rows, probabilities_of(logits, temperature))
    return sums / np.bincount(rows)[:, None]
