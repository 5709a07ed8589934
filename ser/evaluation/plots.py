"""Plots the results of a run, the model's images, and the emotions along a recording."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from pipeline_maxmvit import SILENCE
from ser.files import atomic_write

# ---- Runs and images ----

BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d1741f", "#3a8a3f", "#666666"
CQT_TICKS_HZ = (65, 131, 262, 523, 1047, 2093)
MAX_POINTS = 2_000  # of a scatter plot; if there are more, their density is shown
MEL_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000)


def plot_confusion_matrix(
    path: str | Path, matrix: Sequence[Sequence[int]], label_names: Sequence[str], heading: str
) -> None:
    """Plots counts and, below them, their share of the true class (the row), which is also the shade."""
    counts = np.asarray(matrix)
    support = counts.sum(1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    names = [textwrap.fill(name, 16, break_long_words=False) for name in label_names]
    side = 1.6 + 0.75 * max(len(names), 4)
    figure = Figure(figsize=(side + 0.9, side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [f"{name}\n(n = {int(n):,})" for name, n in zip(names, support[:, 0], strict=True)])
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in np.ndindex(*counts.shape):
        text = f"{counts[row, column]:,}\n" + (f"{100 * shares[row, column]:.0f} %" if support[row, 0] else "-")
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    _save(figure, path, heading)


def plot_reliability(path: str | Path, bins: Sequence[Mapping[str, float]], heading: str) -> None:
    """Plots accuracy by confidence with the diagonal of perfect calibration and, below it, the number of clips.

    Args:
        bins: From [`calibration_scores`].
    """
    figure = Figure(figsize=(5.6, 6.6), dpi=150, layout="constrained")
    shares, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left = [each["above"] for each in bins]
    widths = [each["up_to"] - each["above"] for each in bins]
    confidence, accuracy = ([each[name] for each in bins] for name in ("confidence", "accuracy"))
    shares.bar(left, accuracy, widths, align="edge", color=BLUE, alpha=0.35, edgecolor=BLUE, label="accuracy")
    shares.vlines(confidence, accuracy, confidence, color=ORANGE, linewidth=1.5, label="gap")
    shares.plot(confidence, accuracy, "o", color=ORANGE, markersize=4)
    shares.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
    shares.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    shares.legend(loc="upper left")
    counts.bar(left, [each["n_clips"] for each in bins], widths, align="edge", color=GREY)
    counts.set(xlabel="predicted probability", ylabel="clips")
    counts.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (shares, counts):
        axes.grid(alpha=0.3)
    _save(figure, path, heading)


def plot_dimensions(
    path: str | Path, truth: np.ndarray, estimates: np.ndarray, lines: Mapping[str, Sequence[float]], heading: str
) -> None:
    """Plots, for each dimension, ratings by estimates with the diagonal and the least-squares line and, below them,
    the density of both.

    Args:
        truth: `(clips, D)`, NaN if unknown.
        estimates: `(clips, D)`.
        lines: slope and intercept of the line of each dimension.
    """
    figure = Figure(figsize=(1.2 + 3.6 * len(lines), 5.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(lines), sharex="col", height_ratios=(3, 1), squeeze=False)
    for place, (name, (slope, intercept)) in enumerate(lines.items()):
        known = ~np.isnan(truth[:, place])
        y, x = truth[known, place], estimates[known, place]
        ends = np.array([min(0.0, x.min()), max(1.0, x.max())])
        points, density = panels[:, place]
        if known.sum() > MAX_POINTS:
            points.hexbin(x, y, gridsize=40, bins="log", cmap="Blues", mincnt=1)
        else:
            points.plot(x, y, ".", color=BLUE, markersize=4, alpha=0.5)
        points.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
        points.plot(ends, slope * ends + intercept, color=ORANGE, label=f"least squares: slope {slope:.2f}")
        points.set(title=name, ylabel="rating" if place == 0 else None)
        points.legend(loc="upper left", fontsize=8)
        bins = np.linspace(ends[0], ends[1], 41).tolist()
        for values, label, colour in ((y, "rating", GREY), (x, "estimate", BLUE)):
            density.hist(values, bins=bins, density=True, histtype="step", color=colour, label=label)
        density.set(xlabel="estimate", ylabel="density" if place == 0 else None)
        density.legend(loc="best", fontsize=8)
        for axes in (points, density):
            axes.grid(alpha=0.3)
    _save(figure, path, heading)


def plot_training_curves(path: str | Path, log_history: Sequence[Mapping], heading: str) -> None:
    """Plots the losses, the validation UA, or CCC of dimensions (if there is a validation set), and the branches'
    learning rates by epoch.

    Args:
        log_history: dicts with `epoch` and some of `loss`, `eval_loss`, `eval_UA`, `eval_CCC`, `learning_rate`,
            `<branch>_learning_rate`, as in `trainer.state.log_history`.
    """
    score = "CCC" if _series(log_history, "eval_CCC")[1] else "UA"
    evaluated, accuracies = _series(log_history, f"eval_{score}")
    figure = Figure(figsize=(8, 8.5 if accuracies else 5.7), dpi=150, layout="constrained")
    panels = figure.subplots(3 if accuracies else 2, 1, sharex=True)
    losses, rates = panels[0], panels[-1]
    for key, label, colour in (("loss", "training", BLUE), ("eval_loss", "validation", ORANGE)):
        epochs, values = _series(log_history, key)
        if values:
            losses.plot(epochs, values, color=colour, label=label, marker=".")
    if accuracies:
        best = int(np.argmax(accuracies))
        label = f"best: {accuracies[best]:.3f} after epoch {evaluated[best]:g}"
        panels[1].plot(evaluated, accuracies, color=ORANGE, label="validation", marker=".")
        panels[1].plot(evaluated[best], accuracies[best], "o", color=ORANGE, markersize=9, label=label)
        panels[1].set(ylabel=score, ylim=(min(0, *accuracies), 1.02))
    found = dict.fromkeys(key for entry in log_history for key in entry if key.endswith("_learning_rate"))
    keys = list(found) or ["learning_rate"]
    styles = zip(keys, (BLUE, ORANGE, GREEN, GREY), (6.0, 3.5, 1.4, 1.0), ("-", "-", "--", ":"), strict=False)
    for key, colour, width, style in styles:  # lines of equal rates coincide, so they differ in width
        epochs, values = _series(log_history, key)
        if values:
            label = key.removesuffix("learning_rate").rstrip("_") or "all parameters"
            line = {"color": colour, "linewidth": width, "linestyle": style, "marker": ".", "markersize": width + 1}
            rates.step(epochs, values, where="post", label=label, **line)
    if any(value > 0 for key in keys for value in _series(log_history, key)[1]):
        rates.set_yscale("log")
    losses.set(ylabel="loss")
    rates.set(ylabel="learning rate", xlabel="epoch")
    rates.set_xlim(left=0)
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(loc="best")
    _save(figure, path, heading)


def plot_spectrograms(
    feature_extractor: MaxMViTFeatureExtractor, waveform: np.ndarray, start: float = 0.0
) -> tuple[Figure, Figure]:
    """
    Plots the CQT image and the Mel image of a clip as the model receives them, with axes in seconds and Hz.

    Args:
        feature_extractor: Computes the images.
        waveform: `(T,)` at the extractor's sampling rate.
        start: Position of the clip in its recording, in seconds.
    """
    spectrograms = feature_extractor.spectrograms(waveform)
    images = feature_extractor.images(spectrograms)
    first, last = feature_extractor.speech_bounds(spectrograms[0])
    start, end = start + first, start + min(last, len(waveform) / feature_extractor.sampling_rate)
    figures = []
    for name, ticks in frequency_ticks(feature_extractor).items():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        image = images[f"{name.lower()}_values"][0, 0].numpy()
        drawn = axes.imshow(
            image, origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1, extent=(start, end, 0, 1)
        )
        axes.set_yticks(list(ticks.values()), [f"{hertz:,}" for hertz in ticks])
        axes.set(title=f"{name} spectrogram", xlabel="seconds", ylabel="Hz")
        figure.colorbar(drawn, ax=axes, ticks=(0, 0.5, 1), label="level (0 to 1)", pad=0.02)
        figures.append(figure)
    return figures[0], figures[1]


def frequency_ticks(feature_extractor: MaxMViTFeatureExtractor) -> dict[str, dict[int, float]]:
    """Returns the heights of some frequencies in Hz in the images `"CQT"` and `"Mel"`, as shares of the whole."""
    bins = {
        "CQT": librosa.cqt_frequencies(
            feature_extractor.cqt_n_bins,
            fmin=feature_extractor.cqt_fmin,
            bins_per_octave=feature_extractor.cqt_bins_per_octave,
        ),
        "Mel": librosa.mel_frequencies(
            feature_extractor.n_mels + 2, fmax=feature_extractor.sampling_rate / 2
        )[1:-1],
    }  # fmt: skip
    ticks = {}
    for name, wanted in (("CQT", CQT_TICKS_HZ), ("Mel", MEL_TICKS_HZ)):
        hertz = [tick for tick in wanted if bins[name][0] <= tick <= bins[name][-1]]
        heights = np.interp(hertz, bins[name], np.arange(len(bins[name])) + 0.5) / len(bins[name])
        ticks[name] = dict(zip(hertz, heights.tolist(), strict=True))
    return ticks


def _save(figure: Figure, path: str | Path, heading: str) -> None:
    width = int(10 * figure.get_figwidth())
    lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in heading.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=11)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    with atomic_write(path) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)  # `savefig` would lay out and draw the figure twice


def _series(log_history: Sequence[Mapping], key: str) -> tuple[list[float], list[float]]:
    """Returns (epochs, values) of the entries with a finite `key`."""
    entries = [entry for entry in log_history if key in entry and math.isfinite(entry[key])]
    return [entry["epoch"] for entry in entries], [entry[key] for entry in entries]


# ---- Emotions along a recording ----

# Okabe and Ito's colours, which colour-blind people can distinguish, then darker ones. Silence is grey.
COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#7f6000", "#4b2e83", "#a0a000", "#00504a",
)  # fmt: skip
SILENCE_COLOUR = "#cccccc"
TIME_TICKS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
MAX_COLUMNS = 120  # in the plot of a timeline; the single windows of an hour could not be distinguished


def envelope(pieces: Iterable[np.ndarray], sampling_rate: int, step_s: float) -> np.ndarray:
    """Returns the lowest and highest sample of every `step_s` seconds, `(n, 2)`, of a recording in pieces."""
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


def plot_timeline(
    rows: Sequence[dict[str, Any]],
    shape: np.ndarray,
    step_s: float,
    labels: Sequence[str],
    dimensions: Sequence[str] = (),
) -> Figure:
    """
    Plots the waveform of a recording, coloured by the predicted emotion, above the scores of every emotion, or above
    lines of the dimensions if the model has no classes.

    Args:
        rows: The pipeline's timeline. If there are more than 120 windows, neighbours are averaged.
        shape: `envelope` of the recording.
        step_s: Seconds of each of its rows.
        labels: All classes of the model, in order, which determines their colours.
        dimensions: Its dimensions, if it has no classes.
    """
    lines = list(dimensions) if not labels else []
    names = [*labels, *lines]
    colours: dict[str | None, str] = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    colours |= {SILENCE: SILENCE_COLOUR, None: GREY}
    groups = np.array_split(np.arange(len(rows)), min(len(rows), MAX_COLUMNS))
    rows = [_mean_row([rows[index] for index in group], labels, lines) for group in groups]
    centres = np.array([(row["start"] + row["end"]) / 2 for row in rows])
    edges = np.concatenate([[0.0], (centres[:-1] + centres[1:]) / 2, [rows[-1]["end"]]])
    figure = Figure(figsize=(6, 4.2), layout="constrained", dpi=150)
    wave, stack = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))

    times = np.arange(len(shape)) * step_s
    at = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(rows) - 1)
    label_at = np.array([row["label"] for row in rows], dtype=object)[at]
    for label in dict.fromkeys(label_at):
        low, high = (np.where(label_at == label, side, np.nan) for side in shape.T)
        wave.fill_between(times, low, high, color=colours[label], linewidth=0.8, step="post")
    loudest = max(1e-4, float(np.abs(shape).max()))
    wave.set(ylabel="waveform", ylim=(-1.05 * loudest, 1.05 * loudest), yticks=[])

    below = np.zeros(len(edges))
    for label in labels:
        scores = np.array([row["scores"].get(label, 0.0) for row in rows])
        above = below + np.append(scores, scores[-1])
        stack.fill_between(edges, below, above, step="post", color=colours[label], linewidth=0)
        below = above
    for name in lines:
        values = np.array([row["scores"].get(name, np.nan) for row in rows])
        stack.step(edges, np.append(values, values[-1]), where="post", color=colours[name])
    stack.set(
        ylabel="estimate" if lines else "score",
        ylim=(0, 1),
        xlim=(0, edges[-1]),
        facecolor="white" if lines else SILENCE_COLOUR,
    )
    stack.set_xlabel("hours : minutes : seconds" if edges[-1] >= 3600 else "minutes : seconds")
    fitting = (tick for tick in TIME_TICKS_S if edges[-1] / tick <= 8)
    stack.xaxis.set_major_locator(MultipleLocator(next(fitting, 3600 * (1 + edges[-1] // (8 * 3600)))))
    stack.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    shown = [*names, *([SILENCE] if SILENCE in label_at else [])]
    figure.legend(
        handles=[Patch(color=colours[label], label=label) for label in shown],
        loc="outside lower center",
        ncols=min(5, len(shown)),
        frameon=False,
    )
    return figure


def _mean_row(rows: list[dict[str, Any]], labels: Sequence[str], lines: Sequence[str] = ()) -> dict[str, Any]:
    """Merges neighbouring rows into one with the mean scores of those that are not silent."""
    scored = [row["scores"] for row in rows if row["scores"]]
    names = [*labels, *lines]
    scores = {name: sum(row[name] for row in scored) / len(scored) for name in names} if scored else {}
    label = max(labels, key=scores.__getitem__, default=None) if scored else SILENCE
    return {"start": rows[0]["start"], "end": rows[-1]["end"], "label": label, "scores": scores}


def clock(seconds: float) -> str:
    """Formats seconds as `m:ss`, or `h:mm:ss` from an hour on, with tenths if there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    second = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{second}" if minutes >= 60 else f"{minutes}:{second}"
