"""From a recipe to its model, and from a checkpoint back to the model that was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.presets import resolve
from bitcore.quantizers import Quantizer
from bitlayers.base import BitLayer
from bitlayers.choice import Override
from bitlayers.fusion import train_fused, trains_fused
from bitmodels import AutoBitModel, data_options, find_model
from bitmodels.auto import DEFAULT
from bittrain.checkpoint import load_checkpoint
from bittrain.described import check_description
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from bittrain.run_folder import missing_run
from bittrain.seeds import derive

ModelBuilder = Callable[[Recipe, tuple[int, int, int], int], nn.Module]


def build_model(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Builds a recipe's model with fresh weights, a function of the seed.

    Args:
        recipe: Names model, options and quantization.
        shape: Channels, height and width of the input.
        classes: The number of outputs.
    """
    options = data_options(recipe.model, shape, classes) | recipe.model_options
    quant, overrides = _quantization(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "weights"))
        return AutoBitModel.from_name(recipe.model, quant, overrides, **options)


def _quantization(recipe: Recipe) -> tuple[BitQuantConfig | None, Mapping[str, Override]]:
    """The preset, or what the model's name implies, changed by ``scale_op`` and ``act_bits``; the overrides."""
    quant, overrides = resolve(recipe.quant if recipe.quant != DEFAULT else None), recipe.quant_overrides
    if recipe.quant == DEFAULT:
        variant = find_model(recipe.model)
        quant, overrides = resolve(variant.quant), {**variant.overrides, **overrides}
    if quant is not None and recipe.scale_op is not None:
        quant = quant.replace(weight_scale=f"abs{recipe.scale_op}")
    if quant is not None and recipe.act_bits is not None:
        quant = quant.replace(activation_dtype=f"int{recipe.act_bits}", activation_scale="dynamic")
    return quant, overrides


UNCHANGED: dict[str, Any] = {"layers": {}, "fused": False}
"""The `structure` of checkpoints that have none: the model is as the recipe says."""


def structure(model: nn.Module) -> dict[str, Any]:
    """Returns what training may change about a model beside its weights, as plain values for a checkpoint."""
    layers = {name: m.quant_config.to_dict() for name, m in model.named_modules() if isinstance(m, BitLayer)}
    return {"layers": layers, "fused": trains_fused(model)}


def restructure(model: nn.Module, saved: dict[str, Any]) -> None:
    """Brings a freshly built model into the form that `structure` returned, so that its weights can be loaded."""
    if saved["fused"] and not trains_fused(model):
        train_fused(model, inplace=True)
    for name, config in saved["layers"].items():
        layer = model.get_submodule(name)
        assert isinstance(layer, BitLayer)
        layer.requantize(BitQuantConfig.from_dict(config))


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The model's state in a checkpoint: the running average where there is one, as it was measured."""
    if "average" in checkpoint:
        return checkpoint["average"]["state"]
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}


def start_from(model: nn.Module, path: Path | str) -> None:
    """Gives a model the weights of another run, such as its float twin's; what quantizers learn begins anew.

    Args:
        model: Freshly built.
        path: A run's folder (its best checkpoint), or a ``.ckpt`` file.

    Raises:
        BitLabError: As `load_checkpoint`, or the weights are those of another model.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise BitLabError(f"init {path}: its weights may be packed; give the run's folder or a .ckpt file in it")
    if not path.exists():
        raise BitLabError(f"init: {missing_run(path)}")
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        path = best if best.exists() else best.with_name("last.ckpt")
    take_weights(model, _weights(load_checkpoint(path)), f"init {path}")


def take_weights(model: nn.Module, theirs: Mapping[str, Tensor], source: str) -> None:
    """Gives a model the weights of a state, all but what its quantizers learn.

    Args:
        model: Freshly built.
        theirs: The state of a model of the same architecture.
        source: Where it comes from, for the error.

    Raises:
        BitLabError: The weights are those of another model.
    """
    learned = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, Quantizer))
    taken = {}
    for name, value in model.state_dict().items():
        if name.startswith(learned):
            continue
        other = theirs.get(name)
        if other is None or other.shape != value.shape:
            what = "not there" if other is None else f"{list(other.shape)}, not {list(value.shape)}"
            raise BitLabError(f"{source} is of another model: {name} is {what}; take a run of the same architecture")
        taken[name] = other
    model.load_state_dict(taken, strict=False)


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
    extra = check_description(checkpoint["bitlab"], path)
    try:
        shape = Preprocessing.from_dict(extra["preprocessing"]).shape
        model = build(Recipe.from_dict(extra["recipe"]), shape, len(extra["classes"]))
        restructure(model, extra.pop("structure", UNCHANGED))
        model.load_state_dict(_weights(checkpoint))
    except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BitLabError(f"{path} does not fit its own description ({reason}); train again") from None
    return model.eval(), extra
