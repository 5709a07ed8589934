"""Collates rows of a table of clips into batches for the model, reproducibly with any number of workers."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import one_hot
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from ser.data.augmentation import Augmentation, SpectrogramAugmentation
from ser.data.corpora.corpus import VOTES, shares_of
from ser.data.corpora.dimensions import DIMENSIONS
from ser.data.features import read_clip


class PairCollator:
    """Collates rows of a table of clips into a batch of images, in the data loader's workers if there are any.

    Rows that hold `spectrograms` (from `extract_features`) are read from the cache. Rows that hold `audio` are decoded
    and transformed here, so that waveforms may change from epoch to epoch (`audio` may also be
    `{"array": ..., "sampling_rate": ...}`). A row with `start` and `end` is cut to that part, in seconds of the
    trimmed clip; a row with `version` is that altered copy of the clip.

    Args:
        feature_extractor (`MaxMViTFeatureExtractor`): for `spectrograms` and `images`.
        augmentation (`Callable`, *optional*): `(images, labels) -> (images, labels)`, where `images` are
            `{branch: (B, channels, H, W)}` in [0, 1].
        spectrogram_augmentation (`Callable`, *optional*): `clip -> clip` on one clip's spectrograms, before they are
            rendered as images.
        draw_versions (`bool`, defaults to False): whether to choose one version of a clip with altered copies at
            random, with equal probabilities, instead of always the original.
        layer_statistics (`Mapping[str, torch.Tensor]`, *optional*): digest of a waveform -> its embedding by a frozen
            speech encoder ([`layer_statistics_of`]), which replaces the waveform.
        branches (`Sequence[str]`, defaults to both): the images that the model takes, of `"cqt"` and `"mel"`.
        num_classes (`int`, defaults to 0): number of classes, for a model that also has dimensions.

    Returns:
        `images`: `{branch: float16 (B, channels, H, W)}` in [0, 1], which [`SERTrainer`] normalises on the device (a
        sixth of the bytes of three normalised float32 channels); the extractor's inputs for a speech encoder, or layer
        statistics instead of the waveform; and, if rows have a `label`, `labels`: as returned by `augmentation`, else
        int64 `(B,)`; for rows with `votes`, their shares, float32 `(B, C)`; for rows with `dimensions`, float32
        `(B, num_classes + D)`, the one-hot class and the dimensions, NaN if unknown.

    Raises:
        AudioError: a clip cannot be decoded; the message names it.
    """

    def __init__(
        self,
        feature_extractor: Any,
        augmentation: Augmentation | None = None,
        spectrogram_augmentation: SpectrogramAugmentation | None = None,
        draw_versions: bool = False,
        layer_statistics: Mapping[str, torch.Tensor] | None = None,
        branches: Sequence[str] = ("cqt", "mel"),
        num_classes: int = 0,
    ):
        self.feature_extractor = feature_extractor
        self.augmentation = augmentation
        self.spectrogram_augmentation = spectrogram_augmentation
        self.draw_versions = draw_versions
        self.layer_statistics = layer_statistics
        self.branches = branches
        self.num_classes = num_classes

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found = [self._spectrograms(row) for row in rows]
        clips, contents = [clip for clip, _ in found], [content for _, content in found]
        if self.spectrogram_augmentation is not None and clips[0]:
            clips = [self.spectrogram_augmentation(clip) for clip in clips]
        images = {}
        if self.branches:
            values = self.feature_extractor.images(clips, self.branches)
            images = {name.removesuffix("_values"): image for name, image in values.items()}
        labels = torch.tensor([row["label"] for row in rows]) if "label" in rows[0] else None
        if VOTES in rows[0]:
            labels = torch.tensor(shares_of([row[VOTES] for row in rows]), dtype=torch.float32)
        if DIMENSIONS in rows[0] and labels is not None:
            labels = self._with_dimensions(labels, [row[DIMENSIONS] for row in rows])
        if self.augmentation is not None and labels is not None and images:
            images, labels = self.augmentation(images, labels)
        batch: dict[str, Any] = {"images": {branch: values.half() for branch, values in images.items()}}
        if self.layer_statistics is None or "start" in rows[0]:
            batch |= self.feature_extractor.waveform_inputs(clips)
        else:
            if clips[0]:
                batch |= self.feature_extractor.powers(clips)
            batch["input_values"] = torch.stack([self.layer_statistics[content or ""] for content in contents])
        return batch if labels is None else {**batch, "labels": labels}

    def _with_dimensions(self, labels: torch.Tensor, dimensions: Sequence[Any]) -> torch.Tensor:
        values = torch.stack([torch.as_tensor(each, dtype=torch.float32) for each in dimensions])
        if not self.num_classes:
            return values
        classes = one_hot(labels.clamp(min=0), self.num_classes).float()
        classes[labels < 0] = float("nan")
        return torch.cat([classes, values], dim=1)

    def _spectrograms(self, row: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], str | None]:
        """Returns the spectrograms of a row and, if they come from the cache, the digest of their waveform."""
        if "spectrograms" not in row:
            return self.feature_extractor.spectrograms(read_clip(row, self.feature_extractor))[0], None
        versions = row["spectrograms"]
        number = row.get("version", 0)
        if self.draw_versions and len(versions) > 1:
            number = int(torch.randint(len(versions), ()))
        if "start" not in row:
            content = versions.contents[number]
            is_needed = self.branches or self.layer_statistics is None  # otherwise only its embedding is used
            return versions[number] if is_needed else {}, content
        clip = versions[number]
        return self.feature_extractor.cut(self.feature_extractor.trim(clip), row["start"], row["end"]), None


class Numbered(Dataset):
    """A dataset whose items are `(index, item)` of another dataset."""

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


class LengthGroupedSampler(Sampler[int]):
    """
    Samples rows of similar length together, like transformers' sampler of this name, so that there is little padding.
    The order depends only on the seed and the epoch, also in a resumed run.

    Args:
        lengths: Length of each row.
        batch_size: Number of rows that are grouped.
        seed: Random seed; `epoch`, which the trainer sets before each epoch, is added to it.
    """

    def __init__(self, lengths: Sequence[float], batch_size: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class SeededCollator:
    """Collates items of [`Numbered`] with torch's CPU generator seeded by `seed` and the items' indices."""

    def __init__(self, collator: Callable[[list], dict[str, torch.Tensor]], seed: int):
        self.collator = collator
        self.seed = seed

    def __call__(self, items: list[tuple[int, Any]]) -> dict[str, torch.Tensor]:
        indices, features = zip(*items, strict=True)
        digest = hashlib.blake2b(repr((self.seed, *map(int, indices))).encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPUs, whose generators dropout uses.
            torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            return self.collator(list(features))
