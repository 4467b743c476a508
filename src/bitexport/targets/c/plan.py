"""What runs in C, step by step, and where in one arena every result, the input and every scratch memory lives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitcore.graph import Buffer, Graph
from bitcore.graph.ops import Ints
from bitcore.graph.types import IntTensor
from bitexport.targets.c.arena import place
from bitexport.targets.c.calls import Layer, find_layers, in_blocks, ways_of
from bitexport.targets.c.compact_dense import BLOCK
from bitexport.targets.c.orders import find_orders


@dataclass(frozen=True)
class CPlan:
    """Layers in order, and the arena. The output belongs to the caller.

    Attributes:
        layers: The layers.
        places: All stretches of the arena, in the order in which they are written: results,
            ``"input"``, ``"output"`` and ``"scratch of NODE"``.
        types: The stored type of the input and of every result.
        output_order: For each output the element of the last result that it is, where the order differs.
        anchor: Where the tables of all compact layers begin, behind their sums.
    """

    layers: tuple[Layer, ...]
    places: tuple[Buffer, ...]
    types: dict[str, IntTensor]
    output_order: Ints | None = None
    anchor: int = 0

    @property
    def arena(self) -> int:
        """Bytes of the arena."""
        return max(place.offset + place.bytes for place in self.places)

    def offset(self, name: str) -> int:
        """Where a stretch begins."""
        return next(place.offset for place in self.places if place.name == name)

    def gives_scores(self, layer: Layer) -> bool:
        """Whether a layer's results are the network's scores."""
        return layer is self.layers[-1] and self.output_order is None


def plan_layers(
    graph: Graph, limit: int | None = None, compact: bool = False, rice: bool | None = None, packed: int | None = 0
) -> CPlan:
    """Plans the layers of a graph and the arena.

    Weighted layers compute up to 64 outputs at a time. Where the arena must not exceed ``limit`` bytes, they begin with
    8 and get as many as the limit leaves room for, the layers of most multiply-accumulates first. With ``compact``, the
    compact runtime runs what it can; ``rice`` says whether with Rice codes, see `choose_coding`. Otherwise
    bit_conv2d_rows runs the convolutions that it can, as far as the limit leaves room for its sums, and none where that
    is less than half of the network; the codes of the ``packed`` layers of most weights are packed, and with ``None``
    it runs none.
    """
    layers = find_layers(graph, compact, rice, packed)
    ways = [ways_of(layer) for layer in layers]
    if limit is None:
        first = [("", BLOCK) if layer.coding else way[0] for layer, way in zip(layers, ways, strict=True)]
        best = _plan(graph, in_blocks(layers, first))
        if not any(layer.coding for layer in layers):
            return best
        limit = best.arena
    most = [way[-1] for way in ways]
    best = _plan(graph, in_blocks(layers, most))
    for i in sorted(range(len(most)), key=lambda i: -_macs(layers[i])):
        for way in ways[i][:-1]:
            plan = _plan(graph, in_blocks(layers, [*most[:i], way, *most[i + 1 :]]))
            if plan.arena <= limit:
                most[i], best = way, plan
                break
    by_rows = [layer for layer in best.layers if layer.rows]
    if by_rows and 2 * sum(map(_macs, by_rows)) < graph.macs():  # not worth the code of two runtimes
        return plan_layers(graph, limit, packed=None)
    return best


def _macs(layer: Layer) -> int:
    return layer.nodes[0].op.macs(layer.nodes[0].type)


def _plan(graph: Graph, layers: list[Layer]) -> CPlan:
    """Plans the arena of given layers."""
    order = find_orders(graph)[graph.output.name]
    types = {"input": graph.input.type, **{layer.target: layer.type for layer in layers}}
    last = {name: i for i, layer in enumerate(layers) for name in layer.sources}
    wanted = [Buffer("input", 0, graph.input.type.bytes, -1, last.get("input", 0))]
    for i, layer in enumerate(layers):
        if i < len(layers) - 1 or order is not None:
            wanted.append(Buffer(layer.target, 0, layer.type.bytes, i, last.get(layer.target, i + 1)))
        if layer.scratch and not layer.compact:
            wanted.append(Buffer(f"scratch of {layer.target}", 0, layer.scratch, i, i))
    wanted.append(Buffer("output", 0, 4 * graph.output.type.size, len(layers) - 1, len(layers)))
    places, anchor = place(wanted, layers, types)
    inverse = None if order is None else np.argsort(order)
    return CPlan(tuple(layers), tuple(places), types, inverse, anchor)
