"""Which nodes of a graph run as one call of the runtime, by which part of it, and how many outputs at a time.

The graph's own memory plan says which nodes run as one. In C, a convolution also takes the max pooling behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bitcore.formats import get_format
from bitcore.graph import (
    Conv2d,
    Graph,
    Linear,
    MaxPool2d,
    Node,
    NormShift,
    Op,
    Requantize,
    Step,
    Threshold,
    plan_memory,
)
from bitcore.graph.types import IntTensor, narrow
from bitexport.targets.c.compact import covered, sum_words, table_words
from bitexport.targets.c.compact_dense import CODES, RICE, choose_coding, scratch_words, takes_dense
from bitexport.targets.c.orders import find_orders
from bitexport.targets.c.packing import columns_of_layer
from bitexport.targets.c.rows import BYTES, PACKED, row_words, takes_rows

BLOCKS = (64, 32, 24, 16, 8)
"""Outputs that a weighted layer may compute at a time, at most."""
Way = tuple[str, int]
"""How a weighted layer runs: its ``rows``, and the most outputs at a time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(Step):
    """Nodes that run as one call of the runtime.

    Attributes:
        nodes: In order, without a pooling that ends them.
        pool: The max pooling that ends the call; its result is the target then.
        type: The result's type, stored as narrow as its bounds allow.
        block: Outputs that a weighted layer computes at a time; 0 for other layers.
        compact: Whether the compact runtime runs it.
        coding: How the weights of a compact dense layer are coded; "" for other layers.
        rows: How its codes are stored where bit_conv2d_rows runs it, see `bitexport.targets.c.rows`; "" elsewhere.
    """

    pool: Node | None = None
    type: IntTensor
    block: int = 0
    compact: bool = False
    coding: str = ""
    rows: str = ""

    @property
    def scratch(self) -> int:
        """Bytes of accumulators and tables."""
        op = self.nodes[0].op
        if not isinstance(op, (Linear, Conv2d)):
            return 0
        fmt = get_format(op.format)
        if self.compact:
            return 4 * (self.sums + table_words(fmt))
        if self.coding:
            return 4 * scratch_words(fmt, self.coding, self.block)
        if self.rows:
            return 4 * row_words(self.nodes[0].type.shape[2], self.block, self.pool is not None)
        columns = columns_of_layer(op)
        return 4 * (self.block + columns.entries) if columns else 0

    @property
    def sums(self) -> int:
        """Words of the compact runtime's sums; its table lies behind them."""
        op = self.nodes[0].op
        assert isinstance(op, (Linear, Conv2d))
        return sum_words(get_format(op.format), len(op.levels))


def find_layers(graph: Graph, compact: bool, rice: bool | None, packed: int | None) -> list[Layer]:
    """Returns the calls of a graph, in order; arguments as of `bitexport.targets.c.plan.plan_layers`."""
    layers = _layers(graph)
    if compact:
        return _compact_dense(_compact(graph, layers), rice)
    return layers if packed is None else _by_rows(graph, layers, packed)


def ways_of(layer: Layer) -> list[Way]:
    """How a layer may be run, the fastest way first."""
    ways: list[Way] = [("", block) for block in BLOCKS]
    if layer.rows:  # in more than two parts, the tables take longer
        outputs = layer.nodes[0].type.shape[0]
        return [(layer.rows, block) for block in BLOCKS if outputs <= 2 * block] + ways
    return ways


def _layers(graph: Graph) -> list[Layer]:
    steps = plan_memory(graph).steps
    readers: dict[str, int] = {}
    for step in steps:
        for name in step.sources:
            readers[name] = readers.get(name, 0) + 1
    layers: list[Layer] = []
    for step in [part for whole in steps for part in _parts(whole)]:
        kind = step.nodes[-1].type
        stored = kind if step.target == steps[-1].target else narrow(kind.shape, kind.low, kind.high)
        first = step.nodes[0]
        before = layers[-1] if layers else None
        if (
            isinstance(first.op, MaxPool2d)
            and len(step.nodes) == 1
            and before is not None
            and before.target == step.source
            and readers[step.source] == 1
            and before.pool is None
            and _takes_pool(before, first.op)
        ):
            layers[-1] = replace(before, pool=first, target=step.target, type=stored, overwrites=None)
        else:
            over = step.overwrites
            fits = over is not None and next(layer.type.bytes for layer in layers if layer.target == over)
            layers.append(
                Layer(step.nodes, step.reads, step.target, over if fits == stored.bytes else None, type=stored)
            )
    return layers


