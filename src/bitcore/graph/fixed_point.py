"""From real factors to the integers of a Requantize: multipliers, biases, shifts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bitcore.graph.ops import Ints

Reals = NDArray[np.float64]
MULTIPLIER_BITS = 15
"""Of multipliers between layers: int16 holds them, and 16-bit multipliers of small chips do the product."""
OUTPUT_BITS = 30
"""Of the multipliers that bring outputs to a common scale."""


def is_power_of_two(values: Reals | float) -> bool:
    """Whether all values are powers of two (and positive)."""
    return bool(np.all(np.frexp(values)[0] == 0.5))


def rescaling(ratio: Reals, offset: Reals, centre: float, bits: int) -> tuple[Ints, Reals, Ints]:
    """Returns multiplier, bias and shift of ``y = ratio * x + offset``, per channel or shared.

    Powers of two give a multiplier of 1 (or a left shift), exactly. Otherwise the multiplier has so many bits, so its
    relative error is at most ``2**-bits``. The bias is such that the result is exact at ``y = centre``; elsewhere,
    before it is rounded, it is off by at most ``|y − centre| * 2**-bits``.

    Args:
        ratio: The factors, below 2**31.
        offset: What is added.
        centre: The middle of the results' range.
        bits: The multiplier's.
    """
    exponent: Ints = np.frexp(ratio)[1].astype(np.int64)
    if is_power_of_two(ratio):
        power = np.maximum(exponent - 1, -62)  # beyond 62 bits every accumulator becomes 0 anyway
        multiplier, shift = np.left_shift(1, np.maximum(power, 0)), np.maximum(-power, 0)
        return multiplier, np.round(offset * np.exp2(shift)), shift
    shift = np.clip(bits - exponent, 0, 62)  # tiny ratios lose the bits that could never count
    rounded_up = np.round(np.abs(ratio) * np.exp2(shift)) >= 2.0**bits
    shift = np.where(rounded_up & (shift > 0), shift - 1, shift)
    factor = ratio * np.exp2(shift)
    multiplier = np.round(factor)
    error = np.divide(factor - multiplier, factor, out=np.zeros_like(factor), where=factor != 0)
    bias = (offset + error * (centre - offset)) * np.exp2(shift)
    return multiplier.astype(np.int64), np.round(bias), shift


def shared(*arrays: Ints) -> tuple[Ints, ...]:
    """Shortens arrays of one repeated value to length 1."""
    return tuple(a[:1].astype(np.int64) if np.all(a == a[0]) else a.astype(np.int64) for a in arrays)


def power_of_two_above(value: float) -> float:
    """Returns the smallest power of two that is at least ``value``; 1 for 0."""
    if value == 0:
        return 1.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))
