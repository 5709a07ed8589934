"""What came out of a run, in numbers and pictures, in its output directory.

`splits.json` is written before training; then `predictions.csv`, `confusion_matrix.png` and `reliability.png` where
somebody was tested, `validation_predictions.csv` where somebody validated, `training_curves.png`, the model card
`README.md` and, last, `metrics.json`: where that lies, the run is complete. Every file is whole or absent.
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

from ser.data.corpora.table import VOTES, Corpus, agreed
from ser.data.protocols import Split
from ser.evaluation.calibration import CALIBRATION_SCORES, calibration_scores, probabilities_of, risk_coverage
from ser.evaluation.metrics import SCORES, group_scores, scores
from ser.evaluation.model_card import write_model_card
from ser.evaluation.plots import plot_confusion_matrix, plot_reliability, plot_training_curves
from ser.evaluation.soft_labels import DISTRIBUTION_SCORES, distribution_scores
from ser.files import versions, whole, write_json
from ser.utils import DataError

REMARKS = {
    "validation": "Nobody validated: the whole schedule was trained, and its last state is the model.",
    "test": "Nobody was tested: this model has no score of its own.",
}
"""What is said of a run in which a part has no clips."""

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
    """Writes everything that is known at the end of a run, and returns what `metrics.json` holds.

    Args:
        parts: the clips that were really used, by part ("train", "validation", "test"), with the columns `file`,
            `label` and `speaker`; where the test part is of another corpus, its labels are indices into
            `corpus.shared_labels`, as the columns of `logits` are. Of an empty one the report says that it was (see
            [`REMARKS`]).
        logits: `(clips of the test part, classes)`; None where nobody was tested, so that there are no scores.
        validation_logits: `(clips of the validation part, classes)`; given, they are kept likewise, for those who
            choose between runs, which the test part must not do.
        temperature: what logits are divided by to make probabilities of them. Where it is not 1, what the scores of
            calibration were before is reported too.
        quoted: where nobody was tested, scores of other models by the same recipe (see [`quoted_scores`]).
        seed: of the run; also of the bootstrap.
        duration: of the run, in seconds.
        log_history: `trainer.state.log_history`.
        remarks: what else there is to say of the run, before its scores.
        model_id: Hub id of the model, for its card.
        card: whether the folder is the model's own, and gets its card.
        extra: more entries for `metrics.json` (such as the training arguments).

    `metrics.json` and the model card leave the machine: absolute paths are written there without their folders.
    """
    folder, names = Path(output_dir), corpus.label_names
    folder.mkdir(parents=True, exist_ok=True)
    tested: dict[str, Any] = {}
    scored = list(corpus.shared_labels or names)
    if logits is not None:
        write_predictions(folder / "predictions.csv", parts["test"], logits, scored, temperature)
        _, speakers, labels = _facts(parts["test"])
        probabilities = probabilities_of(logits, temperature)
        before = None if temperature == 1 else probabilities_of(logits)
        predictions, votes = np.asarray(logits).argmax(-1), _votes(parts["test"])
        tested = _scored(labels, predictions, probabilities, before, votes, scored, speakers, seed)
        tested["groups"] = _by_groups(_groups(parts["test"]), labels, predictions, votes, len(scored))
        tested["test_speakers"] = sorted({speaker for speaker in speakers if speaker is not None})
    if validation_logits is not None:
        path = folder / "validation_predictions.csv"
        write_predictions(path, parts["validation"], validation_logits, names, temperature)
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
    if tested:
        plot_confusion_matrix(folder / "confusion_matrix.png", report["confusion_matrix"], scored, title(report))
        plot_reliability(folder / "reliability.png", report["calibration"]["bins"], title_of_trust(report))
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
    """Scores by corpus, by the speakers' sex and by language, where the clips are of two at least. As in all scores of
    one label, clips whose votes tie do not count."""
    sure = np.full(len(labels), True) if votes is None else agreed(votes)
    found = {}
    for kind, values in groups.items():
        own = [value if is_sure else None for value, is_sure in zip(values, sure, strict=True)]
        if len({*own} - {None}) > 1:
            found[kind] = group_scores(labels, predictions, num_labels, own)
    return found


def _groups(clips: datasets.Dataset) -> dict[str, list[str | None]]:
    """Of each kind of group that something is known of, that of each clip."""
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
    """All scores of some clips; where they have votes, those of one label are of the clips that have one."""
    sure = np.full(len(labels), True) if votes is None else agreed(votes)
    own = [speaker for speaker, is_sure in zip(speakers, sure, strict=True) if is_sure]
    truth, before = np.asarray(labels)[sure], None if before is None else before[sure]
    found = scores(truth, np.asarray(predictions)[sure], names, own, seed=seed)
    found |= _trust(truth, probabilities[sure], own, seed, before)
    if votes is not None:
        found["distributions"] = distribution_scores(votes, probabilities, speakers, seed=seed)
    return found


def _votes(clips: datasets.Dataset) -> np.ndarray | None:
    """`(clips, classes)`, of clips that have any."""
    return np.asarray(clips.with_format(None)[VOTES][:]) if VOTES in clips.column_names else None


def _remarks_on_votes(tested: Mapping) -> list[str]:
    count = tested.get("distributions", {}).get("n_without_agreement", 0)
    return [f"Of {count:,} test clips the votes tie: only {', '.join(DISTRIBUTION_SCORES)} count them."] * bool(count)


def _trust(
    labels: Sequence[int],
    probabilities: np.ndarray,
    speakers: Sequence[str | None],
    seed: int,
    before: np.ndarray | None = None,
) -> dict:
    """What is reported of the probabilities themselves: calibration, also of those `before` a temperature was fitted,
    and what the surer answers alone would score."""
    calibration = calibration_scores(labels, probabilities, speakers, seed=seed)
    if before is not None:
        raw = calibration_scores(labels, before, speakers, seed=seed)
        calibration["before"] = {name: raw[name] for name in (*CALIBRATION_SCORES, "intervals")}
    return {"calibration": calibration, "selective": risk_coverage(labels, probabilities)}


def without_folders(value: Any) -> Any:
    """Mappings and sequences as they are, but of each absolute path in them no more than its last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    if isinstance(value, str | Path) and os.path.isabs(os.path.expanduser(value)):
        return Path(value).name
    return value


