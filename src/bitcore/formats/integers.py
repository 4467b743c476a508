"""Evenly spaced formats: binary, ternary, symmetric and full integers, odd integers at half scale, unsigned."""

from __future__ import annotations

from bitcore.formats.number_format import NumberFormat
from bitcore.formats.packing import Packing, bit_packing

BINARY = NumberFormat("binary", (-1, 1), bit_packing(1))
TERNARY = NumberFormat("ternary", (-1, 0, 1), Packing(radix=3, codes=5, word=1))

# Odd integers at half scale: ±0.5, ±1.5, … have no wasted code and no zero.
ODD = [NumberFormat(f"{b}bitsym", tuple(range(1 - 2**b, 2**b, 2)), bit_packing(b)) for b in (2, 4, 5)]

# Symmetric integers leave out −2^(b−1), so that negation stays inside the format.
SYMMETRIC = [NumberFormat(f"int{b}", tuple(range(1 - 2 ** (b - 1), 2 ** (b - 1))), bit_packing(b)) for b in range(2, 9)]

# The full two's-complement range.
FULL = [NumberFormat(f"{b}bit", tuple(range(-(2 ** (b - 1)), 2 ** (b - 1))), bit_packing(b)) for b in (4, 8)]

# Activations after a ReLU.
UNSIGNED = [NumberFormat(f"uint{b}", tuple(range(2**b)), bit_packing(b)) for b in range(1, 9)]
