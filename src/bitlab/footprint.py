"""How large a network is: per layer, and in flash and RAM."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bitcore.graph import Conv2d, Graph, Linear
from bitexport.targets import Sizes
from bitexport.targets.c.source import CSource
from bitlayers import BitLayer
from bitlayers.shapes import for_shapes


@dataclass(frozen=True)
class LayerFootprint:
    """One weighted layer.

    Attributes:
        name: Its name in the model.
        shape: The weight's shape.
        weights: The weights' number format.
        activations: The input's number format.
        bits: Storage bits a weight.
        scale: The smallest and largest weight scale.
        zeros: Share of weights that are 0.
        entropy: Shannon entropy of the codes, bits a weight.
        macs: Multiply-accumulates a sample, ``None`` where the input size is unknown.
        bytes: Stored bytes of the weights (the bias not counted).
    """

    name: str
    shape: tuple[int, ...]
    weights: str
    activations: str
    bits: float
    scale: tuple[float, float]
    zeros: float
    entropy: float
    macs: int | None
    bytes: int


def layer_footprints(model: nn.Module, input_shape: tuple[int, ...]) -> list[LayerFootprint]:
    """Returns a model's weighted layers, bit layers and float ones.

    Args:
        model: The model.
        input_shape: One sample's shape, for the multiply-accumulates.
    """
    macs = count_macs(model, input_shape)
    return [
        _bit_layer(name, layer, macs.get(name)) if isinstance(layer, BitLayer) else _float_layer(name, layer, macs)
        for name, layer in model.named_modules()
        if isinstance(layer, (BitLayer, nn.Linear, nn.Conv2d))
    ]


def _bit_layer(name: str, layer: BitLayer, macs: int | None) -> LayerFootprint:
    config = layer.quant_config
    if layer.weight_quantizer is None:
        return _float_layer(name, layer, {name: macs})
    packed = layer.packed_tensor()
    weight = packed.unpack()
    return LayerFootprint(
        name,
        packed.shape,
        config.weight_format,
        config.activation_dtype,
        packed.format.bits,
        (float(packed.scale.min()), float(packed.scale.max())),
        float((weight.levels == 0).float().mean()),
        packed.format.entropy(weight.codes()),
        macs,
        packed.data.numel(),
    )


def _float_layer(name: str, layer: nn.Module, macs: dict[str, int | None] | dict[str, int]) -> LayerFootprint:
    weight: Any = layer.weight
    zeros = float((weight == 0).float().mean())
    size = weight.numel() * weight.element_size()
    bits = 8.0 * weight.element_size()
    return LayerFootprint(
        name, tuple(weight.shape), "float32", "float32", bits, (1.0, 1.0), zeros, bits, macs.get(name), size
    )


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Runs one sample of zeros and returns, for every weighted layer, outputs times fan-in.

    Nothing is computed where the model was built under ``torch.device("meta")`` and this is called under it.
    """
    counts: dict[str, int] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            shape = layer.weight_shape if isinstance(layer, BitLayer) else layer.weight.shape
            fan_in = int(torch.Size(shape[1:]).numel())

            def count(_: nn.Module, __: Any, y: torch.Tensor, name: str = name, fan_in: int = fan_in) -> None:
                counts[name] = counts.get(name, 0) + y.numel() * fan_in

            hooks.append(layer.register_forward_hook(count))
    try:
        with torch.inference_mode(), for_shapes(model):
            model(torch.zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@dataclass(frozen=True)
class Totals:
    """A whole network on a microcontroller, or in the engine.

    Attributes:
        weights: Bytes of the packed weights, as they lie in flash.
        constants: Bytes of all constants in flash (weights, biases, thresholds, multipliers); code is not counted.
        arena: Bytes of working memory.
        input_in_arena: Whether the arena has room for the input.
        input: Bytes of the input.
        macs: Multiply-accumulates a sample.
        multiplications: What else is multiplied a sample; 0 where requantizations are shifts or thresholds.
        float32: Bytes of the same weights in float32.
    """

    weights: int
    constants: int
    arena: int
    input_in_arena: bool
    input: int
    macs: int
    multiplications: int
    float32: int

    @property
    def ram(self) -> int:
        """Arena and input; the stack is not counted."""
        return self.arena + (0 if self.input_in_arena else self.input)

    def to_dict(self) -> dict[str, int]:
        """Everything as plain values."""
        return {**asdict(self), "ram": self.ram}


def totals(graph: Graph, sizes: Sizes | None = None) -> Totals:
    """Returns a graph's totals.

    Args:
        graph: The graph.
        sizes: What its export takes, see `Target.describe`. Without an export, what C for any machine would take where
            convolutions do not run row by row, which takes more bytes.
    """
    if sizes is None:
        source = CSource(graph, "network", packed=None)
        source.source()
        sizes = source.sizes()
    weighted = [node.op for node in graph.nodes if isinstance(node.op, (Linear, Conv2d))]
    return Totals(
        **asdict(sizes),
        input=graph.input.type.bytes,
        macs=graph.macs(),
        multiplications=graph.multiplications(),
        float32=4 * sum(op.levels.size for op in weighted),
    )
