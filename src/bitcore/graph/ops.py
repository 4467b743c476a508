"""The integer operations. `reference` is the meaning of each: every kernel and target equals it exactly.

All of them work on int64 arrays ``[batch, *shape]``; the first dimension of ``shape`` is the channel. Parameters "per
channel" are arrays of length 1 (shared) or ``shape[0]``. `infer` gives the type of the result and raises where int32
would not hold an accumulator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bitcore.errors import BitLabError
from bitcore.graph.types import INT32, IntTensor, narrow

_EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here, so float sums of integers below it are exact
Ints = NDArray[np.int64]


class Op(ABC):
    """An integer operation."""

    kind: ClassVar[str]
    fused: ClassVar[bool] = False  # element by element: behind another operation it needs no buffer of its own

    @abstractmethod
    def infer(self, *types: IntTensor) -> IntTensor:
        """Returns the type of the result.

        Raises:
            BitLabError: If an accumulator would not fit int32, or the operation does not take such inputs.
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


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """``out[n] = sum_k levels[n, k] * x[k] + bias[n]``.

    Attributes:
        levels: Weight levels ``[n, k]``.
        format: Their number format's name.
        bias: On the accumulator's grid: ``[n]``, or ``[1]`` holding 0 for none.
    """

    kind = "linear"
    levels: Ints
    format: str
    bias: Ints

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        return _accumulator(types[0], self.levels, self.bias, (self.levels.shape[0],))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        # float64 holds every int32 accumulator exactly, and its matrix product is fast.
        return (x[0].astype(np.float64) @ self.levels.T.astype(np.float64)).astype(np.int64) + self.bias

    def macs(self, out: IntTensor) -> int:  # noqa: D102
        return self.levels.size


@dataclass(frozen=True, eq=False)
class Conv2d(Op):
    """Two-dimensional convolution (cross-correlation) of ``[c, h, w]`` with zero padding; a padded zero adds nothing.

    Attributes:
        levels: Weight levels ``[n, c / groups, kh, kw]``.
        format: Their number format's name.
        bias: As in `Linear`.
        stride: Vertical, horizontal; so are padding (on both sides) and dilation.
    """

    kind = "conv2d"
    levels: Ints
    format: str
    bias: Ints
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                types[0].shape[1:], self.levels.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        ]
        source = IntTensor(types[0].shape, min(types[0].low, 0), max(types[0].high, 0))
        return _accumulator(source, self.levels, self.bias, (self.levels.shape[0], *size))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        magnitudes = np.abs(self.levels).reshape(len(self.levels), -1).sum(axis=1).max()
        # Without oneDNN, float32 may go to NNPACK, whose Winograd transform rounds; float64 is always summed plainly.
        onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        exact = onednn and magnitudes * np.abs(x[0]).max(initial=0) < _EXACT_FLOAT32
        dtype = np.float32 if exact else np.float64
        result = torch.nn.functional.conv2d(
            torch.from_numpy(x[0].astype(dtype)),
            torch.from_numpy(self.levels.astype(dtype)),
            None, self.stride, self.padding, self.dilation, self.groups,
        )  # fmt: skip
        return result.numpy().astype(np.int64) + self.bias[:, None, None]

    def macs(self, out: IntTensor) -> int:  # noqa: D102
        return out.size * int(np.prod(self.levels.shape[1:]))


@dataclass(frozen=True, eq=False)
class Requantize(Op):
    """``clamp(round((x * multiplier + bias) / 2**shift), low, high)``, ties to even.

    The product and the sum are int64; with power-of-two scales the multiplier is 1 (or another power of two, which is
    a left shift).

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
        ends = self._round(np.array([[types[0].low], [types[0].high]], dtype=np.int64))
        low, high = int(ends.min()), int(ends.max())
        return narrow(types[0].shape, max(self.low, min(low, self.high)), min(self.high, max(high, self.low)))

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
        step: The distance of the results.
    """

    kind = "threshold"
    fused = True
    thresholds: Ints
    sign: Ints
    low: int
    step: int

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        return narrow(types[0].shape, self.low, self.low + self.step * self.thresholds.shape[1])

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        def count(values: Ints) -> Ints:
            signed = self.sign * values
            if len(self.thresholds) == 1:
                return np.searchsorted(self.thresholds[0], signed, side="right")
            return sum((signed >= column for column in self.thresholds.T), np.zeros_like(signed))

        return self.low + self.step * _channels_last(count, x[0])


@dataclass(frozen=True, eq=False)
class NormShift(Op):
    """Shifts a sample so that its largest magnitude just fits: dynamic power-of-two quantization, in integers.

    ``e`` is the smallest integer (it may be negative) with ``max |x| <= high * 2**e``; the result is ``x / 2**e``
    rounded to the nearest, ties to even. With ``relu``, negative values become 0 first.
    """

    kind = "normshift"
    high: int
    relu: bool

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        return narrow(types[0].shape, 0 if self.relu else -self.high, self.high)

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        values = np.maximum(x[0], 0) if self.relu else x[0]
        flat = _flat(values)
        largest = np.abs(flat).max(axis=1, initial=0)
        e = np.zeros_like(largest)
        for _ in range(32):
            e += largest > self.high << np.maximum(e, 0)
        for _ in range(32):
            e -= (e <= 0) & (largest > 0) & (largest << np.maximum(1 - e, 0) <= self.high)
        e = e[:, None]
        return shift_half_even(flat << np.maximum(-e, 0), np.maximum(e, 0)).reshape(values.shape)


