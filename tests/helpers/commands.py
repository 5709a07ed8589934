"""Runs short trainings with the command, and reads the tables that they write."""

import csv
from pathlib import Path

from ser.commands.train import main

ROOT = Path(__file__).parents[2]

TINY = [
    "--learning_rate=1e-3", "--num_train_epochs=1", "--report_to=none", "--preprocessing_num_workers=1",
]  # fmt: skip


def run(*flags, recipe="demo"):
    main([str(ROOT / "configs" / f"{recipe}.yaml"), *TINY, *map(str, flags)])


def read_predictions(folder, name="predictions.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))
