"""The type of an integer tensor: its shape and the range that its values provably keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitcore.errors import BitLabError

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
INT16 = (-(2**15), 2**15 - 1)
_NARROW = {"int8": (-128, 127), "uint8": (0, 255), "int16": INT16}
_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "int32": 4}


@dataclass(frozen=True)
class IntTensor:
    """Shape of one sample (no batch dimension), inclusive bounds of its values and the C type that stores them.

    Attributes:
        shape: One sample's shape: a vector ``[features]`` or a map ``[channels, height, width]`` (or two of the three),
            of fewer than 2**31 values.
        low: Smallest possible value.
        high: Largest possible value.
        storage: ``"int32"`` for accumulators, ``"int8"`` or ``"uint8"`` for activations, ``"int16"`` for sums of
            activations (residual streams).

    Raises:
        BitLabError: If it has another shape, or int32 does not hold the bounds.
    """

    shape: tuple[int, ...]
    low: int
    high: int
    storage: str = "int32"

    def __post_init__(self) -> None:
        """Checks the shape, and that int32 holds every value."""
        if not 1 <= len(self.shape) <= 3 or any(n < 1 for n in self.shape) or self.size > INT32[1]:
            raise BitLabError(
                f"a tensor has shape {list(self.shape)!s:.80}; it must have one to three dimensions from 1 "
                "and fewer than 2^31 values"
            )
        if self.low < INT32[0] or self.high > INT32[1]:
            raise BitLabError(
                f"an accumulator can reach {self.low}…{self.high}, beyond int32: use fewer inputs, "
                "a narrower weight format or a narrower activation format"
            )

    @property
    def size(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape)

    @property
    def largest(self) -> int:
        """Largest possible magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def item_bytes(self) -> int:
        """Bytes of one element in its storage type."""
        return _BYTES[self.storage]

    @property
    def bytes(self) -> int:
        """Bytes of one sample in its storage type."""
        return self.size * self.item_bytes


def narrow(shape: tuple[int, ...], low: int, high: int) -> IntTensor:
    """Returns the type of activations: stored in the first of int8, uint8 and int16 that holds the bounds."""
    fits = (name for name, (least, most) in _NARROW.items() if least <= low and high <= most)
    return IntTensor(shape, low, high, next(fits, "int32"))
