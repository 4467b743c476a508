"""From encoded pictures (parquet rows, image files) to uint8 tensors. Every error names the row or the file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bitcore.errors import BitLabError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "picture", "images")
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_MAX_BYTES = 16 << 30
_BLOCK = 1024


@dataclass
class Decoder:
    """Decodes pictures to one size and channel count; what is ``None`` is taken from the first picture.

    Attributes:
        size: Height and width; resizing is Pillow's bilinear filter, which is antialiased when it shrinks.
        channels: 1 (grey) or 3 (RGB).
        center_crop: Share of the shorter side that a square cut from the centre keeps; 0 squeezes the whole picture
            into ``size``. 0.875 is ImageNet's usual way for 224: the shorter side is resized to 256, then 224×224 cut.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    center_crop: float = 0.0
    _resize: bool = False

    def __post_init__(self) -> None:
        """Checks the channel count."""
        if self.channels not in (None, 1, 3):
            raise BitLabError(f"images have 1 or 3 channels, not {self.channels}")
        self._resize = self.size is not None

    def __call__(self, source: bytes | Path, where: str) -> NDArray[np.uint8]:
        """Decodes one picture.

        Args:
            source: The encoded bytes, or the file.
            where: The picture's place, for the error.

        Returns:
            uint8 ``[C, H, W]``.

        Raises:
            BitLabError: It cannot be decoded, or has another size than the first and no size was asked for.
        """
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = self.convert(image)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise BitLabError(f"{where}: unreadable image ({reason}); remove or replace it") from None
        if self.size is None:
            self.size = (pixels.shape[1], pixels.shape[2])
        if pixels.shape[1:] != self.size:
            shape = f"{pixels.shape[1]}x{pixels.shape[2]}"
            raise BitLabError(
                f"{where}: the image is {shape}, the first one {self.size[0]}x{self.size[1]}; set image_size to resize"
            )
        return pixels

    def convert(self, image: Image.Image) -> NDArray[np.uint8]:
        """Converts and resizes an opened picture to uint8 ``[C, H, W]``."""
        if image.mode.startswith("I;16"):  # Pillow would clip these at 255 instead of scaling them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if self.channels is None:
            self.channels = 1 if image.mode in ("1", "L", "LA", "I", "F") else 3
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        image.load()
        if self._resize and self.size is not None:
            image = self._resized(image, self.size)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The picture at a height and width; with `center_crop`, resized as a whole first and then cut."""
        height, width = size
        whole = (width, height)
        if self.center_crop:
            shorter, now = round(min(size) / self.center_crop), min(image.size)
            whole = (shorter * image.width // now, shorter * image.height // now)
        if image.size != whole:
            image = image.resize(whole, Image.Resampling.BILINEAR)
        left, top = (round((a - b) / 2) for a, b in zip(whole, (width, height), strict=True))
        return image.crop((left, top, left + width, top + height)) if whole != (width, height) else image

    def stack(self, pictures: Iterable[tuple[bytes | Path, str]]) -> Tensor:
        """Decodes many pictures.

        Args:
            pictures: Pairs of source and place.

        Returns:
            uint8 ``[N, C, H, W]``.

        Raises:
            BitLabError: There is none, one is unreadable, or they do not fit in memory.
        """
        blocks: list[Tensor] = []
        block: list[NDArray[np.uint8]] = []
        total = 0
        for source, where in pictures:
            block.append(self(source, where))
            total += block[-1].size
            if total > _MAX_BYTES:
                raise BitLabError(f"more than {_MAX_BYTES >> 30} GiB of pixels; choose a smaller image_size")
            if len(block) == _BLOCK:
                blocks.append(torch.from_numpy(np.stack(block)))
                block = []
        if block:
            blocks.append(torch.from_numpy(np.stack(block)))
        if not blocks:
            raise BitLabError("the dataset holds no images")
        return torch.cat(blocks)


@dataclass(frozen=True)
class View:
    """What pictures are brought to when they are decoded; see `bittrain.data.load_dataset`."""

    image_size: int | None = None
    channels: int | None = None
    center_crop: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.image_size is not None and self.image_size < 1:
            raise BitLabError(f"image_size must be positive, not {self.image_size}")
        if self.center_crop and self.image_size is None:
            raise BitLabError("center_crop needs an image_size; set it, or center_crop to 0")

    def decoder(self) -> Decoder:
        """A decoder to square images."""
        size = None if self.image_size is None else (self.image_size, self.image_size)
        return Decoder(size, self.channels, self.center_crop)


@dataclass(frozen=True)
class Columns:
    """Where a table keeps its images and labels.

    Attributes:
        image: The image column's name.
        label: The label column's name.
        classes: The class names, where the table knows them.
    """

    image: str
    label: str
    classes: tuple[str, ...] | None


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Finds the image and the label column of a table in the hub's layout, whatever they are called.

    Raises:
        BitLabError: There is none of one kind, or the labels are no integers.
    """
    import pyarrow as pa

    features = _features(schema)
    images = [name for name in schema.names if _kind(features.get(name)) == "Image"]
    images += [name for name in IMAGE_COLUMNS if name in schema.names and _holds_image(schema.field(name).type)]
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    labels += [name for name in schema.names if _kind(features.get(name)) == "ClassLabel"]
    for kind, found in (("image", images), ("label", labels)):
        if not found:
            raise BitLabError(f"{where}: no {kind} column among {', '.join(schema.names)}")
    if not pa.types.is_integer(schema.field(labels[0]).type):
        raise BitLabError(f"{where}: column {labels[0]} holds {schema.field(labels[0]).type}, not class numbers")
    names = (features.get(labels[0]) or {}).get("names")
    return Columns(images[0], labels[0], tuple(map(str, names)) if names else None)


