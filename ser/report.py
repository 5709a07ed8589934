"""What came out of a run, in numbers and pictures, in its output directory.

`splits.json` is written before training; then `predictions.csv`, `confusion_matrix.png`, `training_curves.png`, the
model card `README.md` and, last, `metrics.json`: where that lies, the run is complete. Every file is whole or absent.
"""

import csv
import json
import math
import os
import platform
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ser.corpora import Corpus, DataError
from ser.metrics import SCORES, scores
from ser.protocols import Split

PACKAGES = ("torch", "transformers", "timm", "datasets", "accelerate", "librosa", "numpy", "scikit-learn")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_METRICS = {"UA": "recall", "WA": "accuracy", "macro_f1": "f1", "weighted_f1": "f1"}
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d1741f", "#3a8a3f", "#666666"


# --- one run ---


def write_report(
    output_dir: str | Path,
    corpus: Corpus,
    split: Split,
    parts: Mapping[str, datasets.Dataset],
    logits: np.ndarray,
    *,
    seed: int,
    duration: float,
    log_history: Sequence[Mapping] = (),
    left_out: Mapping[str, int] | None = None,
    model_id: str | None = None,
    extra: Mapping[str, object] | None = None,
) -> dict:
    """Writes everything that is known after the test, and returns what `metrics.json` holds.

    Args:
        parts: the clips that were really used, by part ("train", "validation", "test"), with the columns `file`,
            `label` and `speaker`.
        logits: `(clips of the test part, classes)`.
        seed: of the run; also of the bootstrap.
        duration: of the run, in seconds.
        log_history: `trainer.state.log_history`.
        left_out: reason -> clips left out after the corpus was read (such as undecodable ones).
        model_id: Hub id of the model, for its card.
        extra: more entries for `metrics.json` (such as the training arguments).
    """
    folder, test, names = Path(output_dir), parts["test"], corpus.label_names
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", test, logits, names)
    predictions, (_, speakers, labels) = np.asarray(logits).argmax(-1), _facts(test)
    report = {
        "protocol": split.name,
        "speaker_disjoint": split.speaker_disjoint,
        **scores(labels, predictions, names, speakers, seed=seed),
        "label_names": names,
        "corpus": {
            "name": corpus.name,
            "source": corpus.source,
            "revision": corpus.revision,
            "options": corpus.options,
            "rows_used": {part: len(clips) for part, clips in parts.items()},
            "rows_left_out": corpus.dropped | dict(left_out or {}),
        },
        "test_speakers": sorted({speaker for speaker in speakers if speaker is not None}),
        "seed": seed,
        "duration_seconds": round(duration, 1),
        "versions": versions(),
        **(extra or {}),
    }
    plot_confusion_matrix(folder / "confusion_matrix.png", report["confusion_matrix"], names, title(report))
    if log_history:
        plot_training_curves(folder / "training_curves.png", log_history, split.name)
    write_model_card(folder / "README.md", report, model_id or f"path/to/{folder.resolve().name}")
    write_json(folder / "metrics.json", report)
    return report


REPORT_FILES = ("metrics.json", "predictions.csv", "confusion_matrix.png", "training_curves.png", "README.md")


def splits_table(corpus: Corpus, split: Split, seed: int) -> dict:
    """What `splits.json` holds: protocol, classes, and the part, speaker and class of every clip."""
    files, speakers, labels = corpus.files, corpus.speakers, corpus.labels
    clips = [
        {"file": files[i], "part": part, "speaker": speakers[i], "label": corpus.label_names[labels[i]]}
        for part, indices in split.parts.items()
        for i in indices
    ]
    head = {"protocol": split.name, "speaker_disjoint": split.speaker_disjoint, "seed": seed}
    return head | {"label_names": corpus.label_names, "clips": clips}


