"""Where teachers come from: runs, files, the Hugging Face hub, timm."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitmodels.hub import find_file
from bitmodels.io import load_model
from bittrain.build import restore
from bittrain.described import check_description
from bittrain.preprocessing import Preprocessing
from bittrain.run_folder import known_run, missing_run

_TIMM = "timm:"


def load_teacher(name: Path | str, classes: Sequence[str], preprocessing: Preprocessing) -> nn.Module:
    """Returns a trained model, in eval mode, that takes the student's input.

    Args:
        name: A run's folder, a ``.ckpt`` or a ``.safetensors`` file, a model of ours on the hub (``owner/name``), or
            ``timm:NAME`` for a pretrained model of the timm library, where that is installed.
        classes: The student's.
        preprocessing: The student's.

    Raises:
        BitLabError: There is no such teacher, or it knows other classes or takes other input.
    """
    if str(name).startswith(_TIMM):
        return _timm(str(name).removeprefix(_TIMM), len(classes), preprocessing)
    path = Path(name)
    if not path.exists() and known_run(path):
        raise BitLabError(f"teacher: {missing_run(path)}")
    if path.suffix == ".ckpt":
        model, extra = restore(path)
    else:
        model, extra = load_model(path if path.suffix == ".safetensors" else find_file(name))
    theirs = check_description(extra, path).get("classes", [])
    if list(theirs) != list(classes):
        raise BitLabError(
            f"the teacher {name} knows the {len(theirs)} classes {_few(theirs)}, the data has the {len(classes)} "
            f"classes {_few(classes)}; take a teacher that was trained on the same classes"
        )
    if Preprocessing.from_dict(extra.get("preprocessing")) != preprocessing:
        raise BitLabError(
            f"the teacher {name} was trained on other input (size, channels, normalization or center_crop); "
            "give the recipe the teacher's image_size, channels, normalization and center_crop"
        )
    return model.eval()


def _timm(name: str, classes: int, preprocessing: Preprocessing) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise BitLabError(f"teacher {_TIMM}{name}: timm is not installed; pip install timm") from None
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # unknown names, no network: timm raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BitLabError(f"teacher {_TIMM}{name} cannot be had ({reason}); see timm.list_pretrained()") from None
    if model.num_classes != classes:
        raise BitLabError(
            f"the teacher {_TIMM}{name} knows {model.num_classes} classes, the data has {classes}; "
            "take a teacher that was trained on the same classes"
        )
    config = model.pretrained_cfg
    return Renormalized(model, preprocessing, config["mean"], config["std"], config["input_size"][-1]).eval()


class Renormalized(nn.Module):
    """A model that takes another normalization and size than its own.

    Args:
        model: Takes ``(pixel / 255 - mean) / std``.
        preprocessing: What its input really is.
        mean: The model's own, a value a channel.
        std: Likewise.
        size: The model's own height and width; larger and smaller images are resized (antialiased bilinear).
    """

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, mean: Sequence[float], std: Sequence[float], size: int
    ) -> None:
        super().__init__()
        self.model, self.size = model, (size, size)
        given = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, 1, -1, 1, 1)
        own = torch.tensor([mean, std]).view(2, 1, -1, 1, 1)
        share = preprocessing.pixel_range / 255
        self.register_buffer("scale", given[1] * share / own[1])
        self.register_buffer("offset", (given[0] * share - own[0]) / own[1])

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits for the student's input."""
        x = x * self.scale + self.offset  # pyright: ignore[reportOperatorIssue]
        if tuple(x.shape[-2:]) != self.size:
            x = nn.functional.interpolate(x, size=self.size, mode="bilinear", antialias=True)
        return self.model(x)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (", …" if len(names) > 5 else "")