def decode_table(
    tables: Callable[[], Iterator[pa.Table]], columns: Columns, decoder: Decoder, where: str
) -> tuple[Tensor, Tensor]:
    """Decodes a table that comes in pieces.

    Args:
        tables: Gives the pieces in order.
        columns: From `find_columns`.
        decoder: The decoder.
        where: The table's name, for errors.

    Returns:
        Images uint8 ``[N, C, H, W]`` and labels int64 ``[N]``.
    """
    labels: list[int] = []

    def pictures() -> Iterator[tuple[bytes | Path, str]]:
        for table in tables():
            rows = zip(table.column(columns.image).to_pylist(), table.column(columns.label).to_pylist(), strict=True)
            for value, label in rows:
                place = f"{where}, row {len(labels)}"
                if label is None:
                    raise BitLabError(f"{place}: no label in column {columns.label}")
                labels.append(label)
                yield encoded(value, place), place

    return decoder.stack(pictures()), torch.tensor(labels, dtype=torch.int64)


def check_labels(labels: Tensor, classes: Sequence[str], where: str) -> None:
    """Checks that labels are class numbers.

    Raises:
        BitLabError: One is outside 0 … len(classes) - 1; the message names its row.
    """
    bad = ((labels < 0) | (labels >= len(classes))).nonzero()
    if len(bad):
        row = int(bad[0])
        raise BitLabError(
            f"{where}, row {row}: label {int(labels[row])} is out of range 0 to {len(classes) - 1} "
            f"({len(classes)} classes; {len(bad)} such rows)"
        )


def folder_pictures(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Lists the pictures of a folder with one sub-folder a class, sorted.

    Args:
        folder: For example ``flowers/train``.
        classes: The class names in the order of their numbers.

    Raises:
        BitLabError: A class folder is empty, or is none of ``classes``.
    """
    for name in class_folders(folder):
        if name not in classes:
            raise BitLabError(f"{folder / name}: the training images have no class '{name}'")
    pictures: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise BitLabError(f"{folder / name}: the class folder holds no images; fill or remove it")
        pictures += [(file, label) for file in files]
    return pictures


def class_folders(folder: Path) -> list[str]:
    """The sub-folders of an image folder, sorted: its classes."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The column types that Hugging Face datasets keeps in a table's metadata, or nothing."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}


def _kind(feature: Any) -> str | None:
    """The feature's type name; nested features have none."""
    return feature.get("_type") if isinstance(feature, dict) else None


def _holds_image(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded pictures."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def encoded(value: Any, where: str) -> bytes | Path:
    """Returns the encoded picture of a cell: bytes, a path, or a struct of both.

    Raises:
        BitLabError: The cell is empty.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or (Path(value["path"]) if value.get("path") else None)
    if value is None:
        raise BitLabError(f"{where}: no image")
    return value
