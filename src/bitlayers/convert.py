"""Turns any torch model into a quantized one: float layers become bit layers that keep their weights."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from bitcore.config import DYNAMIC, FLOAT, BitQuantConfig
from bitcore.errors import BitLabError, unknown
from bitcore.formats import get_format
from bitcore.formats.integers import BINARY
from bitcore.presets import get_preset
from bitlayers.base import BitLayer
from bitlayers.bitattention import PROJECTIONS, BitMultiheadAttention
from bitlayers.bitconv import BitConv1d, BitConv2d, BitConvTranspose2d
from bitlayers.bitembedding import BitEmbedding
from bitlayers.bitlinear import BitLinear, BitTransposedLinear
from bitlayers.copying import M, owned
from bitlayers.flow import never_negative_inputs
from bitlayers.report import ASKED, ConversionReport, Entry

Quant = BitQuantConfig | str | None
Override = Quant | Mapping[str, Any]

# By type, or by name where the library need not be installed. Exact types: a subclass's forward may do anything.
# nn.MultiheadAttention is not among them: it becomes a BitMultiheadAttention, whose projections are.
CONVERSIONS: dict[type[nn.Module] | str, type[BitLayer]] = {
    nn.Linear: BitLinear,
    nn.Conv1d: BitConv1d,
    nn.Conv2d: BitConv2d,
    nn.ConvTranspose2d: BitConvTranspose2d,
    nn.Embedding: BitEmbedding,
    "transformers.pytorch_utils.Conv1D": BitTransposedLinear,
}


@dataclass(frozen=True)
class Place:
    """A layer with weights, which is a bit layer, may become one, or must stay.

    Attributes:
        names: Every name of it.
        type: The name of its type.
        module: The layer, or the attention module that it will be a projection of.
        projection: Which one, else empty.
        kind: What it may become.
        reason: Why it must stay; empty if it may be converted, or given another config.
    """

    names: tuple[str, ...]
    type: str
    module: nn.Module
    projection: str = ""
    kind: type[BitLayer] | None = None
    reason: str = ""

    @property
    def fit(self) -> bool:
        """Whether it may be a bit layer."""
        return not self.reason


def resolve(quant: Quant) -> BitQuantConfig | None:
    """Returns the config that a preset's name stands for; configs and ``None`` pass through.

    Raises:
        BitLabError: If the name is unknown.
    """
    return get_preset(quant) if isinstance(quant, str) else quant


def quantize(model: M, quant: Quant, overrides: Mapping[str, Override] | None = None, *, inplace: bool = False) -> M:
    """Returns a copy of the model whose layers are bit layers; `convert` says what becomes of what.

    The report is kept as the copy's ``conversion_report``. Layers with weights that stay float though nobody asked for
    it are named in a warning.

    Args:
        model: As in `convert`.
        quant: Likewise.
        overrides: Likewise.
        inplace: Convert and return the model itself, which saves the copy's memory.

    Raises:
        BitLabError: As `convert`; also if the model cannot be copied.
    """
    model = owned(model, inplace)
    report = convert(model, quant, overrides)
    warn_of_floats(report, stacklevel=3)
    return model


def convert(model: nn.Module, quant: Quant, overrides: Mapping[str, Override] | None = None) -> ConversionReport:
    """Turns the float layers of a model into bit layers, in place; layers that are bit layers get the new config.

    The layers stay the same objects with the same parameters: names, tied weights, hooks, geometry, device, dtype,
    requires_grad and training flags are kept. An `nn.MultiheadAttention` becomes a `BitMultiheadAttention`; its
    projections are layers named ``<name>.q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, with new parameters (so
    create optimizers afterwards). Where activations become binary, the model's ReLUs become Hardtanhs.
    Layers that are bit layers already keep learned ranges where the new config has one of the same kind
    (`BitLayer.requantize`).

    Args:
        model: Any model, also a single layer.
        quant: A config, a preset's name, or ``None`` (then only overridden layers are quantized).
        overrides: Layers that differ, by name pattern (``"head"``, ``"features.*"``, or ``"first"`` and ``"last"``, in
            the order of registration): a config, a preset's name, ``None`` to stay as they are, or the fields that
            differ from ``quant``. The first pattern that matches counts.

    Returns:
        What was converted, what was left and why, also kept as the model's ``conversion_report``. ``print`` shows it
        as a table.

    Raises:
        BitLabError: If a preset or option is unknown, a pattern matches no layer, a layer that is to change is packed,
            or no layer can be quantized. Nothing has changed then.
    """
    config = resolve(quant)
    layers = list(places(model))
    patterns = _patterns(overrides or {}, layers)
    if config is not None:
        require_any(layers)
    chosen = [_choose(layer.names, config, patterns) if layer.fit else None for layer in layers]
    first = next((i for i, layer in enumerate(layers) if layer.fit), None)
    if first is not None and (outer := chosen[first]) is not None:
        chosen[first] = outer.for_input()
    return _apply(model, layers, chosen)


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
    return _apply(model, layers, chosen)


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


def _apply(model: nn.Module, layers: list[Place], chosen: list[BitQuantConfig | None]) -> ConversionReport:
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
    report = ConversionReport(tuple(entries), hardtanhs, tuple(_half_used(model, chosen)))
    model.conversion_report = report  # type: ignore[assignment]  # torch's stubs know modules and tensors alone
    return report


def _half_used(model: nn.Module, chosen: list[BitQuantConfig | None]) -> Iterator[str]:
    """Yields the layers whose inputs are never negative, but quantized by a signed format of a static range."""

    def wasteful(config: BitQuantConfig) -> bool:
        static = config.activation_dtype != FLOAT and config.activation_scale != DYNAMIC
        return static and get_format(config.activation_dtype).low < -1  # signs and ternary levels are another matter

    if any(config is not None and wasteful(config) for config in chosen):
        for name in never_negative_inputs(model):
            layer = model.get_submodule(name)
            if isinstance(layer, BitLayer) and wasteful(layer.quant_config):
                yield name


def places(model: nn.Module) -> Iterator[Place]:
    """Yields every module with weights, once, with all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    inside = {child for module in names if type(module) is nn.MultiheadAttention for child in module.children()}
    for module, known in names.items():
        name = type(module).__name__
        if type(module) is nn.MultiheadAttention:
            for projection in PROJECTIONS:
                parts = tuple(f"{path}.{projection}".lstrip(".") for path in known)
                yield Place(parts, name, module, projection, BitLinear, _attention_obstacle(module))
        elif isinstance(module, BitLayer):
            yield Place(tuple(known), name, module, kind=type(module))
        elif module not in inside:
            kind = CONVERSIONS.get(type(module)) or CONVERSIONS.get(_qualified(type(module)))
            reason = (kind.obstacle(module) or "") if kind else _unknown(module)
            if kind or reason:
                yield Place(tuple(known), name, module, kind=kind, reason=reason)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _unknown(module: nn.Module) -> str:
    """Why a module of no known type stays; empty if it holds no weights of its own."""
    if isinstance(module, LazyModuleMixin):
        return "it has no weights yet; pass a batch through the model first"
    if is_parametrized(module):
        return "it is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    weights = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    if not weights or isinstance(module, ParametrizationList):
        return ""
    for kind in CONVERSIONS:
        if isinstance(kind, type) and isinstance(module, kind):
            return f"it is a subclass of {kind.__name__}, whose forward may differ"
    return "there is no bit layer for its type"


