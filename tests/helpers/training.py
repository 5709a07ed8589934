"""Tiny training runs on random images, for the tests of the training engine."""

import functools
import os
import re
import signal
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import EvalPrediction

from ser.data.augmentation import make_augmentation
from ser.training.arguments import SERTrainingArguments
from ser.training.trainer import SERTrainer
from tests.helpers.tiny import IMAGE_SIZE, convnet_model, tiny_model

NUM_LABELS = 4
IMAGES = ("cqt_values", "mel_values")


@functools.cache
def clips(num_clips: int, seed: int = 0) -> datasets.Dataset:
    """Returns random images in which a brighter quarter marks the label, and a column that no model uses."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(NUM_LABELS, size=num_clips)
    columns = {"file": [f"clip{i}" for i in range(num_clips)], "label": labels}
    # Without a shape, datasets would convert each row of pixels by itself, which takes longer than to train on them.
    features = datasets.Features({"file": datasets.Value("string"), "label": datasets.Value("int64")})
    for name in IMAGES:
        features[name] = datasets.Array3D((1, IMAGE_SIZE, IMAGE_SIZE), "float32")
        images = generator.random((num_clips, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32) / 2
        for image, label in zip(images, labels, strict=True):
            image[0, 16 * label : 16 * (label + 1)] += 0.2
        columns[name] = images
    return datasets.Dataset.from_dict(columns, features).with_format("torch")


class Collator:
    """Stacks clips, with an optional augmentation."""

    def __init__(self, augmentation=None):
        self.augmentation = augmentation

    def __call__(self, features):
        images = {name: torch.stack([torch.as_tensor(f[name]) for f in features]) for name in IMAGES}
        labels = torch.stack([torch.as_tensor(f["label"]) for f in features])
        if self.augmentation is not None:
            images, labels = self.augmentation(images, labels)
        return {**images, "labels": labels}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"UA": float(np.mean([hits[prediction.label_ids == c].mean() for c in set(prediction.label_ids.tolist())]))}


def make_arguments(output_dir, kind=SERTrainingArguments, **changes) -> SERTrainingArguments:
    defaults = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return kind(**{**defaults, **changes})


def make_trainer(
    output_dir, *, num_train=14, num_eval=7, model=None, callbacks=None, processing_class=None, **changes
) -> SERTrainer:
    """Returns a trainer of a model with convolutional branches, unless another `model` is given."""
    args = make_arguments(output_dir, **changes)
    augmentation = make_augmentation(args, NUM_LABELS)
    return SERTrainer(
        model=convnet_model(NUM_LABELS) if model is None else model,
        args=args,
        train_dataset=clips(num_train),
        eval_dataset=clips(num_eval, seed=1),
        data_collator=Collator(),
        train_collator=Collator(augmentation),
        compute_metrics=compute_metrics,
        callbacks=callbacks,
        processing_class=processing_class,
    )


class KillAt(TrainerCallback):
    """Kills the process after a given step, so that it cannot clean up."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


QUIET = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "lr_scheduler_type": "constant",
}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(first, second, **tolerance):
    for name, value in first.items():
        if tolerance:
            torch.testing.assert_close(value, second[name], msg=name, **tolerance)
        else:
            assert torch.equal(value, second[name]), name


def evaluations(trainer) -> list[dict]:
    timeless = re.compile(r"(?!.*(runtime|per_second)).*")
    return [{k: v for k, v in e.items() if timeless.match(k)} for e in trainer.state.log_history if "eval_loss" in e]


class Poisoned(Collator):
    """Puts NaN into the images of the batches with the given numbers, which start at 1."""

    def __init__(self, *poisoned):
        super().__init__()
        self.poisoned, self.count = poisoned, 0

    def __call__(self, features):
        batch = super().__call__(features)
        self.count += 1
        if self.count in self.poisoned:
            batch["cqt_values"] = batch["cqt_values"] * float("nan")
        self.batch = batch
        return batch


def train_until_killed(output_dir: Path, kill_step: int, changes: dict) -> None:
    torch.set_num_threads(1)
    make_trainer(output_dir, model=tiny_model(NUM_LABELS), callbacks=[KillAt(kill_step)], **changes).train()
