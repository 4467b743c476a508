"""The type of an integer tensor: its shape and the range that its values provably keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitcore.errors import BitLabError

INT32 = (-(2**31), 2**31 - 1)
_STORAGE = {"int8": (-128, 127), "uint8": (0, 255)}


@dataclass(frozen=True)
class IntTensor:
    """Shape of one sample (no batch dimension), inclusive bounds of its values and the C type that stores them.

    Attributes:
        shape: One sample's shape.
        low: Smallest possible value.
        high: Largest possible value.
        storage: ``"int32"`` for accumulators, ``"int8"`` or ``"uint8"`` for activations.

    Raises:
        BitLabError: If int32 does not hold the bounds.
    """

    shape: tuple[int, ...]
    low: int
    high: int
    storage: str = "int32"

    def __post_init__(self) -> None:
        """Checks that int32 holds every value."""
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
    def bytes(self) -> int:
        """Bytes of one sample in its storage type."""
        return self.size * (4 if self.storage == "int32" else 1)


def narrow(shape: tuple[int, ...], low: int, high: int) -> IntTensor:
    """Returns the type of activations: stored in int8 or uint8 where the bounds allow it."""
    fits = (name for name, (least, most) in _STORAGE.items() if least <= low and high <= most)
    return IntTensor(shape, low, high, next(fits, "int32"))
