"""Parameters and multiply-accumulates of every model of the zoo.

``python -m bitlab.zoo`` rewrites the table in docs/models.md; a test checks that it is up to date.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bitcore.files import write_atomically
from bitlab.footprint import count_macs
from bitlab.pages import with_table
from bitmodels import data_options, find_model, list_models

# What models of any input are shown with; others have an image size, or that of their stem.
_IMAGES = {"mlp": (1, 16, 16), "netcnn": (1, 28, 28)}
_SIZES = {"imagenet": 224, "cifar": 32}


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        image: Channels, height and width of the image that it is made for.
        classes: Its outputs.
        parameters: Its weights, biases and all else that is learned.
        macs: Multiply-accumulates of its weighted layers for one such image.
    """

    image: tuple[int, int, int]
    classes: int
    parameters: int
    macs: int


def size(name: str) -> Size:
    """Returns how large a model of `bitmodels.list_models` is, with the options that its name implies."""
    family, options = find_model(name).family, find_model(name).options
    image = _IMAGES.get(name)
    config = family.config(**data_options(name, image, 10) if image else options)
    if image is None:
        side = getattr(config, "image_size", 0) or _SIZES[getattr(config, "stem", "imagenet")]
        image = (config.in_channels, side, side)
    with torch.device("meta"):
        model = family.build(config)
        macs = sum(count_macs(model, image).values())
    return Size(image, config.out_channels, sum(parameter.numel() for parameter in model.parameters()), macs)


def models_table() -> str:
    """Returns the Markdown table of all models."""
    lines = ["| model | family | image | classes | parameters | MACs |", "|---|---|---|---|---|---|"]
    for name in list_models():
        s = size(name)
        image = "×".join(map(str, s.image))
        family = find_model(name).family.name
        lines.append(f"| {name} | {family} | {image} | {s.classes} | {_short(s.parameters)} | {_short(s.macs)} |")
    return "\n".join(lines)


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


if __name__ == "__main__":
    page = Path.cwd() / "docs" / "models.md"
    write_atomically(page, with_table(page.read_text(), models_table()))
