"""Turns any torch model into a quantized one: float layers become bit layers that keep their weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bitcore.config import DYNAMIC, FLOAT, BitQuantConfig
from bitcore.errors import BitLabError, unknown
from bitcore.formats import get_format
from bitcore.formats.integers import BINARY
from bitcore.presets import Quant, resolve
from bitlayers.base import BitLayer
from bitlayers.bitattention import BitMultiheadAttention
from bitlayers.bitembedding import BitEmbedding
from bitlayers.choice import Override, choose
from bitlayers.copying import M, owned
from bitlayers.flow import Flow, follow
from bitlayers.places import Place, places
from bitlayers.report import ASKED, ConversionReport, Entry
from bitlayers.signs import Sign


def quantize(
    model: M,
    quant: Quant,
    overrides: Mapping[str, Override] | None = None,
    *,
    example_input: Any = None,
    inplace: bool = False,
) -> M:
    """Returns a copy of the model whose layers are bit layers; `convert` says what becomes of what.

    The report is kept as the copy's ``conversion_report``. A warning names layers with weights that stay float though
    nobody asked for it, and says where it had to be guessed which layers read the model's input.

    Args:
        model: As in `convert`.
        quant: Likewise.
        overrides: Likewise.
        example_input: Likewise.
        inplace: Convert and return the model itself, which saves the copy's memory.

    Raises:
        BitLabError: As `convert`; also if the model cannot be copied.
    """
    model = owned(model, inplace)
    report = convert(model, quant, overrides, example_input=example_input)
    warn_of_floats(report, stacklevel=3)
    if report.guessed:
        warnings.warn(report.guessed, stacklevel=2)
    return model


def convert(
    model: nn.Module, quant: Quant, overrides: Mapping[str, Override] | None = None, *, example_input: Any = None
) -> ConversionReport:
    """Turns the float layers of a model into bit layers, in place; layers that are bit layers get the new config.

    The layers stay the same objects with the same parameters: names, tied weights, hooks, geometry, device, dtype,
    requires_grad and training flags are kept. An `nn.MultiheadAttention` becomes a `BitMultiheadAttention`; its
    projections are layers named ``<name>.q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, with new parameters (so
    create optimizers afterwards). Where activations become binary, the model's ReLUs become Hardtanhs.
    Layers that are bit layers already keep learned ranges where the new config has one of the same kind
    (`BitLayer.requantize`).

    How data flow through the model, not the order of registration, decides two things:

    - Layers that read the model's input, with no other layer in between, get ``input_dtype`` (`for_input`).
    - Where an input can be negative, or that cannot be told, an unsigned format of activations becomes the signed one
      of the same width (`for_signed`), unless an override names the ``activation_dtype`` of that layer.

    Where the model's code cannot be followed and there is no example, the layer that was registered first is taken for
    the only one that reads the input, and any input may be negative. The report says all of this.

    Args:
        model: Any model, also a single layer.
        quant: A config, a preset's name, or ``None`` (then only overridden layers are quantized).
        overrides: Layers that differ, by name pattern (``"head"``, ``"features.*"``; ``"first"`` are all layers that
            read the model's input, ``"last"`` all behind which no other comes): a config, a preset's name, ``None`` to
            stay as they are, or the fields that differ from ``quant``. The first pattern that matches counts.
        example_input: An input (a tuple of inputs, a dictionary of named ones) to follow models by that torch.fx cannot
            follow: the model is called with it once, in eval mode.

    Returns:
        What was converted, what was left and why, also kept as the model's ``conversion_report``. ``print`` shows it
        as a table.

    Raises:
        BitLabError: If a preset or option is unknown, a pattern matches no layer, a layer that is to change is packed,
            no layer can be quantized, or the model cannot be called with the example. Nothing has changed then.
    """
    config = resolve(quant)
    layers = list(places(model))
    if config is not None:
        require_any(layers)
    choice = choose(model, layers, config, overrides or {}, example_input)
    return _apply(model, layers, choice.configs, choice.flow, signed=choice.signed, guessed=choice.guessed)


def convert_layers(model: nn.Module, configs: Mapping[str, BitQuantConfig]) -> ConversionReport:
    """Turns the named layers into bit layers, or changes those that are, in place, each to exactly its config.

    Raises:
        BitLabError: If a name is none of a layer that can be converted, or one that is to change is packed. Nothing
            has changed then.
    """
    layers = list(places(model))
    known = {name: layer for layer in layers for name in layer.names}
    for name in configs:
        if name not in known:
            raise unknown("layer", name, known)
        if not known[name].fit:
            raise BitLabError(f"layer '{name}' cannot become a bit layer: {known[name].reason}")
    chosen = [next((configs[name] for name in layer.names if name in configs), None) for layer in layers]
    signs = any(config.activation_dtype == BINARY.name for config in configs.values())
    return _apply(model, layers, chosen, follow(model, (layer.module for layer in layers), hardtanhs=signs))


def require_any(layers: list[Place]) -> None:
    """Checks that there is something to quantize.

    Raises:
        BitLabError: If there is nothing; the message says why.
    """
    if not any(layer.fit for layer in layers):
        reasons = "; ".join(f"'{layer.names[0]}' ({layer.type}): {layer.reason}" for layer in layers)
        raise BitLabError(f"nothing in the model can be quantized: {reasons or 'it has no layers with weights'}")


def warn_of_floats(report: ConversionReport, stacklevel: int) -> None:
    """Warns of layers with weights that stay float though nobody asked for it."""
    if report.unexpected:
        reasons = "; ".join(f"'{entry.title}' ({entry.layer}): {entry.reason}" for entry in report.unexpected)
        warnings.warn(f"layers that stay float: {reasons}", stacklevel=stacklevel)


def _apply(
    model: nn.Module, layers: list[Place], chosen: list[BitQuantConfig | None], flow: Flow, **more: Any
) -> ConversionReport:
    for layer, config in zip(layers, chosen, strict=True):
        there = layer.module
        if isinstance(there, BitLayer) and there.packed and config not in (None, there.quant_config):
            raise BitLabError(
                f"layer '{layer.names[0]}' is packed and has no float weights to quantize anew; unpack(model) first"
            )
    split: dict[torch.Tensor, tuple[nn.Parameter, ...]] = {}
    entries = []
    for layer, config in zip(layers, chosen, strict=True):
        reason = layer.reason or ("" if config is not None else ASKED)
        entries.append(Entry(layer.names, layer.type, config, reason))
        if config is not None:
            _adopt(layer, config, split)
    signs = any(config is not None and config.activation_dtype == BINARY.name for config in chosen)
    _avoid_fused_paths(model)
    hardtanhs = tuple(_keep_signs(model)) if signs else ()
    read = [
        (layer.names[0], config, flow.sign(layer.key))
        for layer, config in zip(layers, chosen, strict=True)
        if config is not None and layer.kind is not BitEmbedding  # indices are no activations
    ]
    report = ConversionReport(
        tuple(entries),
        hardtanhs,
        half_used=tuple(name for name, config, sign in read if _half_used(config, sign)),
        clipped=tuple(name for name, config, sign in read if _clipped(config, sign)),
        **more,
    )
    model.conversion_report = report  # type: ignore[assignment]  # torch's stubs know modules and tensors alone
    return report


def _half_used(config: BitQuantConfig, sign: Sign) -> bool:
    """Whether an input is never negative, but quantized by a signed format of a static range."""
    static = config.activation_dtype != FLOAT and config.activation_scale != DYNAMIC
    signed = static and get_format(config.activation_dtype).low < -1  # signs and ternary levels are another matter
    return signed and sign is Sign.NEVER


def _clipped(config: BitQuantConfig, sign: Sign) -> bool:
    """Whether an input can be negative, but is quantized by an unsigned format."""
    return sign is Sign.CAN and config != config.for_signed()


def _adopt(layer: Place, config: BitQuantConfig, split: dict[torch.Tensor, tuple[nn.Parameter, ...]]) -> None:
    module, kind = layer.module, layer.kind
    assert kind is not None
    if layer.projection:
        assert isinstance(module, nn.MultiheadAttention)
        if not isinstance(module, BitMultiheadAttention):
            BitMultiheadAttention.adopt(module, split)
        module = module.get_submodule(layer.projection)
    if isinstance(module, BitLayer):
        module.requantize(config)
    else:
        kind.adopt(module, config)


def _keep_signs(model: nn.Module) -> Iterator[str]:
    """Turns ReLUs into Hardtanhs, in place, and yields their names.

    The sign of what a ReLU passes is always +1, so binary activations would carry nothing (BNN, arXiv:1602.02830).
    """
    for name, module in model.named_modules():
        if type(module) in (nn.ReLU, nn.ReLU6):
            module.__class__ = nn.Hardtanh  # type: ignore[assignment]
            module.min_val, module.max_val = -1.0, 1.0  # type: ignore[assignment]
            yield name


def _avoid_fused_paths(model: nn.Module) -> None:
    """Keeps torch's encoder layers from reading float weights past the bit layers, as they do in eval mode."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)) and any(
            isinstance(child, BitLayer) for child in module.modules()
        ):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # "no activation function that the fused path knows"
            else:
                module.use_nested_tensor = False


