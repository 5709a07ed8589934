"""Fuzz cases: checkpoints with values of wrong types in config.json or preprocessor_config.json."""

import contextlib
import copy
import functools
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.models import load_pipeline
from ser.utils import UsageError
from tests.fuzz.kinds import LABELS, Case, refused
from tests.helpers.tiny import tiny_config, tiny_feature_extractor, tiny_learnable, voice

CONFIG, EXTRACTOR = FILES = ("config.json", "preprocessor_config.json")
WEIGHTS = "model.safetensors"
VALUES = {
    "null": (None,),
    "boolean": (True, False),
    "integer": (0, 1, -1, 7, 10**30),
    "number": (0.5, -2.5, 1e300, math.nan, math.inf),
    "string": ("", "x", "1", "none", "\ud7ff" * 3, "y" * 3_000),
    "list": ([], [1], ["x"], [[1, 2], [3]], [None], [0.5] * 3, [{}]),
    "object": ({}, {"a": 1}, {"0": "x"}, {"": None}),
}
# Further valid types of these fields: with a value of such a type, a checkpoint is another one, not a damaged one.
ALSO = {
    "trim_db": ("integer", "number"),
    "image_size": ("integer", "list"),
    "cqt_backbone_kwargs": ("null",),
    "mel_backbone_kwargs": ("null",),
}
IS_OF = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, float),
    "string": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


@functools.cache
def checkpoints() -> dict[str, dict[str, bytes]]:
    """Returns the files of complete checkpoints by name: one with timm backbones, one with learnable filters."""
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    learnable, extractor = tiny_learnable(trim_db=40.0, level="full_scale")
    learnable.id2label, learnable.label2id = labels.values()
    parts = {"timm": (tiny_config(**labels), tiny_feature_extractor()), "learnable": (learnable, extractor)}
    found = {}
    for name, (config, extractor) in parts.items():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            MaxMViTForAudioClassification(config).save_pretrained(folder)
            extractor.save_pretrained(folder)
            found[name] = {file: (Path(folder) / file).read_bytes() for file in (*FILES, WEIGHTS)}
    return found


@functools.cache
def expected_scores(name: str) -> dict[str, float]:
    """Returns the scores of the undamaged checkpoint, by label."""
    with tempfile.TemporaryDirectory() as folder:
        Case("checkpoint", checkpoints()[name]).write(Path(folder))
        return _scores(folder)


def _scores(folder: str) -> dict[str, float]:
    return {row["label"]: row["score"] for row in load_pipeline(folder, "cpu")(voice(0.3))}


def make(rng: random.Random) -> Case:
    name = rng.choice(list(checkpoints()))
    file = rng.choice(FILES)
    content = json.loads(checkpoints()[name][file])
    changed: list[str] = []
    if rng.random() < 0.04:
        content = rng.choice([value for kind, values in VALUES.items() if kind != "object" for value in values])
    else:
        for _ in range(rng.choice((1, 1, 1, 2))):
            changed.append(_damage(content, rng))
    return Case("checkpoint", {file: json.dumps(content).encode()}, {"of": name, "changed": changed})


def _damage(content: dict[str, Any], rng: random.Random) -> str:
    """Replaces a field, or a value within it, by a value of another type; returns the name of the field."""
    field = rng.choice(list(content))
    holder, key = rng.choice([(content, field), *_places(content[field])])
    now = next(kind for kind, is_of in IS_OF.items() if is_of(holder[key]))
    fitting = {now, *(ALSO.get(field, ()) if holder is content else ()), *({"integer"} if now == "number" else ())}
    kind = rng.choice([kind for kind in VALUES if kind not in fitting])
    holder[key] = copy.deepcopy(rng.choice(VALUES[kind]))
    return field


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every container within a value with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def run(case: Case, folder: Path) -> str:
    """Expects an error that names the checkpoint and the fault, or the scores of the undamaged checkpoint."""
    name = case.options["of"]
    whole = {file: content for file, content in checkpoints()[name].items() if file not in case.files}
    Case("checkpoint", whole).write(folder)
    (file,) = case.files
    try:
        with contextlib.chdir(folder):
            scores = _scores(str(folder))
    except UsageError as error:
        assert str(folder) in str(error), f"does not name the checkpoint: {error}"
        assert len(str(error)) < 1_500 and "\n" not in str(error), f"not one sentence: {error}"
        return refused(error, [*case.options["changed"], "weights", "JSON", "num_labels", "of type"])
    expected = expected_scores(name)
    assert scores.keys() == expected.keys(), f"scores {scores}, not {expected}"
    assert all(abs(scores[label] - score) < 1e-6 for label, score in expected.items()), (
        f"scores {scores}, not {expected}"
    )
    return "accepted"
