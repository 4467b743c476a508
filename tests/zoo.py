"""The zoo in small, for tests: options that make each family tiny, and a batch of its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitmodels import AutoBitModel, data_options, find_model

# Of each family: height and width of the images, and the options.
TINY: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (16, {"width": 0.05, "stem": "cifar", "hidden_dims": (8,)}),
    "convnextv2_atto": (8, {"blocks": (1, 1), "widths": (4, 6), "patch": 2}),
    "mcunet": (8, {"features": (4, "depthwise", "pool", "depthwise", "pool"), "hidden_dims": (6,)}),
    "mlp": (4, {"hidden_dims": (8,), "batch_norm": True}),
    "mobilenetv1": (8, {"stages": ((8, 1, 1), (8, 1, 2)), "width": 0.1}),
    "mobilenetv2": (8, {"stages": ((1, 8, 1, 1), (2, 8, 2, 2)), "width": 0.1, "last": 16}),
    "netcnn": (8, {"widths": (4, 8, 12), "blocks": 1, "expand_ratio": 2, "dropout": 0.0}),
    "resnet18": (16, {"width": 4, "blocks": (1, 1)}),
    "vgg_small": (8, {"features": (4, "pool", 6, "pool"), "hidden_dims": (8,), "dropout": 0.0}),
}
CLASSES = 3
# One name for each family and each kind of block.
NETWORKS = [*TINY, "resnet50", "birealnet18", "reactnet18", "vgg_cifar10_binary"]


def tiny_options(name: str) -> dict[str, Any]:
    """The options that make a model tiny, those that its name implies included."""
    size, options = TINY[find_model(name).family.name]
    return {**find_model(name).options, **data_options(name, (3, size, size), CLASSES), **options}


def tiny(name: str, *quant: Any, **more: Any) -> nn.Module:
    """A tiny model; without ``quant``, of the quantization that its name implies."""
    return AutoBitModel.from_name(name, *quant, **{**tiny_options(name), **more})


def batch(name: str, samples: int = 12) -> tuple[Tensor, Tensor]:
    """Images and labels for a tiny model."""
    size, _ = TINY[find_model(name).family.name]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 3, size, size, generator=generator), torch.arange(samples) % CLASSES
