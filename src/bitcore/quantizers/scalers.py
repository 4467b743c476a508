"""Scalers: from values to the scale of a format, one scale for each group of values.

A scaler takes values ``[groups, n]`` and a format and returns scales ``[groups, 1]``. ``absolute`` below means |x|.
Groups without a finite positive scale (all zeros) get scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bitcore.compiling import constant
from bitcore.errors import BitLabError
from bitcore.formats import NumberFormat, round_half_even

Scaler = Callable[[Tensor, NumberFormat], Tensor]
QUANTSCALE = 0.25
PERCENTILE = 0.999
TWN_THRESHOLD = 0.7
TTQ_THRESHOLD = 0.05
# c1, c2 as the paper's authors publish them in IBM's FMS Model Optimizer (fms_mo/quant_refactor/sawb_utils.py): for 2^b
# levels without zero (2bitsym, 4bitsym, 5bitsym; 3 bits are only known so) and for 2^b − 1 levels with zero (ternary,
# int4, int7, int8).
SAWB_COEFFICIENTS = {
    "ternary": (2.6, 1.71),
    "int2": (2.6, 1.71),
    "2bitsym": (3.12, 2.064),
    "int3": (7.509, 6.892),
    "int4": (12.035, 12.03),
    "4bitsym": (12.68, 12.80),
    "5bitsym": (17.74, 18.64),
    "int7": (28.24, 30.81),
    "int8": (31.76, 35.04),
}
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
    return torch.ldexp(1 + 0 * mantissa, exponent)  # NaN where the largest value is NaN or infinite


def nearest_power_of_two(scale: Tensor) -> Tensor:
    """Returns the power of two nearest to each positive scale in the exponent, ``2**round(log2 s)``.

    Exact: computed from the bits of the number, not by logarithms. Of 0, infinity and NaN it is NaN.
    """
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2**exponent, mantissa in [1/2, 1)
    one = mantissa / mantissa
    return torch.ldexp(one, exponent - (mantissa * mantissa < 0.5).to(exponent.dtype))


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
        outside = beyond.sum(-1, keepdim=True).to(x.dtype)
        inside = x.shape[-1] - outside
        clip = (absolute * beyond).sum(-1, keepdim=True) / (noise * inside + outside).clamp_min(1e-30)
        clip = torch.where(clip > 0, clip, absolute.amax(-1, keepdim=True))
    return clip / fmt.high


def quantscale(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Scale of a clip proportional to the mean: ``mean|x| / 0.25 / high`` (BitNetMCU's ``prop`` with its default)."""
    return x.abs().mean(-1, keepdim=True) / (QUANTSCALE * fmt.high)


