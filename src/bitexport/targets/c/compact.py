"""What the compact runtime (csrc/portable/bit_compact.h) runs, and how it takes weights and constants.

One loop nest runs convolutions, dense layers and the pooling behind them. Codes are digits of bytes, decoded on the
fly; what follows an accumulator is an offset and a shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitcore.formats import NumberFormat, get_format
from bitcore.graph import Conv2d, Linear, MaxPool2d, Node, Requantize
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT32, IntTensor

_MOST_LEVELS = 32
_MOST_FACTOR = 2**15 - 1


@dataclass(frozen=True)
class Channels:
    """What turns a layer's accumulators into results: ``(accumulator * factor + offset) >> shift``, clamped to 0…high.

    Half a step is part of the offset; where the lost bits were half a step, the even neighbour is taken.

    Attributes:
        factor: Per channel.
        offset: Per channel.
        shift: Per channel.
        high: The largest result; 0 for scores in int32, which nothing clamps.
    """

    factor: Ints
    offset: Ints
    shift: Ints
    high: int


def covered(nodes: Sequence[Node], pool: Node | None, source: IntTensor, final: bool) -> bool:
    """Whether the compact runtime runs a layer.

    Args:
        nodes: A weighted operation and what is fused with it.
        pool: The pooling that ends it.
        source: The type of its input.
        final: Whether its results are the network's scores.
    """
    op, window = nodes[0].op, pool.op if pool else None
    if not isinstance(op, (Conv2d, Linear)) or len(nodes) > 2 or source.item_bytes > 1:
        return False
    if isinstance(op, Conv2d) and (op.groups != 1 or op.dilation != (1, 1)):
        return False
    if isinstance(window, MaxPool2d) and (window.kernel, window.stride, window.padding) != ((2, 2), (2, 2), (0, 0)):
        return False
    fmt = get_format(op.format)
    if not _has_digits(fmt):
        return False
    return channels_of(nodes, source, final) is not None


def _has_digits(fmt: NumberFormat) -> bool:
    """Whether a format's levels are what codes count: 1, −1, 3, −3, … or 0, 1, −1, 2, −2, …."""
    counted = fmt.step == 1 or (fmt.step == 2 and fmt.low % 2 == 1)
    return fmt.affine and counted and fmt.low == -fmt.high and len(fmt.levels) <= _MOST_LEVELS


def channels_of(nodes: Sequence[Node], source: IntTensor, final: bool) -> Channels | None:
    """Returns the constants of a layer's channels, ``None`` where the compact runtime has no room for them."""
    op, last = nodes[0].op, nodes[-1].op
    assert isinstance(op, (Linear, Conv2d))
    none = np.zeros(len(op.levels), dtype=np.int64)
    scale = Requantize(none + 1, none, none, *INT32) if len(nodes) == 1 else last
    if not isinstance(scale, Requantize) or nodes[-1].type.shape != nodes[0].type.shape:
        return None
    factor, offset, shift, _ = np.broadcast_arrays(scale.multiplier, scale.bias, scale.shift, none)
    offset = offset + op.bias * factor + (np.int64(1) << shift >> 1)
    rows = op.levels.reshape(len(op.levels), -1)
    largest = np.abs(rows).sum(axis=1) * max(abs(source.low), abs(source.high)) * np.abs(factor)
    if np.abs(factor).max() > _MOST_FACTOR or shift.max() > 31 or (largest + np.abs(offset)).max() > INT32[1]:
        return None
    if not final:
        return Channels(factor, offset, shift, scale.high) if scale.low == 0 and 0 < scale.high <= 255 else None
    unclamped = scale.low <= ((offset - largest) >> shift).min() and ((offset + largest) >> shift).max() <= scale.high
    return Channels(factor, offset, shift, 0) if unclamped and len(nodes[0].type.shape) == 1 else None


def codes_of(fmt: NumberFormat) -> tuple[int, int]:
    """Returns how many codes of a format are in a byte, and the shift from one to the next (ternary: times 3)."""
    levels = len(fmt.levels)
    if levels == 3:
        return 5, 1
    shift = next(bits for bits in (1, 2, 4, 8) if levels <= 1 << bits)
    return 8 // shift, shift


def row_bytes(fmt: NumberFormat, outputs: int) -> int:
    """Returns the bytes of the codes that one input meets."""
    return -(-outputs // codes_of(fmt)[0])


def table_words(fmt: NumberFormat) -> int:
    """Returns the words of the table that turns codes into summands; the first one is spare."""
    return 1 + len(fmt.levels)


def sum_words(fmt: NumberFormat, outputs: int) -> int:
    """Returns the words of a layer's sums: one for every code of a row."""
    return row_bytes(fmt, outputs) * codes_of(fmt)[0]


def pack_rows(levels: Ints, fmt: NumberFormat) -> list[int]:
    """Packs levels ``[outputs, taps]``: for each tap the codes of all outputs, the first one on top of the first byte.

    Codes count the levels 1, −1, 3, −3, … or 0, 1, −1, 2, −2, …. Five ternary ones are a fraction of 256 in steps of
    3⁻⁵, rounded up: times 3, the next digit steps out of the byte.
    """
    magnitude = np.abs(levels)
    digits = (magnitude if fmt.step == 2 else 2 * magnitude) - (levels > 0)
    codes, shift = codes_of(fmt)
    radix = 3 if codes == 5 else 1 << shift
    rows = np.pad(digits.T, [(0, 0), (0, -len(levels) % codes)]).reshape(-1, codes)
    fractions = (rows * radix ** np.arange(codes - 1, -1, -1)).sum(axis=1) * 256
    return (-(-fractions // radix**codes)).tolist()


@dataclass(frozen=True)
class Words:
    """How all channels of a network are stored, least significant byte first.

    Attributes:
        size: Bytes of a word: the offset above the shift. 5: the shift in a byte of its own, before 4 for the offset.
        shift: Its lower bits that hold the shift.
        factor: Whether 2 bytes before it hold the factor.
    """

    size: int
    shift: int
    factor: bool

    @classmethod
    def fit(cls, channels: Sequence[Channels]) -> Words:
        """Returns the narrowest words for all layers of a network."""
        offsets = np.concatenate([part.offset for part in channels])
        bits = int(max(part.shift.max() for part in channels)).bit_length()
        factor = any((part.factor != 1).any() for part in channels)
        for size in (1, 2, 3, 4):
            most = 1 << (8 * size - bits - 1) if 8 * size > bits else 0
            if -most <= offsets.min() and offsets.max() < most:
                return cls(size, bits, factor)
        return cls(5, 8, factor)

    def pack(self, channels: Channels) -> list[int]:
        """Returns the bytes of a layer's channels."""
        found: list[int] = []
        for factor, offset, shift in zip(channels.factor, channels.offset, channels.shift, strict=True):
            if self.factor:
                found += int(factor).to_bytes(2, "little", signed=True)
            if self.size == 5:
                found += [int(shift), *int(offset).to_bytes(4, "little", signed=True)]
            else:
                found += (int(offset) << self.shift | int(shift)).to_bytes(self.size, "little", signed=True)
        return found
