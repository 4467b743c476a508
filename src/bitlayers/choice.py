"""Which config each layer gets: the preset's or an override's, fitted to what the layer reads."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats.integers import BINARY
from bitcore.presets import Quant, resolve
from bitlayers.bitembedding import BitEmbedding
from bitlayers.flow import Flow, follow
from bitlayers.places import Place
from bitlayers.signs import Sign

Override = Quant | Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """What the layers of a model get.

    Attributes:
        configs: Of each layer, ``None`` to stay as it is.
        flow: What flows between them.
        signed: The layers that got a signed format in place of the unsigned one that was asked for.
        guessed: What was guessed, as a sentence, if it made a difference.
    """

    configs: list[BitQuantConfig | None]
    flow: Flow
    signed: tuple[str, ...]
    guessed: str


def choose(
    model: nn.Module,
    layers: list[Place],
    config: BitQuantConfig | None,
    overrides: Mapping[str, Override],
    example: Any,
) -> Choice:
    """Chooses every layer's config (see `bitlayers.convert.convert`).

    Raises:
        BitLabError: If an override is unknown or matches no layer, or the model cannot be called with the example.
    """
    signs = False
    while True:
        flow = follow(model, (layer.module for layer in layers), example, hardtanhs=signs)
        patterns = _patterns(overrides, layers, flow)
        asked = [_asked(layer.names, config, patterns) if layer.fit else (None, False) for layer in layers]
        inputs = _inputs(layers, flow)
        fitted = [_fitted(layer, flow, inputs, *ask) for layer, ask in zip(layers, asked, strict=True)]
        if signs or not any(one is not None and one.activation_dtype == BINARY.name for one in fitted):
            changed = zip(layers, asked, fitted, strict=True)
            signed = tuple(layer.names[0] for layer, ask, one in changed if layer not in inputs and one != ask[0])
            return Choice(fitted, flow, signed, _guess(flow, inputs, [ask[0] for ask in asked]))
        signs = True  # ReLUs will become Hardtanhs, whose results can be negative


def _fitted(
    layer: Place, flow: Flow, inputs: Sequence[Place], config: BitQuantConfig | None, exactly: bool
) -> BitQuantConfig | None:
    if config is None:
        return None
    if layer in inputs:
        return config.for_input()
    embeds = layer.kind is BitEmbedding  # indices are no activations
    return config if exactly or embeds or flow.sign(layer.key) is Sign.NEVER else config.for_signed()


def _guess(flow: Flow, inputs: Sequence[Place], asked: Sequence[BitQuantConfig | None]) -> str:
    if not flow.problem or all(one is None or one == one.for_input() == one.for_signed() for one in asked):
        return ""
    return (
        f"the model's code cannot be followed ({flow.problem}): '{inputs[0].names[0]}' was registered first and is "
        "taken for the layer that reads the input, and all inputs for possibly negative; give example_input to be exact"
    )


def _inputs(layers: list[Place], flow: Flow) -> list[Place]:
    """The layers that read the model's input; the first to be registered where that cannot be told."""
    reading = [layer for layer in layers if flow.reads_input(layer.key)]
    return reading or [layer for layer in layers if layer.fit][:1]


def _outputs(layers: list[Place], flow: Flow) -> list[Place]:
    last = [layer for layer in layers if layer.key in flow.outputs]
    return last or [layer for layer in layers if layer.fit][-1:]


def _patterns(overrides: Mapping[str, Override], layers: list[Place], flow: Flow) -> dict[str, Override]:
    """Resolves "first" and "last", unless layers are called so, and checks that every pattern matches a layer."""
    fit = [layer for layer in layers if layer.fit]
    names = {name for layer in fit for name in layer.names}
    ends = {"first": _inputs(layers, flow), "last": _outputs(layers, flow)}
    patterns: dict[str, Override] = {}
    for pattern, override in overrides.items():
        at_end = ends.get(pattern, []) if pattern not in names else []
        patterns.update({layer.names[0]: override for layer in at_end} or {pattern: override})
    for pattern in patterns:
        if any(fnmatch.filter(layer.names, pattern) for layer in fit):
            continue
        for layer in layers:
            if fnmatch.filter(layer.names, pattern):
                raise BitLabError(f"override '{pattern}': layer '{layer.names[0]}' stays as it is: {layer.reason}")
        known = ", ".join(layer.names[0] for layer in fit)
        raise BitLabError(f"override '{pattern}' matches no layer; there are: {known}")
    return patterns


def _asked(
    names: tuple[str, ...], config: BitQuantConfig | None, patterns: Mapping[str, Override]
) -> tuple[BitQuantConfig | None, bool]:
    """What a layer was asked to get, and whether the format of its input was asked for by name."""
    for pattern, override in patterns.items():
        if fnmatch.filter(names, pattern):
            if isinstance(override, Mapping):
                return (config or BitQuantConfig()).replace(**override), "activation_dtype" in override
            return resolve(override), False
    return config, False
