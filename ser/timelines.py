"""Emotions along a recording, drawn."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from pipeline_maxmvit import SILENCE

# Okabe and Ito's colours, told apart by colour-blind eyes too, then darker ones; silence is grey
COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#7f6000", "#4b2e83", "#a0a000", "#00504a",
)  # fmt: skip


SILENCE_COLOUR = "#cccccc"
TIME_TICKS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
MOST_COLUMNS = 120  # of a timeline's picture; an hour of single windows would be noise to the eye


def envelope(pieces: Iterable[np.ndarray], sampling_rate: int, step_s: float) -> np.ndarray:
    """Lowest and highest sample of every `step_s` seconds, `(n, 2)`, of a recording that comes in pieces."""
    step = max(1, round(step_s * sampling_rate))
    rows: list[np.ndarray] = []
    rest = np.zeros(0, np.float32)
    for piece in pieces:
        rest = np.concatenate([rest, piece])
        whole = len(rest) // step * step
        steps, rest = rest[:whole].reshape(-1, step), rest[whole:]
        rows.append(np.stack([steps.min(axis=1), steps.max(axis=1)], axis=1))
    if len(rest):
        rows.append(np.array([[rest.min(), rest.max()]]))
    return np.concatenate(rows)


def plot_timeline(rows: Sequence[dict[str, Any]], shape: np.ndarray, step_s: float, labels: Sequence[str]) -> Figure:
    """
    The waveform of a recording, coloured by the emotion heard, above the scores of every emotion along it.

    Args:
        rows: The pipeline's timeline. Of more than 120 windows, neighbours are drawn as their mean.
        shape: `envelope` of the recording.
        step_s: Seconds of each of its rows.
        labels: All labels of the model, in order; each keeps its colour.
    """
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(labels)} | {SILENCE: SILENCE_COLOUR}
    groups = np.array_split(np.arange(len(rows)), min(len(rows), MOST_COLUMNS))
    rows = [_mean_row([rows[index] for index in group], labels) for group in groups]
    centres = np.array([(row["start"] + row["end"]) / 2 for row in rows])
    edges = np.concatenate(
        [[0.0], (centres[:-1] + centres[1:]) / 2, [rows[-1]["end"]]]
    )  # a window speaks for its middle
    figure = Figure(figsize=(6, 4.2), layout="constrained", dpi=150)
    wave, stack = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))

    times = np.arange(len(shape)) * step_s
    at = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(rows) - 1)
    heard = np.array([row["label"] for row in rows])[at]
    for label in dict.fromkeys(heard):
        low, high = (np.where(heard == label, side, np.nan) for side in shape.T)
        wave.fill_between(times, low, high, color=colours[label], linewidth=0.8, step="post")
    loudest = max(1e-4, float(np.abs(shape).max()))
    wave.set(ylabel="waveform", ylim=(-1.05 * loudest, 1.05 * loudest), yticks=[])

    below = np.zeros(len(edges))
    for label in labels:
        scores = np.array([row["scores"].get(label, 0.0) for row in rows])
        above = below + np.append(scores, scores[-1])
        stack.fill_between(edges, below, above, step="post", color=colours[label], linewidth=0)
        below = above
    stack.set(ylabel="score", ylim=(0, 1), xlim=(0, edges[-1]), facecolor=SILENCE_COLOUR)
    stack.set_xlabel("hours : minutes : seconds" if edges[-1] >= 3600 else "minutes : seconds")
    fitting = (tick for tick in TIME_TICKS_S if edges[-1] / tick <= 8)
    stack.xaxis.set_major_locator(MultipleLocator(next(fitting, 3600 * (1 + edges[-1] // (8 * 3600)))))
    stack.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    shown = [*labels, *([SILENCE] if SILENCE in heard else [])]
    figure.legend(
        handles=[Patch(color=colours[label], label=label) for label in shown],
        loc="outside lower center",
        ncols=min(5, len(shown)),
        frameon=False,
    )
    return figure


def _mean_row(rows: list[dict[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    """One row for neighbouring ones: the mean scores of those that are not silent."""
    heard = [row["scores"] for row in rows if row["scores"]]
    scores = {label: sum(row[label] for row in heard) / len(heard) for label in labels} if heard else {}
    label = max(scores, key=scores.__getitem__) if heard else SILENCE
    return {"start": rows[0]["start"], "end": rows[-1]["end"], "label": label, "scores": scores}


def clock(seconds: float) -> str:
    """`m:ss`, from an hour on `h:mm:ss`; tenths where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    second = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{second}" if minutes >= 60 else f"{minutes}:{second}"
