"""NumberFormat: the integer levels of a format are its only definition."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitcore.formats.packing import Packing


def round_half_even(x: Tensor) -> Tensor:
    """Rounds to the nearest integer, ties to even: the tie rule of all integer ranges, in training and in C."""
    return torch.round(x)


@dataclass(frozen=True)
class NumberFormat:
    """A number format is its integer levels; a real number is a level times a scale.

    Half-integer levels (±0.5, ±1.5, …) are odd integers at half the scale. The tuple is in code order:
    code ``i`` stands for ``levels[i]``.

    Rounding: to the nearest level. Ties go to even where the levels are consecutive integers, upward elsewhere
    (so sign(0) = +1). Values beyond the outer levels saturate.

    Attributes:
        name: The name that users write.
        levels: The levels in code order.
        packing: How codes are stored.
        low: The smallest level.
        high: The largest level.
        step: The distance of neighbouring levels, 0 where it varies.
    """

    name: str
    levels: tuple[int, ...]
    packing: Packing
    low: int = field(init=False)
    high: int = field(init=False)
    step: int = field(init=False)

    def __post_init__(self) -> None:
        """Checks that levels are distinct and that the packing holds the codes; derives the range."""
        if len(set(self.levels)) != len(self.levels) or not 2 <= len(self.levels) <= self.packing.radix <= 256:
            raise ValueError(f"{self.name}: between 2 and {self.packing.radix} distinct levels are needed")
        ordered = sorted(self.levels)
        steps = {b - a for a, b in pairwise(ordered)}
        object.__setattr__(self, "low", ordered[0])
        object.__setattr__(self, "high", ordered[-1])
        object.__setattr__(self, "step", steps.pop() if len(steps) == 1 else 0)

    @property
    def bits(self) -> float:
        """Storage bits a code (ternary: 1.6)."""
        return self.packing.bits

    @property
    def affine(self) -> bool:
        """Whether ``level = low + step * code``."""
        return self.step > 0 and list(self.levels) == sorted(self.levels)

    @property
    def largest(self) -> int:
        """The largest magnitude of a level."""
        return max(-self.low, self.high)

    @property
    def signed(self) -> bool:
        """Whether there are negative levels."""
        return self.low < 0

    @property
    def level_dtype(self) -> torch.dtype:
        """The narrowest torch dtype that holds every level: int8, uint8 or int16."""
        for dtype in (torch.int8, torch.uint8):
            info = torch.iinfo(dtype)
            if info.min <= self.low and self.high <= info.max:
                return dtype
        return torch.int16

    def nearest(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Rounds float ``x``, in units of the scale, to levels (any shape; the dtype stays). NaN stays NaN.

        Args:
            x: The values.
            shift: Integers (any dtype, broadcastable to ``x``) that are added to all levels: returned is the level
                whose sum with its shift is nearest.
        """
        if self.step == 1:
            x = round_half_even(x)
            x = x if shift is None else x - shift
            return torch.nn.functional.hardtanh_(x, self.low, self.high)  # clamp_, which torch.vmap does not know
        x = x if shift is None else x - shift
        if self.step == 2 and self.low % 2:
            # The inner floor keeps the sign of values so tiny that half of them is zero.
            return (torch.floor(torch.floor(x) / 2) * 2 + 1).clamp(self.low, self.high)
        ordered = sorted(self.levels)
        table = torch.tensor(ordered, dtype=x.dtype, device=x.device)
        middles = torch.tensor([(a + b) / 2 for a, b in pairwise(ordered)], device=x.device)
        levels = table[torch.bucketize(x, middles.to(x.dtype), right=True)]
        return torch.where(torch.isnan(x), x, levels)

    def holds(self, integers: NDArray[np.integer]) -> bool:
        """Whether all integers, from ``low`` to ``high`` each, are levels."""
        if self.step == 1:
            return True
        there = np.zeros(self.high - self.low + 1, dtype=bool)
        there[np.array(self.levels) - self.low] = True
        return bool(there[np.asarray(integers, np.int64) - self.low].all())

    def encode(self, levels: Tensor) -> Tensor:
        """Turns levels (any integer-valued dtype) into uint8 codes.

        Raises:
            ValueError: If a value is no level of this format.
        """
        integers = levels.to(torch.int64)
        if self.affine:
            codes = (integers - self.low) // self.step
        else:
            table = torch.full((self.high - self.low + 1,), -1, device=levels.device)
            table[torch.tensor(self.levels, device=levels.device) - self.low] = torch.arange(
                len(self.levels), device=levels.device
            )
            codes = table[(integers - self.low).clamp(0, self.high - self.low)]
        codes = codes.clamp(0, len(self.levels) - 1)
        decoded = torch.tensor(self.levels, device=levels.device)[codes]
        if not torch.equal(decoded.to(levels.dtype), levels):
            raise ValueError(f"not all values are levels of {self.name}")
        return codes.to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Turns integer codes into levels of dtype ``level_dtype``.

        Raises:
            ValueError: If a code has no level.
        """
        without_values = torch.compiler.is_compiling() or codes.is_meta  # a compiled graph cannot branch on them
        if codes.numel() and not without_values:
            for code in (int(codes.min()), int(codes.max())):
                if not 0 <= code < len(self.levels):
                    raise ValueError(f"{self.name} has no code {code}: corrupted data")
        return torch.tensor(self.levels, dtype=self.level_dtype, device=codes.device)[codes.to(torch.int64)]

    def entropy(self, codes: Tensor) -> float:
        """Returns the Shannon entropy of the codes in bits a code: what ideal entropy coding would need."""
        if codes.numel() == 0:
            return 0.0
        counts = torch.bincount(codes.flatten().to(torch.int64), minlength=len(self.levels)).double()
        shares = counts[counts > 0] / counts.sum()
        return abs(float(-(shares * shares.log2()).sum()))

    def describe(self) -> str:
        """Returns one line for tables and errors."""
        return f"{self.name} ({len(self.levels)} levels {self.low}…{self.high}, {self.bits:g} bits)"
