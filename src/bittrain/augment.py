"""Random changes to training images, on whole batches through kornia. A recipe names them with their strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bittrain.entries import parse_entry
from bittrain.seeds import derive

Builder = Callable[..., nn.Module]

AUGMENTATIONS: dict[str, Builder] = {}
"""Name to builder: a function of the image size ``(H, W)`` and of strengths, all with defaults."""


def augmentation(name: str) -> Callable[[Builder], Builder]:
    """Registers a builder under a name: a recipe finds it, its parameters and their defaults from there on.

    The module it returns maps float images in [0, 1], ``[B, C, H, W]``, to changed ones of the same shape.
    """

    def register(builder: Builder) -> Builder:
        AUGMENTATIONS[name] = builder
        return builder

    return register


@augmentation("affine")
def affine(
    size: tuple[int, int], *, degrees: float = 10.0, translate: float = 0.1, scale: float = 0.1, shear: float = 0.0
) -> nn.Module:
    """Rotation by ±degrees, shift by ±translate of the size, size times 1 ± scale, shear by ±shear degrees.

    The defaults are BitNetMCU's for MNIST. Bilinear; what comes in from outside is black.
    """
    from kornia.augmentation import RandomAffine

    del size
    return RandomAffine(
        degrees=degrees,
        translate=(translate, translate),
        scale=(1 - scale, 1 + scale) if scale else None,
        shear=shear or None,
        p=1.0,
    )


@augmentation("crop")
def crop(size: tuple[int, int], *, padding: int = 4) -> nn.Module:
    """A random window of the image's size in the image padded with black on all sides."""
    from kornia.augmentation import RandomCrop

    return RandomCrop(size, padding=int(padding), p=1.0)


@augmentation("flip")
def flip(size: tuple[int, int], *, probability: float = 0.5) -> nn.Module:
    """Left and right exchanged, with a probability."""
    from kornia.augmentation import RandomHorizontalFlip

    del size
    return RandomHorizontalFlip(p=probability)


@augmentation("erasing")
def erasing(
    size: tuple[int, int], *, probability: float = 0.25, smallest: float = 0.02, largest: float = 0.33
) -> nn.Module:
    """A rectangle, of ``smallest`` to ``largest`` of the area, made black with a probability (arXiv:1708.04896)."""
    from kornia.augmentation import RandomErasing

    del size
    return RandomErasing(scale=(smallest, largest), p=probability)


@augmentation("elastic")
def elastic(size: tuple[int, int], *, strength: float = 1.0, sigma: float = 4.0, probability: float = 1.0) -> nn.Module:
    """A smooth random field of shifts, ``strength`` in units of a tenth of the image, smoothed by ``sigma`` pixels."""
    from kornia.augmentation import RandomElasticTransform

    width = min(2 * round(2 * sigma) + 1, min(size) - 1 + min(size) % 2)
    return RandomElasticTransform((width, width), (sigma, sigma), (strength, strength), p=probability)


@augmentation("resized-crop")
def resized_crop(size: tuple[int, int], *, smallest: float = 0.08, largest: float = 1.0) -> nn.Module:
    """A random window of ``smallest`` to ``largest`` of the area, 3:4 to 4:3, resized to the whole (Inception's)."""
    from kornia.augmentation import RandomResizedCrop

    return RandomResizedCrop(size, scale=(smallest, largest), p=1.0)


@augmentation("color-jitter")
def color_jitter(
    size: tuple[int, int], *, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4
) -> nn.Module:
    """Brightness, contrast and saturation, each times 1 ± its strength."""
    from kornia.augmentation import ColorJitter

    del size
    return ColorJitter(brightness, contrast, saturation, 0.0, p=1.0)


@augmentation("randaugment")
def randaugment(size: tuple[int, int], *, n: int = 2, magnitude: int = 10, group: int = 16) -> nn.Module:
    """``n`` random operations of a magnitude, 0 to 30, for every ``group`` images (RandAugment, arXiv:1909.13719)."""
    from kornia.augmentation.auto import RandAugment

    del size
    return _Groups(RandAugment(n=n, m=magnitude), group)


@augmentation("trivialaugment")
def trivialaugment(size: tuple[int, int], *, group: int = 16) -> nn.Module:
    """One random operation of random strength for every ``group`` images (TrivialAugment, arXiv:2103.10158)."""
    from kornia.augmentation.auto import TrivialAugment

    del size
    return _Groups(TrivialAugment(), group)


@augmentation("autoaugment")
def autoaugment(size: tuple[int, int], *, policy: str = "cifar10", group: int = 16) -> nn.Module:
    """A random pair of operations of a learned policy (cifar10, imagenet, svhn) for every ``group`` images.

    AutoAugment, arXiv:1805.09501.
    """
    from kornia.augmentation.auto import AutoAugment

    del size
    return _Groups(AutoAugment(policy), group)


class _Groups(nn.Module):
    """Applies an augmentation that draws one operation a call to a few images at a time; grey images pass as RGB."""

    def __init__(self, augmentation: nn.Module, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError("group must be at least 1")
        self.augmentation, self.size = augmentation, size

    def forward(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        coloured = images.expand(-1, 3, -1, -1) if channels == 1 else images
        changed = torch.cat([self.augmentation(part) for part in coloured.split(self.size)])
        return changed.mean(1, keepdim=True) if channels == 1 else changed


def parse(text: str) -> tuple[str, dict[str, float]]:
    """Reads a recipe's entry, for example ``"affine degrees=10 translate=0.1"``.

    Raises:
        BitLabError: Unknown augmentation, unknown strength or no number.
    """
    return parse_entry(text, AUGMENTATIONS, "augmentation", "strength")


class Augment:
    """A chain of augmentations on uint8 images, seeded by the caller.

    Args:
        entries: A recipe's ``augment``: names with strengths.
        size: Height and width of the images.

    Raises:
        BitLabError: An entry is wrong.
    """

    def __init__(self, entries: Sequence[str], size: tuple[int, int]) -> None:
        """See the class."""
        steps: list[nn.Module] = []
        for name, values in map(parse, entries):
            try:
                steps.append(AUGMENTATIONS[name](size, **values))
            except (ValueError, TypeError, RuntimeError) as error:
                raise BitLabError(f"augmentation {name}: {error}") from None
        self.steps = nn.Sequential(*steps)

    def __call__(self, images: Tensor, seed: int, size: tuple[int, int] | None = None) -> Tensor:
        """Changes images; the global random state is left as it was.

        Args:
            images: uint8 ``[B, C, H, W]``.
            seed: The result is a function of the images and this.
            size: Resize to this height and width afterwards (antialiased bilinear).

        Returns:
            uint8 ``[B, C, H, W]``, values to the nearest, halves upwards.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(derive(seed, "augment"))
            return _to_pixels(self.steps(images.to(torch.float32).div_(255)), size)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns uint8 images at a height and width (antialiased bilinear); the same ones where they have it."""
    if tuple(images.shape[-2:]) == size:
        return images
    return _to_pixels(images.to(torch.float32).div_(255), size)


def _to_pixels(x: Any, size: tuple[int, int] | None) -> Tensor:
    if size is not None and tuple(x.shape[-2:]) != size:
        x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    return x.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)
