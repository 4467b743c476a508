"""What runs in C, step by step, and where in one arena every result, the input and every scratch memory lives.

The graph's own memory plan says which nodes run as one. C adds to it: a convolution also takes the max pooling behind
it, and its result may creep over its input, row by row, as far as the input is not needed any more.
"""

from __future__ import annotations

import itertools
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
from bitexport.targets.c.compact import covered, sum_words, table_words
from bitexport.targets.c.compact_dense import BLOCK, CODES, RICE, choose_coding, scratch_words
from bitexport.targets.c.orders import find_orders
from bitexport.targets.c.packing import columns_of
from bitexport.targets.c.rows import row_words, takes_rows

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
        compact: Whether the compact runtime runs it.
        coding: How the weights of a compact dense layer are coded; "" for other layers.
        rows: Whether bit_conv2d_rows runs it.
    """

    nodes: tuple[Node, ...]
    reads: tuple[tuple[str, ...], ...]
    pool: Node | None
    target: str
    type: IntTensor
    overwrites: str | None
    block: int = 0
    compact: bool = False
    coding: str = ""
    rows: bool = False

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
        if not isinstance(op, (Linear, Conv2d)):
            return 0
        fmt = get_format(op.format)
        if self.compact:
            return 4 * (self.sums + table_words(fmt))
        if self.coding:
            return 4 * scratch_words(fmt, self.coding, self.block)
        if self.rows:
            return 4 * row_words(self.nodes[0].type.shape[2], self.block, self.pool is not None)
        return 4 * (self.block + columns_of(fmt).entries) if self.block else 0

    @property
    def sums(self) -> int:
        """Words of the compact runtime's sums; its table lies behind them."""
        op = self.nodes[0].op
        assert isinstance(op, (Linear, Conv2d))
        return sum_words(get_format(op.format), len(op.levels))


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
    graph: Graph, limit: int | None = None, compact: bool = False, rice: bool | None = None, rows: bool = True
) -> CPlan:
    """Plans the layers of a graph and the arena.

    Weighted layers compute up to 64 outputs at a time. Where the arena must not exceed ``limit`` bytes, they begin with
    8 and get as many as the limit leaves room for, the layers of most multiply-accumulates first. With ``compact``, the
    compact runtime runs what it can; ``rice`` says whether with Rice codes, see `choose_coding`. Otherwise, with
    ``rows``, bit_conv2d_rows runs the convolutions that it can, as far as the limit leaves room for its sums.
    """
    layers = _layers(graph)
    if compact:
        layers = _compact_dense(_compact(graph, layers), rice)
    types = {"input": graph.input.type, **{layer.target: layer.type for layer in layers}}
    scores = layers[-1] if find_orders(graph)[graph.output.name] is None else None
    ways = [_ways(layer, types[layer.source], rows and not compact and layer is not scores) for layer in layers]
    if limit is None:
        first = [(False, BLOCK) if layer.coding else way[0] for layer, way in zip(layers, ways, strict=True)]
        best = _plan(graph, _in_blocks(layers, first))
        if not any(layer.coding for layer in layers):
            return best
        limit = best.arena
    most = [way[-1] for way in ways]
    best = _plan(graph, _in_blocks(layers, most))
    for i in sorted(range(len(most)), key=lambda i: -layers[i].nodes[0].op.macs(layers[i].nodes[0].type)):
        for way in ways[i][:-1]:
            plan = _plan(graph, _in_blocks(layers, [*most[:i], way, *most[i + 1 :]]))
            if plan.arena <= limit:
                most[i], best = way, plan
                break
    return best


def _ways(layer: Layer, source: IntTensor, rows: bool) -> list[tuple[bool, int]]:
    """How a layer may be run, the fastest way first: whether by rows, and the most outputs at a time."""
    ways = [(False, block) for block in _BLOCKS]
    if rows and takes_rows(layer.nodes, layer.pool, source):  # in more than two parts, the tables take longer
        outputs = layer.nodes[0].type.shape[0]
        return [(True, block) for block in _BLOCKS if outputs <= 2 * block] + ways
    return ways


