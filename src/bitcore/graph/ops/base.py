"""What an integer operation is, and the one rule by which integers are rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bitcore.graph.types import IntTensor

Ints = NDArray[np.int64]


class Op(ABC):
    """An integer operation."""

    kind: ClassVar[str]
    fused: ClassVar[bool] = False  # element by element: behind another operation it needs no buffer of its own

    @abstractmethod
    def infer(self, *types: IntTensor) -> IntTensor:
        """Returns the type of the result. It checks every parameter first, also against the types of the inputs.

        Raises:
            BitLabError: If a parameter is not what the operation's docstring says, the operation does not take such
                inputs, or an accumulator would not fit int32.
        """

    @abstractmethod
    def reference(self, *x: Ints) -> Ints:
        """Returns the result for int64 arrays ``[batch, *shape]``."""

    def macs(self, out: IntTensor) -> int:
        """Returns the multiply-accumulates of one sample."""
        return 0

    def multiplications(self, out: IntTensor) -> int:
        """Returns the multiplications of one sample beside those of its weights."""
        return 0


def shift_half_even(value: Ints, shift: Ints) -> Ints:
    """Returns ``value / 2**shift`` rounded to the nearest integer, ties to even; ``shift >= 0``.

    The same rule as `NumberFormat.nearest` on integer ranges, so that power-of-two scales lose nothing on the way from
    fake quantization to integers.
    """
    floor = value >> shift
    rest = value - (floor << shift)
    half = (np.int64(1) << shift) >> 1
    return floor + ((rest > half) | ((rest == half) & (floor & 1 == 1) & (shift > 0)))