def write_predictions(
    path: str | Path, clips: datasets.Dataset, logits: np.ndarray, label_names: Sequence[str]
) -> None:
    """`predictions.csv`: file, speaker, label, prediction and one column `p_<class>` with the class's probability.

    Args:
        clips: with the columns `file`, `speaker`, `label`.
        logits: `(clips, classes)`, in the same order.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape != (len(clips), len(label_names)):
        raise ValueError(f"{len(clips)} clips and {len(label_names)} classes do not fit logits of {logits.shape}.")
    if not np.isfinite(logits).all():
        raise ValueError(
            f"The logits of {_facts(clips)[0][int(np.argmin(np.isfinite(logits).all(1)))]} are not finite."
        )
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = weights / weights.sum(-1, keepdims=True)
    with whole(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "speaker", "label", "prediction", *(f"p_{name}" for name in label_names)])
        facts = zip(*_facts(clips), logits.argmax(-1), strict=True)
        for (name, speaker, label, prediction), row in zip(facts, probabilities, strict=True):
            table.writerow([name, speaker, label_names[label], label_names[prediction], *row.tolist()])


def _facts(clips: datasets.Dataset) -> tuple[list, list, list]:
    """Columns file, speaker, label, whatever format the table hands out."""
    columns = ["file", "speaker", "label"]
    table = clips.select_columns(columns).with_format(None)[:]
    return tuple(table[column] for column in columns)


def write_json(path: str | Path, content: object) -> None:
    """JSON that any parser reads: no NaN, numpy numbers as plain ones."""
    with whole(path) as unfinished:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
        unfinished.write_text(text + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A name to write under; renamed to `path` once all is written."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide over results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def title(report: Mapping) -> str:
    return f"{report['protocol']}\nUA {report['UA']:.3f}, WA {report['WA']:.3f}, {report['n_clips']:,} clips"


def describe(report: Mapping) -> str:
    """The scores with their intervals in words, a line each, the protocol in every name."""
    lines = []
    for name in SCORES:
        ranges = [
            f"{low:.3f} to {high:.3f} {unit.replace('_', ' ')}" for unit, (low, high) in _intervals(report, name)
        ]
        lines.append(f"{name} ({report['protocol']}): {report[name]:.3f} (95 %: {', '.join(ranges)})")
    return "\n".join(lines)


def _intervals(report: Mapping, name: str) -> list[tuple[str, list[float]]]:
    return [(unit, bounds[name]) for unit, bounds in report["intervals"].items()]


# --- all folds ---


def summarize_folds(output_dir: str | Path, folders: Sequence[str | Path]) -> dict:
    """Mean, standard deviation (n - 1) and pooled scores over the folds of a protocol.

    The mean of the folds' scores is what SUPERB and emotion2vec report. The pooled scores count every test clip of all
    folds once, which matters where a fold's test part lacks a class. Writes `predictions.csv` (with a column `fold`),
    `confusion_matrix.png` (pooled) and, last, `metrics.json` to `output_dir`, and returns what that holds.

    Args:
        folders: finished output directories, fold by fold.
    """
    folder, reports, rows = Path(output_dir), [], []
    for fold, path in enumerate(map(Path, folders), start=1):
        try:
            reports.append(json.loads((path / "metrics.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"Fold {fold} is not finished: {error.filename} does not exist.") from error
        with open(path / "predictions.csv", newline="", encoding="utf-8") as file:
            rows += [{"fold": fold, **row} for row in csv.DictReader(file)]
    protocols = [report["protocol"].rpartition("-fold")[0] for report in reports]
    names = reports[0]["label_names"]
    for path, protocol, report in zip(folders, protocols, reports, strict=True):
        first = reports[0]
        same = all(report["corpus"][key] == first["corpus"][key] for key in ("source", "revision", "options"))
        if not same or (protocol, report["label_names"], report["seed"]) != (protocols[0], names, first["seed"]):
            raise DataError(
                f"{path} and {folders[0]} differ in protocol, classes, seed or corpus: no folds of one run."
            )
    index = {name: i for i, name in enumerate(names)}
    truth, predicted = ([index[row[key]] for row in rows] for key in ("label", "prediction"))
    speakers = [row["speaker"] or None for row in rows]
    values = {name: [report[name] for report in reports] for name in SCORES}
    one = len(reports) == 1
    summary = {
        "protocol": f"{protocols[0]}-all",
        "speaker_disjoint": all(report["speaker_disjoint"] for report in reports),
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "std": {name: None if one else float(np.std(v, ddof=1)) for name, v in values.items()},
        "pooled": scores(truth, predicted, names, speakers, seed=reports[0]["seed"]),
        "folds": [{"protocol": r["protocol"], **{k: r[k] for k in ("n_clips", *SCORES)}} for r in reports],
        "label_names": names,
        **{key: reports[0][key] for key in ("corpus", "seed", "versions")},
        "duration_seconds": sum(report["duration_seconds"] for report in reports),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "predictions.csv") as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    pooled = summary["pooled"] | {"protocol": f"{summary['protocol']}, pooled"}
    plot_confusion_matrix(folder / "confusion_matrix.png", pooled["confusion_matrix"], names, title(pooled))
    write_json(folder / "metrics.json", summary)
    return summary


# --- pictures ---


def plot_confusion_matrix(
    path: str | Path, matrix: Sequence[Sequence[int]], label_names: Sequence[str], heading: str
) -> None:
    """Counts and, below them, their share of the true class (the row); the shade shows the share."""
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


def plot_training_curves(path: str | Path, log_history: Sequence[Mapping], heading: str) -> None:
    """Losses, validation UA and the learning rate of each branch, by epoch.

    Args:
        log_history: dicts with `epoch` and some of `loss`, `eval_loss`, `eval_UA`, `learning_rate`,
            `<branch>_learning_rate`, as `trainer.state.log_history` holds them.
    """
    figure = Figure(figsize=(8, 8.5), dpi=150, layout="constrained")
    losses, accuracy, rates = figure.subplots(3, 1, sharex=True)
    for key, label, colour in (("loss", "training", BLUE), ("eval_loss", "validation", ORANGE)):
        epochs, values = _series(log_history, key)
        if values:
            losses.plot(epochs, values, color=colour, label=label, marker=".")
    epochs, values = _series(log_history, "eval_UA")
    if values:
        best = int(np.argmax(values))
        label = f"best: {values[best]:.3f} after epoch {epochs[best]:g}"
        accuracy.plot(epochs, values, color=ORANGE, label="validation", marker=".")
        accuracy.plot(epochs[best], values[best], "o", color=ORANGE, markersize=9, label=label)
    found = dict.fromkeys(key for entry in log_history for key in entry if key.endswith("_learning_rate"))
    keys = list(found) or ["learning_rate"]
    styles = zip(keys, (BLUE, ORANGE, GREEN, GREY), (6.0, 3.5, 1.4, 1.0), ("-", "-", "--", ":"), strict=False)
    for key, colour, width, style in styles:  # equal rates lie on each other, so the lines differ in width
        epochs, values = _series(log_history, key)
        if values:
            label = key.removesuffix("learning_rate").rstrip("_") or "all parameters"
            look = {"color": colour, "linewidth": width, "linestyle": style, "marker": ".", "markersize": width + 1}
            rates.step(epochs, values, where="post", label=label, **look)
    if any(value > 0 for key in keys for value in _series(log_history, key)[1]):
        rates.set_yscale("log")
    losses.set(ylabel="loss")
    accuracy.set(ylabel="UA", ylim=(0, 1.02))
    rates.set(ylabel="learning rate", xlabel="epoch")
    rates.set_xlim(left=0)
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, accuracy, rates):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(loc="best")
    _save(figure, path, heading)


def _save(figure: Figure, path: str | Path, heading: str) -> None:
    width = int(10 * figure.get_figwidth())
    lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in heading.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=11)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    with whole(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _series(log_history: Sequence[Mapping], key: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the entries that have a finite `key`."""
    entries = [entry for entry in log_history if key in entry and math.isfinite(entry[key])]
    return [entry["epoch"] for entry in entries], [entry[key] for entry in entries]


