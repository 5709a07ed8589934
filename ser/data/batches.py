"""Rows of a table of clips -> batches for the model, the same ones wherever and whenever they are made."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from ser.data.augmentation import Augmentation, SpectrogramAugmentation
from ser.data.corpora.table import VOTES, shares_of
from ser.data.features import read_clip


class PairCollator:
    """Rows of a table of clips -> a batch of pictures, drawn here and now: in the data loader's workers, if any.

    Rows that hold `spectrograms` (from `extract_features`) are read from the cache. Rows that still hold `audio` are
    decoded and transformed here; that is how a waveform that changes from epoch to epoch is trained on (`audio` may
    also be `{"array": ..., "sampling_rate": ...}`). A row with `start` and `end` is cut to that stretch, in
    seconds of the trimmed clip; one with `version` is that altered copy of the clip.

    Args:
        feature_extractor (`MaxMViTFeatureExtractor`): for `spectrograms` and `images`.
        augmentation (`Callable`, *optional*): `(images, labels) -> (images, labels)`, where `images` are
            `{branch: (B, channels, H, W)}` in [0, 1].
        spectrogram_augmentation (`Callable`, *optional*): `clip -> clip` on one clip's spectrograms, before pictures
            are drawn of them.
        layer_statistics (`Mapping[str, torch.Tensor]`, *optional*): by the digest of a waveform, the embedding that a
            frozen speech encoder gives it ([`layer_statistics_of`]), instead of the waveform.
        branches (`Sequence[str]`, defaults to both): the images that the model takes, of `"cqt"` and `"mel"`.
        draw_versions (`bool`, defaults to False): of a clip with altered copies take one version at random, each as
            often as any other; otherwise always the original.

    Returns:
        `images`: `{branch: float16 (B, channels, H, W)}` in [0, 1], which [`SERTrainer`] normalises on the device: a
        sixth of the bytes that three normalised float32 channels are. What the extractor's `heard` has of the clips,
        or layer statistics instead of the waveform. And `labels` as `augmentation` left them, otherwise int64
        `(B,)`, or of rows with `votes` their shares, float32 `(B, C)`; none if rows have no `label`.

    Raises:
        AudioError: a clip cannot be decoded; its name is in the message.
    """

    def __init__(
        self,
        feature_extractor: Any,
        augmentation: Augmentation | None = None,
        spectrogram_augmentation: SpectrogramAugmentation | None = None,
        draw_versions: bool = False,
        layer_statistics: Mapping[str, torch.Tensor] | None = None,
        branches: Sequence[str] = ("cqt", "mel"),
    ):
        self.feature_extractor = feature_extractor
        self.augmentation = augmentation
        self.spectrogram_augmentation = spectrogram_augmentation
        self.draw_versions = draw_versions
        self.layer_statistics = layer_statistics
        self.branches = branches

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
        if self.augmentation is not None and labels is not None and images:
            images, labels = self.augmentation(images, labels)
        batch: dict[str, Any] = {"images": {branch: values.half() for branch, values in images.items()}}
        if self.layer_statistics is None or "start" in rows[0]:
            batch |= self.feature_extractor.heard(clips)
        else:
            if clips[0]:
                batch |= self.feature_extractor.powers(clips)
            batch["input_values"] = torch.stack([self.layer_statistics[content or ""] for content in contents])
        return batch if labels is None else {**batch, "labels": labels}

    def _spectrograms(self, row: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], str | None]:
        """The spectrograms of a row, and the digest of their waveform where they were kept."""
        if "spectrograms" not in row:
            return self.feature_extractor.spectrograms(read_clip(row, self.feature_extractor))[0], None
        versions = row["spectrograms"]
        number = row.get("version", 0)
        if self.draw_versions and len(versions) > 1:
            number = int(torch.randint(len(versions), ()))
        if "start" not in row:
            content = versions.contents[number]
            is_needed = self.branches or self.layer_statistics is None  # else its embedding is all that is used
            return versions[number] if is_needed else {}, content
        clip = versions[number]
        return self.feature_extractor.cut(self.feature_extractor.trim(clip), row["start"], row["end"]), None


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


class LengthGroupedSampler(Sampler[int]):
    """
    The order of transformers' sampler of this name: rows of about equal length stand together, so that little is
    filled up. It depends on the seed and the number of the epoch alone, wherever a run was resumed.

    Args:
        lengths: Of each row.
        batch_size: Rows that stand together.
        seed: Of the order, with `epoch`, which whoever trains sets before each.
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
