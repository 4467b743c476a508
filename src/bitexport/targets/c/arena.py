"""Where in one arena every result, the input and every scratch memory lies.

The result of a convolution may creep over its input, row by row, as far as the input is not needed any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bitcore.graph import Buffer, Conv2d, MaxPool2d
from bitcore.graph.types import IntTensor
from bitexport.targets.c.calls import Layer

_ALIGNMENT = 4
_MOST_EXCHANGED = 40  # stretches; for more the search would take long
Leads = dict[tuple[str, str], int | None]


def place(wanted: list[Buffer], layers: list[Layer], types: dict[str, IntTensor]) -> tuple[list[Buffer], int]:
    """Gives each stretch an address; returns them in the order in which they are written, and compact layers' anchor.

    Every stretch gets the lowest free address, one after the other; of several orders the smallest arena wins, after
    changing places in the best of them, and in one with the input last, as long as that helps.

    Args:
        wanted: The stretches, without the scratch memory of compact layers.
        layers: The layers.
        types: The stored type of the input and of every result.
    """
    leads: Leads = {(layer.source, layer.target): _lead(layer, types) for layer in layers}
    for layer in layers:
        if layer.coding:  # results may take the place of the last block's sums as they are read
            done = (layer.type.size - 1) // layer.block * layer.block * layer.type.item_bytes
            leads[f"scratch of {layer.target}", layer.target] = -(-done // _ALIGNMENT) * _ALIGNMENT
    arenas = [_arrange(sorted(wanted, key=order), leads, layers) for order in _ORDERS]
    places = min((_improve(part, leads, layers) for part in (arenas[:-1], arenas[-1:])), key=_size)
    anchor, scratch = _anchor(layers, places)
    return sorted([*places, *scratch], key=lambda place: place.first), anchor


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda p: (-p.bytes, p.first),
    lambda p: (p.first - p.last, -p.bytes),
    lambda p: (-p.bytes * (p.last - p.first + 1), p.first),
    lambda p: (p.first, -p.bytes),
    lambda p: (-p.last, -p.bytes),
    lambda p: (p.first < 0, -p.bytes, p.first),  # the input where the others leave room
)


def _arrange(wanted: list[Buffer], leads: Leads, layers: list[Layer]) -> list[Buffer]:
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


def _improve(arenas: list[list[Buffer]], leads: Leads, layers: list[Layer]) -> list[Buffer]:
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
