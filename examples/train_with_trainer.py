#!/usr/bin/env python
"""Trains MaxMViT with the plain `transformers.Trainer` on a folder with a sub-folder of clips for each emotion.

    python examples/train_with_trainer.py FOLDER OUTPUT_DIR

Clips are divided at random, so training and test share speakers; run_ser.py keeps speakers apart.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DefaultDataCollator, EvalPrediction, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))
from audio_maxmvit import read_audio
from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification

SMALL = {"cqt_backbone": "convnet", "mel_backbone": "convnet", "hidden_size": 64}


def add_features(row: dict, extractor: MaxMViTFeatureExtractor) -> dict:
    waveform = read_audio(row["file"], extractor.sampling_rate)
    return {name: value[0] for name, value in extractor(waveform, sampling_rate=extractor.sampling_rate).items()}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def load(folder: str, image_size: int) -> tuple[MaxMViTForAudioClassification, MaxMViTFeatureExtractor, DatasetDict]:
    """Returns a small model with random weights, its feature extractor, and clips with images in two parts."""
    clips = sorted(Path(folder).glob("*/*.wav"))
    table = Dataset.from_dict({"file": list(map(str, clips)), "labels": [path.parent.name for path in clips]})
    table = table.class_encode_column("labels")
    extractor = MaxMViTFeatureExtractor(image_size=image_size)
    table = table.map(add_features, fn_kwargs={"extractor": extractor}, remove_columns="file").with_format("torch")
    names = dict(enumerate(table.features["labels"].names))
    config = MaxMViTConfig(**SMALL, image_size=image_size, id2label=names, label2id={v: k for k, v in names.items()})
    parts = table.train_test_split(test_size=0.25, stratify_by_column="labels", seed=0)
    return MaxMViTForAudioClassification(config), extractor, parts


def main(folder: str, output_dir: str, *, image_size: int = 64, **settings: Any) -> Trainer:
    model, extractor, parts = load(folder, image_size)
    args = TrainingArguments(
        output_dir, learning_rate=1e-3, per_device_train_batch_size=8, report_to="none", **settings
    )
    trainer = Trainer(
        model, args, train_dataset=parts["train"], eval_dataset=parts["test"], processing_class=extractor,
        data_collator=DefaultDataCollator(), compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
