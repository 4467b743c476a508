"""Dense layers of the compact runtime (csrc/portable/bit_compact_dense.h): how weights are coded, and what C is told.

Weights are codes of a fixed number of bits, or Rice codes where those take less flash: trained weights of 4 bits crowd
around zero, and a code that spends a bit on the sign and one on each step away from zero needs less than 3 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bitcore.formats import NumberFormat, get_format
from bitcore.graph import Linear, Node, Requantize
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT32
from bitexport.targets.c.packing import Columns, columns_of

DENSE_HEADER = "bit_compact_dense.h"
CODES, RICE = "codes", "Rice codes"
RICE_COST = 9  # instructions that a Rice code takes more than a code of 4 bits, measured on rv32ec
BLOCK = 40  # outputs that are computed at a time: few need little RAM, many pass over the inputs less often
_ROW = 80  # weights, at most, that share the size byte of a row of Rice codes
_LARGEST = 22  # magnitude of a Rice code, so that the size of a row fits its byte
_DECODER = 214  # bytes of the decoder on rv32ec, where no firmware is there to be measured
_WORTH = 8  # Rice codes must save an eighth of a layer's weights, since decoding takes time
_ROWS = {  # what adds a row of codes, by the fast runtime's way to take a format
    "bit_columns_binary": "bit_compact_digits",
    "bit_columns_2bit": "bit_compact_digits",
    "bit_columns_ternary": "bit_compact_5bit",
    "bit_columns_4bit": "bit_compact_4bit",
    "bit_columns_5bit": "bit_compact_5bit",
    "bit_columns_8bit": "bit_compact_8bit",
}
_FILLED = ("bit_compact_digits", "bit_compact_5bit")  # they call bit_compact_fill
Arrays = dict[str, tuple[list[int], str]]  # values and C type, by the field that holds them


@dataclass(frozen=True)
class Scale:
    """What turns sums into results: ``round((sum * multiplier + bias) / 2**shift)``, clamped to 0…high.

    Attributes:
        multiplier: Per output, 2**14 to 2**15 - 1.
        bias: Per output, int32.
        shift: Per output, 15 to 31; at most 3 beyond the lowest.
        high: The largest result, at most 255.
    """

    multiplier: Ints
    bias: Ints
    shift: Ints
    high: int

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Scale | None:
        """Returns the numbers of a matrix product and the requantization behind it; ``None`` for what is not just that.

        One multiplier for all outputs is left to a generated function, which has it as a number of its code.
        """
        op, scale, sums = nodes[0].op, nodes[-1].op, nodes[0].type
        if len(nodes) != 2 or not isinstance(op, Linear) or not isinstance(scale, Requantize):
            return None
        m, b, s, offset = np.broadcast_arrays(scale.multiplier, scale.bias, scale.shift, op.bias)
        if m.min() < 1 or m.max() >= 2**15 or len(np.unique(m)) == 1 or scale.low != 0 or not 0 < scale.high <= 255:
            return None
        up = 15 - np.array([int(value).bit_length() for value in m], dtype=np.int64)
        m, b, s = m << up, (b + offset * m) << up, s + up
        largest = np.abs(offset) + max(-sums.low, sums.high)
        fits = largest.max() < 2**29 and (np.abs(b) + largest).max() <= INT32[1]
        return cls(m, b, s, scale.high) if fits and s.min() >= 15 and s.max() <= min(31, s.min() + 3) else None

    def fields(self) -> dict[str, object]:
        """Returns what the outputs share."""
        return {"shift": int(self.shift.min()), "high": self.high}

    def arrays(self) -> Arrays:
        """Returns the numbers of each output."""
        words = self.multiplier - 2**14 + ((self.shift - self.shift.min()) << 14)
        return {"multiplier": (words.tolist(), "uint16_t"), "bias": (self.bias.tolist(), "int32_t")}


def takes_dense(op: Linear) -> bool:
    """Whether the compact dense runtime takes a layer's weights."""
    fmt = get_format(op.format)
    layout = columns_of(fmt)
    return layout is not None and (layout.bits < 8 or fmt.step == 1)  # bit_compact_8bit knows no other step


def _layout(fmt: NumberFormat) -> Columns:
    layout = columns_of(fmt)
    assert layout is not None
    return layout


