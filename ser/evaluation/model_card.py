"""Writes the model card of a checkpoint, for the Hub."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ser.arguments import ModelArguments
from ser.data.corpora.records import Record
from ser.data.corpora.registry import RECORDS
from ser.evaluation.calibration import CALIBRATION_SCORES
from ser.evaluation.metrics import SCORES
from ser.evaluation.soft_labels import DISTRIBUTION_SCORES
from ser.files import atomic_write

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_METRICS = {"UA": "recall", "WA": "accuracy", "macro_f1": "f1", "weighted_f1": "f1"}
HUB_LICENCES = (
    "CC BY-NC-SA 4.0",
    "CC BY-NC-ND 4.0",
    "CC BY 4.0",
    "GPL-3.0",
    "MIT",
)  # the Hub's identifiers are these names in lower case, with hyphens
UNITS = ("by_clip", "by_speaker")
SPEAKERS_APART = "No speaker of the test part is in the training or validation part."
SPEAKERS_SHARED = (
    "**Speakers are shared between training and test, or unknown**: the scores say little about new speakers, and "
    "must not be compared with speaker-independent ones."
)


CARD = """---
{metadata}
---

# {name}

MaxMViT-MLP recognises the emotion of a speech clip from two images of it, a constant-Q transform and a Mel
spectrogram{speech_input} (`config.json` describes the model).
{labels}

## Use

```python
from transformers import pipeline

classify = pipeline("audio-classification", model="{model_id}", trust_remote_code=True)
print(classify("clip.wav"))
```

## Scores

{scores}

## Training

- Corpus: {corpus}; choices: {choices}
- Speech: {speech}
- Licence of the recordings, and therefore of these weights: {licence}
- Model: {model}
- Clips: {used}
- Left out: {left_out}
- Seed: {seed}. `splits.json` lists the part of every clip; `metrics.json` has all settings and versions.

## Limits

- The model has only {what} above and predicts {output}, also for noise, music or silence.{familiarity}
- It was {done} on the recordings of {many}; other languages, microphones, noise and spontaneous speech
  lower the scores by an amount that was not measured here.
- It recognises vocal expression, not what a person feels. Do not base decisions about people on it.
"""

FAMILIARITY = """
- With `min_familiarity=0.05`, the pipeline returns "unfamiliar" for sound that is less like the training data than
  95 % of the clips of other speakers recorded in the same way: most music, noise, and several voices at once.
  Familiarity does not show whether a prediction is correct, whether the emotion is one of the classes, or who is
  speaking. Speech with moderate noise or in a room is accepted if the model was trained on clips altered in this way,
  and speech from another corpus may be rejected although the prediction is correct."""

SCORES_OF_TEST = """Protocol **{protocol}**, test part: {n_test} clips{n_speakers}. {speakers}

| score | value | 95 % by clip | 95 % by speaker |
|---|---|---|---|
{rows}

UA is the mean of the class recalls, WA the accuracy. ECE, Brier score and NLL measure the calibration of the
probabilities; lower is better{temperature}. The intervals are bootstrap intervals over clips and over speakers.

| class | recall | precision | clips |
|---|---|---|---|
{classes}

![confusion matrix](confusion_matrix.png)

![accuracy by predicted probability](reliability.png)"""

SCORES_OF_DIMENSIONS = """Protocol **{protocol}**, test part{n_speakers}. {speakers}

| score | value | 95 % by clip | 95 % by speaker |
|---|---|---|---|
{rows}

CCC is the concordance correlation coefficient, pearson the correlation, MAE the mean absolute error as a share of the
scale; without the name of a dimension, they are means over the dimensions. Rated test clips: {clips}.

![ratings by estimates](dimensions.png)"""

QUOTED_SCORES = """This model was not tested. These are scores of other models that were trained with the same recipe:

| measured on | protocol, seed | score | mean and standard deviation | pooled | 95 % by speaker |
|---|---|---|---|---|---|
{rows}

