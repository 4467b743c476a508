"""Where 256 points of a function should lie."""

from __future__ import annotations

import torch

from bitcore.graph.fixed_point import power_of_two_above
from bitcore.graph.values import Function

_SAMPLES = 2**16


def useful_interval(results: Function, bounds: tuple[float, float], pow2: bool) -> tuple[float, float]:
    """Returns begin and step of 256 points, so that beyond them the results no longer change.

    Args:
        results: From real values to integers.
        bounds: What the real values lie between.
        pow2: Whether the step must be a power of two, and the begin a multiple of it.
    """
    x = torch.linspace(*bounds, _SAMPLES, dtype=torch.float64).float()
    changes = torch.nonzero(torch.diff(results(x)))
    if not len(changes):
        return bounds[0], 1.0
    begin, end = float(x[changes[0]]), float(x[changes[-1] + 1])
    step = (end - begin) / 255
    if pow2:
        step = power_of_two_above((end - begin) / 254)
        begin = step * (begin // step)
    return begin, step