@dataclass(frozen=True, eq=False)
class MaxPool2d(Op):
    """The largest value of each window of ``[c, h, w]``; padding never wins."""

    kind = "maxpool2d"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        return replace(types[0], shape=_pooled(types[0].shape, self.kernel, self.stride, self.padding))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        values = torch.from_numpy(x[0].astype(np.float64))
        return torch.nn.functional.max_pool2d(values, self.kernel, self.stride, self.padding).numpy().astype(np.int64)


@dataclass(frozen=True, eq=False)
class SumPool2d(Op):
    """The sum of each window of ``[c, h, w]``; a padded zero adds nothing. Average pooling, before the division.

    The division is part of the scale by which the sums are read. Global pooling has the whole map as its window.
    """

    kind = "sumpool2d"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        low, high = types[0].low, types[0].high
        if self.padding != (0, 0):
            low, high = min(low, 0), max(high, 0)
        window = math.prod(self.kernel)
        return IntTensor(_pooled(types[0].shape, self.kernel, self.stride, self.padding), low * window, high * window)

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        values = torch.from_numpy(x[0].astype(np.float64))
        sums = torch.nn.functional.avg_pool2d(values, self.kernel, self.stride, self.padding, divisor_override=1)
        return sums.numpy().astype(np.int64)


@dataclass(frozen=True, eq=False)
class Add(Op):
    """The sum of two or more tensors of one shape, whose integers count in the same unit."""

    kind = "add"
    fused = True

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        if len(types) < 2 or any(kind.shape != types[0].shape for kind in types):
            shapes = ", ".join(str(kind.shape) for kind in types)
            raise BitLabError(f"an addition takes two or more tensors of one shape, not {shapes}")
        return narrow(types[0].shape, sum(kind.low for kind in types), sum(kind.high for kind in types))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return np.sum(x, axis=0)


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Tensors one behind the other along the channels; their integers count in the same unit."""

    kind = "concat"

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        rest = types[0].shape[1:]
        if any(kind.shape[1:] != rest for kind in types):
            shapes = ", ".join(str(kind.shape) for kind in types)
            raise BitLabError(f"a concatenation takes tensors that differ in their channels only, not {shapes}")
        channels = sum(kind.shape[0] for kind in types)
        return narrow((channels, *rest), min(kind.low for kind in types), max(kind.high for kind in types))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return np.concatenate(x, axis=1)


@dataclass(frozen=True, eq=False)
class Lookup(Op):
    """``table[x mod 256]``: any function of 8-bit activations. C reads ``table[(uint8_t)x]``.

    Attributes:
        table: 256 results. Entry ``i`` is that of ``x = i`` (uint8) or of ``x = i`` or ``i − 256`` (int8).
    """

    kind = "lookup"
    fused = True
    table: Ints

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        if types[0].item_bytes != 1 or self.table.shape != (256,):
            raise BitLabError("a table of 256 entries takes int8 or uint8 activations")
        reachable = self.table[np.arange(types[0].low, types[0].high + 1) % 256]
        return narrow(types[0].shape, int(reachable.min()), int(reachable.max()))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return self.table[x[0] % 256]


@dataclass(frozen=True, eq=False)
class Flatten(Op):
    """The same values as one vector, channels first. Costs nothing: the buffer is shared."""

    kind = "flatten"

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        return replace(types[0], shape=(types[0].size,))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return _flat(x[0])


OPS: dict[str, type[Op]] = {
    op.kind: op
    for op in (Linear, Conv2d, Requantize, Threshold, NormShift, Lookup, Add, Concat, MaxPool2d, SumPool2d, Flatten)
}


def _accumulator(source: IntTensor, levels: Ints, bias: Ints, shape: tuple[int, ...]) -> IntTensor:
    """Bounds of sums of products. Partial sums count too: in any order they stay within the sum of magnitudes."""
    rows = levels.reshape(levels.shape[0], -1)
    magnitude = int((np.abs(rows).sum(axis=1) * source.largest + np.abs(bias)).max())
    if magnitude > INT32[1]:
        return IntTensor(shape, -magnitude, magnitude)  # raises
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    low = (positive * source.low + negative * source.high + bias).min()
    high = (positive * source.high + negative * source.low + bias).max()
    return IntTensor(shape, int(low), int(high))


def _pooled(
    shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, ...]:
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True)]
    return (shape[0], *size)


def _flat(x: Ints) -> Ints:
    """Returns every sample as a vector; a batch may be empty."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _channels_last(function: Callable[[Ints], Ints], x: Ints) -> Ints:
    """Applies a function whose parameters broadcast along the last dimension to the channel dimension, 1."""
    return np.moveaxis(function(np.moveaxis(x, 1, -1)), -1, 1)
