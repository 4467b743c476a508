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


def fold(
    weight: Tensor, bias: Tensor | None, norm: _BatchNorm, y: Tensor | None, channel_dim: int
) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the layer that does both, ``W γ/σ`` and ``β + (b − μ) γ/σ``.

    This is how networks are trained whose folded weights are quantized (Jacob et al., arXiv:1712.05877, section 3.2).
    The gradient passes through the batch's statistics as it does in batch norm itself.

    Args:
        weight: Output channels first.
        bias: ``[channels]`` or ``None``.
        norm: The batch norm.
        y: The float layer's outputs, whose statistics count and are added to the running ones; ``None`` for the
            running ones.
        channel_dim: The dimension of the channels in ``y``.
    """
    if y is None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
    else:
        rows = y.movedim(channel_dim, 0).flatten(1)
        var, mean = torch.var_mean(rows, 1, correction=0)
        _update(norm, mean.detach(), var.detach(), rows.shape[1])
    gain, offset = affine_of(norm, mean, var)
    gain, offset = gain.to(weight.dtype), offset.to(weight.dtype)
    folded = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    return folded, offset if bias is None else offset + bias * gain


@torch.no_grad()
def _update(norm: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Updates running statistics as torch does: the unbiased variance, a momentum or the average of all batches."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((var * (count / max(1, count - 1))).to(norm.running_var.dtype), share)
