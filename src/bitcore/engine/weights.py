"""Weights in blocks of output channels, as the convolution kernels read them (csrc/simd/bit_conv.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitcore.engine.program import TILE_ROWS
from bitcore.formats import get_format
from bitcore.graph.ops import Ints

_LANES, _UNIT = 16, 4
_MAX_INPUTS = 2**16  # of one output: beyond it, nested fields could leave 32 bits


@dataclass(frozen=True)
class Block:
    """Up to 64 output channels.

    Attributes:
        weight: Where their weights begin, in bytes.
        first: The first of them.
        rows: How many.
        channel: The input channel that their inputs begin with.
    """

    weight: int
    first: int
    rows: int
    channel: int = 0

    @property
    def shape(self) -> int:
        """0, 1 or 2: room for 16, 32 or 64 rows."""
        return 0 if self.rows <= _LANES else 1 if self.rows <= 2 * _LANES else 2

    @property
    def room(self) -> int:
        """Rows with padding."""
        return _LANES << self.shape


@dataclass(frozen=True, eq=False)
class Tiles:
    """Weights of a convolution.

    Attributes:
        data: uint8.
        blocks: Of output channels.
        bits: Of a code: 1, 2, 4 or 8. ``level = base + (code << shift)``, summed over all planes.
        base: Likewise.
        shift: Likewise.
        planes: How many weights each input has.
        length: Bytes of a tap.
        units: Of 4 bytes (and padding) of a tap.
    """

    data: NDArray[np.uint8]
    blocks: tuple[Block, ...]
    bits: int
    base: int
    shift: int
    planes: int
    length: int
    units: int


def padded(rows: int) -> int:
    """Returns a multiple of the rows of a block."""
    return -(-rows // TILE_ROWS) * TILE_ROWS


def cut(outputs: int) -> list[Block]:
    """Cuts output channels into blocks."""
    return [Block(0, first, min(TILE_ROWS, outputs - first)) for first in range(0, outputs, TILE_ROWS)]


def fits_tiles(levels: Ints, format_name: str) -> bool:
    """Whether `tile_weights` takes weight levels: a byte holds them, or the codes of their format."""
    fmt = get_format(format_name)
    limit = 255 if fmt.affine and fmt.step <= 2 and 0 in fmt.levels else 128
    return int(np.abs(levels).max(initial=0)) <= limit


def tile_weights(levels: Ints, format_name: str, groups: int) -> Tiles:
    """Packs weight levels.

    Args:
        levels: ``[outputs, taps, inputs of a group]``, see `fits_tiles`.
        format_name: Their number format.
        groups: Of input and output channels; a block's inputs are those of all its groups, with zeros in between.
    """
    outputs, taps, inputs = levels.shape
    per_group = outputs // groups
    blocks = cut(outputs)
    spans = [(b.first // per_group, (b.first + b.rows - 1) // per_group + 1) for b in blocks]
    length = max(end - begin for begin, end in spans) * inputs
    bits, base, shift = _code(format_name, length > inputs, taps * length)
    most = base + (255 << shift)
    planes = [np.minimum(levels, most)]
    if get_format(format_name).high > most:  # 128 of fp130, the only level beyond a byte of codes, is 127 + 1
        planes.append(levels - planes[0])
    units = -(-length // _UNIT)
    units += bits == 1 and units % 2
    data: list[NDArray[np.uint8]] = []
    placed, at = [], 0
    for block, (begin, _) in zip(blocks, spans, strict=True):
        channel = min(begin * inputs, groups * inputs - length)
        rows = slice(block.first, block.first + block.rows)
        codes = np.zeros((block.room, len(planes) * taps, units * _UNIT), np.uint8)
        for i, plane in enumerate(planes):
            part = codes[: block.rows, i * taps : (i + 1) * taps, :length]
            if length == inputs:
                part[...] = plane[rows] - base >> shift
                continue
            part[...] = -base >> shift
            for row in range(block.rows):
                first = (block.first + row) // per_group * inputs - channel
                part[row, :, first : first + inputs] = plane[block.first + row] - base >> shift
        packed = _fields(codes, bits)
        placed.append(Block(at, block.first, block.rows, channel))
        data.append(packed)
        at += packed.size
    return Tiles(np.concatenate(data), tuple(placed), bits, base * len(planes), shift, len(planes), length, units)


def _code(format_name: str, needs_zero: bool, inputs: int) -> tuple[int, int, int]:
    """Returns bits, base and shift of the codes of a format."""
    fmt = get_format(format_name)
    if not fmt.affine or fmt.step > 2 or (needs_zero and 0 not in fmt.levels):
        return 8, -128, 0
    bits = next(bits for bits in (1, 2, 4, 8) if len(fmt.levels) <= 2**bits)
    return 8 if inputs > _MAX_INPUTS else bits, fmt.low, fmt.step - 1


def _fields(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs one block's codes ``[rows, taps, inputs]``."""
    rows, taps, inputs = codes.shape
    fields, units = rows // _LANES, inputs // _UNIT
    vectors = codes.reshape(fields, _LANES, taps, units, _UNIT).transpose(2, 3, 0, 1, 4)
    vectors = vectors.reshape(taps, units, fields, _LANES * _UNIT)
    if bits == 8:
        return vectors.ravel()
    if bits == 1:
        vectors = vectors.reshape(taps, units // 2, 2, fields, -1)
        places = np.arange(2)[:, None] * 4 + np.arange(fields)
        return np.bitwise_or.reduce(vectors << places[..., None].astype(np.uint8), axis=(2, 3)).ravel()
    fit = min(8 // bits, fields)
    vectors = vectors.reshape(taps, units, fields // fit, fit, -1)
    places = (np.arange(fit) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(vectors << places[:, None], axis=3).ravel()


def sign_words(levels: Ints) -> tuple[NDArray[np.uint8], tuple[Block, ...], int]:
    """Packs weights −1 and +1 ``[outputs, taps, inputs]`` as bits: 64 inputs of a row in a word, 1 for −1.

    Returns:
        The words as uint8, the blocks, and the words of a tap.
    """
    outputs, taps, inputs = levels.shape
    words = -(-inputs // 64)
    data, placed, at = [], [], 0
    for block in cut(outputs):
        bits = np.zeros((block.room, taps, words * 64), np.uint8)
        bits[: block.rows, :, :inputs] = levels[block.first : block.first + block.rows] < 0
        packed = np.packbits(bits, axis=2, bitorder="little").reshape(block.room, taps, words, 8)
        data.append(packed.transpose(1, 2, 0, 3).ravel())
        placed.append(Block(at, block.first, block.rows))
        at += data[-1].size
    return np.concatenate(data), tuple(placed), words
