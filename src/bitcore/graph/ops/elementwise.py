"""Operations on single values, which turn accumulators into activations, and the one that looks at a whole sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitcore.errors import BitLabError
from bitcore.graph.ops.base import Ints, Op, shift_half_even
from bitcore.graph.ops.checks import check_integers, check_number, one_input
from bitcore.graph.ops.moves import as_vectors
from bitcore.graph.types import INT32, INT64, IntTensor, narrow

_LARGEST_PRODUCT = 2**62  # of a requantization, bias included: int64 holds it, and half of a step more


@dataclass(frozen=True, eq=False)
class Requantize(Op):
    """``clamp(round((x * multiplier + bias) / 2**shift), low, high)``, ties to even.

    The product and the sum are int64, below 2**62; with power-of-two scales the multiplier is 1 (or another power of
    two, which is a left shift).

    Attributes:
        multiplier: Per channel, int32 (int16 between layers), may be negative.
        bias: Per channel, int64.
        shift: Per channel, 0 to 62.
        low: Smallest result; so is high the largest.
    """

    kind = "requantize"
    fused = True
    multiplier: Ints
    bias: Ints
    shift: Ints
    low: int
    high: int

    @property
    def shifts_only(self) -> bool:
        """Whether the multiplier is 1: an addition, a shift and a clamp are all there is."""
        return bool(np.all(self.multiplier == 1))

    def multiplications(self, out: IntTensor) -> int:  # noqa: D102
        size = np.abs(self.multiplier)
        products = np.broadcast_to(size & (size - 1) != 0, out.shape[:1])
        return int(products.sum()) * (out.size // out.shape[0])

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_input(types)
        channels = (source.shape[0],), (1,)
        check_integers("multiplier", self.multiplier, *INT32, *channels)
        check_integers("bias", self.bias, 1 - _LARGEST_PRODUCT, _LARGEST_PRODUCT - 1, *channels)
        check_integers("shift", self.shift, 0, 62, *channels)
        check_number("smallest result", self.low, *INT32)
        check_number("largest result", self.high, self.low, INT32[1])
        if (np.abs(self.multiplier) * source.largest + np.abs(self.bias)).max() >= _LARGEST_PRODUCT:
            raise BitLabError("its products leave 62 bits; the scales of weights and activations differ too much")
        ends = self._round(np.array([[source.low], [source.high]], dtype=np.int64))
        low, high = int(ends.min()), int(ends.max())
        return narrow(source.shape, max(self.low, min(low, self.high)), min(self.high, max(high, self.low)))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return np.clip(_channels_last(self._round, x[0]), self.low, self.high)

    def _round(self, x: Ints) -> Ints:
        return shift_half_even(x * self.multiplier + self.bias, self.shift)


@dataclass(frozen=True, eq=False)
class Threshold(Op):
    """``low + step * #{k : sign * x >= thresholds[k]}``: any monotone function with few results, exactly.

    Attributes:
        thresholds: Rising, ``[channels or 1, results − 1]``.
        sign: +1 or −1 per channel (−1 where the function falls).
        low: The first result.
        step: The distance of the results, from 1.
    """

    kind = "threshold"
    fused = True
    thresholds: Ints
    sign: Ints
    low: int
    step: int

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_input(types)
        channels = source.shape[0]
        count = self.thresholds.shape[1] if getattr(self.thresholds, "ndim", 0) == 2 else 0
        if count == 0:
            raise BitLabError("its thresholds must be an array [channels or 1, results − 1] with two or more results")
        check_integers("thresholds", self.thresholds, *INT64, (channels, count), (1, count))
        check_integers("sign", self.sign, -1, 1, (channels,), (1,))
        check_number("first result", self.low, *INT32)
        check_number("step", self.step, 1, INT32[1])
        if (self.thresholds[:, 1:] < self.thresholds[:, :-1]).any():
            raise BitLabError("its thresholds do not rise")
        if (self.sign == 0).any():
            raise BitLabError("its sign is 0; it must be +1 or −1")
        return narrow(source.shape, self.low, self.low + self.step * count)

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        def count(values: Ints) -> Ints:
            signed = self.sign * values
            if len(self.thresholds) == 1:
                return np.searchsorted(self.thresholds[0], signed, side="right")
            return sum((signed >= column for column in self.thresholds.T), np.zeros_like(signed))

        return self.low + self.step * _channels_last(count, x[0])


@dataclass(frozen=True, eq=False)
class Lookup(Op):
    """``table[x mod 256]``: any function of 8-bit activations. C reads ``table[(uint8_t)x]``.

    Attributes:
        table: 256 results, int32. Entry ``i`` is that of ``x = i`` (uint8) or of ``x = i`` or ``i − 256`` (int8).
    """

    kind = "lookup"
    fused = True
    table: Ints

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_input(types)
        check_integers("table", self.table, *INT32, (256,))
        if source.item_bytes != 1:
            raise BitLabError("a table of 256 entries takes int8 or uint8 activations")
        reachable = self.table[np.arange(source.low, source.high + 1) % 256]
        return narrow(source.shape, int(reachable.min()), int(reachable.max()))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return self.table[x[0] % 256]


@dataclass(frozen=True, eq=False)
class NormShift(Op):
    """Shifts a sample so that its largest magnitude just fits: dynamic power-of-two quantization, in integers.

    ``e`` is the smallest integer (it may be negative) with ``max |x| <= high * 2**e``; the result is ``x / 2**e``
    rounded to the nearest, ties to even. With ``relu``, negative values become 0 first.

    Attributes:
        high: The largest magnitude of a result, 1 to 32,767.
        relu: Whether negative values become 0.
    """

    kind = "normshift"
    high: int
    relu: bool

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_input(types)
        check_number("largest result", self.high, 1, 2**15 - 1)
        if not isinstance(self.relu, bool):
            raise BitLabError(f"its relu is {self.relu!r:.80}; it must be true or false")
        return narrow(source.shape, 0 if self.relu else -self.high, self.high)

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        values = np.maximum(x[0], 0) if self.relu else x[0]
        flat = as_vectors(values)
        largest = np.abs(flat).max(axis=1, initial=0)
        e = np.zeros_like(largest)
        for _ in range(32):
            e += largest > self.high << np.maximum(e, 0)
        for _ in range(32):
            e -= (e <= 0) & (largest > 0) & (largest << np.maximum(1 - e, 0) <= self.high)
        e = e[:, None]
        return shift_half_even(flat << np.maximum(-e, 0), np.maximum(e, 0)).reshape(values.shape)


def _channels_last(function: Callable[[Ints], Ints], x: Ints) -> Ints:
    """Applies a function whose parameters broadcast along the last dimension to the channel dimension, 1."""
    return np.moveaxis(function(np.moveaxis(x, 1, -1)), -1, 1)
