"""From encoded pictures (parquet rows, image files) to uint8 tensors. Every error names the row or the file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bitcore.errors import BitLabError
from bittrain.pixels import check_size, open_picture, plain
from bittrain.preprocessing import MAX_SIDE

_MAX_BYTES = min(16 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
"""Pixels that are kept in memory; while they are joined they are there twice."""
_BLOCK = 1024

Cell = tuple[bytes | Path, int, str]
"""An encoded picture or its file, the number of its class, its place for errors."""


@dataclass
class Decoder:
    """Decodes pictures to one size and channel count; where nothing is asked for, those of the first picture rule.

    Attributes:
        size: Height and width; resizing is Pillow's bilinear filter, which is antialiased when it shrinks.
        channels: 1 (grey) or 3 (RGB).
        center_crop: Share of the shorter side that a square cut from the centre keeps; 0 squeezes the whole picture
            into ``size``. 0.875 is ImageNet's usual way for 224: the shorter side is resized to 256, then 224×224 cut.
        first: The shape of the first picture, ``[C, H, W]``.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    center_crop: float = 0.0
    first: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Checks the channel count."""
        if self.channels not in (None, 1, 3):
            raise BitLabError(f"images have 1 or 3 channels, not {self.channels}")

    def __call__(self, source: bytes | Path, where: str) -> NDArray[np.uint8]:
        """Decodes one picture.

        Args:
            source: The encoded bytes, or the file.
            where: The picture's place, for the error.

        Returns:
            uint8 ``[C, H, W]``.

        Raises:
            BitLabError: It cannot be decoded, or has another size than the first and no size was asked for, or colours
                that the first has not and no channel count was asked for.
        """
        try:
            if isinstance(source, Path) and not source.is_file():  # reading a pipe or a device may never end
                raise ValueError("no regular file")
            with open_picture(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = self.convert(plain(image))
        except Exception as error:  # Pillow raises many kinds for damaged files
            known = not isinstance(error, UnidentifiedImageError)
            reason = (str(error) or type(error).__name__) if known else "of no known format"
            raise BitLabError(f"{where}: unreadable image ({reason}); remove or replace it") from None
        channels, height, width = self.first = self.first or pixels.shape
        if self.size is None and pixels.shape[1:] != (height, width):
            shape = f"{pixels.shape[1]}x{pixels.shape[2]}"
            raise BitLabError(
                f"{where}: the image is {shape}, the first one {height}x{width}; set image_size to resize"
            )
        if self.channels is not None or len(pixels) == channels:
            return pixels
        if channels == 1:
            raise BitLabError(f"{where}: the image has colours, the first one has none; set channels to 1 or 3")
        return np.repeat(pixels, channels, axis=0)

    def convert(self, image: Image.Image) -> NDArray[np.uint8]:
        """A picture of mode L or RGB, with the channels and the size that were asked for, as uint8 ``[C, H, W]``."""
        if self.channels is not None:
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
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
            check_size(whole)
        if image.size != whole:
            image = image.resize(whole, Image.Resampling.BILINEAR)
        left, top = (round((a - b) / 2) for a, b in zip(whole, (width, height), strict=True))
        return image.crop((left, top, left + width, top + height)) if whole != (width, height) else image

    def stack(self, cells: Iterable[Cell]) -> tuple[Tensor, Tensor]:
        """Decodes many pictures.

        Args:
            cells: The pictures.

        Returns:
            Images uint8 ``[N, C, H, W]`` and labels int64 ``[N]``.

        Raises:
            BitLabError: There is none, one is unreadable, or they do not fit in memory.
        """
        blocks: list[Tensor] = []
        block: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        total = 0
        for source, label, where in cells:
            block.append(self(source, where))
            labels.append(label)
            total += block[-1].size
            if total > _MAX_BYTES:
                raise BitLabError(
                    f"{where}: with this image there are more than {_MAX_BYTES >> 20:,} MiB of pixels; choose a "
                    "smaller image_size, or loading disk"
                )
            if len(block) == _BLOCK:
                blocks.append(torch.from_numpy(np.stack(block)))
                block = []
        if block:
            blocks.append(torch.from_numpy(np.stack(block)))
        if not blocks:
            raise BitLabError("the dataset holds no images")
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0], torch.tensor(labels, dtype=torch.int64)


@dataclass(frozen=True)
class View:
    """What pictures are brought to when they are decoded; see `bittrain.data.load_dataset`."""

    image_size: int | None = None
    channels: int | None = None
    center_crop: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.image_size is not None and not 1 <= self.image_size <= MAX_SIDE:
            raise BitLabError(f"image_size must be 1 to {MAX_SIDE}, not {self.image_size}")
        if not 0 <= self.center_crop <= 1:
            raise BitLabError(f"center_crop must be 0 to 1, not {self.center_crop}")
        if self.center_crop and self.image_size is None:
            raise BitLabError("center_crop needs an image_size; set it, or center_crop to 0")

    def decoder(self) -> Decoder:
        """A decoder to square images."""
        size = None if self.image_size is None else (self.image_size, self.image_size)
        return Decoder(size, self.channels, self.center_crop)
