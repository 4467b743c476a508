"""How pixels become the network's float input; the same few numbers travel with every trained model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bitcore.errors import BitLabError, unknown
from bitcore.naming import shown

NORMALIZATIONS = ("dataset", "none", "pow2")
"""``dataset``: zero mean, unit variance; ``none``: pixels in [0, 1]; ``pow2``: the int8 code is ``pixel >> 1``."""
MAX_SIDE = 8192
"""The largest height and width that pictures are brought to."""
_LARGEST, _SMALLEST = 1e30, 1e-30
"""Beyond these, quotients leave the range of float32."""


@dataclass(frozen=True)
class Preprocessing:
    """Turns uint8 pixels into floats: ``x = ((pixel & ~(2**drop_bits - 1)) / pixel_range - mean) / std``.

    Resizing (antialiased bilinear), cropping and the channel conversion happen before, when an image is decoded; their
    target is recorded here so that a firmware author knows the whole way from a picture to the network.

    Attributes:
        image_size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: One value a channel, in units of ``pixel / pixel_range``.
        std: One value a channel, same units.
        pixel_range: What a pixel is divided by: 255, or 256 where the result has to be a short binary fraction.
        drop_bits: How many low bits of a pixel are cleared first.
        center_crop: Share of a picture's shorter side that the square cut from its centre has; 0: no cut.
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: float = 255.0
    drop_bits: int = 0
    center_crop: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values, which may come from a file."""
        if not all(isinstance(values, tuple) for values in (self.image_size, self.mean, self.std)):
            raise BitLabError("preprocessing needs lists as image_size, mean and std")
        numbers = (*self.mean, *self.std, self.pixel_range, self.center_crop)
        if not all(type(v) in (int, float) and abs(v) <= _LARGEST for v in numbers):  # NaN compares with nothing
            raise BitLabError("preprocessing needs finite numbers as mean, std, pixel_range and center_crop")
        whole = (*self.image_size, self.channels, self.drop_bits)
        if not all(type(v) is int for v in whole) or len(self.image_size) != 2:
            raise BitLabError("preprocessing needs an image_size of two whole numbers, whole channels and drop_bits")
        if not all(1 <= side <= MAX_SIDE for side in self.image_size):
            raise BitLabError(f"preprocessing needs an image_size of 1 to {MAX_SIDE}, not {shown(self.image_size)}")
        if self.channels not in (1, 3):
            raise BitLabError(f"preprocessing needs 1 or 3 channels, not {shown(self.channels)}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise BitLabError(f"preprocessing needs one mean and one std for each of the {self.channels} channels")
        if not 0 <= self.center_crop <= 1:
            raise BitLabError("preprocessing needs a center_crop of 0 to 1")
        if min(*self.std, self.pixel_range) < _SMALLEST or not 0 <= self.drop_bits < 8:
            raise BitLabError("preprocessing needs a positive std and pixel_range, and 0 to 7 dropped bits")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image: channels, height, width."""
        return (self.channels, *self.image_size)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the network's input for images.

        Args:
            images: uint8 ``[B, C, H, W]``.

        Returns:
            float32 ``[B, C, H, W]``.

        Raises:
            BitLabError: The images are not uint8 or have another shape than the model was trained with.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.shape:
            got = f"{images.dtype} {tuple(images.shape)}".removeprefix("torch.")
            want = f"uint8 [B, {', '.join(map(str, self.shape))}]"
            raise BitLabError(f"images must be {want}, not {got}; resize or convert them first")
        if self.drop_bits:
            images = images & (0x100 - (1 << self.drop_bits))
        x = images.to(torch.float32).div_(self.pixel_range)
        if any(self.mean):
            x.sub_(torch.tensor(self.mean, device=x.device).view(1, -1, 1, 1))
        if any(s != 1 for s in self.std):
            x.div_(torch.tensor(self.std, device=x.device).view(1, -1, 1, 1))
        return x

    def formula(self) -> str:
        """The conversion as one line of text, for reports and exported read-me files."""
        pixel = f"(pixel & {0x100 - (1 << self.drop_bits)})" if self.drop_bits else "pixel"
        text = f"{pixel} / {self.pixel_range:g}"
        if any(self.mean):
            text = f"({text} - {_numbers(self.mean)})"
        if any(s != 1 for s in self.std):
            text = f"{text} / {_numbers(self.std)}"
        return f"x = {text}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON and YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> Preprocessing:
        """The inverse of `to_dict`.

        Raises:
            BitLabError: A field is missing or unknown, or its value means nothing.
        """
        if not isinstance(values, dict):
            raise BitLabError("unreadable preprocessing: it is no mapping of names to values")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**fields)
        except TypeError as error:
            raise BitLabError(f"unreadable preprocessing: {error}") from None

    @classmethod
    def create(
        cls,
        normalization: str,
        image_size: tuple[int, int],
        channels: int,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> Preprocessing:
        """Returns the preprocessing that a normalization's name stands for.

        ``pow2`` gives ``x = (pixel & 254) / 256``, in [0, 127/128]: a quantizer with the scale 2**-7 maps it to the
        int8 code ``pixel >> 1`` without any rounding, so a firmware shifts a camera's pixels and is done.

        Args:
            normalization: One of `NORMALIZATIONS`.
            image_size: Height and width.
            channels: 1 or 3.
            mean: The dataset's mean a channel (for ``dataset``), of pixels in [0, 1].
            std: The dataset's standard deviation a channel (for ``dataset``).
        """
        zeros, ones = (0.0,) * channels, (1.0,) * channels
        if normalization == "dataset":
            return cls(image_size, channels, mean, std)
        if normalization == "none":
            return cls(image_size, channels, zeros, ones)
        if normalization == "pow2":
            return cls(image_size, channels, zeros, ones, pixel_range=256.0, drop_bits=1)
        raise unknown("normalization", normalization, NORMALIZATIONS)


def _numbers(values: tuple[float, ...]) -> str:
    """One number, or a list of them."""
    text = ", ".join(f"{v:.6g}" for v in values)
    return text if len(values) == 1 else f"[{text}]"
