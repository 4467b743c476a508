"""From a recipe to its model, and from a checkpoint back to the model that was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitlayers.base import BitLayer
from bitlayers.fusion import train_fused, trains_fused
from bitmodels import AutoBitModel
from bittrain.checkpoint import load_checkpoint
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from bittrain.seeds import derive

ModelBuilder = Callable[[Recipe, tuple[int, int, int], int], nn.Module]


def build_model(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Builds a recipe's model with fresh weights, a function of the seed.

    Args:
        recipe: Names model, options and quantization.
        shape: Channels, height and width of the input.
        classes: The number of outputs.
    """
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in recipe.model_options.items()}
    inputs = shape[0] * shape[1] * shape[2] if recipe.model == "mlp" else shape[0]
    options = {"in_channels": inputs, "out_channels": classes} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "weights"))
        return AutoBitModel.from_name(recipe.model, quant=recipe.quant, overrides=recipe.quant_overrides, **options)


UNCHANGED: dict[str, Any] = {"layers": {}, "fused": False}
"""The `structure` of checkpoints that have none: the model is as the recipe says."""


def structure(model: nn.Module) -> dict[str, Any]:
    """Returns what training may change about a model beside its weights, as plain values for a checkpoint."""
    layers = {name: m.quant_config.to_dict() for name, m in model.named_modules() if isinstance(m, BitLayer)}
    return {"layers": layers, "fused": trains_fused(model)}


def restructure(model: nn.Module, saved: dict[str, Any]) -> None:
    """Brings a freshly built model into the form that `structure` returned, so that its weights can be loaded."""
    if saved["fused"] and not trains_fused(model):
        train_fused(model)
    for name, config in saved["layers"].items():
        layer = model.get_submodule(name)
        assert isinstance(layer, BitLayer)
        layer.requantize(BitQuantConfig.from_dict(config))


def restore(path: Path | str, build: ModelBuilder = build_model) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the model of a training checkpoint, in eval mode, and what describes it.

    Args:
        path: A ``.ckpt`` file.
        build: Makes the model that the weights go into.

    Returns:
        The model and a dict of ``preprocessing``, ``dataset``, ``classes`` and ``recipe``, as in ``model.safetensors``.

    Raises:
        BitLabError: As `load_checkpoint`, or the weights do not fit the model.
    """
    checkpoint = load_checkpoint(path)
    extra = checkpoint["bitlab"]
    try:
        shape = Preprocessing.from_dict(extra["preprocessing"]).shape
        model = build(Recipe.from_dict(extra["recipe"]), shape, len(extra["classes"]))
        restructure(model, extra.pop("structure", UNCHANGED))
        weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
        model.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BitLabError(f"{path} does not fit its own description ({reason}); train again") from None
    return model.eval(), extra
