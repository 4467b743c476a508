"""Sums of products of weights and activations: linear layers and convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from bitcore.errors import BitLabError
from bitcore.graph.ops.base import Ints, Op
from bitcore.graph.ops.checks import check_bias, check_levels, check_number, check_pair, one_input, one_map
from bitcore.graph.ops.windows import slide
from bitcore.graph.types import INT32, IntTensor

_EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here, so float sums of integers below it are exact


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """``out[n] = sum_k levels[n, k] * x[k] + bias[n]``.

    Attributes:
        levels: Weight levels ``[n, k]``.
        format: Their number format's name.
        bias: On the accumulator's grid, int32: ``[n]``, or ``[1]`` for all outputs.
    """

    kind = "linear"
    levels: Ints
    format: str
    bias: Ints

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_input(types)
        if len(source.shape) != 1:
            raise BitLabError(f"it takes vectors, its input has shape {list(source.shape)}; flatten it first")
        check_levels(self.levels, self.format, (0, source.size))
        check_bias(self.bias, len(self.levels))
        return _accumulator(source, self.levels, self.bias, (len(self.levels),))

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
        stride: Vertical, horizontal, from 1; so are padding (on both sides, from 0) and dilation.
        groups: Of input and output channels; they divide both.
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
        source = one_map(types)
        check_number("number of groups", self.groups, 1, source.shape[0])
        kernel = tuple(self.levels.shape[2:]) if getattr(self.levels, "ndim", 0) == 4 else (1, 1)
        if source.shape[0] % self.groups:
            raise BitLabError(f"its {self.groups} groups do not divide {source.shape[0]} input channels")
        check_levels(self.levels, self.format, (0, source.shape[0] // self.groups, *kernel))
        outputs = len(self.levels)
        if outputs % self.groups:
            raise BitLabError(f"its {self.groups} groups do not divide {outputs} output channels")
        check_bias(self.bias, outputs)
        check_pair("dilation", self.dilation, 1)
        size = slide(source.shape, kernel, self.stride, self.padding, self.dilation)
        padded = IntTensor(source.shape, min(source.low, 0), max(source.high, 0))
        return _accumulator(padded, self.levels, self.bias, (outputs, *size))

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
        return out.size * math.prod(self.levels.shape[1:])


def _accumulator(source: IntTensor, levels: Ints, bias: Ints, shape: tuple[int, ...]) -> IntTensor:
    """Bounds of sums of products. Partial sums count too: in any order they stay within the sum of magnitudes."""
    rows = levels.reshape(len(levels), -1)
    total, magnitude = rows.sum(axis=1), np.abs(rows).sum(axis=1)
    # Where float64 rounds, the sum is far beyond int32 anyway.
    reach = (magnitude.astype(np.float64) * source.largest + np.abs(bias)).max()
    if reach > INT32[1]:
        return IntTensor(shape, -int(reach), int(reach))  # raises
    positive, negative = (magnitude + total) // 2, (total - magnitude) // 2
    low = (positive * source.low + negative * source.high + bias).min()
    high = (positive * source.high + negative * source.low + bias).max()
    return IntTensor(shape, int(low), int(high))
