"""Scalers against their formulas in numpy, in float64."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from bitcore import BitLabError
from bitcore.config import suits
from bitcore.formats import FORMATS, NumberFormat
from bitcore.quantizers import SAWB_COEFFICIENTS, SCALERS
from bitcore.quantizers.scalers import (
    absmax,
    absmax_pow2,
    absmean,
    absmedian,
    libra,
    mse,
    octav,
    percentile,
    quantscale,
    sawb,
    twn,
    unit,
)

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
ROOT = math.sqrt(2 / math.pi)  # mean |x| of a normal distribution
MEDIAN = 0.6744897501960817  # its median |x|
EVEN_TOLERANCE, UNEVEN_TOLERANCE = 1.06, 1.65  # observed at most: binary 1.055, fp130 1.62 (on Laplace values)


def normal_values(n: int = 4096) -> Tensor:
    """Quantiles of the normal distribution stand for its samples."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def laplace_values(n: int = 4096) -> Tensor:
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs())


def squared_error(x: Tensor, scale: Tensor | float, fmt: NumberFormat) -> float:
    return float(((fmt.nearest(x / scale) * scale - x) ** 2).mean())


def best_error(x: Tensor, fmt: NumberFormat) -> float:
    """The smallest squared error of any scale, by search."""
    largest = float(x.abs().max()) / fmt.high
    return min(squared_error(x, s, fmt) for s in np.linspace(0.02, 1.2, 300) * largest)


@lru_cache
def per_mean(fmt: NumberFormat) -> float:
    """Scale over mean |x|: 1 up to three levels, else what is best for a normal distribution, by search."""
    if len(fmt.levels) <= 3:
        return 1.0
    x = normal_values()
    scales = [k / 100 / fmt.high for k in range(100, 601)]
    return min(scales, key=lambda s: squared_error(x, s, fmt)) / ROOT


