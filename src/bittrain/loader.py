"""Batches from tensors in memory: no worker processes, every batch a function of (seed, epoch, number)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bittrain.augment import Augment
from bittrain.data import Split
from bittrain.preprocessing import Preprocessing
from bittrain.seeds import derive, generator

Batch = tuple[Tensor, Tensor]
"""float32 ``[B, C, H, W]`` and int64 ``[B]``."""

_CHUNK_VALUES = 1 << 19
"""Values (pixels times channels) augmented at a time: few enough for the cache, many enough to hide call overheads."""


class TrainLoader:
    """Shuffled, augmented training batches, the same after a resume as without one.

    Args:
        split: The training images at the network's size.
        preprocessing: Pixels to input.
        batch_size: Images a batch. An incomplete last batch is left out (the next epoch shuffles anew), unless it is
            the only one.
        seed: The run's seed.
        augment: Applied to ``source``; ``None`` for none.
        source: The same images in the same order at the size that is augmented; resized afterwards.
        probability: Share of the images that are augmented (without copies).
        copies: Augmented copies of each image that an epoch holds besides the original.
        position: Gives the epoch and the batch that the next pass starts with; asked when its first batch is.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        source: Split | None = None,
        probability: float = 1.0,
        copies: int = 0,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """See the class."""
        self.split = split
        self.source = split if source is None else source
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.probability = probability
        self.copies = copies if augment is not None else 0
        self.position = position
        self._chunk = max(1, _CHUNK_VALUES // (batch_size * self.source.images[0].numel()))

    @property
    def samples(self) -> int:
        """Images an epoch, copies included."""
        return len(self.split) * (1 + self.copies)

    def __len__(self) -> int:
        """Batches an epoch."""
        return max(1, self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch that `position` names."""
        epoch, start = self.position()
        yield from self.epoch(epoch, start)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on."""
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", epoch))
        for first in range(start - start % self._chunk, len(self), self._chunk):
            count = min(self._chunk, len(self) - first)
            rows = order[first * self.batch_size : (first + count) * self.batch_size]
            images, labels = self._make(rows, derive(self.seed, "chunk", epoch, first))
            for number in range(max(start, first), first + count):
                at = slice((number - first) * self.batch_size, (number - first + 1) * self.batch_size)
                yield images[at], labels[at]

    def _make(self, rows: Tensor, seed: int) -> Batch:
        """The samples ``rows``, where row ``k * len(split) + i`` is the k-th copy of image i."""
        index = rows % len(self.split)
        images = self.split.images[index]
        if self.augment is not None:
            if self.copies:
                chosen = rows >= len(self.split)
            else:
                chosen = torch.rand(len(rows), generator=generator(seed, "choose")) < self.probability
            where = chosen.nonzero().squeeze(1)
            if len(where):
                size = self.preprocessing.image_size
                images[where] = self.augment(self.source.images[index[where]], seed, size)
        return self.preprocessing(images), self.split.labels[index]


class TestLoader:
    """All images of a split in order.

    Args:
        split: The images.
        preprocessing: Pixels to input.
        batch_size: Images a batch; the last one may be smaller.
    """

    __test__ = False  # no test class, pytest

    def __init__(self, split: Split, preprocessing: Preprocessing, batch_size: int = 1000) -> None:
        """See the class."""
        self.split = split
        self.preprocessing = preprocessing
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        for start in range(0, len(self.split), self.batch_size):
            at = slice(start, start + self.batch_size)
            yield self.preprocessing(self.split.images[at]), self.split.labels[at]