# --- the model card ---


def write_model_card(path: str | Path, report: Mapping, model_id: str) -> None:
    """`README.md` of a checkpoint: metadata for the Hub, scores, how to use it, its limits.

    Args:
        report: what [`write_report`] returns.
        model_id: Hub id or path, as `from_pretrained` takes it.
    """
    corpus, protocol = report["corpus"], report["protocol"]
    candidates = (corpus["source"], corpus["options"].get("schema"))
    hub_id = next((c for c in candidates if c and HUB_ID.fullmatch(c) and not Path(c).exists()), None)
    results = [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech emotion recognition",
            dataset_type=hub_id or corpus["name"],
            dataset_name=f"{corpus['name']} ({protocol})",
            dataset_split="test",
            metric_type=HUB_METRICS[name],
            metric_name=f"{name} ({protocol})",
            metric_value=round(report[name], 4),
        )
        for name in ("UA", "WA", "macro_f1", "weighted_f1")
    ]
    metadata = ModelCardData(
        model_name=model_id.rpartition("/")[2],
        eval_results=results,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", "maxmvit"],
        datasets=[hub_id] if hub_id else None,
        metrics=["recall", "accuracy", "f1"],
    )
    rows = "\n".join(
        f"| {name} | {report[name]:.3f} | " + " | ".join(_range(report, unit, name) for unit in UNITS) + " |"
        for name in SCORES
    )
    classes = "\n".join(
        f"| {name} | {_score(c['recall'])} | {_score(c['precision'])} | {c['support']} |"
        for name, c in report["per_class"].items()
    )
    used, left_out = corpus["rows_used"], corpus["rows_left_out"]
    fields = {
        "metadata": metadata.to_yaml(),
        "model_id": model_id,
        "name": model_id.rpartition("/")[2],
        "protocol": protocol,
        "corpus": f"{hub_id or corpus['name']} (revision {corpus['revision']})",
        "choices": ", ".join(f"{name}: {value}" for name, value in corpus["options"].items() if value) or "none",
        "used": ", ".join(f"{n:,} {part}" for part, n in used.items()),
        "left_out": "; ".join(f"{reason}: {n:,}" for reason, n in left_out.items()) or "none",
        "speakers": SPEAKERS_APART if report["speaker_disjoint"] else SPEAKERS_SHARED,
        "labels": ", ".join(report["label_names"]),
        "rows": rows,
        "classes": classes,
        "seed": report["seed"],
        "n_test": f"{report['n_clips']:,}",
        "n_speakers": f" of {len(report['test_speakers'])} speakers" if report["test_speakers"] else "",
    }
    with whole(path) as unfinished:
        unfinished.write_text(CARD.format(**fields), encoding="utf-8")