REPORT_FILES = (
    "metrics.json", "predictions.csv", "validation_predictions.csv", "confusion_matrix.png", "reliability.png",
    "training_curves.png", "README.md", "predictions_images.csv", "predictions_speech.csv",
)  # fmt: skip


def splits_table(corpus: Corpus, split: Split, seed: int) -> dict:
    """What `splits.json` holds: protocol, classes, and the part, speaker and class of every clip."""
    files, speakers, labels = corpus.files, corpus.speakers, corpus.labels
    clips = [
        {"file": files[i], "part": part, "speaker": speakers[i], "label": corpus.label_names[labels[i]]}
        for part, indices in split.parts.items()
        for i in indices
    ]
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
) -> None:
    """`predictions.csv`: file, speaker, label, prediction, what is known of corpus, sex and language, one column
    `p_<class>` with the class's probability and, of clips with votes, one column `v_<class>` with those for it.

    Args:
        clips: with the columns `file`, `speaker`, `label`, and perhaps `corpus`, `sex`, `language` and `votes`.
        logits: `(clips, classes)`, in the same order.
        temperature: what they are divided by for the probabilities.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape != (len(clips), len(label_names)):
        raise ValueError(f"{len(clips)} clips and {len(label_names)} classes do not fit logits of {logits.shape}.")
    if not np.isfinite(logits).all():
        raise ValueError(
            f"The logits of {_facts(clips)[0][int(np.argmin(np.isfinite(logits).all(1)))]} are not finite."
        )
    votes, groups = _votes(clips), _groups(clips)
    columns = [*groups.values(), *probabilities_of(logits, temperature).T.tolist()]
    if votes is not None:
        columns += np.pad(votes, ((0, 0), (0, len(label_names) - votes.shape[1]))).T.tolist()
    kinds = ("p", "v") if votes is not None else ("p",)
    with whole(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        own = [f"{kind}_{name}" for kind in kinds for name in label_names]
        table.writerow(["file", "speaker", "label", "prediction", *groups, *own])
        facts = zip(*_facts(clips), logits.argmax(-1), zip(*columns, strict=True), strict=True)
        for name, speaker, label, prediction, row in facts:
            table.writerow([name, speaker, label_names[label], label_names[prediction], *row])


def _facts(clips: datasets.Dataset) -> tuple[list, list, list]:
    """Columns file, speaker, label, whatever format the table hands out."""
    columns = ["file", "speaker", "label"]
    table = clips.select_columns(columns).with_format(None)[:]
    return tuple(table[column] for column in columns)


def title(report: Mapping) -> str:
    return f"{report['protocol']}\nUA {report['UA']:.3f}, WA {report['WA']:.3f}, {report['n_clips']:,} clips"


def title_of_trust(report: Mapping) -> str:
    values = ", ".join(f"{name} {report['calibration'][name]:.3f}" for name in CALIBRATION_SCORES)
    return f"{report['protocol']}\n{values}, {report['n_clips']:,} clips"


def in_words(report: Mapping) -> str:
    """What is to be said of a run first, then its scores with their intervals, a line each, the protocol in every
    name."""
    lines = [*report.get("remarks", ())]
    kinds = {"calibration": CALIBRATION_SCORES, "distributions": DISTRIBUTION_SCORES}
    told: list[tuple[Mapping, Sequence[str]]] = [(report, SCORES)] if "UA" in report else []
    told += [(report[kind], names) for kind, names in kinds.items() if kind in report]
    for values, names in told:
        for name in names:
            ranges = [
                f"{low:.3f} to {high:.3f} {unit.replace('_', ' ')}" for unit, (low, high) in _intervals(values, name)
            ]
            lines.append(f"{name} ({report['protocol']}): {values[name]:.3f} (95 %: {', '.join(ranges)})")
    if before := report.get("calibration", {}).get("before"):
        now = report["calibration"]
        lines.append(
            f"Temperature {report['temperature']:.3f} ({report['protocol']}), before and after: "
            + ", ".join(f"{name} {before[name]:.3f} -> {now[name]:.3f}" for name in CALIBRATION_SCORES)
        )
    for name, group in report.get("groups", {}).get("corpus", {}).items():
        lines.append(f"UA on {name} ({report['protocol']}): {group['UA']:.3f} of {group['n_clips']:,} clips")
    for quote in report.get("quoted_scores", ()):
        for name in ("UA", "WA"):
            lines.append(
                f"{name} ({quote['protocol']}), of {quote['measured_on']}, not of this model: "
                f"{quote['mean'][name]:.3f} +- {quote['std'][name]:.3f}, pooled {quote['pooled'][name]:.3f}"
            )
    return "\n".join(lines)


def _intervals(report: Mapping, name: str) -> list[tuple[str, list[float]]]:
    return [(unit, bounds[name]) for unit, bounds in report["intervals"].items()]


def summarize_folds(output_dir: str | Path, folders: Sequence[str | Path]) -> dict:
    """Mean, standard deviation (n - 1) and pooled scores over the folds of a protocol.

    The mean of the folds' scores is what SUPERB and emotion2vec report. The pooled scores count every test clip of all
    folds once, which matters where a fold's test part lacks a class. Writes `predictions.csv` (with a column `fold`),
    `confusion_matrix.png` and `reliability.png` (pooled) and, last, `metrics.json` to `output_dir`, and returns what
    that holds.

    Args:
        folders: finished output directories, fold by fold.
    """
    folder, reports = Path(output_dir), []
    rows: list[dict[str, Any]] = []
    for fold, path in enumerate(map(Path, folders), start=1):
        try:
            reports.append(json.loads((path / "metrics.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"Fold {fold} is not finished: {error.filename} does not exist.") from error
        with open(path / "predictions.csv", newline="", encoding="utf-8") as file:
            rows += [{"fold": fold, **row} for row in csv.DictReader(file)]
    protocols = [report["protocol"].rpartition("-fold")[0] for report in reports]
    names = reports[0]["label_names"]
    for finished, protocol, report in zip(folders, protocols, reports, strict=True):
        first = reports[0]
        same = all(report["corpus"][key] == first["corpus"][key] for key in ("source", "revision", "options"))
        if not same or (protocol, report["label_names"], report["seed"]) != (protocols[0], names, first["seed"]):
            raise DataError(
                f"{finished} and {folders[0]} differ in protocol, classes, seed or corpus: no folds of one run."
            )
    index = {name: i for i, name in enumerate(names)}
    truth, predicted = ([index[row[key]] for row in rows] for key in ("label", "prediction"))
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    speakers = [row["speaker"] or None for row in rows]
    seed = reports[0]["seed"]
    votes = (
        np.array([[float(row[f"v_{name}"]) for name in names] for row in rows]) if f"v_{names[0]}" in rows[0] else None
    )
    groups = {kind: [row.get(kind) or None for row in rows] for kind in GROUPS}
    temperatures = np.array([reports[row["fold"] - 1].get("temperature", 1.0) for row in rows])[:, None]
    with np.errstate(divide="ignore"):  # a probability of 0
        before = None if (temperatures == 1).all() else softmax(np.log(probabilities) * temperatures, axis=-1)
    values = {name: [report[name] for report in reports] for name in SCORES}
    one = len(reports) == 1
    summary = {
        "protocol": f"{protocols[0]}-all",
        "speaker_disjoint": all(report["speaker_disjoint"] for report in reports),
        "remarks": [*dict.fromkeys(remark for report in reports for remark in report.get("remarks", ()))],
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "std": {name: None if one else float(np.std(v, ddof=1)) for name, v in values.items()},
        "pooled": _scored(truth, np.array(predicted), probabilities, before, votes, names, speakers, seed)
        | {"groups": _by_groups(groups, truth, np.array(predicted), votes, len(names))},
        "folds": [
            {"protocol": r["protocol"], "temperature": r.get("temperature", 1.0)}
            | {k: r[k] for k in ("n_clips", *SCORES)}
            for r in reports
        ],
        "label_names": names,
        **{key: reports[0][key] for key in ("corpus", "seed", "versions")},
        "duration_seconds": sum(report["duration_seconds"] for report in reports),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "predictions.csv") as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        table.writeheader()
        table.writerows(rows)
    pooled = summary["pooled"] | {"protocol": f"{summary['protocol']}, pooled"}
    plot_confusion_matrix(folder / "confusion_matrix.png", pooled["confusion_matrix"], names, title(pooled))
    plot_reliability(folder / "reliability.png", pooled["calibration"]["bins"], title_of_trust(pooled))
    write_json(folder / "metrics.json", summary)
    return summary
