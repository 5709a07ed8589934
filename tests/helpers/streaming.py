"""Shards for streaming, and trainers on them."""

from functools import partial
from pathlib import Path

import numpy as np
from datasets import Audio, Dataset

from ser.arguments import AugmentationArguments
from ser.data.augmentation import make_augmentation
from ser.data.batches import PairCollator
from ser.training.streaming import (
    StreamingTrainer,
)
from ser.training.trainer import SERTrainer
from tests.helpers.clips import sound
from tests.helpers.tiny import convnet_model, tiny_feature_extractor
from tests.helpers.training import compute_metrics, make_arguments

GROUP = 5  # clips in each row group of a parquet file, the unit of reading

KEEPING = {
    "save_strategy": "steps", "save_steps": 3, "save_total_limit": None, "load_best_model_at_end": False,
    "eval_strategy": "no", "early_stopping_patience": 0, "lr_scheduler_type": "constant",
}  # fmt: skip


def write_shards(folder: Path, clips: int, files: int = 3, seconds: float = 0.01, split: str = "train") -> Path:
    """Writes clips of two classes and four speakers to parquet files with several row groups."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for file, rows in enumerate(np.array_split(np.arange(clips), files)):
        columns = {
            "audio": [{"bytes": sound(int(row), seconds), "path": f"{split}{row}.wav"} for row in rows],
            "label": ["ab"[row % 2] for row in rows],
            "speaker": [f"{row % 4}" for row in rows],
        }
        table = Dataset.from_dict(columns).cast_column("audio", Audio(sampling_rate=16_000))
        table.to_parquet(folder / "data" / f"{split}-{file:05d}-of-{files:05d}.parquet", batch_size=GROUP)
    return folder


def trainer_of(corpus, folder, workers=0, streaming=True, model=None, train=22, **changes) -> SERTrainer:
    extractor = tiny_feature_extractor()
    args = make_arguments(folder, dataloader_num_workers=workers, **{"num_train_epochs": 2, "seed": 5, **changes})
    augmentation = make_augmentation(AugmentationArguments(specaugment_masks=1, mixup_alpha=0.4), 2)
    collator = PairCollator(extractor, augmentation)
    kind = partial(StreamingTrainer, shards=corpus.shards, shuffle_buffer_size=8) if streaming else SERTrainer
    return kind(
        model=model or convnet_model(2), args=args, train_collator=collator, data_collator=PairCollator(extractor),
        train_dataset=corpus.clips.select(range(train)), eval_dataset=corpus.clips.select(range(22, 31)),
        processing_class=extractor, compute_metrics=compute_metrics,
    )  # fmt: skip
