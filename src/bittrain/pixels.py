"""From an opened picture of any kind to 8 bits, grey or RGB, upright and opaque. `docs/training.md` has the rules."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bittrain.preprocessing import MAX_SIDE

MAX_PIXELS = MAX_SIDE * MAX_SIDE
"""Larger pictures are refused before anything of them is decoded."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What is read, as Pillow calls it; what needs another program (EPS) or is no picture (PDF) never is."""
_BACKGROUND = "white"
_DEEP = ("I", "F")
"""The first letter of Pillow's modes with more than 8 bits a value."""
_GREY = ("1", "L", "LA", "La")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_SIGNED = 2


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of picture files, in lower case, as ``.png``."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS)


def is_picture(path: Path) -> bool:
    """Whether a regular file's content begins as that of a picture."""
    try:
        with Image.open(path, formats=_FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # its decoder says what is wrong with it
    except Exception:  # Pillow raises many kinds for foreign bytes
        return False


def open_picture(source: Any) -> Image.Image:
    """Reads a picture's header.

    Args:
        source: A path, or an open file.

    Raises:
        ValueError: It has far more than `MAX_PIXELS`.
        Exception: Whatever Pillow raises for what is no picture.
    """
    try:
        return Image.open(source, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None


def check_size(size: tuple[int, int]) -> None:
    """Refuses pictures that are too large.

    Raises:
        ValueError: Width times height is more than `MAX_PIXELS`.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels; at most {MAX_PIXELS:,} are read")


def plain(image: Image.Image) -> Image.Image:
    """The picture (of an animation the first) as a viewer shows it on white paper, in mode L or RGB.

    Raises:
        ValueError: It has more than `MAX_PIXELS`, or its values have no defined black and white.
    """
    check_size(image.size)
    image.load()
    if any(kind in str(name).lower() for name in image.info for kind in ("exif", "xmp")):  # most have none
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(_DEEP):
        image = _eight_bits(image)
    mode = "L" if _is_grey(image) else "RGB"
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, _BACKGROUND)
        paper.paste(image, mask=image.getchannel("A"))
        image = paper
    return image if image.mode == mode else image.convert(mode)


def _is_grey(image: Image.Image) -> bool:
    """Whether the picture is stored without colours."""
    if image.mode in ("P", "PA"):
        colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GREY


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 9 to 32 bits by their 8 highest, floating-point ones from 0 (black) to 1 (white).

    Raises:
        ValueError: Integers are signed, floats lie outside 0 to 1, or one value stands for transparency.
    """
    tags: Any = getattr(image, "tag_v2", {})
    values = cast("NDArray[Any]", np.asarray(image))
    if "transparency" in image.info:
        raise ValueError("a transparent value of more than 8 bits; save it with 8 bits, or with an alpha channel")
    if image.mode == "F":
        if not (values >= 0).all() or not (values <= 1).all():
            raise ValueError("floating-point values outside 0 (black) to 1 (white); scale them, or save it with 8 bits")
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
            raise ValueError("signed integers, which have no black; save it with 8 or 16 bits, unsigned")
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # beside TIFF, deep pictures have 16
        unsigned = values.view(np.uint32) if values.dtype == np.int32 else values
        grey = (unsigned >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey)