def _attention_obstacle(attention: nn.Module) -> str:
    for name in ("in_proj_weight", "q_proj_weight"):
        if attention._parameters.get(name) is not None:
            return "its forward was replaced on the instance" if "forward" in vars(attention) else ""
    return "its weight is computed (weight_norm, spectral_norm, pruning); make it a plain parameter first"


def _patterns(overrides: Mapping[str, Override], layers: list[Place]) -> dict[str, Override]:
    """Resolves "first" and "last", unless layers are called so, and checks that every pattern matches a layer."""
    fit = [layer for layer in layers if layer.fit]
    ends = {"first": fit[0].names[0], "last": fit[-1].names[0]} if fit else {}
    for layer in fit:
        for name in layer.names:
            ends.pop(name, None)
    patterns = {ends.get(pattern, pattern): override for pattern, override in overrides.items()}
    for pattern in patterns:
        if any(fnmatch.filter(layer.names, pattern) for layer in fit):
            continue
        for layer in layers:
            if fnmatch.filter(layer.names, pattern):
                raise BitLabError(f"override '{pattern}': layer '{layer.names[0]}' stays as it is: {layer.reason}")
        known = ", ".join(layer.names[0] for layer in fit)
        raise BitLabError(f"override '{pattern}' matches no layer; there are: {known}")
    return patterns


def _choose(
    names: tuple[str, ...], config: BitQuantConfig | None, patterns: Mapping[str, Override]
) -> BitQuantConfig | None:
    for pattern, override in patterns.items():
        if fnmatch.filter(names, pattern):
            if isinstance(override, Mapping):
                return (config or BitQuantConfig()).replace(**override)
            return resolve(override)
    return config


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