def percentile(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Scale ``q / high``, q the smallest value that at least 99.9 % of |x| do not exceed: the outliers are clipped."""
    rank = max(1, math.ceil(PERCENTILE * x.shape[-1]))
    return x.abs().kthvalue(rank, -1, keepdim=True).values / fmt.high


def mse(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The scale of least squared quantization error, among 80 from ``max|x| / high`` down to a 20th of it."""
    largest = absmax(x, fmt)
    best, error = largest, torch.full_like(largest, math.inf)
    shares = torch.linspace(1, 0.05, 80, dtype=x.dtype, device=x.device)[:, None, None]
    for some in shares.split(max(1, 2**20 // max(1, x.numel()))):  # many candidates at once while they fit the cache
        scales = largest * some
        errors, index = (fmt.nearest(x / scales) * scales - x).square_().mean(-1, keepdim=True).min(0)
        better = errors < error
        best, error = torch.where(better, scales.gather(0, index[None])[0], best), torch.where(better, errors, error)
    return best


def mse_pow2(x: Tensor, fmt: NumberFormat) -> Tensor:
    """As `mse`, among the powers of two: the nearest ones to the scale of least squared error."""
    scales = nearest_power_of_two(mse(x, fmt).clamp_min(1e-12)) * x.new_tensor([0.5, 1, 2])
    errors = [(fmt.nearest(x / s) * s - x).square_().mean(-1, keepdim=True) for s in scales.split(1, -1)]
    return scales.gather(-1, torch.cat(errors, -1).argmin(-1, keepdim=True))


def shifted_mse(x: Tensor, fmt: NumberFormat, pow2: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the scale and the integer shift of the levels with the least squared error, by search (both ``[]``).

    The windows of levels that are tried span the values' range down to a 20th of it, and lie evenly spaced in it.

    Args:
        x: Values ``[n]``.
        fmt: The format.
        pow2: Whether scales are powers of two.
    """
    low, high = torch.aminmax(x)
    span = torch.maximum(high - low, x.abs().amax() * 1e-3).clamp_min(1e-6)
    shares = torch.linspace(1, 0.05, 40, dtype=x.dtype, device=x.device)[:, None, None]
    places = torch.linspace(0, 1, 9, dtype=x.dtype, device=x.device)[:, None]
    scales = span * shares / (fmt.high - fmt.low)
    if pow2:
        scales = nearest_power_of_two(scales)
        shares = scales * (fmt.high - fmt.low) / span
    shifts = round_half_even((low + span * (1 - shares) * places) / scales) - fmt.low
    errors = ((fmt.nearest(x / scales, shifts) + shifts) * scales - x).square().mean(-1)
    best = errors.argmin()
    return scales.expand_as(shifts).flatten()[best], shifts.flatten()[best]


def sawb(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Statistics-aware weight binning (arXiv:1807.06964): clip ``c1 * sqrt(E[w²]) − c2 * E|w|``, scale ``clip / high``.

    The coefficients are regressions of the MSE-optimal clip over six distributions (normal, Laplace, uniform, logistic,
    triangle, von Mises), one pair a format (`SAWB_COEFFICIENTS`). They do not know weights of nearly equal magnitude,
    of which the formula may even be negative: the clip is never below mean|w|.

    Raises:
        BitLabError: If the format has no coefficients.
    """
    if fmt.name not in SAWB_COEFFICIENTS:
        raise BitLabError(f"sawb has no coefficients for {fmt.name}; there are: {', '.join(SAWB_COEFFICIENTS)}")
    c1, c2 = SAWB_COEFFICIENTS[fmt.name]
    mean = x.abs().mean(-1, keepdim=True)
    clip = c1 * x.square().mean(-1, keepdim=True).sqrt() - c2 * mean
    return torch.maximum(clip, mean) / fmt.high


def twn(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Ternary weight networks (arXiv:1605.04711, eq. 6): the mean of the |w| beyond ``0.7 * mean|w|``.

    The others become 0 (a weight on the threshold too). The gradient passes to the latent weight unchanged.
    """
    return twn_survivors(x, TWN_THRESHOLD * x.abs().mean(-1, keepdim=True))


def twn_survivors(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns the mean of |x| beyond a threshold; where nothing is beyond it, 0."""
    absolute = x.abs()
    beyond = absolute > threshold
    return (absolute * beyond).sum(-1, keepdim=True) / beyond.sum(-1, keepdim=True).clamp_min(1).to(x.dtype)


def unit(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The constant ``1 / high``: the range is ±1. BNN's sign (arXiv:1602.02830) for binary."""
    return x.new_full((x.shape[0], 1), 1 / fmt.high)


def libra(x: Tensor, fmt: NumberFormat) -> Tensor:
    """IR-Net's binary scale (arXiv:1909.10788, eq. 6 and 7): ``mean|w|``, to be rounded to a power of two.

    The estimator sees the (standardized) weights themselves, not in units of the scale, and the gradient is multiplied
    by the scale: the derivative of ``scale * F(w)``.
    """
    return x.abs().mean(-1, keepdim=True)


SCALERS: dict[str, Scaler] = {
    f.__name__: f
    for f in (absmean, absmedian, absmax, absmax_pow2, octav, quantscale, percentile, mse, sawb, twn, unit, libra)
}


class Step(NamedTuple):
    """How a scaler's method rounds, where values are not divided by the scale.

    Attributes:
        step: What values are divided by instead, as a scaler.
        chained: Whether the gradient to the values is multiplied by the scale.
    """

    step: Scaler
    chained: bool


def _twn_step(x: Tensor, fmt: NumberFormat) -> Tensor:
    return 2 * TWN_THRESHOLD * x.abs().mean(-1, keepdim=True)  # the nearest level changes at half a step


STEPS: dict[Scaler, Step] = {twn: Step(_twn_step, False), libra: Step(unit, True)}

# A normal distribution has mean |x| = sqrt(2/pi) and median |x| = 0.67449 standard deviations.
_MEAN_OVER_MEDIAN = math.sqrt(2 / math.pi) / 0.6744897501960817


@constant
def _per_mean(fmt: NumberFormat) -> float:
    return _gaussian_factor(fmt)


@constant
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