UA is the mean of the class recalls, WA the accuracy; pooled scores count each test clip of all folds once. The
intervals are bootstrap intervals over speakers. No number in this table is a score of this model."""


def write_model_card(path: str | Path, report: Mapping, model_id: str) -> None:
    """Writes the `README.md` of a checkpoint: metadata for the Hub, use, scores, training and limits.

    Args:
        report: result of [`write_report`].
        model_id: Hub id or path, as for `from_pretrained`.
    """
    corpus = report["corpus"]
    candidates = (corpus["source"], corpus["options"].get("schema"))
    hub_id = next((c for c in candidates if c and HUB_ID.fullmatch(c) and not Path(c).exists()), None)
    tested = "UA" in report
    quoted = report.get("quoted_scores", [])
    scores = [_scores_of_test(report)] if tested else [_scores_of_others(quoted)] if quoted else []
    scores += [_scores_of_dimensions(report)] if "dimensions" in report else []
    classes, scales = report["label_names"], report.get("scales") or {}
    labels = [f"Classes: {', '.join(classes)}."] if classes else []
    if scales:
        ends = (f"{name} ({low:g} to {high:g})" for name, (low, high) in scales.items())
        labels += [f"Dimensions, whose scale (in brackets) becomes 0 to 1: {', '.join(ends)}."]
    records = {name: RECORDS.get(name) for name in corpus["options"].get("corpora", [corpus["name"]])}
    record = next(iter(records.values())) if len(records) == 1 else None
    metadata = ModelCardData(
        license=record.licence.lower().replace(" ", "-") if record and record.licence in HUB_LICENCES else None,
        model_name=model_id.rpartition("/")[2],
        eval_results=_results(report, hub_id) if tested else None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", "maxmvit"],
        datasets=[hub_id] if hub_id else None,
        metrics=["recall", "accuracy", "f1"] if tested else None,
    )
    used, left_out = corpus["rows_used"], corpus["rows_left_out"]
    filled = {
        "metadata": metadata.to_yaml(),
        "model_id": model_id,
        "name": model_id.rpartition("/")[2],
        "corpus": f"{hub_id or corpus['name']} (revision {corpus['revision']})",
        "choices": ", ".join(f"{name}: {value}" for name, value in corpus["options"].items() if value) or "none",
        "speech": _of_each(records, "speech", "not known here"),
        "licence": _of_each(records, "licence", "not known here; ask the provider of the corpus"),
        "many": "one corpus" if len(records) == 1 else f"{len(records)} corpora",
        "speech_input": ", and from its waveform" if report.get("model_arguments", {}).get("speech_encoder") else "",
        "model": _choices_of_model(report.get("model_arguments", {})),
        "used": ", ".join(f"{n:,} {part}" for part, n in used.items()),
        "left_out": "; ".join(f"{reason}: {n:,}" for reason, n in left_out.items()) or "none",
        "labels": "\n".join(labels),
        "what": " and ".join(["the classes"] * bool(classes) + ["the dimensions"] * bool(scales)),
        "output": " and ".join(["one of them"] * bool(classes) + ["a value of each"] * bool(scales)),
        "seed": report["seed"],
        "scores": "\n\n".join([*(f"**{remark}**" for remark in report["remarks"]), *scores]),
        "done": "trained and tested" if tested or "dimensions" in report else "trained",
        "familiarity": FAMILIARITY if report.get("familiarity") else "",
    }
    with atomic_write(path) as unfinished:
        unfinished.write_text(CARD.format(**filled), encoding="utf-8")


def _choices_of_model(arguments: Mapping) -> str:
    """Lists the options of a model that differ from those of the paper."""
    usual = {each.name: each.default for each in fields(ModelArguments)}
    chosen = [f"{name}: {value}" for name, value in arguments.items() if value not in (usual.get(name), None, {})]
    return ", ".join(chosen) or "the paper's"


def _of_each(records: Mapping[str, Record | None], what: str, unknown: str) -> str:
    """Returns a fact of each training corpus, preceded by its name if there are several."""
    facts = {name: (getattr(record, what) if record else "") or unknown for name, record in records.items()}
    return "; ".join(fact if len(facts) == 1 else f"{name}: {fact}" for name, fact in facts.items())


def _results(report: Mapping, hub_id: str | None) -> list[EvalResult]:
    """Returns the scores as metadata for the Hub."""
    corpus, protocol = report["corpus"], report["protocol"]
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech emotion recognition",
            dataset_type=hub_id or corpus["name"],
            dataset_name=f"{corpus['name']} ({protocol})",
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{name} ({protocol})",
            metric_value=round(report[name], 4),
        )
        for name, metric in HUB_METRICS.items()
    ]


def _scores_of_test(report: Mapping) -> str:
    """Formats the scores as tables."""
    rows = "\n".join(
        f"| {name} | {values[name]:.3f} | " + " | ".join(_range(values, unit, name) for unit in UNITS) + " |"
        for values, names in (
            (report, SCORES),
            (report["calibration"], CALIBRATION_SCORES),
            *([(report["distributions"], DISTRIBUTION_SCORES)] if "distributions" in report else []),
        )
        for name in names
    )
    classes = "\n".join(
        f"| {name} | {_score(c['recall'])} | {_score(c['precision'])} | {c['support']} |"
        for name, c in report["per_class"].items()
    )
    return SCORES_OF_TEST.format(
        protocol=report["protocol"],
        n_test=f"{report['n_clips']:,}",
        n_speakers=f" of {len(report['test_speakers'])} speakers" if report["test_speakers"] else "",
        temperature=_temperature(report),
        speakers=SPEAKERS_APART if report["speaker_disjoint"] else SPEAKERS_SHARED,
        rows=rows,
        classes=classes,
    )


def _scores_of_dimensions(report: Mapping) -> str:
    """Formats the scores of dimensions as a table."""
    own = report["dimensions"]
    names = [name for name, value in own.items() if isinstance(value, float)]
    return SCORES_OF_DIMENSIONS.format(
        protocol=report["protocol"],
        n_speakers=f" of {len(report['test_speakers'])} speakers" if report["test_speakers"] else "",
        speakers=SPEAKERS_APART if report["speaker_disjoint"] else SPEAKERS_SHARED,
        rows="\n".join(
            f"| {name} | {own[name]:.3f} | " + " | ".join(_range(own, unit, name) for unit in UNITS) + " |"
            for name in names
        ),
        clips=", ".join(f"{count:,} of {name}" for name, count in own["n_clips"].items()),
    )


def _temperature(report: Mapping) -> str:
    """Describes the effect of temperature scaling, as part of a sentence; empty without temperature scaling."""
    if (before := report["calibration"].get("before")) is None:
        return ""
    values = ", ".join(f"{name} {before[name]:.3f}" for name in CALIBRATION_SCORES)
    return f" (at temperature {report['temperature']:.3f}, fitted on the validation part; before scaling, {values})"


def _scores_of_others(quoted: Sequence[Mapping]) -> str:
    """Formats the scores of other models with the same recipe as a table."""
    rows = "\n".join(
        f"| {quote['measured_on']} | {quote['protocol']}, {quote['seed']} | {name} | "
        f"{quote['mean'][name]:.3f} ± {quote['std'][name]:.3f} | {quote['pooled'][name]:.3f} | "
        f"{_range(quote['pooled'], 'by_speaker', name)} |"
        for quote in quoted
        for name in ("UA", "WA")
    )
    return QUOTED_SCORES.format(rows=rows)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(report: Mapping, unit: str, name: str) -> str:
    low, high = report["intervals"].get(unit, {}).get(name, (None, None))
    return "-" if low is None else f"{low:.3f} to {high:.3f}"
