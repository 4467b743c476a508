"""The arithmetic of batch norm folded into the layer in front of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def affine_of(norm: _BatchNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Returns batch norm as ``gain * y + offset``: ``gain = γ / sqrt(var + eps)``, ``offset = β − mean * gain``.

    Args:
        norm: Gives γ, β and eps.
        mean: Of each channel; its dtype is the result's.
        var: The same of the (biased) variance.
    """
    gain = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.to(gain.dtype)
    offset = -mean * gain
    return gain, offset if norm.bias is None else offset + norm.bias.to(gain.dtype)


def fold(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the layer that does both, ``W γ/σ`` and ``β + (b − μ) γ/σ``, by the running μ and σ.

    Args:
        weight: Output channels first.
        bias: ``[channels]`` or ``None``.
        norm: The batch norm.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain, offset = affine_of(norm, norm.running_mean, norm.running_var)
    gain, offset = gain.to(weight.dtype), offset.to(weight.dtype)
    folded = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    return folded, offset if bias is None else offset + bias * gain
