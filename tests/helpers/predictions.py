"""Saves a checkpoint with named classes, and reads tables of predictions."""

import csv
import json
from pathlib import Path

from tests.helpers.tiny import convnet_model, tiny_feature_extractor

LABELS = ["angry", "happy", "neutral", "sad"]


def save_checkpoint(folder: Path, seed: int = 0) -> str:
    model = convnet_model(seed=seed)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    model.save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return str(folder)


def read_rows(path: Path) -> list[dict]:
    text = path.read_text()
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.split("\n") if line]
