"""Differentiable transforms of latent weights, before they are quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitcore.formats import NumberFormat

Transform = Callable[[Tensor], Tensor]
"""Takes and returns a weight of any floating-point type; 16-bit ones are computed in float32 and rounded once."""
Inverse = Callable[[Tensor, Tensor, NumberFormat], tuple[Tensor, Tensor | None]]


def none(weight: Tensor) -> Tensor:
    """The weight itself."""
    return weight


def standardize(weight: Tensor) -> Tensor:
    """Libra parameter binarization (IR-Net, arXiv:1909.10788, eq. 5): ``(w − mean) / std`` of each output channel.

    Balanced weights carry the most information when they become ±1. Autograd takes the gradient through mean and
    standard deviation. A channel of equal weights (the deviation is less than the rounding of the mean) is divided by
    1 and so becomes zeros, up to that rounding. Right for magnitudes whose squares float32 holds: up to 1e18.
    """
    if weight.numel() == 0:
        return weight
    rows = _precise(weight).flatten(1)
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    deviation = centred.std(1, correction=0, keepdim=True)
    equal = deviation <= mean.abs() * torch.finfo(rows.dtype).eps
    return (centred / deviation.masked_fill(equal, 1)).view_as(weight).to(weight.dtype)


def tanh(weight: Tensor) -> Tensor:
    """DoReFa-Net (arXiv:1606.06160, eq. 9): ``tanh(w) / max|tanh(w)|``, which lies in ±1.

    The maximum counts as a constant in the gradient. All zeros stay zeros.
    """
    if weight.numel() == 0:
        return weight
    squashed = torch.tanh(_precise(weight))
    largest = squashed.detach().abs().amax()
    return (squashed / largest.masked_fill(largest == 0, 1)).to(weight.dtype)


def _precise(weight: Tensor) -> Tensor:
    """The weight, in float32 where 16 bits could not hold its squares."""
    return weight.float() if weight.dtype.itemsize < 4 else weight


TRANSFORMS: dict[str, Transform] = {f.__name__: f for f in (none, standardize, tanh)}


def _inverse_of_none(levels: Tensor, step: Tensor, fmt: NumberFormat) -> tuple[Tensor, None]:
    return levels * step, None


def _inverse_of_standardize(levels: Tensor, step: Tensor, fmt: NumberFormat) -> tuple[Tensor, Tensor]:
    """Rows of mean 0. Values of the outer levels, which nothing bounds on one side, make up for the others."""
    rows = levels.flatten(1)
    excess = rows.sum(1, keepdim=True)
    outer = torch.where(excess > 0, rows == fmt.low, rows == fmt.high)
    movable = torch.where(outer.any(1, keepdim=True), outer, True)
    balanced = rows - excess / movable.sum(1, keepdim=True) * movable
    deviation = balanced.std(1, correction=0, keepdim=True)
    divisor = 1 / deviation.masked_fill(deviation == 0, 1)
    return balanced.view_as(levels) * step.mean(), divisor.reshape(-1, *[1] * (levels.ndim - 1))


def _inverse_of_tanh(levels: Tensor, step: Tensor, fmt: NumberFormat) -> tuple[Tensor, None]:
    """Values within ±1, of which some are ±1: those of every level that ±1 is rounded to."""
    ends = levels.sign()
    values = torch.where(fmt.nearest(ends / step) == levels, ends, (levels * step).clamp(-1, 1))
    return torch.atanh(0.9 * values), None


INVERSES: dict[Transform, Inverse] = {
    none: _inverse_of_none,
    standardize: _inverse_of_standardize,
    tanh: _inverse_of_tanh,
}
"""Takes levels, their steps (broadcastable) and the format; returns values whose transform is near the levels times the
step, or, of those whose size the transform sets, what it must be divided by to be near the levels: one number a row."""
