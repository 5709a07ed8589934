"""Rows of a table of clips -> batches for the model, the same ones wherever and whenever they are made."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ser.features import IMAGES, extract_clip, read_clip


class PairCollator:
    """Rows of a table of clips -> a batch for the model.

    Rows that hold images (from `extract_features`) are stacked. Rows that still hold `audio` are decoded and
    transformed here, in the data loader's workers, which PyTorch limits to one thread each; that is how a waveform
    that changes from epoch to epoch is trained on (`audio` may also be `{"array": ..., "sampling_rate": ...}`).

    Args:
        feature_extractor (`MaxMViTFeatureExtractor`): for `extract` and `normalize`.
        augmentation (`Callable`, *optional*): `(cqt_images, mel_images, labels) -> (cqt_images, mel_images, labels)`
            on images `(B, 1, H, W)` in [0, 1], before normalisation.

    Returns:
        `cqt_values` and `mel_values`, float32 `(B, 3, H, W)`, and `labels` as `augmentation` left them, otherwise
        int64 `(B,)`; no `labels` if the rows have no `label`.

    Raises:
        AudioError: a clip cannot be decoded; its name is in the message.
    """

    def __init__(self, feature_extractor: Any, augmentation: Callable | None = None):
        self.feature_extractor = feature_extractor
        self.augmentation = augmentation

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if IMAGES[0] not in rows[0]:
            extractor = self.feature_extractor
            rows = [{**row, **extract_clip(read_clip(row, extractor), extractor)} for row in rows]
        cqt, mel = (torch.stack([row[name] for row in rows]).float() for name in IMAGES)
        labels = torch.tensor([row["label"] for row in rows]) if "label" in rows[0] else None
        if self.augmentation is not None:
            cqt, mel, labels = self.augmentation(cqt, mel, labels)
        normalize = self.feature_extractor.normalize
        batch = {"cqt_values": normalize(cqt), "mel_values": normalize(mel)}
        return batch if labels is None else {**batch, "labels": labels}


class Numbered(Dataset):
    """Each item of a dataset with its index before it."""

    def __init__(self, dataset: Sequence):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        whole_batch = getattr(self.dataset, "__getitems__", None)
        items = whole_batch(indices) if whole_batch else [self.dataset[index] for index in indices]
        return list(zip(indices, items, strict=True))


class SeededCollator:
    """Collates items of [`Numbered`], seeding torch's CPU generator for it by the seed and the items' indices."""

    def __init__(self, collator: Callable[[list], dict[str, torch.Tensor]], seed: int):
        self.collator = collator
        self.seed = seed

    def __call__(self, items: list[tuple[int, Any]]) -> dict[str, torch.Tensor]:
        indices, features = zip(*items, strict=True)
        digest = hashlib.blake2b(repr((self.seed, *map(int, indices))).encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs too, where dropout draws from.
            torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            return self.collator(list(features))
