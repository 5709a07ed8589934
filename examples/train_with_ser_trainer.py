#!/usr/bin/env python
"""Trains like `train_with_trainer.py`, but with this project's Trainer: an optimizer and a learning rate for each
branch, checkpoints from which an interrupted run resumes, and the best weights by UA.

    python examples/train_with_ser_trainer.py FOLDER OUTPUT_DIR
"""

import sys
from pathlib import Path
from typing import Any

from transformers import DefaultDataCollator

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.train_with_trainer import load
from ser.evaluation.metrics import compute_metrics
from ser.training.arguments import SERTrainingArguments
from ser.training.trainer import SERTrainer


def main(folder: str, output_dir: str, *, image_size: int = 64, **settings: Any) -> SERTrainer:
    model, extractor, parts = load(folder, image_size)
    rates: dict[str, Any] = {"cqt_optimizer": "adamw", "mel_optimizer": "radam", "mel_learning_rate": 5e-4}
    args = SERTrainingArguments(
        output_dir, learning_rate=1e-3, per_device_train_batch_size=8, report_to=["none"], **rates, **settings
    )
    trainer = SERTrainer(
        model, args, train_dataset=parts["train"], eval_dataset=parts["test"], processing_class=extractor,
        data_collator=DefaultDataCollator(), compute_metrics=compute_metrics,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
