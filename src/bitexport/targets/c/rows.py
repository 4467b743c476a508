"""What bit_conv2d_rows (csrc/portable/bit_conv2d_rows.c) runs, and how it takes weights and memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitcore.formats import NumberFormat, get_format
from bitcore.formats.integers import TERNARY
from bitcore.graph import Conv2d, MaxPool2d, Node
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT16, IntTensor
from bitexport.targets.c.compact import channels_of

_MOST_LEVELS = 32
_TABLE = 64  # words

BYTES, PACKED = "bytes", "packed"
"""How codes are stored: a byte each, or, slower, three in 16 bits."""


def start_of(source: IntTensor, levels: Ints) -> int | None:
    """Returns the smallest number that every sum of a convolution may begin at to stay in int16, ``None`` without one.

    Sums are without their bias; a padded input counts as 0.
    """
    rows = levels.reshape(len(levels), -1)
    low, high = min(source.low, 0), max(source.high, 0)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    least, most = int((positive * low + negative * high).min()), int((positive * high + negative * low).max())
    start = max(0, INT16[0] - least) + min(0, INT16[1] - most)
    return start if least + start >= INT16[0] and most + start <= INT16[1] else None


def has_bias_and_shift(nodes: Sequence[Node], source: IntTensor, start: int = 0) -> bool:
    """Whether a bias of 16 bits, less ``start``, and a shift make results from 0 up in uint8 of accumulators."""
    found = channels_of(nodes, source, final=False) if len(nodes) == 2 else None
    return found is not None and bool(
        np.all(found.factor == 1) and found.offset.min() - start >= INT16[0] and found.offset.max() - start <= INT16[1]
    )


def takes_rows(nodes: Sequence[Node], pool: Node | None, source: IntTensor) -> bool:
    """Whether bit_conv2d_rows runs a layer.

    Args:
        nodes: A weighted operation and what is fused with it.
        pool: The pooling that ends it.
        source: The type of its input.
    """
    op, window = nodes[0].op, pool.op if pool else None
    if not isinstance(op, Conv2d) or op.groups != 1 or source.item_bytes > 1:
        return False
    if isinstance(window, MaxPool2d) and (window.kernel, window.stride, window.padding) != ((2, 2), (2, 2), (0, 0)):
        return False
    fmt, size = get_format(op.format), (op.levels.shape[2:], op.padding, op.stride, op.dilation)
    if size != ((3, 3), (1, 1), (1, 1), (1, 1)) or not _has_tables(fmt):
        return False
    start = start_of(source, op.levels)
    return start is not None and has_bias_and_shift(nodes, source, start)


def _has_tables(fmt: NumberFormat) -> bool:
    """Whether bit_fill makes a format's tables: few levels, from one of int8 up in steps of 1 or 2."""
    return fmt.affine and fmt.step <= 2 and len(fmt.levels) <= _MOST_LEVELS and -128 <= fmt.low <= 127


def row_words(width: int, block: int, pooled: bool) -> int:
    """Returns the words of two tables, and of the sums of three rows, if pooled four, at each four pixels."""
    return 2 * _TABLE + 2 * (3 + pooled) * -(-width // 4) * block


def tables_of(fmt: NumberFormat) -> dict[str, int]:
    """Returns how a format's tables are made: one for three ternary weights side by side, or one for each weight."""
    if fmt.levels == TERNARY.levels:
        return {"low": -1, "level_step": 1, "levels": 0, "tables": 1}
    return {"low": fmt.low, "level_step": fmt.step, "levels": len(fmt.levels), "tables": 3}


def pack_weights(levels: Ints, fmt: NumberFormat, block: int, stored: str) -> list[int]:
    """Packs levels ``[outputs, inputs, 3, 3]``, for each row of weights, from the last one up, a code.

    A byte is the offset of its entry in a table; packed, three codes of 5 bits make 16.
    """
    codes = (levels - fmt.low) // fmt.step
    codes = (codes * (1, 3, 9)).sum(-1, keepdims=True) if fmt.levels == TERNARY.levels else codes
    codes = codes[:, :, ::-1].transpose(1, 3, 0, 2)  # inputs, tables, outputs, rows
    codes = 8 * codes if stored == BYTES else (codes << (0, 5, 10)).sum(-1)
    return np.concatenate([codes[:, :, at : at + block].ravel() for at in range(0, len(levels), block)]).tolist()
