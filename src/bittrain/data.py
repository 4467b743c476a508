"""Datasets by name: the embedded digits, hub names, local parquet and image folders, as uint8 tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from bitcore.errors import BitLabError, unknown
from bittrain.cache import Decoded, cached, file_stamp
from bittrain.decode import Columns, View, check_labels, class_folders, decode_table, find_columns, folder_pictures
from bittrain.preprocessing import Preprocessing

if TYPE_CHECKING:
    import pyarrow as pa

TEST_NAMES = ("test", "validation", "valid", "val")
"""What the split that a model is measured on may be called, best first."""


@dataclass(frozen=True)
class Known:
    """What is known about a dataset beyond its files.

    Attributes:
        hub: Its name on the Hugging Face hub; empty for embedded data.
        mean: Mean a channel of the training pixels in [0, 1].
        std: Standard deviation a channel.
    """

    hub: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


KNOWN: dict[str, Known] = {
    "digits": Known(),
    "mnist": Known("ylecun/mnist", (0.1307,), (0.3081,)),
    "fashion_mnist": Known("zalando-datasets/fashion_mnist", (0.2860,), (0.3530,)),
    "cifar10": Known("uoft-cs/cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Known("uoft-cs/cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Known("ILSVRC/imagenet-1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


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
        classes, tensors = _load_folder(folder, view)
    elif name == "digits":
        classes, tensors = _load_digits(view)
    elif (known := KNOWN.get(name)) is not None:
        classes, tensors = _load_hub(known.hub, view)
    elif "/" in name and not name.startswith((".", "/", "~")):
        classes, tensors = _load_hub(name, view)
    elif "/" in name:
        raise BitLabError(f"no folder {name}; a dataset is a folder, a hub name owner/name or {', '.join(KNOWN)}")
    else:
        raise unknown("dataset", name, KNOWN)
    splits = {s: Split(tensors[f"{s}_images"], tensors[f"{s}_labels"]) for s in ("train", "test")}
    for split, rows in splits.items():
        check_labels(rows.labels, classes, f"{name} ({split})")
    return ImageData(name, classes, splits["train"], splits["test"])


def local_folder(name: str) -> Path | None:
    """The folder that a dataset's name means, if any."""
    if (root := os.environ.get("BITLAB_DATA")) and (Path(root) / name).is_dir():
        return Path(root) / name
    if name not in KNOWN and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    return None


def _load_digits(view: View) -> Decoded:
    """The 1,797 real 8x8 digits that scikit-learn brings along.

    The test set is the first fifth of each class after a shuffle by the frozen legacy generator with seed 0.
    """
    from PIL import Image
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
    return tuple(map(str, range(10))), tensors


def _load_folder(folder: Path, view: View) -> Decoded:
    """A local folder of either kind."""
    train = parquet_files(folder, ("train",))
    if train:
        test = parquet_files(folder, TEST_NAMES)
        if not test:
            raise BitLabError(f"{folder}: there is no test-*.parquet beside the training files")
        key = ["parquet", file_stamp(train), file_stamp(test), astuple(view)]
        return cached(key, lambda: _decode_parquet(train, test, view))
    classes, pictures = image_folders(folder)
    key = ["images", {s: file_stamp(p for p, _ in rows) for s, rows in pictures.items()}, classes, astuple(view)]

    def build() -> Decoded:
        decoder = view.decoder()
        tensors: dict[str, Tensor] = {}
        for split, rows in pictures.items():
            tensors[f"{split}_images"] = decoder.stack((p, str(p)) for p, _ in rows)
            tensors[f"{split}_labels"] = torch.tensor([label for _, label in rows], dtype=torch.int64)
        return classes, tensors

    return cached(key, build)


def image_folders(folder: Path) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]]]:
    """Lists ``train/CLASS/`` and ``test/CLASS/`` below a folder.

    Returns:
        The class names, and the pictures with their labels of ``train`` and ``test``.

    Raises:
        BitLabError: A folder is missing, has no class folders, or a class folder is empty.
    """
    if not (folder / "train").is_dir():
        raise BitLabError(f"{folder}: found neither train-*.parquet files nor a folder train/ with one folder a class")
    test_folder = next((folder / t for t in TEST_NAMES if (folder / t).is_dir()), None)
    if test_folder is None:
        raise BitLabError(f"{folder}: there is no folder test/ beside train/")
    classes = tuple(class_folders(folder / "train"))
    if not classes:
        raise BitLabError(f"{folder / 'train'}: no class folders; put the images into one folder a class")
    pictures = {"train": folder_pictures(folder / "train", classes), "test": folder_pictures(test_folder, classes)}
    return classes, pictures


