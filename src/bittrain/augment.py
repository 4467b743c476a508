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
            x: Any = self.steps(images.to(torch.float32).div_(255))
            if size is not None and tuple(x.shape[-2:]) != size:
                x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
            return x.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)
