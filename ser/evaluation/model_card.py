"""The model card that a checkpoint carries to the Hub."""

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
from ser.files import whole

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_METRICS = {"UA": "recall", "WA": "accuracy", "macro_f1": "f1", "weighted_f1": "f1"}
HUB_LICENCES = (
    "CC BY-NC-SA 4.0",
    "CC BY-NC-ND 4.0",
    "CC BY 4.0",
    "GPL-3.0",
    "MIT",
)  # the Hub's name of a licence is its own with hyphens
UNITS = ("by_clip", "by_speaker")
SPEAKERS_APART = "No speaker of the test part was heard in training or validation."
SPEAKERS_SHARED = (
    "**Speakers are shared between training and test, or not known**: the scores say little about new voices, and "
    "must not be compared with speaker-independent ones."
)


CARD = """---
{metadata}
---

# {name}

MaxMViT-MLP: recognises the emotion of a speech clip from pictures of it, a constant-Q transform and a Mel
spectrogram{hears} (`config.json` names what sees and hears). Classes: {labels}.

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
- Licence of the recordings, and so of these weights: {licence}
- Model: {model}
- Clips: {used}
- Left out: {left_out}
- Seed: {seed}. The part of every clip is in `splits.json`; all settings and versions are in `metrics.json`.

## Limits

- It knows only the classes above and always answers one of them, also for noise, music or silence.{familiarity}
- It was {done} on the recordings of {many}; other languages, microphones, noise and spontaneous speech
  lower the scores by an amount not measured here.
- It hears expression, not what somebody feels. Do not base decisions about people on it.
"""

FAMILIARITY = """
- `min_familiarity=0.05` of its pipeline answers "unfamiliar" to what is less like the training data than 95 % of
  clips of other speakers recorded alike: most music, noise, and several voices at once. It does not tell whether an
  answer is right, whether the emotion is one of the classes, or who is speaking. Speech with moderate noise or in a
  room passes if the model was trained on such copies, and speech of another corpus may be turned away although the
  answer is right."""

SCORES_OF_TEST = """Protocol **{protocol}**, test part: {n_test} clips{n_speakers}. {speakers}

| score | value | 95 % by clip | 95 % by speaker |
|---|---|---|---|
{rows}

UA is the mean of the class recalls, WA the accuracy. ECE, Brier score and NLL say how far the probabilities can be
trusted; less is better{temperature}. The intervals are bootstrap intervals, drawn by clip and by speaker.

| class | recall | precision | clips |
|---|---|---|---|
{classes}

![confusion matrix](confusion_matrix.png)

![share of right answers by their probability](reliability.png)"""

QUOTED_SCORES = """What is known of its recipe was measured on other models:

| measured on | protocol, seed | score | mean and standard deviation | pooled | 95 % by speaker |
|---|---|---|---|---|---|
{rows}

UA is the mean of the class recalls, WA the accuracy; pooled scores count the test clips of all folds once. The
intervals are bootstrap intervals, drawn by speaker. No number in this table is a score of this very model."""


def write_model_card(path: str | Path, report: Mapping, model_id: str) -> None:
    """`README.md` of a checkpoint: metadata for the Hub, scores, how to use it, its limits.

    Args:
        report: what [`write_report`] returns.
        model_id: Hub id or path, as `from_pretrained` takes it.
    """
    corpus = report["corpus"]
    candidates = (corpus["source"], corpus["options"].get("schema"))
    hub_id = next((c for c in candidates if c and HUB_ID.fullmatch(c) and not Path(c).exists()), None)
    tested = "UA" in report
    quoted = [] if tested else report["quoted_scores"]
    scores = [_scores_of_test(report)] if tested else [_scores_of_others(quoted)] if quoted else []
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
        "licence": _of_each(records, "licence", "not known here; ask where the corpus comes from"),
        "many": "one corpus" if len(records) == 1 else f"{len(records)} corpora",
        "hears": ", and its waveform" if report.get("model_arguments", {}).get("speech_encoder") else "",
        "model": _choices_of_model(report.get("model_arguments", {})),
        "used": ", ".join(f"{n:,} {part}" for part, n in used.items()),
        "left_out": "; ".join(f"{reason}: {n:,}" for reason, n in left_out.items()) or "none",
        "labels": ", ".join(report["label_names"]),
        "seed": report["seed"],
        "scores": "\n\n".join([*(f"**{remark}**" for remark in report["remarks"]), *scores]),
        "done": "trained and tested" if tested else "trained",
        "familiarity": FAMILIARITY if report.get("familiarity") else "",
    }
    with whole(path) as unfinished:
        unfinished.write_text(CARD.format(**filled), encoding="utf-8")


def _choices_of_model(arguments: Mapping) -> str:
    """What a model was chosen to be, where that is not the paper's."""
    usual = {each.name: each.default for each in fields(ModelArguments)}
    chosen = [f"{name}: {value}" for name, value in arguments.items() if value not in (usual.get(name), None, {})]
    return ", ".join(chosen) or "the paper's"


def _of_each(records: Mapping[str, Record | None], what: str, unknown: str) -> str:
    """A fact of each corpus that was trained on, by its name where there are several."""
    facts = {name: (getattr(record, what) if record else "") or unknown for name, record in records.items()}
    return "; ".join(fact if len(facts) == 1 else f"{name}: {fact}" for name, fact in facts.items())


def _results(report: Mapping, hub_id: str | None) -> list[EvalResult]:
    """The scores as metadata for the Hub."""
    corpus, protocol = report["corpus"], report["protocol"]
    return [
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


def _scores_of_test(report: Mapping) -> str:
    """The scores as tables."""
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


def _temperature(report: Mapping) -> str:
    """What making probabilities of the logits by a fitted temperature changed, to be said in the midst of a text."""
    if (before := report["calibration"].get("before")) is None:
        return ""
    values = ", ".join(f"{name} {before[name]:.3f}" for name in CALIBRATION_SCORES)
    return f" (of logits over {report['temperature']:.3f}, fitted on the validation part; before that, {values})"


def _scores_of_others(quoted: Sequence[Mapping]) -> str:
    """What other models of the recipe scored, as a table."""
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