@pytest.mark.parametrize("n", [1, 7, 8, 33])
@every_format
def test_formulas(fmt: NumberFormat, n: int):
    x = torch.randn(3, n, dtype=torch.float64)
    a = np.sort(np.abs(x.numpy()), axis=1)
    mean, median, largest = a.mean(1), a[:, (n - 1) // 2], a[:, -1]  # of an even number: the lower median
    factor = per_mean(fmt)
    median_factor = 1 if len(fmt.levels) <= 3 else ROOT / MEDIAN * factor
    survives = a > 0.7 * mean[:, None]
    expected = {
        absmax: largest / fmt.high,
        absmax_pow2: 2.0 ** np.ceil(np.log2(largest / fmt.high)),
        absmean: mean * factor,
        absmedian: median * median_factor,
        quantscale: mean / 0.25 / fmt.high,
        percentile: a[:, math.ceil(0.999 * n) - 1] / fmt.high,
        twn: (a * survives).sum(1) / np.maximum(1, survives.sum(1)),
        unit: np.full(3, 1 / fmt.high),
        libra: mean,
    }
    assert set(expected) == set(SCALERS.values()) - {octav, mse, sawb}  # which have tests of their own
    for scaler, scale in expected.items():
        result = scaler(x, fmt)
        assert result.shape == (3, 1)
        np.testing.assert_allclose(result[:, 0].numpy(), scale, rtol=1e-12, err_msg=scaler.__name__)
        np.testing.assert_allclose(scaler(x.float(), fmt)[:, 0].numpy(), scale, rtol=1e-5)


@pytest.mark.parametrize("scaler", SCALERS.values(), ids=SCALERS)
@every_format
def test_groups_are_independent_and_order_does_not_matter(fmt: NumberFormat, scaler):
    if not suits(scaler.__name__, fmt.name):
        return
    x = torch.randn(4, 33, dtype=torch.float64)
    scales = scaler(x, fmt)
    for i in range(4):
        torch.testing.assert_close(scaler(x[i : i + 1].flip(1), fmt), scales[i : i + 1], rtol=1e-12, atol=0)


@every_format
def test_absmax_clips_nothing(fmt: NumberFormat):
    x = torch.randn(8, 33)
    scale = absmax(x, fmt)
    assert (x.abs().amax(1, keepdim=True) / scale).sub(fmt.high).abs().max() <= fmt.high * 2**-22


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_format
def test_absmax_pow2_is_the_smallest_power_of_two_that_clips_nothing(fmt: NumberFormat, dtype: torch.dtype):
    exponents = torch.arange(-110, 111)
    exact = torch.tensor([fmt.high * 2.0**k for k in exponents.tolist()], dtype=dtype)
    up, down = (torch.nextafter(exact, torch.tensor(end, dtype=dtype)) for end in (math.inf, 0.0))
    for values, more in ((exact, 0), (up, 1), (down, 0)):
        expected = torch.tensor([2.0 ** (k + more) for k in exponents.tolist()], dtype=dtype)
        assert torch.equal(absmax_pow2(-values[:, None], fmt)[:, 0], expected)
    random = torch.rand(500, 1, dtype=dtype) * 300
    scale = absmax_pow2(random, fmt)
    assert bool((random <= fmt.high * scale).all()) and bool((random > fmt.high * scale / 2).all())


@pytest.mark.parametrize("values", [normal_values, laplace_values])
@every_format
def test_octav_is_near_the_least_squared_error(fmt: NumberFormat, values):
    """OCTAV models rounding as uniform noise, which is close on even levels and rough on fp130 and nf4."""
    x = values() if fmt.signed else values().abs()
    error = squared_error(x, octav(x[None], fmt)[0], fmt)
    assert error <= best_error(x, fmt) * (EVEN_TOLERANCE if fmt.step else UNEVEN_TOLERANCE)


@pytest.mark.parametrize("values", [normal_values, laplace_values])
@every_format
def test_octav_satisfies_its_fixed_point_equation(fmt: NumberFormat, values):
    x = values()
    a, clip = x.abs().numpy(), float(octav(x[None], fmt)) * fmt.high
    gaps = np.diff(sorted(fmt.levels)) / fmt.high
    noise = (gaps**3).sum() / 12 / gaps.sum()
    beyond = a > clip
    assert clip == pytest.approx(a[beyond].sum() / (noise * (~beyond).sum() + beyond.sum()), rel=1e-9)


@pytest.mark.parametrize("bits", range(2, 9))
def test_octavs_noise_is_the_papers_for_integers(bits: int):
    """4^-B / 3 for 2^B evenly spaced steps over the range; symmetric integers have 2^B - 2 steps."""
    x = normal_values()
    steps = 2**bits - 2
    a, clip = x.abs(), octav(x[None], FORMATS[f"int{bits}"])[0] * FORMATS[f"int{bits}"].high
    beyond = a > clip
    expected = a[beyond].sum() / (beyond.sum().double() + (~beyond).sum().double() / (3 * steps**2))
    torch.testing.assert_close(clip[0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 5000])
def test_percentile_clips_a_thousandth(n: int):
    x = torch.randn(2, n, dtype=torch.float64)
    beyond = (x.abs() > percentile(x, FORMATS["int8"]) * 127 * (1 + 1e-12)).sum(1)
    assert beyond.tolist() == [n // 1000] * 2


@pytest.mark.parametrize("values", [normal_values, laplace_values])
@every_format
def test_mse_is_the_least_squared_error(fmt: NumberFormat, values):
    x = values()[::8] if fmt.signed else values()[::8].abs()
    assert squared_error(x, mse(x[None], fmt)[0], fmt) <= best_error(x, fmt) * 1.15


@pytest.mark.parametrize("name", SAWB_COEFFICIENTS)
def test_sawb_is_the_papers_formula(name: str):
    c1, c2 = SAWB_COEFFICIENTS[name]
    w = torch.randn(3, 50, dtype=torch.float64)
    mean = np.abs(w.numpy()).mean(1)
    clip = np.maximum(c1 * np.sqrt((w.numpy() ** 2).mean(1)) - c2 * mean, mean)
    fmt = FORMATS[name]
    np.testing.assert_allclose(sawb(w, fmt)[:, 0].numpy(), clip / fmt.high, rtol=1e-12)


@pytest.mark.parametrize("values", [normal_values, laplace_values])
@pytest.mark.parametrize("name", SAWB_COEFFICIENTS)
def test_sawbs_coefficients_are_near_the_least_squared_error(name: str, values):
    """A wrong digit in a coefficient, or one of another format, is seen here."""
    x = values()
    tolerance = 1.12 if values is normal_values else 1.5  # observed: at most 1.41, int8 of Laplace values
    assert squared_error(x, sawb(x[None], FORMATS[name])[0], FORMATS[name]) <= best_error(x, FORMATS[name]) * tolerance


def sawb_distributions(n: int = 2048) -> list[Tensor]:
    """Quantiles of the six distributions that the paper fits its coefficients on."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    v = 2 * u - 1
    angles = torch.linspace(-math.pi, math.pi, 8001, dtype=torch.float64)
    density = torch.exp(2 * torch.cos(angles)).cumsum(0)
    von_mises = torch.from_numpy(np.interp(u, density / density[-1], angles))
    triangle = v.sign() * (1 - torch.sqrt(1 - v.abs()))
    return [normal_values(n), laplace_values(n), v, torch.log(u / (1 - u)), triangle, von_mises]


@pytest.mark.parametrize("name", SAWB_COEFFICIENTS)
def test_sawbs_coefficients_are_the_regression_of_the_best_clip(name: str):
    """Regressed anew: clip / E|w| of least squared error over sqrt(E[w²]) / E|w|. From 7 bits on the tails decide."""
    fmt, (c1, c2) = FORMATS[name], SAWB_COEFFICIENTS[name]
    ratios, clips = [], []
    for x in sawb_distributions():
        mean = x.abs().mean()
        scales = torch.linspace(0.05, 1.3, 200, dtype=torch.float64) * x.abs().max() / fmt.high
        errors = (fmt.nearest(x / scales[:, None]) * scales[:, None] - x).square().mean(1)
        ratios.append(float(x.square().mean().sqrt() / mean))
        clips.append(float(scales[errors.argmin()] * fmt.high / mean))
    fit = np.polyval(np.polyfit(ratios, clips, 1), ratios)
    published = c1 * np.array(ratios) - c2
    np.testing.assert_allclose(published, fit, rtol=0.06 if fmt.bits <= 5 else 0.35)
    if fmt.bits <= 5:
        np.testing.assert_allclose(published, clips, rtol=0.15)


@pytest.mark.parametrize("name", SAWB_COEFFICIENTS)
def test_sawb_of_equal_weights_covers_them(name: str):
    scale = float(sawb(torch.full((1, 9), -0.3, dtype=torch.float64), FORMATS[name]))
    assert 0.29 < scale * FORMATS[name].high < 0.35


def test_sawb_refuses_formats_without_coefficients():
    with pytest.raises(BitLabError, match="sawb has no coefficients for int5; there are: ternary, int2, 2bitsym"):
        sawb(torch.randn(1, 9), FORMATS["int5"])
