"""Trains and tests on streamed clips, which are read batch by batch in an order that is fixed beforehand.

The training process reads the shards, and passes undecoded clips to the loader's workers, which decode them and render
the images. So each shard is read once, whatever the number of workers.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ser.data.batches import SeededCollator
from ser.data.corpora.corpus import VOTES
from ser.data.corpora.dimensions import DIMENSIONS
from ser.data.corpora.streamed import Shards
from ser.training.trainer import SERTrainer

Item = tuple[int, dict[str, Any]]


def buffered_order(count: int, buffer_size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the order `(count,)` in which a buffer releases consecutive items: it always releases a random item, and
    puts the next one in its place."""
    held = list(range(min(buffer_size, count)))
    order = np.empty(count, np.int64)
    for i, draw in enumerate(rng.random(count).tolist()):
        slot = int(draw * len(held))
        order[i] = held[slot]
        coming = buffer_size + i if buffer_size + i < count else held.pop()
        if slot < len(held):
            held[slot] = coming
    return order


class StreamedBatches(Sampler[list[Item]]):
    """
    Samples batches of a part, each clip once, in the order of its table. An item is the row of a clip and a dict with
    its columns for a collator and its undecoded `audio`. Several processes take turns, batch by batch; the last turn
    is padded with the first clips, as in accelerate, which removes them from gathered results.

    Args:
        clips: the part, of a streamed corpus.
        shards: the shards of the corpus.
        batch_size: number of clips in a batch of each process.
        num_processes: number of processes that share the part.
        process_index: number of this process.
    """

    def __init__(
        self, clips: datasets.Dataset, shards: Shards, batch_size: int, num_processes: int = 1, process_index: int = 0
    ):
        wanted = ("file", "label", VOTES, DIMENSIONS)
        self.facts = clips.select_columns([name for name in wanted if name in clips.column_names])
        self.places = np.asarray(clips["place"][:])
        self.shards = shards
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.begin(0)

    def begin(self, epoch: int, skipped: int = 0) -> None:
        """Sets the epoch, and the number of its first batches to skip, which are empty and not read."""
        self._epoch = epoch
        self._skipped = skipped

    def __len__(self) -> int:
        return -(-len(self.facts) // (self.batch_size * self.num_processes))

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of the table as they are read, and the order in which they are released."""
        batches = BatchSampler(range(len(self.facts)), self.batch_size, drop_last=False)
        if self.num_processes > 1:
            batches = BatchSamplerShard(batches, self.num_processes, self.process_index)
        own = [row for batch in batches for row in batch]
        return np.asarray(own, dtype=np.int64), np.arange(len(own))

    def __iter__(self) -> Iterator[list[Item]]:
        rows, order = self.plan()
        skipped, self._skipped = self._skipped, 0
        yield from ([] for _ in range(skipped))
        order = order[skipped * self.batch_size : len(self) * self.batch_size]
        coming = np.sort(order)
        source = zip(coming.tolist(), self.shards.read(self.places[rows[coming]]), strict=True)
        waiting: dict[int, dict[str, Any]] = {}
        for first in range(0, len(order), self.batch_size):
            due = order[first : first + self.batch_size].tolist()
            while not waiting.keys() >= {*due}:
                waiting.update([next(source)])
            own = rows[due].tolist()
            table = zip(own, self.facts.__getitems__(own), due, strict=True)
            yield [(row, facts | {"audio": waiting.pop(number)}) for row, facts, number in table]


class ShuffledBatches(StreamedBatches):
    """
    Samples whole batches of the training part for one epoch, with its groups (see [`Shards`]) in random order, and
    clips shuffled by a buffer. Each of several processes reads a contiguous part, all of equal length.

    Args:
        buffer_size: number of clips in the buffer.
        seed: random seed of the order, together with the epoch.
    """

    def __init__(self, *args: Any, buffer_size: int, seed: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.buffer_size = buffer_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.facts) // self.num_processes // self.batch_size

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        groups = self.shards.group_of(self.places)
        known, ranks = np.unique(groups, return_inverse=True)
        shuffled = np.random.default_rng((self.seed, self._epoch)).permutation(len(known))
        share = len(self.facts) // self.num_processes
        rows = np.lexsort((self.places, shuffled[ranks]))[share * self.process_index :][:share]
        rng = np.random.default_rng((self.seed, self._epoch, 1 + self.process_index))
        return rows, buffered_order(share, self.buffer_size, rng)


class _Given(Dataset):
    """A dataset that returns the items that its sampler yields."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: Item) -> Item:
        return item


class StreamingTrainer(SERTrainer):
    """
    [`SERTrainer`] for parts of a streamed corpus.

    Args:
        shards: the shards of the corpus.
        shuffle_buffer_size: see [`ShuffledBatches`].
    """

    def __init__(self, *args: Any, shards: Shards, shuffle_buffer_size: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.shards = shards
        self.shuffle_buffer_size = shuffle_buffer_size

    def get_train_dataloader(self) -> DataLoader:
        self._check_one_batch()
        batches = partial(ShuffledBatches, buffer_size=self.shuffle_buffer_size, seed=self._order_seed)
        return self._loader(batches, self.train_dataset, self._train_batch_size, self.train_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        clips = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(StreamedBatches, clips, self.args.eval_batch_size, self.data_collator)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def _loader(
        self, kind: Callable[..., StreamedBatches], clips: datasets.Dataset, batch_size: int, collator: Callable
    ) -> DataLoader:
        loader = DataLoader(
            _Given(len(clips)),
            batch_sampler=kind(clips, self.shards, batch_size, self.args.world_size, self.args.process_index),
            collate_fn=SeededCollator(collator, self.args.seed),
            **self._loader_settings(),
        )
        # num_processes=1, since the batches are already those of this process.
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        resumed = kwargs["resume_from_checkpoint"] is not None and epoch == kwargs["epochs_trained"]
        skipped = kwargs["steps_trained_in_current_epoch"] if resumed and not self.args.ignore_data_skip else 0
        kwargs["train_dataloader"].batch_sampler.begin(epoch, skipped)
        super()._run_epoch(epoch=epoch, **kwargs)
