"""What runs in C, step by step, and where in one arena every result, the input and every scratch memory lives.

The graph's own memory plan says which nodes run as one. C adds to it: a convolution also takes the max pooling behind
it, and its result may creep over its input, row by row, as far as the input is not needed any more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from bitcore.formats import get_format
from bitcore.graph import (
    Buffer,
    Conv2d,
    Graph,
    Linear,
    MaxPool2d,
    Node,
    NormShift,
    Requantize,
    Step,
    Threshold,
    plan_memory,
)
from bitcore.graph.ops import Ints
from bitcore.graph.types import IntTensor, narrow
from bitexport.targets.c.orders import find_orders
from bitexport.targets.c.packing import columns_of

_ALIGNMENT = 4
_BLOCKS = (64, 32, 24, 16, 8)
_MOST_EXCHANGED = 40  # stretches; for more the search would take long


@dataclass(frozen=True, eq=False)
class Layer:
    """Nodes that run as one call of the runtime.

    Attributes:
        nodes: In order, without a pooling that ends them.
        reads: The buffers that each node reads, apart from its predecessor's result.
        pool: The max pooling that ends the call.
        target: The name of its result.
        type: The result's type, stored as narrow as its bounds allow.
        overwrites: The buffer in whose place the result may be written, element by element.
        block: Outputs that a weighted layer computes at a time; 0 for other layers.
    """

    nodes: tuple[Node, ...]
    reads: tuple[tuple[str, ...], ...]
    pool: Node | None
    target: str
    type: IntTensor
    overwrites: str | None
    block: int = 0

    @property
    def source(self) -> str:
        """The (first) buffer that the first node reads."""
        return self.reads[0][0]

    @property
    def sources(self) -> tuple[str, ...]:
        """All buffers that are read."""
        return tuple(dict.fromkeys(name for names in self.reads for name in names))

    @property
    def scratch(self) -> int:
        """Bytes of accumulators and tables."""
        op = self.nodes[0].op
        if not isinstance(op, (Linear, Conv2d)) or not self.block:
            return 0
        return 4 * (self.block + columns_of(get_format(op.format)).entries)


@dataclass(frozen=True)
class CPlan:
    """Layers in order, and the arena. The output belongs to the caller.

    Attributes:
        layers: The layers.
        places: All stretches of the arena, in the order in which they are written: results,
            ``"input"``, ``"output"`` and ``"scratch of NODE"``.
        types: The stored type of the input and of every result.
        output_order: For each output the element of the last result that it is, where the order differs.
    """

    layers: tuple[Layer, ...]
    places: tuple[Buffer, ...]
    types: dict[str, IntTensor]
    output_order: Ints | None = None

    @property
    def arena(self) -> int:
        """Bytes of the arena."""
        return max(place.offset + place.bytes for place in self.places)

    def offset(self, name: str) -> int:
        """Where a stretch begins."""
        return next(place.offset for place in self.places if place.name == name)


def plan_layers(graph: Graph, limit: int | None = None) -> CPlan:
    """Plans the layers of a graph and the arena.

    Weighted layers compute up to 64 outputs at a time. Where the arena must not exceed ``limit`` bytes, they begin with
    8 and get as many as the limit leaves room for, the layers of most multiply-accumulates first.
    """
    layers = _layers(graph)
    if limit is None:
        return _plan(graph, _in_blocks(layers, dict.fromkeys(range(len(layers)), _BLOCKS[0])))
    most = dict.fromkeys(range(len(layers)), _BLOCKS[-1])
    best = _plan(graph, _in_blocks(layers, most))
    for i in sorted(most, key=lambda i: -layers[i].nodes[0].op.macs(layers[i].nodes[0].type)):
        for block in _BLOCKS[:-1]:
            plan = _plan(graph, _in_blocks(layers, {**most, i: block}))
            if plan.arena <= limit:
                most[i], best = block, plan
                break
    return best


def _plan(graph: Graph, layers: list[Layer]) -> CPlan:
    """Plans the arena of given layers.

    Every stretch gets the lowest free address, one after the other; of several orders the smallest arena wins, and
    changes places in that order as long as that helps.
    """
    order = find_orders(graph)[graph.output.name]
    types = {"input": graph.input.type, **{layer.target: layer.type for layer in layers}}
    last = {name: i for i, layer in enumerate(layers) for name in layer.sources}
    wanted = [Buffer("input", 0, graph.input.type.bytes, -1, last.get("input", 0))]
    for i, layer in enumerate(layers):
        if i < len(layers) - 1 or order is not None:
            wanted.append(Buffer(layer.target, 0, layer.type.bytes, i, last.get(layer.target, i + 1)))
        if layer.scratch:
            wanted.append(Buffer(f"scratch of {layer.target}", 0, layer.scratch, i, i))
    wanted.append(Buffer("output", 0, 4 * graph.output.type.size, len(layers) - 1, len(layers)))
    leads = {(layer.source, layer.target): _lead(layer, types) for layer in layers}
    places = _improve([_arrange(sorted(wanted, key=order), leads, layers) for order in _ORDERS], leads, layers)
    inverse = None if order is None else np.argsort(order)
    return CPlan(tuple(layers), tuple(sorted(places, key=lambda place: place.first)), types, inverse)


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda p: (-p.bytes, p.first),
    lambda p: (p.first - p.last, -p.bytes),
    lambda p: (-p.bytes * (p.last - p.first + 1), p.first),
    lambda p: (p.first, -p.bytes),
    lambda p: (-p.last, -p.bytes),
)


# ---- layers ----------------------------------------------------------------------------------------------------------


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
                Layer(step.nodes, step.reads, None, step.target, stored, over if fits == stored.bytes else None)
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
    return isinstance(op, Conv2d) and op.groups == 1 and apart and simple


def _in_blocks(layers: list[Layer], most: dict[int, int]) -> list[Layer]:
    """Divides the outputs of weighted layers into blocks of about the same size, ``most[i]`` (times 8) or fewer."""

    def block(layer: Layer, most: int) -> int:
        op = layer.nodes[0].op
        if isinstance(op, Linear) or (isinstance(op, Conv2d) and op.groups == 1):
            outputs = len(op.levels)
            blocks = -(-outputs // most)
            return outputs if blocks == 1 else -(-outputs // (8 * blocks)) * 8
        return 0

    return [replace(layer, block=block(layer, most[i])) for i, layer in enumerate(layers)]


# ---- the arena -------------------------------------------------------------------------------------------------------


def _arrange(wanted: list[Buffer], leads: dict[tuple[str, str], int | None], layers: list[Layer]) -> list[Buffer]:
    """Gives each stretch, in this order, the lowest address at which it disturbs none that is placed already."""
    over = {(layer.overwrites, layer.target) for layer in layers if layer.overwrites}
    placed: list[Buffer] = []
    for new in wanted:
        taken = []  # open intervals of addresses at which `new` cannot begin
        for old in placed:
            if new.first > old.last or old.first > new.last:
                continue
            low, high = old.offset - new.bytes, old.offset + old.bytes
            if old.last == new.first:  # `new` is written while `old` is read for the last time
                if (old.name, new.name) in over:
                    taken += [(low, old.offset), (old.offset, high)]
                    continue
                lead = leads.get((old.name, new.name))
                low = low if lead is None else old.offset - lead
            elif new.last == old.first:
                if (new.name, old.name) in over:
                    taken += [(low, old.offset), (old.offset, high)]
                    continue
                lead = leads.get((new.name, old.name))
                high = high if lead is None else old.offset + lead
            taken.append((low, high))
        offset = 0
        while clash := [high for low, high in taken if low < offset < high]:
            offset = -(-max(clash) // _ALIGNMENT) * _ALIGNMENT
        placed.append(replace(new, offset=offset))
    return placed


def _improve(arenas: list[list[Buffer]], leads: dict[tuple[str, str], int | None], layers: list[Layer]) -> list[Buffer]:
    """Starts from the smallest arena and exchanges two stretches in its order as long as the arena shrinks."""

    def size(places: list[Buffer]) -> int:
        return max(place.offset + place.bytes for place in places)

    best = min(arenas, key=size)
    better = len(best) <= _MOST_EXCHANGED
    while better:
        better = False
        for i, j in itertools.combinations(range(len(best)), 2):
            order = list(best)
            order[i], order[j] = order[j], order[i]
            arena = _arrange(order, leads, layers)
            if size(arena) < size(best):
                best, better = arena, True
    return best


def _lead(layer: Layer, types: dict[str, IntTensor]) -> int | None:
    """How many bytes before its source a convolution's target must begin so that no input is overwritten too early."""
    op = layer.nodes[0].op
    if not isinstance(op, Conv2d) or len(layer.sources) > 1:
        return None
    channels, _, width = types[layer.source].shape
    strides, pads = np.array(op.stride), np.array(op.padding)
    if isinstance(layer.pool, Node):
        assert isinstance(layer.pool.op, MaxPool2d)
        strides = strides * layer.pool.op.stride
    _, rows, columns = layer.type.shape
    y = np.maximum(np.arange(rows) * strides[0] - pads[0], 0)
    x = np.maximum(np.arange(columns) * strides[1] - pads[1], 0)
    needed = ((y[:, None] * width + x[None, :]) * channels * types[layer.source].item_bytes).ravel()
    needed = np.minimum.accumulate(needed[::-1])[::-1]  # by this pixel or a later one
    pixel = layer.type.bytes // math.prod(layer.type.shape[1:])
    written = (np.arange(len(needed)) + (1 if layer.pool else 2)) * pixel  # without pooling two pixels go together
    return max(0, -(-int((written - needed).max()) // _ALIGNMENT) * _ALIGNMENT)