def _parts(step: Step) -> Iterator[Step]:
    """A dynamic range is a call of its own: it has to see all values before it changes one."""
    if not isinstance(step.nodes[0].op, NormShift) or len(step.nodes) == 1:
        yield step
        return
    first = step.nodes[0]
    yield Step((first,), step.reads[:1], first.name)
    yield Step(step.nodes[1:], ((first.name, *step.reads[1]), *step.reads[2:]), step.target, step.overwrites)


def _takes_pool(layer: Layer, pool: MaxPool2d) -> bool:
    """Whether a convolution can pool its own results: windows apart, functions of single values behind it."""
    op = layer.nodes[0].op
    apart = pool.padding == (0, 0) and all(k <= s for k, s in zip(pool.kernel, pool.stride, strict=True))
    simple = all(isinstance(n.op, (Requantize, Threshold)) and n.type.shape == layer.nodes[0].type.shape
                 for n in layer.nodes[1:])  # fmt: skip
    return isinstance(op, Conv2d) and columns_of_layer(op) is not None and apart and simple


def _compact(graph: Graph, layers: list[Layer]) -> list[Layer]:
    """Marks what the compact runtime runs."""
    types = {"input": graph.input.type, **{layer.target: layer.type for layer in layers}}
    ordered = find_orders(graph)[graph.output.name] is None

    def marked(layer: Layer) -> bool:
        final, simple = ordered and layer is layers[-1], len(layer.sources) == 1
        return simple and covered(layer.nodes, layer.pool, types[layer.source], final)

    return [replace(layer, compact=marked(layer)) for layer in layers]


def _compact_dense(layers: list[Layer], rice: bool | None) -> list[Layer]:
    """Gives dense layers to the compact dense runtime.

    That is those that the compact runtime does not run. Without compact convolutions it is all of them, if there are
    such layers or Rice codes pay.
    """
    dense = {layer: op for layer in layers if isinstance(op := layer.nodes[0].op, Linear) and takes_dense(op)}
    coding = dict(zip(dense, choose_coding(list(dense.values()), rice), strict=True))
    others = {layer: CODES for layer in dense if not layer.compact}
    if any(layer.compact and layer not in dense for layer in layers) or not (others or RICE in coding.values()):
        coding = others
    return [replace(layer, compact=False, coding=coding[layer]) if layer in coding else layer for layer in layers]


def _by_rows(graph: Graph, layers: list[Layer], packed: int) -> list[Layer]:
    """Marks what bit_conv2d_rows can run; the codes of the ``packed`` layers of most weights are stored packed."""
    types = {"input": graph.input.type, **{layer.target: layer.type for layer in layers}}
    scores = layers[-1] if find_orders(graph)[graph.output.name] is None else None
    able = {
        layer: layer.nodes[0].op
        for layer in layers
        if layer is not scores and takes_rows(layer.nodes, layer.pool, types[layer.source])
    }
    most = sorted(able, key=lambda layer: -_weights(able[layer]))[:packed]
    return [replace(layer, rows=PACKED if layer in most else BYTES) if layer in able else layer for layer in layers]


def _weights(op: Op) -> int:
    return op.levels.size if isinstance(op, (Conv2d, Linear)) else 0


def in_blocks(layers: list[Layer], ways: list[Way]) -> list[Layer]:
    """Divides the outputs of weighted layers into blocks of about the same size, see `ways_of`."""

    def block(layer: Layer, most: int) -> int:
        op = layer.nodes[0].op
        if not layer.compact and isinstance(op, (Linear, Conv2d)) and columns_of_layer(op):
            outputs, step = len(op.levels), 2 if layer.coding else 8
            blocks = -(-outputs // most)
            return outputs if blocks == 1 else -(-outputs // (step * blocks)) * step
        return 0

    return [
        replace(layer, block=block(layer, most), rows=rows) for layer, (rows, most) in zip(layers, ways, strict=True)
    ]
