"""Differentiable transforms of latent weights, before they are quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
"""Takes and returns a weight of any floating-point type; 16-bit ones are computed in float32 and rounded once."""


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