UNITS = ("by_clip", "by_speaker")
SPEAKERS_APART = "No speaker of the test part was heard in training or validation."
SPEAKERS_SHARED = (
    "**Speakers are shared between training and test, or not known**: the scores say little about new voices, and "
    "must not be compared with speaker-independent ones."
)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(report: Mapping, unit: str, name: str) -> str:
    low, high = report["intervals"].get(unit, {}).get(name, (None, None))
    return "-" if low is None else f"{low:.3f} to {high:.3f}"


CARD = """---
{metadata}
---

# {name}

MaxMViT-MLP: recognises the emotion of a speech clip from two pictures of it, a constant-Q transform seen by MaxViT and
a mel spectrogram seen by MViTv2. Classes: {labels}.

## Use

```python
from transformers import pipeline

classify = pipeline("audio-classification", model="{model_id}", trust_remote_code=True)
print(classify("clip.wav"))
```

## Scores

Protocol **{protocol}**, test part: {n_test} clips{n_speakers}. {speakers}

| score | value | 95 % by clip | 95 % by speaker |
|---|---|---|---|
{rows}

UA is the mean of the class recalls, WA the accuracy. The intervals are bootstrap intervals, drawn by clip and by
speaker.

| class | recall | precision | clips |
|---|---|---|---|
{classes}

![confusion matrix](confusion_matrix.png)

## Training

- Corpus: {corpus}; choices: {choices}
- Clips: {used}
- Left out: {left_out}
- Seed: {seed}. The part of every clip is in `splits.json`; all settings and versions are in `metrics.json`.

## Limits

- It knows only the classes above and always answers one of them, also for noise, music or silence.
- It was trained and tested on the recordings of one corpus; other languages, microphones, noise and spontaneous speech
  lower the scores by an amount not measured here.
- It hears expression, not what somebody feels. Do not base decisions about people on it.
"""
