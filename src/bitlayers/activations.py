"""Activation modules that learn, for networks of sign activations (ReActNet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RSign(nn.Module):
    """ReActNet's learned threshold before a sign (arXiv:2003.03488, eq. 4): ``x − threshold`` of each channel.

    The sign itself is the input quantizer of the layer behind it (activations ``binary``), so that the two together are
    ``sign(x − threshold)``, with sign(0) = +1. Batch norm before it and the threshold fold into integer thresholds.

    Args:
        channels: Channels of the input, its second dimension.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x − threshold``; input and output ``[batch, channels, ...]``."""
        return x - _channels(self.threshold, x)


class RPReLU(nn.Module):
    """ReActNet's shifted PReLU (arXiv:2003.03488, eq. 5), everything learned for each channel.

    ``x − shift_in + shift_out`` where ``x > shift_in``, elsewhere ``slope * (x − shift_in) + shift_out``.

    Args:
        channels: Channels of the input, its second dimension.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activations; input and output ``[batch, channels, ...]``."""
        shifted = x - _channels(self.shift_in, x)
        return nn.functional.prelu(shifted, self.slope) + _channels(self.shift_out, x)


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.ndim - 2))
