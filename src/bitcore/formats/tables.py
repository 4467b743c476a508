"""Unevenly spaced formats: powers of two (FP1.3.0) and normal-float levels (NF4)."""

from __future__ import annotations

from bitcore.formats.number_format import NumberFormat
from bitcore.formats.packing import bit_packing

# Sign, 3 exponent bits, no mantissa: code = exponent + 8 * (negative). A product is a shift.
FP130 = NumberFormat("fp130", tuple(sign * 2**e for sign in (1, -1) for e in range(8)), bit_packing(4))

# The quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv:2305.14314, appendix E) in units of 1/127.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NF4 = NumberFormat("nf4", tuple(round(127 * q) for q in _NF4), bit_packing(4))