def weights_of(op: Linear, levels: Ints, coding: str, block: int) -> tuple[dict[str, object], Arrays, set[str]]:
    """Returns what C is told about the weights of a layer: fields and arrays of its description, files of the runtime.

    Args:
        op: The layer.
        levels: Its levels ``[outputs, inputs]``, in the order of the inputs in memory.
        coding: `CODES` or `RICE`.
        block: Outputs that are computed at a time.
    """
    fmt = get_format(op.format)
    layout = _layout(fmt)
    add, bits, together = _ROWS.get(layout.function, "bit_compact_levels"), layout.bits, layout.inputs
    arrays: Arrays = {}
    if coding == RICE:
        packed, together = pack_rice(levels, op.format, block)
        add, bits = "bit_compact_rice", 0
    else:
        packed = pack_codes(levels, op.format, block)
        if not fmt.affine:
            arrays["products"] = list(fmt.levels), "int16_t"
    fields: dict[str, object] = {
        "add": add,
        "inputs": levels.shape[1],
        "outputs": len(levels),
        "block": _even(block),
        "low": fmt.low if fmt.affine else 0,
        "step": fmt.step,
        "levels": len(fmt.levels) if add in _FILLED else 0,
        "bits": bits,
        "inputs_of_row": together,
    }
    files = {f"{add}.c", "bit_compact_dense.c", "bit_scale.c", *(["bit_compact_fill.c"] if add in _FILLED else [])}
    return fields, {"weight": (packed, "uint8_t"), **arrays}, files


def scratch_words(fmt: NumberFormat, coding: str, block: int) -> int:
    """Returns the words of a block's sums and of the table."""
    layout = _layout(fmt)
    return _even(block) + (0 if coding == RICE else 32 if layout.bits == 8 else layout.entries)


def _even(block: int) -> int:
    return block + block % 2


def choose_coding(ops: Sequence[Linear], rice: bool | None = None) -> list[str]:
    """Returns how the weights of compact dense layers are coded.

    Rice codes are decoded bit by bit: only layers have them of whose weights they save an eighth.

    Args:
        ops: The layers.
        rice: Whether such layers have them; by default, if all that they save exceeds the decoder.
    """
    sizes = map(coded_sizes, ops)
    saved = [codes - coded if coded * _WORTH <= codes * (_WORTH - 1) else 0 for codes, coded in sizes]
    if rice is None:
        rice = sum(saved) > _DECODER
    return [RICE if size and rice else CODES for size in saved]


def coded_sizes(op: Linear) -> tuple[int, int]:
    """Returns the bytes of a layer's weights as codes and as Rice codes; the same where it has none."""
    fmt, codes = get_format(op.format), len(pack_codes(op.levels, op.format, BLOCK))
    odd = fmt.step == 2 and fmt.low == -fmt.high
    if not fmt.affine or not (odd or fmt.step == 1) or _rice(op.levels, odd)[1].max() > _LARGEST:
        return codes, codes
    return codes, len(pack_rice(op.levels, op.format, BLOCK)[0])


def pack_codes(levels: Ints, format_name: str, block: int) -> list[int]:
    """Packs levels ``[outputs, inputs]`` as codes: blocks of outputs, in each the rows, each of whole bytes.

    A row meets one input, or a few whose codes are the digits of one, the first input's the lowest; code 0 stands for
    inputs that are missing at the end.
    """
    fmt = get_format(format_name)
    layout = _layout(fmt)
    codes = fmt.encode(torch.from_numpy(np.ascontiguousarray(levels))).numpy().astype(np.int64)
    padded = np.pad(codes, [(0, 0), (0, -levels.shape[1] % layout.inputs)])
    digits = padded.reshape(len(levels), -1, layout.inputs)
    rows = (digits * len(fmt.levels) ** np.arange(layout.inputs)).sum(-1).T
    packed: list[int] = []
    for start in range(0, len(levels), block):
        bits = rows[:, start : start + block, None] >> np.arange(layout.bits) & 1
        packed += np.packbits(bits.reshape(len(rows), -1).astype(bool), axis=1, bitorder="little").ravel().tolist()
    return packed


def pack_rice(levels: Ints, format_name: str, block: int) -> tuple[list[int], int]:
    """Packs levels ``[outputs, inputs]`` as Rice codes; returns them and the number of inputs that share a row.

    A code is a bit of sign and the magnitude in ones, ended by a zero; +1, −1, +3, −3, … or 0, −1, +1, −2, … have
    magnitude 0, 0, 1, 1, …. A row begins with its size.
    """
    inputs = levels.shape[1]
    together = next(n for n in range(max(1, _ROW // block), 0, -1) if inputs % n == 0)
    signs, magnitudes = _rice(levels, get_format(format_name).step == 2)
    packed: list[int] = []
    for start in range(0, len(levels), block):
        for first in range(0, inputs, together):
            part = slice(start, start + block), slice(first, first + together)
            row = zip(signs[part].T.ravel().tolist(), magnitudes[part].T.ravel().tolist(), strict=True)
            bits = "".join(f"{sign}{'1' * magnitude}0" for sign, magnitude in row)
            size = -(-len(bits) // 8)
            packed += [size, *int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")]
    return packed, together


def _rice(levels: Ints, odd: bool) -> tuple[Ints, Ints]:
    """Signs and magnitudes of levels that are odd numbers, or any."""
    negative = levels < 0
    return negative.astype(np.int64), (np.abs(levels) - 1) // 2 if odd else np.abs(levels) - negative
