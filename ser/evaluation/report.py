"""Writes the report of a run, as numbers and plots, to its output directory.

`splits.json` is written before training. If there is a test set, the report has `predictions.csv` and, for classes,
`confusion_matrix.png` and `reliability.png`, for dimensions `dimensions.png`; if there is a validation set,
`validation_predictions.csv`; then `training_curves.png`, the model card `README.md` and, last, `metrics.json`, whose
presence means that the run is complete. Files are written atomically.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from scipy.special import softmax

from ser.data.corpora.corpus import VOTES, Corpus, agreed
from ser.data.corpora.dimensions import DIMENSIONS, dimensions_of
from ser.data.protocols import Split
from ser.evaluation.calibration import CALIBRATION_SCORES, calibration_scores, probabilities_of, risk_coverage
from ser.evaluation.dimensions import DIMENSION_SCORES, dimension_scores, format_dimensions
from ser.evaluation.metrics import SCORES, group_scores, scores
from ser.evaluation.model_card import write_model_card
from ser.evaluation.plots import plot_confusion_matrix, plot_dimensions, plot_reliability, plot_training_curves
from ser.evaluation.soft_labels import DISTRIBUTION_SCORES, distribution_scores
from ser.files import atomic_write, versions, write_json
from ser.utils import DataError

REMARKS = {
    "validation": "No validation set: the model is the last state of the full training schedule.",
    "test": "No test set: this model has no score of its own.",
}
"""Remarks on a run in which a part has no clips."""

GROUPS = ("corpus", "sex", "language")


def write_report(
    output_dir: str | Path,
    corpus: Corpus,
    split: Split,
    parts: Mapping[str, datasets.Dataset],
    logits: np.ndarray | None,
    *,
    validation_logits: np.ndarray | None = None,
    temperature: float = 1.0,
    quoted: Sequence[Mapping] = (),
    seed: int,
    duration: float,
    log_history: Sequence[Mapping] = (),
    remarks: Sequence[str] = (),
    model_id: str | None = None,
    card: bool = True,
    extra: Mapping[str, object] | None = None,
) -> dict:
    """Writes the report of a finished run, and returns the content of `metrics.json`.

    Args:
        parts: the clips that were used, by part ("train", "validation", "test"), with the columns `file`, `label` and
            `speaker`; if another corpus is tested, its labels are indices into `corpus.shared_labels`, like the
            columns of `logits`. The report has a remark for each empty part (see [`REMARKS`]).
        logits: `(clips of the test part, classes)`, with a column for each dimension of the corpus after the classes;
            None if nothing was tested, so that there are no scores.
        validation_logits: the same for the validation part, to write its predictions too, for a choice between runs,
            which must not depend on the test part.
        temperature: divisor of the logits for probabilities. If it is not 1, calibration scores at temperature 1 are
            reported, too.
        quoted: if nothing was tested, scores of other models with the same recipe (see [`quoted_scores`]).
        seed: random seed of the run and of the bootstrap.
        duration: duration of the run in seconds.
        log_history: `trainer.state.log_history`.
        remarks: further remarks on the run, which precede its scores.
        model_id: Hub id of the model, for its card.
        card: whether to write a model card, which only the folder of a model needs.
        extra: further entries of `metrics.json` (such as the training arguments).

    `metrics.json` and the model card may be published, so they contain the last part of absolute paths only.
    """
    folder, names = Path(output_dir), corpus.label_names
    folder.mkdir(parents=True, exist_ok=True)
    tested: dict[str, Any] = {}
    scored, dimensions = list(corpus.shared_labels or names), [*corpus.dimensions]
    if logits is not None:
        write_predictions(folder / "predictions.csv", parts["test"], logits, scored, temperature, dimensions)
        _, speakers, labels = _facts(parts["test"])
        known, own = np.asarray(labels) >= 0, np.asarray(logits)[:, : len(scored)]
        if scored and known.any():
            probabilities = probabilities_of(own, temperature)
            before = None if temperature == 1 else probabilities_of(own)
            predictions, votes = own.argmax(-1), _votes(parts["test"])
            tested = _scored(labels, predictions, probabilities, before, votes, scored, speakers, seed)
            tested["groups"] = _by_groups(_groups(parts["test"]), labels, predictions, votes, len(scored))
        if dimensions:
            truth, estimates = dimensions_of(parts["test"]), np.asarray(logits)[:, len(scored) :]
            own_scores = dimension_scores(truth, estimates, dimensions, speakers, seed=seed)
            tested[DIMENSIONS] = own_scores
            heading = dimensions_title(split.name, own_scores)
            plot_dimensions(folder / "dimensions.png", truth, estimates, own_scores["lines"], heading)
        tested["test_speakers"] = sorted({speaker for speaker in speakers if speaker is not None})
    if validation_logits is not None:
        path = folder / "validation_predictions.csv"
        write_predictions(path, parts["validation"], validation_logits, names, temperature, dimensions)
    report: dict[str, Any] = {
        "protocol": split.name,
        "speaker_disjoint": split.speaker_disjoint if tested else None,
        "remarks": [
            *remarks,
            *(remark for part, remark in REMARKS.items() if part in parts and not len(parts[part])),
            *_remarks_on_votes(tested),
        ],
        **(tested or {"quoted_scores": list(quoted)}),
        "label_names": names,
        **({"scales": corpus.dimensions} if dimensions else {}),
        "temperature": temperature,
        "corpus": {
            "name": corpus.name,
            "source": corpus.source,
            "revision": corpus.revision,
            "options": corpus.options,
            "rows_used": {part: len(clips) for part, clips in parts.items()},
            "rows_left_out": dict(corpus.dropped),
        },
        "seed": seed,
        "duration_seconds": round(duration, 1),
        "versions": versions(),
        **(extra or {}),
    }
    report = without_folders(report)
    if "UA" in tested:
        plot_confusion_matrix(folder / "confusion_matrix.png", report["confusion_matrix"], scored, title(report))
        plot_reliability(folder / "reliability.png", report["calibration"]["bins"], calibration_title(report))
    if log_history:
        plot_training_curves(folder / "training_curves.png", log_history, split.name)
    if card:
        write_model_card(folder / "README.md", report, model_id or f"path/to/{folder.resolve().name}")
    write_json(folder / "metrics.json", report)
    return report


def _by_groups(
    groups: Mapping[str, Sequence[str | None]],
    labels: Sequence[int],
    predictions: np.ndarray,
    votes: np.ndarray | None,
    num_labels: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the scores by corpus, by the speakers' sex and by language, for each of which there are at least two
    values. Clips without a class or whose votes tie do not count, as in all scores of single labels."""
    sure = np.asarray(labels) >= 0 if votes is None else agreed(votes)
    found = {}
    for kind, values in groups.items():
        own = [value if is_sure else None for value, is_sure in zip(values, sure, strict=True)]
        if len({*own} - {None}) > 1:
            found[kind] = group_scores(labels, predictions, num_labels, own)
    return found


