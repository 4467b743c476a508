"""Thresholds, found by bisection."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitcore.graph.fixed_point import shared
from bitcore.graph.ops import Threshold
from bitcore.graph.values import Value
from bitcore.quantizers import Quantizer


def find_thresholds(x: Value, quantizer: Quantizer, shift: int) -> Threshold:
    """Finds, by bisection over the accumulator in the model's own float arithmetic, where each level begins.

    Args:
        x: The value.
        quantizer: Its quantizer.
        shift: What the quantizer adds to the levels.
    """
    fmt = quantizer.format
    channels = x.type.shape[0] if x.scale.size > 1 or x.offset.size > 1 else 1
    ordered = torch.tensor(sorted(fmt.levels)[1:], dtype=torch.float64)
    falling = np.broadcast_to(x.scale < 0, (channels,))
    sign = torch.from_numpy(np.where(falling, -1, 1))
    ones = [1] * (len(x.type.shape) - 1)

    def levels(accumulator: Tensor) -> Tensor:  # [channels, thresholds] of sign * accumulator -> levels
        signed = (accumulator * sign[:, None]).T.float()
        if channels == 1:  # the function is shared, but the model's modules may want all channels
            signed = signed.expand(-1, x.type.shape[0])
        real = x.real(signed.reshape(*signed.shape, *ones))
        return quantizer.quantize(real).levels.flatten(1)[:, :channels].T.double()

    limit = x.type.largest + 1
    below = torch.full((channels, len(ordered)), -limit, dtype=torch.int64)
    above = torch.full_like(below, limit)
    while int((above - below).max()) > 1:
        middle = (above + below) // 2
        reached = levels(middle) >= ordered
        above, below = torch.where(reached, middle, above), torch.where(reached, below, middle)
    # An answer at a limit means "always" or "never" within the accumulator's range.
    return Threshold(above.numpy(), *shared(sign.numpy()), low=fmt.low + shift, step=fmt.step)
