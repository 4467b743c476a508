"""Gradient estimators: how the gradient passes the rounding, which has none of its own.

An estimator maps values in units of the scale to levels. Its forward value is always ``format.nearest``; it only
chooses the backward pass. With ``y = estimator(x / s) * s`` autograd adds the gradient of a learned scale:
``dy/ds = level − x/s`` inside the range and ``level`` outside, which is LSQ's (arXiv:1902.08153, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitcore.formats import NumberFormat

Estimator = Callable[[Tensor, NumberFormat], Tensor]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: NumberFormat) -> Tensor:
        return fmt.nearest(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ClippedStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: NumberFormat) -> Tensor:
        ctx.save_for_backward((x >= fmt.low) & (x <= fmt.high))
        return fmt.nearest(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None


def ste(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Straight-through (Bengio et al., arXiv:1308.3432): the gradient passes unchanged."""
    return _StraightThrough.apply(x, fmt)


def clipped_ste(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Clipped straight-through (BNN, arXiv:1602.02830): passes where ``low <= x <= high``, zero beyond."""
    return _ClippedStraightThrough.apply(x, fmt)


ESTIMATORS: dict[str, Estimator] = {f.__name__: f for f in (ste, clipped_ste)}


class GradientScale(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """Returns ``x``."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Multiplies the gradient."""
        return grad * ctx.factor, None


def nearest_power_of_two(scale: Tensor) -> Tensor:
    """Returns the power of two nearest to each positive scale in the exponent, ``2**round(log2 s)``.

    Exact: computed from the bits of the number, not by logarithms.
    """
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2**exponent, mantissa in [1/2, 1)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa * mantissa < 0.5).to(exponent.dtype))


class PowerOfTwo(torch.autograd.Function):
    """`nearest_power_of_two` with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        """Rounds ``scale``."""
        return nearest_power_of_two(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Passes the gradient unchanged."""
        return grad