def _groups(clips: datasets.Dataset) -> dict[str, list[str | None]]:
    """Returns the group of each clip, for every kind of group that is known."""
    table = clips.with_format(None)
    columns = {kind: table[kind][:] for kind in GROUPS if kind in table.column_names}
    return {kind: values for kind, values in columns.items() if any(values)}


def _scored(
    labels: Sequence[int],
    predictions: np.ndarray,
    probabilities: np.ndarray,
    before: np.ndarray | None,
    votes: np.ndarray | None,
    names: Sequence[str],
    speakers: Sequence[str | None],
    seed: int,
) -> dict[str, Any]:
    """Computes all scores of clips that have a class; if they have votes, scores of single labels leave out ties."""
    sure = np.asarray(labels) >= 0 if votes is None else agreed(votes)
    own = [speaker for speaker, is_sure in zip(speakers, sure, strict=True) if is_sure]
    truth, before = np.asarray(labels)[sure], None if before is None else before[sure]
    found = scores(truth, np.asarray(predictions)[sure], names, own, seed=seed)
    found |= _calibration(truth.tolist(), probabilities[sure], own, seed, before)
    if votes is not None:
        found["distributions"] = distribution_scores(votes, probabilities, speakers, seed=seed)
    return found


def _votes(clips: datasets.Dataset) -> np.ndarray | None:
    """Returns the votes `(clips, classes)` of clips that have any."""
    return np.asarray(clips.with_format(None)[VOTES][:]) if VOTES in clips.column_names else None


def _remarks_on_votes(tested: Mapping) -> list[str]:
    count = tested.get("distributions", {}).get("n_without_agreement", 0)
    return [f"The votes of {count:,} test clips tie: only {', '.join(DISTRIBUTION_SCORES)} count them."] * bool(count)