def parquet_files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The parquet files of the first split of ``names`` that exists, in the folder or the only one below that has any.

    Raises:
        BitLabError: Several folders below have such files (configurations of one dataset).
    """
    for name in names:
        found = sorted(folder.glob(f"{name}-*.parquet")) or sorted(folder.glob(f"{name}.parquet"))
        found = found or sorted(folder.glob(f"*/{name}-*.parquet"))
        if len(parents := sorted({f.parent.name for f in found})) > 1:
            raise BitLabError(
                f"{folder} holds several datasets; name one: {', '.join(str(folder / p) for p in parents)}"
            )
        if found:
            return found
    return []


def _decode_parquet(train: list[Path], test: list[Path], view: View) -> Decoded:
    """Decodes local parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    decoder = view.decoder()
    tensors: dict[str, Tensor] = {}
    classes: tuple[str, ...] | None = None
    for split, files in (("train", train), ("test", test)):
        parts: list[tuple[Tensor, Tensor]] = []
        for path in files:
            try:
                file = pq.ParquetFile(path)
            except (OSError, pa.ArrowException) as error:
                raise BitLabError(f"{path}: unreadable parquet file ({error}); fetch it again") from None
            columns = find_columns(file.schema_arrow, str(path))
            parts.append(decode_table(lambda f=file, c=columns: _pieces(f, c), columns, decoder, str(path)))
            classes = classes or columns.classes
        tensors[f"{split}_images"] = torch.cat([images for images, _ in parts])
        tensors[f"{split}_labels"] = torch.cat([labels for _, labels in parts])
    return classes or _numbered(tensors["train_labels"]), tensors


def _pieces(file: Any, columns: Columns) -> Iterator[pa.Table]:
    """The two columns of a parquet file, a thousand rows at a time."""
    import pyarrow as pa

    try:
        for batch in file.iter_batches(1024, columns=[columns.image, columns.label]):
            yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise BitLabError(f"unreadable parquet file ({error}); fetch it again") from None


def fetch_hub(hub: str, streaming: bool = False) -> dict[str, Any]:
    """Returns the train and the test split of a dataset of the Hugging Face hub, through its own cache or as streams.

    Args:
        hub: ``owner/name`` or ``owner/name:config``.
        streaming: Whether to stream.

    Raises:
        BitLabError: It cannot be fetched, or has not these splits.
    """
    import datasets

    path, _, config = hub.partition(":")
    try:
        options: dict[str, Any] = {"streaming": True} if streaming else {}
        splits: Any = datasets.load_dataset(path, config or None, **options)
    except Exception as error:  # the library raises many kinds, most of them undocumented
        reason = (str(error).strip().splitlines() or [""])[0]
        name = next((name for name, known in KNOWN.items() if known.hub == hub), hub)
        raise BitLabError(
            f"dataset {hub} cannot be fetched ({type(error).__name__}: {reason}); check the name and the network, or "
            f"put its parquet files into a folder {name} and set BITLAB_DATA to the folder above"
        ) from None
    test = next((t for t in TEST_NAMES if t in splits), None)
    if test is None or "train" not in splits:
        raise BitLabError(f"{hub}: needs the splits train and test, has {', '.join(splits)}")
    return {"train": splits["train"], "test": splits[test]}


def _load_hub(hub: str, view: View) -> Decoded:
    """A dataset of the Hugging Face hub, decoded."""
    sources = fetch_hub(hub)

    def build() -> Decoded:
        decoder = view.decoder()
        tensors: dict[str, Tensor] = {}
        classes: tuple[str, ...] | None = None
        for split, source in sources.items():
            where = f"{hub} ({split})"
            columns = find_columns(source.features.arrow_schema, where)
            rows = source.select_columns([columns.image, columns.label]).with_format("arrow")
            images, labels = decode_table(lambda r=rows: r.iter(1024), columns, decoder, where)
            tensors |= {f"{split}_images": images, f"{split}_labels": labels}
            classes = classes or columns.classes
        return classes or _numbered(tensors["train_labels"]), tensors

    return cached(["hub", hub, {s: d._fingerprint for s, d in sources.items()}, astuple(view)], build)


def _numbered(labels: Tensor) -> tuple[str, ...]:
    """Class names for labels without any: their numbers."""
    return tuple(map(str, range(int(labels.max()) + 1)))


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
