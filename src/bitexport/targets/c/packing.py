"""The machine layout of weights: columns of codes, an input (or a few together) against 8 outputs a word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bitcore.formats import NumberFormat, get_format
from bitcore.formats.integers import TERNARY
from bitcore.formats.tables import FP130, NF4
from bitcore.graph import Conv2d, Linear, Op
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT16

_TABLES = {fmt.levels: f"bit_columns_{fmt.name}" for fmt in (FP130, NF4)}
"""Unevenly spaced levels that the runtime knows, in the order of their codes."""


@dataclass(frozen=True)
class Columns:
    """How the runtime takes a format's weights (csrc/portable/bit_columns_*.c).

    Attributes:
        function: The runtime's function, in a file of its name.
        inputs: Inputs that share one code.
        bits: Bits of a code: 4, 5, or 8 (two times 4).
        entries: Words of the table that turns codes into summands.
    """

    function: str
    inputs: int
    bits: int
    entries: int


def columns_of(fmt: NumberFormat) -> Columns | None:
    """Returns how the runtime takes a format; ``None`` for one whose weights it does not take in columns."""
    levels = len(fmt.levels)
    if fmt.levels in _TABLES:
        return Columns(_TABLES[fmt.levels], 1, 4, 16)
    if not fmt.affine or fmt.step > 2 or fmt.low < INT16[0]:
        return None
    if levels == 2 and fmt.low in (-1, 0):
        return Columns("bit_columns_binary", 4, 4, 16)
    if fmt.levels == TERNARY.levels:
        return Columns("bit_columns_ternary", 3, 5, 27)
    if levels == 4:
        return Columns("bit_columns_2bit", 2, 4, 16)
    if levels <= 16:
        return Columns("bit_columns_4bit", 1, 4, 16)
    if levels <= 32:
        return Columns("bit_columns_5bit", 1, 5, 32)
    return Columns("bit_columns_8bit", 1, 8, 16)


def columns_of_layer(op: Op) -> Columns | None:
    """Returns how the runtime takes an operation's weights; ``None`` if it has none, or takes them as levels."""
    if isinstance(op, Linear) or (isinstance(op, Conv2d) and op.groups == 1):
        return columns_of(get_format(op.format))
    return None


def pack_columns(levels: Ints, fmt: NumberFormat, block: int) -> tuple[list[int], list[int]]:
    """Packs weight levels ``[outputs, taps, inputs]``: the words and the bytes that rows of codes are made of.

    A row meets one input (or a few together) with a block of outputs. Blocks follow each other, in each the taps, in
    each the inputs. A last group of inputs is filled up with code 0, which meets inputs of 0.
    """
    columns = columns_of(fmt)
    assert columns is not None
    codes = fmt.encode(torch.from_numpy(np.ascontiguousarray(levels))).numpy().astype(np.int64)
    padded = np.pad(codes, [(0, 0), (0, 0), (0, -levels.shape[2] % columns.inputs)])
    groups = padded.reshape(*levels.shape[:2], -1, columns.inputs)
    index = (groups * len(fmt.levels) ** np.arange(columns.inputs)).sum(-1)
    if columns.bits == 8:  # a row of the lower halves, then one of the upper halves
        index = np.stack([index & 15, index >> 4], axis=-1)
    rows = np.moveaxis(index.reshape(len(levels), -1), 0, -1)
    words, numbers = [], []
    pack = _pack_5bit if columns.bits == 5 else _pack_4bit
    for start in range(0, len(levels), block):
        part = rows[:, start : start + block]
        whole = part.shape[1] // 8 * 8
        word, byte = pack(part[:, :whole].reshape(len(part), -1, 8), part[:, whole:])
        words += word.ravel().tolist()
        numbers += byte.ravel().tolist()
    return words, numbers


def _pack_4bit(octets: Ints, rest: Ints) -> tuple[Ints, Ints]:
    """8 codes in a word; the last ones two in a byte."""
    pairs = np.pad(rest, [(0, 0), (0, rest.shape[1] % 2)])
    return (octets << 4 * np.arange(8)).sum(-1), pairs[:, ::2] | pairs[:, 1::2] << 4


def _pack_5bit(octets: Ints, rest: Ints) -> tuple[Ints, Ints]:
    """8 codes in a word and a byte, the eighth in what six and one have left; the last ones a byte each."""
    words = (octets[..., :6] << 5 * np.arange(6)).sum(-1) | (octets[..., 7] & 3) << 30
    return words, np.concatenate([octets[..., 6] | (octets[..., 7] >> 2) << 5, rest], axis=1)