def _plan(graph: Graph, layers: list[Layer]) -> CPlan:
    """Plans the arena of given layers.

    Every stretch gets the lowest free address, one after the other; of several orders the smallest arena wins, after
    changing places in the best of them, and in one with the input last, as long as that helps.
    """
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
    leads = {(layer.source, layer.target): _lead(layer, types) for layer in layers}
    for layer in layers:
        if layer.coding:  # results may take the place of the last block's sums as they are read
            done = (layer.type.size - 1) // layer.block * layer.block * layer.type.item_bytes
            leads[f"scratch of {layer.target}", layer.target] = -(-done // _ALIGNMENT) * _ALIGNMENT
    arenas = [_arrange(sorted(wanted, key=order), leads, layers) for order in _ORDERS]
    places = min((_improve(part, leads, layers) for part in (arenas[:-1], arenas[-1:])), key=_size)
    anchor, scratch = _anchor(layers, places)
    places = sorted([*places, *scratch], key=lambda place: place.first)
    inverse = None if order is None else np.argsort(order)
    return CPlan(tuple(layers), tuple(places), types, inverse, anchor)


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda p: (-p.bytes, p.first),
    lambda p: (p.first - p.last, -p.bytes),
    lambda p: (-p.bytes * (p.last - p.first + 1), p.first),
    lambda p: (p.first, -p.bytes),
    lambda p: (-p.last, -p.bytes),
    lambda p: (p.first < 0, -p.bytes, p.first),  # the input where the others leave room
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
    dense = {layer: op for layer in layers if isinstance(op := layer.nodes[0].op, Linear)}
    coding = dict(zip(dense, choose_coding(list(dense.values()), rice), strict=True))
    others = {layer: CODES for layer in dense if not layer.compact}
    if any(layer.compact and layer not in dense for layer in layers) or not (others or RICE in coding.values()):
        coding = others
    return [replace(layer, compact=False, coding=coding[layer]) if layer in coding else layer for layer in layers]


def _in_blocks(layers: list[Layer], ways: list[tuple[bool, int]]) -> list[Layer]:
    """Divides the outputs of weighted layers into blocks of about the same size, see `_ways`."""

    def block(layer: Layer, most: int) -> int:
        op = layer.nodes[0].op
        if not layer.compact and (isinstance(op, Linear) or (isinstance(op, Conv2d) and op.groups == 1)):
            outputs, step = len(op.levels), 2 if layer.coding else 8
            blocks = -(-outputs // most)
            return outputs if blocks == 1 else -(-outputs // (step * blocks)) * step
        return 0

    return [
        replace(layer, block=block(layer, most), rows=rows) for layer, (rows, most) in zip(layers, ways, strict=True)
    ]


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


def _anchor(layers: list[Layer], places: list[Buffer]) -> tuple[int, list[Buffer]]:
    """Finds the lowest address around which all compact layers find room: sums up to there, a table from there."""
    compact = [(i, layer) for i, layer in enumerate(layers) if layer.compact]
    anchor = max((4 * layer.sums for _, layer in compact), default=0)

    def scratch(i: int, layer: Layer) -> Buffer:
        return Buffer(f"scratch of {layer.target}", anchor - 4 * layer.sums, layer.scratch, i, i)

    def clash(a: Buffer, b: Buffer) -> bool:
        return b.first <= a.first <= b.last and a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes

    while any(clash(scratch(*one), place) for one in compact for place in places):
        anchor += _ALIGNMENT
    return anchor, [scratch(*one) for one in compact]


def _size(places: list[Buffer]) -> int:
    return max(place.offset + place.bytes for place in places)


def _improve(arenas: list[list[Buffer]], leads: dict[tuple[str, str], int | None], layers: list[Layer]) -> list[Buffer]:
    """Starts from the smallest arena and exchanges two stretches in its order as long as the arena shrinks."""
    best = min(arenas, key=_size)
    better = len(best) <= _MOST_EXCHANGED
    while better:
        better = False
        for i, j in itertools.combinations(range(len(best)), 2):
            order = list(best)
            order[i], order[j] = order[j], order[i]
            arena = _arrange(order, leads, layers)
            if _size(arena) < _size(best):
                best, better = arena, True
    return best


def _lead(layer: Layer, types: dict[str, IntTensor]) -> int | None:
    """How many bytes before its source a convolution's target must begin so that no input is overwritten too early."""
    op = layer.nodes[0].op
    if not isinstance(op, Conv2d) or len(layer.sources) > 1:
        return None
    channels, _, width = types[layer.source].shape
    strides, (_, rows, columns) = np.array(op.stride), layer.type.shape
    if layer.rows:
        return _lead_of_rows(layer, types[layer.source])
    again = 2 if layer.compact and layer.pool else 1  # it comes back to a result for each row of a pooling window
    if layer.pool and not layer.compact:
        assert isinstance(layer.pool.op, MaxPool2d)
        strides = strides * layer.pool.op.stride
    y = np.maximum(np.arange(again * rows) * strides[0] - op.padding[0], 0)
    x = np.maximum(np.arange(again * columns) * strides[1] - op.padding[1], 0)
    needed = ((y[:, None] * width + x[None, :]) * channels * types[layer.source].item_bytes).ravel()
    needed = np.minimum.accumulate(needed[::-1])[::-1]  # by this pixel or a later one
    pixel = layer.type.bytes // (rows * columns)
    results = np.arange(rows * columns).reshape(rows, columns).repeat(again, 0).repeat(again, 1).ravel()
    written = (results + (1 if layer.pool or layer.compact else 2)) * pixel  # the fast runtime takes pixels in pairs
    return max(0, -(-int((written - needed).max()) // _ALIGNMENT) * _ALIGNMENT)


def _lead_of_rows(layer: Layer, source: IntTensor) -> int | None:
    """As `_lead`: a row is written when the next one has been read, all of it by the only block."""
    channels, height, width = source.shape
    if layer.block < layer.nodes[0].type.shape[0]:
        return None
    rows = layer.type.shape[1]
    written = np.arange(1, rows + 1) * (layer.type.bytes // rows)
    read = np.minimum(np.arange(1, rows + 1) * (1 + (layer.pool is not None)) + 1, height)
    return max(0, -(-int((written - read * width * channels).max()) // _ALIGNMENT) * _ALIGNMENT)
