"""Differentiable transforms of latent weights, before they are quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
_TINY = 1e-12


def none(weight: Tensor) -> Tensor:
    """The weight itself."""
    return weight


def standardize(weight: Tensor) -> Tensor:
    """Libra parameter binarization (IR-Net, arXiv:1909.10788, eq. 5): ``(w − mean) / std`` of each output channel.

    Balanced weights carry the most information when they become ±1. Autograd takes the gradient through mean and
    standard deviation. A channel of equal weights becomes zeros.
    """
    if weight.numel() == 0:
        return weight
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / centred.std(1, correction=0, keepdim=True).clamp_min(_TINY)).view_as(weight)


def tanh(weight: Tensor) -> Tensor:
    """DoReFa-Net (arXiv:1606.06160, eq. 9): ``tanh(w) / max|tanh(w)|``, which lies in ±1.

    The maximum counts as a constant in the gradient. All zeros stay zeros.
    """
    if weight.numel() == 0:
        return weight
    squashed = torch.tanh(weight)
    return squashed / squashed.detach().abs().amax().clamp_min(_TINY)


TRANSFORMS: dict[str, Transform] = {f.__name__: f for f in (none, standardize, tanh)}
