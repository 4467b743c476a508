"""Batches: every one a function of (seed, epoch, number), whatever came before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bittrain.augment import Augment, resize
from bittrain.data import Rows, Split
from bittrain.preprocessing import Preprocessing
from bittrain.seeds import derive, generator

Batch = tuple[Tensor, Tensor]
"""float32 ``[B, C, H, W]`` and int64 ``[B]``."""

_CHUNK_VALUES = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Values (pixels times channels) augmented at a time: few enough for the cache, many enough to hide call overheads."""


class TrainLoader:
    """Shuffled, augmented training batches, the same after a resume as without one.

    Several processes share each epoch: every one makes its own part of each step's images.

    Args:
        split: The training images at the network's size.
        preprocessing: Pixels to input.
        batch_size: Images a batch, in each process. An incomplete last step is left out (the next epoch shuffles anew),
            unless it is the only one.
        seed: The run's seed.
        augment: Applied to ``source``; ``None`` for none.
        source: The same images in the same order at the size that is augmented; resized afterwards.
        probability: Share of the images that are augmented (without copies).
        copies: Augmented copies of each image that an epoch holds besides the original.
        position: Gives the epoch and the batch that the next pass starts with; asked when its first batch is.
        rank: This process.
        processes: How many there are.
        device: Where images are augmented and normalized.
    """

    def __init__(
        self,
        split: Rows,
        preprocessing: Preprocessing,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        source: Rows | None = None,
        probability: float = 1.0,
        copies: int = 0,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        rank: int = 0,
        processes: int = 1,
        device: torch.device | str = "cpu",
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
        self.rank, self.processes = rank, processes
        self.device = torch.device(device)
        self._chunk = 1
        if isinstance(split, Split):
            values = _CHUNK_VALUES.get(self.device.type, _CHUNK_VALUES["cuda"])
            self._chunk = max(1, values // (batch_size * self.source.sample(1)[0].numel()))

    @property
    def samples(self) -> int:
        """Images an epoch, copies included."""
        return len(self.split) * (1 + self.copies)

    def __len__(self) -> int:
        """Batches an epoch."""
        return max(1, self.samples // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch that `position` names."""
        epoch, start = self.position()
        yield from self.epoch(epoch, start)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on."""
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", epoch))
        firsts = range(start - start % self._chunk, len(self), self._chunk)
        chunks = [self._part(order, first) for first in firsts]
        read = self.split.read([rows % len(self.split) for rows in chunks], epoch, firsts.start)
        for first, rows, (pixels, labels) in zip(firsts, chunks, read, strict=True):
            images = self._finish(pixels.to(self.device), rows, self._seed(epoch, first))
            labels = labels.to(self.device)
            for number in range(max(start, first), min(first + self._chunk, len(self))):
                at = slice((number - first) * self.batch_size, (number - first + 1) * self.batch_size)
                yield images[at], labels[at]

    def _part(self, order: Tensor, first: int) -> Tensor:
        """This process's rows of the steps of a chunk, one step's after the other's."""
        step = self.batch_size * self.processes
        rows = order[first * step : min(first + self._chunk, len(self)) * step]
        return torch.cat([part.tensor_split(self.processes)[self.rank] for part in rows.split(step)])

    def _seed(self, epoch: int, first: int) -> int:
        """A chunk's seed; the first process has the one of a process alone."""
        return derive(self.seed, "chunk", epoch, first, *((self.rank,) if self.rank else ()))

    def _finish(self, images: Tensor, rows: Tensor, seed: int) -> Tensor:
        """Augments and normalizes; row ``k * len(split) + i`` is the k-th copy of image i."""
        size = self.preprocessing.image_size
        if self.augment is None:
            return self.preprocessing(resize(images, size))
        if self.copies:
            chosen = rows >= len(self.split)
        else:
            chosen = torch.rand(len(rows), generator=generator(seed, "choose")) < self.probability
        where = chosen.nonzero().squeeze(1)
        raw = images[where.to(self.device)]
        if isinstance(self.source, Split) and self.source is not self.split:
            raw = self.source.images[rows[where] % len(self.split)].to(self.device)
        if len(where) < len(rows):
            images = resize(images, size)
        elif len(where):
            return self.preprocessing(self.augment(raw, seed, size))
        if len(where):
            images[where.to(self.device)] = self.augment(raw, seed, size)
        return self.preprocessing(images)


class TestLoader:
    """All images of a split in order; several processes share them.

    Args:
        split: The images.
        preprocessing: Pixels to input; images of another size are resized.
        batch_size: Images a batch; the last one may be smaller.
        rank: This process.
        processes: How many there are.
    """

    __test__ = False  # no test class, pytest

    def __init__(
        self,
        split: Rows,
        preprocessing: Preprocessing,
        batch_size: int = 1000,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """See the class."""
        self.split = split
        self.preprocessing = preprocessing
        self.batches = torch.arange(len(split)).tensor_split(processes)[rank].split(batch_size)

    def __len__(self) -> int:
        """Batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        for images, labels in self.split.read(self.batches, 0, 0):
            yield self.preprocessing(resize(images, self.preprocessing.image_size)), labels
