"""Runs short trainings with the command, and reads the tables that they write."""

import csv
import json
from pathlib import Path

from ser.commands.train import main
from tests.helpers.tiny import CONVNETS

ROOT = Path(__file__).parents[2]

TINY = [
    "--learning_rate=1e-3", "--num_train_epochs=1", "--report_to=none", "--preprocessing_num_workers=1",
]  # fmt: skip
CONVNET_FLAGS = [
    f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in CONVNETS.items()
]


def run(*flags, recipe="demo", own_backbones=False):
    """Trains by a recipe; that of the demo has convolutional branches here, unless it keeps its `own_backbones`."""
    backbones = CONVNET_FLAGS if recipe == "demo" and not own_backbones else []
    main([str(ROOT / "configs" / f"{recipe}.yaml"), *TINY, *backbones, *map(str, flags)])


def read_predictions(folder, name="predictions.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))
