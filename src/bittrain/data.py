"""Datasets by name: the embedded digits, hub names, local parquet and image folders, as uint8 tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bitcore.errors import BitLabError, unknown
from bittrain.cache import Decoded, cached, file_stamp
from bittrain.classes import Classes
from bittrain.decode import Cell, View
from bittrain.folders import image_folders
from bittrain.hub import KNOWN, Known, fetch_hub, hub_name, hub_reader
from bittrain.parquet import open_parquet
from bittrain.preprocessing import Preprocessing
from bittrain.tables import ROWS


@dataclass(frozen=True)
class Split:
    """Images and their classes.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """The rows ``indices`` (int64), in their order."""
        return Split(self.images[indices], self.labels[indices])

    def read(self, batches: Iterable[Tensor], epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of each of the index tensors."""
        for rows in batches:
            yield self.images[rows], self.labels[rows]

    def sample(self, count: int | None = None) -> Tensor:
        """The first images, or all."""
        return self.images[:count]


class Rows(Protocol):
    """Images and labels that are read batch by batch: a `Split`, or those of `bittrain.bigdata`."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def take(self, indices: Tensor) -> Rows:
        """The rows ``indices`` (int64), in their order."""
        ...

    def read(self, batches: Sequence[Tensor], epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``.

        Args:
            batches: The rows of each batch, int64 ``[B]``.
            epoch: The pass over the data.
            start: The number of the first one of ``batches`` in this pass.
        """
        ...

    def sample(self, count: int | None = None) -> Tensor:
        """At most so many images; by default as many as statistics need."""
        ...


R = TypeVar("R", bound=Rows, covariant=True)


@dataclass(frozen=True)
class ImageData(Generic[R]):
    """A classification dataset.

    Attributes:
        name: The name it was asked for by.
        classes: Class names, in the order of the labels.
        train: The training images.
        test: The test images.
    """

    name: str
    classes: tuple[str, ...]
    train: R
    test: R

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.sample(1).shape[1:]
        return channels, height, width

    def split(self, name: str) -> R:
        """Returns ``train`` or ``test``.

        Raises:
            BitLabError: Another name.
        """
        if name not in ("train", "test"):
            raise unknown("split", name, ("train", "test"))
        return self.train if name == "train" else self.test

    def preprocessing(self, normalization: str = "dataset", center_crop: float = 0.0) -> Preprocessing:
        """Returns the conversion of pixels to the network's input.

        The published mean and deviation are used where they are known for the dataset and the channel count, those
        of the training pixels otherwise.

        Args:
            normalization: ``dataset``, ``none`` or ``pow2``.
            center_crop: What the images were decoded with.
        """
        channels, height, width = self.shape
        known = KNOWN.get(self.name, Known())
        mean, std = known.mean, known.std
        if normalization == "dataset" and len(mean) != channels:
            mean, std = _statistics(self.train.sample())
        made = Preprocessing.create(normalization, (height, width), channels, mean, std)
        return replace(made, center_crop=center_crop)


def load_dataset(
    name: str, image_size: int | None = None, channels: int | None = None, center_crop: float = 0.0
) -> ImageData[Split]:
    """Loads a dataset by name.

    A name is, in this order: a folder in ``$BITLAB_DATA`` (nothing is fetched then), one of `KNOWN`, a local folder
    (parquet files ``train-*.parquet`` and ``test-*.parquet`` as on the hub, or pictures in ``train/CLASS/`` and
    ``test/CLASS/``), or a hub name ``owner/name`` (``owner/name:config`` for a configuration).

    Args:
        name: The dataset.
        image_size: Resize to this height and width (Pillow's bilinear filter, antialiased); ``None`` keeps the size.
        channels: Convert to 1 (grey) or 3 (RGB) channels; ``None`` keeps what the first image has.
        center_crop: Share of the shorter side that a square cut from the centre keeps (see `Decoder`); 0: no cut.

    Raises:
        BitLabError: Unknown name, unreadable image, label out of range, empty class folder, …; the message names it.
    """
    view = View(image_size, channels, center_crop)
    folder = local_folder(name)
    if folder is not None:
        found = _load_folder(folder, view)
    elif name == "digits":
        found = _load_digits(view)
    else:
        found = _load_hub(hub_name(name), view)
    tensors = found.tensors
    splits = {s: Split(tensors[f"{s}_images"], tensors[f"{s}_labels"]) for s in ("train", "test")}
    return ImageData(name, found.classes, splits["train"], splits["test"])


def local_folder(name: str) -> Path | None:
    """The folder that a dataset's name means, if any."""
    root = os.environ.get("BITLAB_DATA")
    if not name:
        return None
    try:
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
        if name not in KNOWN and (folder := Path(name).expanduser()).is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, an unknown user's home
        raise BitLabError(f"dataset {name[:200]!r} is no name of a folder: {error}") from None
    return None


def _load_digits(view: View) -> Decoded:
    """The 1,797 real 8x8 digits that scikit-learn brings along.

    The test set is the first fifth of each class after a shuffle by the frozen legacy generator with seed 0.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = (bunch.images * 16).clip(0, 255).astype(np.uint8)  # 0…16 -> 0…255
    decoder = replace(view, image_size=view.image_size or 8, channels=view.channels or 1).decoder()
    images = torch.from_numpy(np.stack([decoder.convert(Image.fromarray(p)) for p in pixels]))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    shuffle = np.random.RandomState(0)
    train: list[int] = []
    test: list[int] = []
    for digit in range(10):
        rows = shuffle.permutation(np.flatnonzero(bunch.target == digit))
        cut = len(rows) // 5
        test += rows[:cut].tolist()
        train += rows[cut:].tolist()
    order = {"train": torch.tensor(sorted(train)), "test": torch.tensor(sorted(test))}
    tensors = {f"{s}_{k}": v[i] for s, i in order.items() for k, v in (("images", images), ("labels", labels))}
    return Decoded(tuple(map(str, range(10))), tensors)


def _load_folder(folder: Path, view: View) -> Decoded:
    """A local folder of either kind."""
    if (tables := open_parquet(folder)) is not None:
        key = ["parquet", {s: file_stamp(files) for s, files in tables.files.items()}, astuple(view)]
        cells = {split: tables.cells(split) for split in tables.files}
        return cached(key, lambda: _decode(cells, tables.reader.classes, view))
    classes, pictures = image_folders(folder)
    stamps = {split: file_stamp(Path(place) for _, _, place in cells) for split, cells in pictures.items()}
    key = ["images", stamps, classes.names, astuple(view)]
    return cached(key, lambda: replace(_decode(pictures, classes, view), lasting=True))


def _load_hub(hub: str, view: View) -> Decoded:
    """A dataset of the Hugging Face hub, decoded."""
    sources = fetch_hub(hub)
    key = ["hub", hub, {s: d._fingerprint for s, d in sources.items()}, astuple(view)]

    def build() -> Decoded:
        reader = hub_reader(hub, sources)
        cells: dict[str, Iterable[Cell]] = {}
        for split, source in sources.items():
            rows = source.select_columns(reader.columns.both).with_format("arrow")
            cells[split] = reader.cells(rows.iter(ROWS), f"{hub} ({split})")
        return _decode(cells, reader.classes, view)

    return cached(key, build)


def _decode(splits: Mapping[str, Iterable[Cell]], classes: Classes, view: View) -> Decoded:
    """Decodes the pictures of each split; what is read from files that a table names does not last: they may change."""
    decoder, in_files = view.decoder(), False

    def noting(cells: Iterable[Cell]) -> Iterator[Cell]:
        nonlocal in_files
        for cell in cells:
            in_files |= isinstance(cell[0], Path)
            yield cell

    tensors: dict[str, Tensor] = {}
    for split, cells in splits.items():
        tensors[f"{split}_images"], tensors[f"{split}_labels"] = decoder.stack(noting(cells))
    return Decoded(classes.names, tensors, lasting=not in_files)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of pixels in [0, 1], exact (by counting the 256 values)."""
    mean, std = [], []
    values = np.arange(256, dtype=np.float64) / 255
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1).int(), minlength=256).double().numpy() / channel.numel()
        centre = float(share @ values)
        mean.append(centre)
        std.append(max(float(share @ (values - centre) ** 2) ** 0.5, 1e-6))
    return tuple(mean), tuple(std)
