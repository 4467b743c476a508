"""Scalers: from values to the scale of a format, one scale for each group of values.

A scaler takes values ``[groups, n]`` and a format and returns scales ``[groups, 1]``. ``absolute`` below means |x|.
Groups without a finite positive scale (all zeros) get scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from bitcore.formats import NumberFormat

Scaler = Callable[[Tensor, NumberFormat], Tensor]
QUANTSCALE = 0.25
_OCTAV_ITERATIONS = 12


def absmax(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Scale ``max|x| / high``: the largest value takes the largest level, nothing is clipped."""
    return x.abs().amax(-1, keepdim=True) / fmt.high


def absmax_pow2(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The smallest power of two ``s`` with ``max|x| <= high * s``, exactly (compared by bits, without a division).

    This is what an integer network finds by shifting its accumulators (`bitcore.graph.ops.NormShift`).
    """
    mantissa, exponent = torch.frexp(x.abs().amax(-1, keepdim=True))
    high_mantissa, high_exponent = math.frexp(fmt.high)
    exponent = exponent - high_exponent + (mantissa > high_mantissa).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(mantissa), exponent)


def absmean(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Scale ``mean|x|`` for binary (XNOR-Net, arXiv:1603.05279) and ternary (BitNet b1.58, arXiv:2402.17764).

    Formats of more levels take the scale that is MSE-optimal for a normal distribution of that mean |x|.
    """
    return x.abs().mean(-1, keepdim=True) * _per_mean(fmt)


def absmedian(x: Tensor, fmt: NumberFormat) -> Tensor:
    """As `absmean`, from the median of |x| (BitNetCNN); the median is far less moved by outliers."""
    median = x.abs().median(-1, keepdim=True).values
    ratio = 1.0 if len(fmt.levels) <= 3 else _MEAN_OVER_MEDIAN
    return median * (ratio * _per_mean(fmt))


def octav(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Scale of the MSE-optimal clip c, by OCTAV's Newton iteration (Sakr et al. 2022, arXiv:2206.06501, eq. 7).

    ``c <- sum(|x| where |x| > c) / (noise * count(|x| <= c) + count(|x| > c))``, scale ``c / high``, where ``noise`` is
    the format's mean squared rounding error for uniform values in ±1 (4^−B / 3 for B-bit integers, as in the paper).
    """
    absolute = x.abs()
    noise = _uniform_noise(fmt)
    clip = absolute.mean(-1, keepdim=True) * 3
    for _ in range(_OCTAV_ITERATIONS):
        beyond = absolute > clip
        outside = beyond.sum(-1, keepdim=True)
        inside = x.shape[-1] - outside
        clip = (absolute * beyond).sum(-1, keepdim=True) / (noise * inside + outside).clamp_min(1e-30)
        clip = torch.where(clip > 0, clip, absolute.amax(-1, keepdim=True))
    return clip / fmt.high


def quantscale(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Scale of a clip proportional to the mean: ``mean|x| / 0.25 / high`` (BitNetMCU's ``prop`` with its default)."""
    return x.abs().mean(-1, keepdim=True) / (QUANTSCALE * fmt.high)


SCALERS: dict[str, Scaler] = {f.__name__: f for f in (absmean, absmedian, absmax, absmax_pow2, octav, quantscale)}

# A normal distribution has mean |x| = sqrt(2/pi) and median |x| = 0.67449 standard deviations.
_MEAN_OVER_MEDIAN = math.sqrt(2 / math.pi) / 0.6744897501960817


@torch.compiler.assume_constant_result
def _per_mean(fmt: NumberFormat) -> float:
    return _gaussian_factor(fmt)


@torch.compiler.assume_constant_result
def _uniform_noise(fmt: NumberFormat) -> float:
    return _rounding_noise(fmt)


@lru_cache
def _gaussian_factor(fmt: NumberFormat) -> float:
    """The factor from mean |x| to the scale of ``fmt``: 1 by definition up to three levels, else Gaussian-optimal."""
    if len(fmt.levels) <= 3:
        return 1.0
    # Quantiles of the standard normal distribution stand for its samples; the half range spans 1 to 6 deviations.
    probabilities = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    x = torch.special.ndtri(probabilities)
    candidates = torch.linspace(1, 6, 501, dtype=torch.float64) / fmt.high
    errors = [float(((fmt.nearest(x / s) * s - x) ** 2).mean()) for s in candidates]
    return float(candidates[errors.index(min(errors))]) / math.sqrt(2 / math.pi)


@lru_cache
def _rounding_noise(fmt: NumberFormat) -> float:
    """Mean squared rounding error of uniform values between the outer levels, in units of ``high**2``."""
    levels = sorted(fmt.levels)
    gaps = [b - a for a, b in pairwise(levels)]
    return sum(gap**3 for gap in gaps) / 12 / sum(gaps) / fmt.high**2