def _calibration(
    labels: Sequence[int],
    probabilities: np.ndarray,
    speakers: Sequence[str | None],
    seed: int,
    before: np.ndarray | None = None,
) -> dict:
    """Returns the calibration scores, also of probabilities `before` temperature scaling, and the risk-coverage
    curve."""
    calibration = calibration_scores(labels, probabilities, speakers, seed=seed)
    if before is not None:
        raw = calibration_scores(labels, before, speakers, seed=seed)
        calibration["before"] = {name: raw[name] for name in (*CALIBRATION_SCORES, "intervals")}
    return {"calibration": calibration, "selective": risk_coverage(labels, probabilities)}


def without_folders(value: Any) -> Any:
    """Replaces each absolute path in mappings and sequences by its last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    if isinstance(value, str | Path) and os.path.isabs(os.path.expanduser(value)):
        return Path(value).name
    return value


REPORT_FILES = (
    "metrics.json", "predictions.csv", "validation_predictions.csv", "confusion_matrix.png", "reliability.png",
    "training_curves.png", "README.md", "predictions_images.csv", "predictions_speech.csv", "dimensions.png",
)  # fmt: skip


def splits_table(corpus: Corpus, split: Split, seed: int) -> dict:
    """Returns the content of `splits.json`: protocol, classes, and the part, speaker, class and dimensions of every
    clip."""
    files, speakers, classes = corpus.files, corpus.speakers, corpus.classes
    clips: list[dict[str, Any]] = [
        {"file": files[i], "part": part, "speaker": speakers[i], "label": classes[i]}
        for part, indices in split.parts.items()
        for i in indices
    ]
    if corpus.dimensions:
        values = dimensions_of(corpus.clips)
        for clip, i in zip(clips, (i for indices in split.parts.values() for i in indices), strict=True):
            clip[DIMENSIONS] = [None if np.isnan(value) else float(value) for value in values[i]]
    head: dict[str, Any] = {"protocol": split.name, "speaker_disjoint": split.speaker_disjoint, "seed": seed}
    if "corpus" in corpus.clips.column_names:
        head["corpora"] = sorted({*corpus.clips["corpus"][:]})
    return head | {"label_names": corpus.label_names, "clips": clips}


def write_predictions(
    path: str | Path,
    clips: datasets.Dataset,
    logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float = 1.0,
    dimensions: Sequence[str] = (),
) -> None:
    """Writes `predictions.csv`: file, speaker, label and prediction; corpus, sex and language if known; for each class
    its probability, `p_<class>`, and votes if there are any, `v_<class>`; for each dimension `true_<dimension>` and
    `estimated_<dimension>`.

    Args:
        clips: with the columns `file`, `speaker`, `label`, and possibly `corpus`, `sex`, `language` and `votes`.
        logits: `(clips, classes + D)`, in the same order.
        temperature: divisor of the logits for probabilities.
        dimensions: names of the D dimensions.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape != (len(clips), len(label_names) + len(dimensions)):
        names = f"{len(label_names)} classes" + (f" and {len(dimensions)} dimensions" if dimensions else "")
        raise ValueError(f"Logits of {logits.shape} do not fit {len(clips)} clips and {names}.")
    if not np.isfinite(logits).all():
        raise ValueError(
            f"The logits of {_facts(clips)[0][int(np.argmin(np.isfinite(logits).all(1)))]} are not finite."
        )
    votes, groups = _votes(clips), _groups(clips)
    logits, estimates = logits[:, : len(label_names)], logits[:, len(label_names) :]
    columns = [*groups.values(), *(probabilities_of(logits, temperature).T.tolist() if label_names else [])]
    if votes is not None:
        columns += np.pad(votes, ((0, 0), (0, len(label_names) - votes.shape[1]))).T.tolist()
    kinds = ("p", "v") if votes is not None else ("p",)
    if dimensions:
        truth = [
            [None if np.isnan(value) else value for value in column] for column in dimensions_of(clips).T.tolist()
        ]
        columns += [*truth, *estimates.T.tolist()]
    with atomic_write(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        own = [f"{kind}_{name}" for kind in kinds for name in label_names]
        own += [f"{kind}_{name}" for kind in ("true", "estimated") for name in dimensions]
        head = ["label", "prediction"] if label_names else []
        table.writerow(["file", "speaker", *head, *groups, *own])
        predictions = logits.argmax(-1).tolist() if label_names else [-1] * len(clips)
        for name, speaker, label, prediction, row in zip(
            *_facts(clips), predictions, zip(*columns, strict=True), strict=True
        ):
            named = [label_names[each] if each >= 0 else None for each in (label, prediction)] if label_names else []
            table.writerow([name, speaker, *named, *row])


def _facts(clips: datasets.Dataset) -> tuple[list, list, list]:
    """Returns the columns file, speaker and label, whatever the format of the table."""
    columns = ["file", "speaker", "label"]
    table = clips.select_columns(columns).with_format(None)[:]
    return tuple(table[column] for column in columns)


def title(report: Mapping) -> str:
    return f"{report['protocol']}\nUA {report['UA']:.3f}, WA {report['WA']:.3f}, {report['n_clips']:,} clips"


def dimensions_title(protocol: str, tested: Mapping) -> str:
    values = ", ".join(f"{name} {tested[name]:.3f}" for name in DIMENSION_SCORES)
    return f"{protocol}\n{values} (means), {max(tested['n_clips'].values()):,} clips"


def calibration_title(report: Mapping) -> str:
    values = ", ".join(f"{name} {report['calibration'][name]:.3f}" for name in CALIBRATION_SCORES)
    return f"{report['protocol']}\n{values}, {report['n_clips']:,} clips"


def format_report(report: Mapping) -> str:
    """Formats the remarks on a run and its scores with their intervals, one line each, with the protocol in every
    name."""
    lines = [*report.get("remarks", ())]
    kinds = {"calibration": CALIBRATION_SCORES, "distributions": DISTRIBUTION_SCORES}
    groups: list[tuple[Mapping, Sequence[str]]] = [(report, SCORES)] if "UA" in report else []
    groups += [(report[kind], names) for kind, names in kinds.items() if kind in report]
    for values, names in groups:
        for name in names:
            ranges = [
                f"{low:.3f} to {high:.3f} {unit.replace('_', ' ')}" for unit, (low, high) in _intervals(values, name)
            ]
            lines.append(f"{name} ({report['protocol']}): {values[name]:.3f} (95 %: {', '.join(ranges)})")
    if DIMENSIONS in report:
        lines += format_dimensions(report[DIMENSIONS], report["protocol"])
    if before := report.get("calibration", {}).get("before"):
        now = report["calibration"]
        lines.append(
            f"Temperature {report['temperature']:.3f} ({report['protocol']}), before and after: "
            + ", ".join(f"{name} {before[name]:.3f} -> {now[name]:.3f}" for name in CALIBRATION_SCORES)
        )
    for name, group in report.get("groups", {}).get("corpus", {}).items():
        lines.append(f"UA on {name} ({report['protocol']}): {group['UA']:.3f}, {group['n_clips']:,} clips")
    for quote in report.get("quoted_scores", ()):
        for name in ("UA", "WA"):
            lines.append(
                f"{name} ({quote['protocol']}) of {quote['measured_on']}, not of this model: "
                f"{quote['mean'][name]:.3f} +- {quote['std'][name]:.3f}, pooled {quote['pooled'][name]:.3f}"
            )
    return "\n".join(lines)


def _intervals(report: Mapping, name: str) -> list[tuple[str, list[float]]]:
    return [(unit, bounds[name]) for unit, bounds in report["intervals"].items()]


def summarize_folds(output_dir: str | Path, folders: Sequence[str | Path]) -> dict:
    """Computes mean, standard deviation (n - 1) and pooled scores over the folds of a protocol.

    SUPERB and emotion2vec report the mean of the folds' scores. The pooled scores count each test clip of all folds
    once, which matters if the test part of a fold lacks a class. Writes `predictions.csv` (with a column `fold`),
    `confusion_matrix.png` and `reliability.png` (pooled) and, last, `metrics.json` to `output_dir`.

    Args:
        folders: output directories of the finished folds, in order.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: a fold is not finished, or folds differ in protocol, classes, seed or corpus.
    """
    folder = Path(output_dir)
    reports, rows = _read_folds(folders)
    names, seed = reports[0]["label_names"], reports[0]["seed"]
    pooled = _pooled_classes(reports, rows) if names and all("UA" in report for report in reports) else {}
    of_fold = [{name: report[name] for name in (*SCORES, "n_clips") if name in report} for report in reports]
    if DIMENSIONS in reports[0]:
        scales = reports[0]["scales"]
        truth, estimates = (
            np.array([[float(row[f"{kind}_{name}"] or "nan") for name in scales] for row in rows])
            for kind in ("true", "estimated")
        )
        speakers = [row["speaker"] or None for row in rows]
        pooled[DIMENSIONS] = dimension_scores(truth, estimates, [*scales], speakers, seed=seed)
        for own, report in zip(of_fold, reports, strict=True):
            own |= {name: each for name, each in report[DIMENSIONS].items() if isinstance(each, float)}
    values = {name: [own[name] for own in of_fold] for name in of_fold[0] if name != "n_clips"}
    one = len(reports) == 1
    summary = {
        "protocol": f"{_protocol_of_fold(reports[0])}-all",
        "speaker_disjoint": all(report["speaker_disjoint"] for report in reports),
        "remarks": [*dict.fromkeys(remark for report in reports for remark in report.get("remarks", ()))],
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "std": {name: None if one else float(np.std(v, ddof=1)) for name, v in values.items()},
        "pooled": pooled,
        "folds": [
            {"protocol": r["protocol"], "temperature": r.get("temperature", 1.0)} | own
            for r, own in zip(reports, of_fold, strict=True)
        ],
        "label_names": names,
        **{key: reports[0][key] for key in ("corpus", "seed", "versions")},
        "duration_seconds": sum(report["duration_seconds"] for report in reports),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(folder / "predictions.csv") as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        table.writeheader()
        table.writerows(rows)
    pooled = pooled | {"protocol": f"{summary['protocol']}, pooled"}
    if "UA" in pooled:
        plot_confusion_matrix(folder / "confusion_matrix.png", pooled["confusion_matrix"], names, title(pooled))
        plot_reliability(folder / "reliability.png", pooled["calibration"]["bins"], calibration_title(pooled))
    if DIMENSIONS in pooled:
        heading = dimensions_title(pooled["protocol"], pooled[DIMENSIONS])
        plot_dimensions(folder / "dimensions.png", truth, estimates, pooled[DIMENSIONS]["lines"], heading)
    write_json(folder / "metrics.json", summary)
    return summary


def _pooled_classes(reports: Sequence[Mapping], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the scores by class over the test clips of all folds."""
    names, seed = reports[0]["label_names"], reports[0]["seed"]
    index = {name: i for i, name in enumerate(names)}
    truth, predicted = ([index.get(row[key], -1) for row in rows] for key in ("label", "prediction"))
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    speakers = [row["speaker"] or None for row in rows]
    votes = (
        np.array([[float(row[f"v_{name}"]) for name in names] for row in rows]) if f"v_{names[0]}" in rows[0] else None
    )
    groups = {kind: [row.get(kind) or None for row in rows] for kind in GROUPS}
    temperatures = np.array([reports[row["fold"] - 1].get("temperature", 1.0) for row in rows])[:, None]
    with np.errstate(divide="ignore"):  # a probability of 0
        before = None if (temperatures == 1).all() else softmax(np.log(probabilities) * temperatures, axis=-1)
    pooled = _scored(truth, np.array(predicted), probabilities, before, votes, names, speakers, seed)
    return pooled | {"groups": _by_groups(groups, truth, np.array(predicted), votes, len(names))}


def _read_folds(folders: Sequence[str | Path]) -> tuple[list[dict], list[dict[str, Any]]]:
    """Reads the reports of all folds, and the rows of their predictions with a column `fold`."""
    reports: list[dict] = []
    rows: list[dict[str, Any]] = []
    for fold, path in enumerate(map(Path, folders), start=1):
        try:
            reports.append(json.loads((path / "metrics.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"Fold {fold} is not finished: {error.filename} does not exist.") from error
        with open(path / "predictions.csv", newline="", encoding="utf-8") as file:
            rows += [{"fold": fold, **row} for row in csv.DictReader(file)]
    first = _facts_of_run(reports[0])
    for folder, report in zip(folders, reports, strict=True):
        if _facts_of_run(report) != first:
            raise DataError(
                f"{folder} and {folders[0]} differ in protocol, classes, seed or corpus, so they are not folds of one "
                "run."
            )
    return reports, rows


def _facts_of_run(report: Mapping) -> list[Any]:
    """Returns what all folds of a run have in common."""
    corpus = [report["corpus"][key] for key in ("source", "revision", "options")]
    return [_protocol_of_fold(report), report["label_names"], report["seed"], *corpus]


def _protocol_of_fold(report: Mapping) -> str:
    return report["protocol"].rpartition("-fold")[0]
