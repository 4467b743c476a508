"""Windows that slide over a map, and pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from bitcore.errors import BitLabError
from bitcore.graph.ops.base import Ints, Op
from bitcore.graph.ops.checks import LONGEST, check_pair, one_map
from bitcore.graph.types import IntTensor

Pair = tuple[int, int]


def slide(shape: tuple[int, ...], kernel: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Returns how many windows fit a map ``[c, h, w]``, vertically and horizontally.

    Raises:
        BitLabError: If a stride is below 1 or a padding negative, or not a single window fits.
    """
    check_pair("stride", stride, 1)
    check_pair("padding", padding, 0)
    sizes = []
    for n, k, s, p, d in zip(shape[1:], kernel, stride, padding, dilation, strict=True):
        padded, window = n + 2 * p, d * (k - 1) + 1
        if padded > LONGEST or window > padded:
            raise BitLabError(f"its windows of {window} do not fit a side of {n}, padded to {padded}")
        sizes.append((padded - window) // s + 1)
    return sizes[0], sizes[1]


@dataclass(frozen=True, eq=False)
class Pool2d(Op):
    """What pooling operations share: one result for each window of a channel of ``[c, h, w]``.

    Attributes:
        kernel: The window's height and width.
        stride: Vertical, horizontal, from 1.
        padding: On both sides, at most half a window.
    """

    kernel: Pair
    stride: Pair
    padding: Pair

    def pooled(self, source: IntTensor) -> tuple[int, ...]:
        """Returns the shape of the result; raises where windows do not fit."""
        check_pair("kernel", self.kernel, 1)
        size = slide(source.shape, self.kernel, self.stride, self.padding, (1, 1))
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise BitLabError(f"its padding {self.padding} is more than half of its window {self.kernel}")
        return (source.shape[0], *size)


@dataclass(frozen=True, eq=False)
class MaxPool2d(Pool2d):
    """The largest value of each window of ``[c, h, w]``; padding never wins. Attributes: see `Pool2d`."""

    kind = "maxpool2d"

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_map(types)
        return replace(source, shape=self.pooled(source))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        values = torch.from_numpy(x[0].astype(np.float64))
        return torch.nn.functional.max_pool2d(values, self.kernel, self.stride, self.padding).numpy().astype(np.int64)


@dataclass(frozen=True, eq=False)
class SumPool2d(Pool2d):
    """The sum of each window of ``[c, h, w]``; a padded zero adds nothing. Average pooling, before the division.

    The division is part of the scale by which the sums are read. Global pooling has the whole map as its window.
    Attributes: see `Pool2d`.
    """

    kind = "sumpool2d"

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_map(types)
        shape, low, high = self.pooled(source), source.low, source.high
        if self.padding != (0, 0):
            low, high = min(low, 0), max(high, 0)
        window = math.prod(self.kernel)
        return IntTensor(shape, low * window, high * window)

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        values = torch.from_numpy(x[0].astype(np.float64))
        sums = torch.nn.functional.avg_pool2d(values, self.kernel, self.stride, self.padding, divisor_override=1)
        return sums.numpy().astype(np.int64)
