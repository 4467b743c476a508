"""Turns any torch model into a quantized one: float layers become bit layers that keep their weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bitcore.config import FLOAT, BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.presets import get_preset
from bitlayers.base import BitLayer
from bitlayers.bitconv import BitConv2d
from bitlayers.bitlinear import BitLinear

Quant = BitQuantConfig | str | None
Override = Quant | Mapping[str, Any]


def _linear(layer: nn.Linear, config: BitQuantConfig) -> BitLinear:
    return BitLinear(layer.in_features, layer.out_features, layer.bias is not None, config, device="meta")


def _conv2d(layer: nn.Conv2d, config: BitQuantConfig) -> BitConv2d:
    return BitConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
        layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode, config, device="meta",  # type: ignore[arg-type]
    )  # fmt: skip


CONVERSIONS: dict[type[nn.Module], Callable[[Any, BitQuantConfig], BitLayer]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
}


def resolve(quant: Quant) -> BitQuantConfig | None:
    """Returns the config that a preset's name stands for; configs and ``None`` pass through.

    Raises:
        BitLabError: If the name is unknown.
    """
    return get_preset(quant) if isinstance(quant, str) else quant


def quantize(model: nn.Module, quant: Quant, overrides: Mapping[str, Override] | None = None) -> nn.Module:
    """Replaces, in place, the float layers of a model by bit layers with the same weights, device and dtype.

    Args:
        model: Any model.
        quant: A config, a preset's name, or ``None`` (then only overridden layers are quantized).
        overrides: Layers that differ, by name pattern (``"head"``, ``"features.*"``, or ``"first"`` and ``"last"``):
            a config, a preset's name, ``None`` to stay float, or the fields that differ from ``quant``. The first
            pattern that matches counts.

    Returns:
        The model (a new module where ``model`` itself is a layer).

    Raises:
        BitLabError: If a preset or option is unknown, or a pattern matches no layer.
    """
    config = resolve(quant)
    layers = {name: layer for name, layer in model.named_modules() if type(layer) in CONVERSIONS}
    names = list(layers)
    patterns = {
        names[0] if pattern == "first" and names else names[-1] if pattern == "last" and names else pattern: override
        for pattern, override in (overrides or {}).items()
    }
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise BitLabError(f"override '{pattern}' matches no layer; there are: {', '.join(names)}")
    first = True
    for name, layer in layers.items():
        chosen = _choose(name, config, patterns)
        if chosen is None:
            first = False
            continue
        if first and chosen.activation_dtype != FLOAT:
            chosen = chosen.replace(activation_dtype=chosen.input_dtype)
        first = False
        replacement = _convert(layer, chosen)
        if not name:
            return replacement
        model.set_submodule(name, replacement)
    return model


def _choose(name: str, config: BitQuantConfig | None, patterns: Mapping[str, Override]) -> BitQuantConfig | None:
    for pattern, override in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            if isinstance(override, Mapping):
                return (config or BitQuantConfig()).replace(**override)
            return resolve(override)
    return config


def _convert(layer: nn.Module, config: BitQuantConfig) -> BitLayer:
    replacement = CONVERSIONS[type(layer)](layer, config)
    replacement.weight, replacement.bias = layer.weight, layer.bias  # type: ignore[assignment]
    for quantizer in (replacement.weight_quantizer, replacement.activation_quantizer):
        if quantizer is not None:
            quantizer.to(layer.weight.device)  # type: ignore[arg-type]
    return replacement.train(layer.training)


def pack(model: nn.Module) -> nn.Module:
    """Packs every bit layer of a model in place and puts it in eval mode; returns the model.

    Raises:
        BitLabError: If a layer's weights are NaN; the message names it.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, BitLayer):
            try:
                with torch.no_grad():
                    layer.pack()
            except BitLabError as error:
                raise BitLabError(f"layer '{name}': {error}") from error
    return model.eval()