def pack(model: M, *, inplace: bool = False) -> M:
    """Returns a copy of the model in eval mode whose bit layers hold packed codes and no float weights.

    Args:
        model: Any model.
        inplace: Pack and return the model itself, which saves the copy's memory.

    Raises:
        BitLabError: If a layer's weights are NaN (the message names it), or the model cannot be copied.
    """
    model = owned(model, inplace).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, BitLayer):
            try:
                with torch.no_grad():
                    layer.pack()
            except BitLabError as error:
                raise BitLabError(f"layer '{name}': {error}") from error
    return model


def unpack(model: M, *, inplace: bool = False, hold_scales: bool = True) -> M:
    """Returns a copy of a packed model that trains again: float weights are its codes' levels times their scales.

    Quantizing them gives the same codes and scales, so the outputs are the same, bit for bit. The model stays in eval
    mode; call ``train()`` to train it, and `pack` afterwards. What packing lost is not found again: where in its
    level's range a weight was, batch norms that were folded in, and ties between weights (tie them anew).

    Args:
        model: The model; layers that are not packed stay as they are.
        inplace: Unpack and return the model itself, which saves the copy's memory.
        hold_scales: Whether weight scales are held, while the model trains, that the scaler would not compute from the
            new weights (``absmax`` would, ``absmean`` would not). If not, outputs change at once. Learned scales go on
            learning.

    Raises:
        BitLabError: If a layer's codes are those of no float weights (the message names it), or the model cannot be
            copied.
    """
    model = owned(model, inplace)
    for name, layer in model.named_modules():
        if isinstance(layer, BitLayer):
            try:
                layer.unpack(hold_scales)
            except BitLabError as error:
                raise BitLabError(f"layer '{name}': {error}") from error
    return model
