"""Gradient estimators and powers of two, exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bitcore.formats import FORMATS, NumberFormat
from bitcore.quantizers import ESTIMATORS, GradientScale, PowerOfTwo, ede_temperature
from bitcore.quantizers.estimators import (
    Estimator,
    Surrogate,
    approx_sign,
    clipped_ste,
    ede,
    half_open_ste,
    nearest_power_of_two,
    open_ste,
    ste,
)

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
BINARY = FORMATS["binary"]
FLOATS = [torch.float32, torch.float64]


def probe(fmt: NumberFormat) -> Tensor:
    """Values inside, exactly on the borders, one step of float64 beyond them, and far outside."""
    borders = torch.tensor([fmt.low, fmt.high], dtype=torch.float64)
    beyond = torch.nextafter(borders, torch.tensor([-math.inf, math.inf], dtype=torch.float64))
    within = torch.nextafter(borders, torch.zeros(2, dtype=torch.float64))
    inside = torch.linspace(fmt.low, fmt.high, 33, dtype=torch.float64)
    return torch.cat([inside, borders, beyond, within, borders * 3 + 1])


def slope(estimator: Estimator, x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> list[float]:
    """The factors of the gradients, 1 where the estimator gives none."""
    factor = estimator(x, fmt, temperature)
    return [1.0] * len(x) if factor is None else factor.double().tolist()


@every_format
def test_straight_through_estimators(fmt: NumberFormat):
    """ste: everywhere; clipped_ste: on the borders too; half_open_ste: not on the upper one; open_ste: on neither."""
    x = probe(fmt)
    assert slope(ste, x, fmt) == [1.0] * len(x)
    assert slope(clipped_ste, x, fmt) == [float(fmt.low <= v <= fmt.high) for v in x.tolist()]
    assert slope(open_ste, x, fmt) == [float(fmt.low < v < fmt.high) for v in x.tolist()]
    assert slope(half_open_ste, x, fmt) == [float(fmt.low <= v < fmt.high) for v in x.tolist()]


def test_approx_sign_is_the_derivative_of_bi_reals_polynomial():
    """F(x) = −1; 2x + x²; 2x − x²; 1 (arXiv:1808.00278, eq. 6) has no kinks, also at −1, 0 and 1."""

    def polynomial(x: Tensor) -> Tensor:
        inner = torch.where(x < 0, 2 * x + x * x, 2 * x - x * x)
        return torch.where(x < -1, -torch.ones_like(x), torch.where(x < 1, inner, torch.ones_like(x)))

    x = torch.cat([torch.linspace(-2, 2, 41, dtype=torch.float64), torch.tensor([-1.0, 0.0, 1.0, -0.0])])
    h = 1e-6
    numeric = (polynomial(x + h) - polynomial(x - h)) / (2 * h)
    assert slope(approx_sign, x, BINARY) == pytest.approx(numeric.tolist(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0, 10.0])
def test_ede_is_the_derivative_of_k_tanh(temperature: float):
    """g(x) = k tanh(t x), k = max(1/t, 1) (arXiv:1909.10788, eq. 9)."""
    x = torch.cat([torch.linspace(-3, 3, 31, dtype=torch.float64), torch.zeros(1)]).requires_grad_()
    (max(1 / temperature, 1) * torch.tanh(temperature * x)).sum().backward()
    assert x.grad is not None
    assert slope(ede, x.detach(), BINARY, temperature) == pytest.approx(x.grad.tolist(), rel=1e-9, abs=1e-12)


def test_edes_temperature_rises_from_a_tenth_to_ten():
    assert [ede_temperature(p) for p in (0, 0.5, 1)] == pytest.approx([0.1, 1, 10])


@every_format
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_give_one_finite_factor_a_value(name: str, fmt: NumberFormat):
    x = probe(fmt)
    factor = ESTIMATORS[name](x, fmt, 2.0)
    assert factor is None or (factor.shape == x.shape and bool((factor >= 0).all()))
    assert all(map(math.isfinite, slope(ESTIMATORS[name], x, fmt)))


@pytest.mark.parametrize("shape", [(), (3, 1), (1, 5), (3, 5)], ids=str)
@pytest.mark.parametrize("mask", [False, True])
def test_surrogate_multiplies_by_the_derivatives_it_is_given(shape: tuple[int, ...], mask: bool):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    value, dscale, incoming = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    dx = torch.randn(3, 5, dtype=torch.float64)
    y = Surrogate.apply(x, scale, value, dx > 0 if mask else dx, dscale)
    assert isinstance(y, Tensor) and torch.equal(y, value)
    y.backward(incoming)
    assert x.grad is not None and scale.grad is not None
    torch.testing.assert_close(x.grad, incoming * ((dx > 0).double() if mask else dx))
    torch.testing.assert_close(scale.grad, (incoming * dscale).sum_to_size(shape))


def test_gradient_scale_is_the_identity_forwards():
    x = torch.randn(5, requires_grad=True)
    y = GradientScale.apply(x, 0.25)
    assert isinstance(y, Tensor)
    assert torch.equal(y, x)
    y.backward(torch.ones(5))
    assert x.grad is not None
    assert x.grad.tolist() == [0.25] * 5


def nearest_exponent(scale: float) -> int:
    """round(log2 scale) in exact arithmetic: 2^e with 2^(2e-1) <= scale^2 < 2^(2e+1)."""
    square = Fraction(scale) ** 2
    e = math.frexp(scale)[1]
    while square < Fraction(2) ** (2 * e - 1):
        e -= 1
    return e


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_powers_of_two_are_exact_at_every_exponent(dtype: torch.dtype):
    """Every power, the values nearest to the square roots between them, their neighbours, and random mantissas."""
    powers = torch.tensor([2.0**e for e in range(-120, 121)], dtype=dtype)
    roots = torch.tensor([2.0**e * math.sqrt(2) for e in range(-120, 120)], dtype=dtype)
    random = powers * (1 + torch.rand(len(powers), dtype=dtype))
    x = torch.cat([powers, roots, random])
    x = torch.cat([x, *(torch.nextafter(x, torch.tensor(end, dtype=dtype)) for end in (math.inf, 0.0))])
    rounded = nearest_power_of_two(x)
    assert rounded.dtype == dtype
    assert rounded.tolist() == [2.0 ** nearest_exponent(value) for value in x.tolist()]
    assert bool((torch.frexp(rounded).mantissa == 0.5).all())
    assert torch.equal(nearest_power_of_two(powers), powers)
    for one in (x[0], x[-1]):  # a scalar may take another path than a vector
        assert nearest_power_of_two(one).item() == 2.0 ** nearest_exponent(float(one))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ldexp_and_frexp_are_exact_on_this_machine(dtype: torch.dtype):
    exponents = torch.arange(-126, 128)
    exact = torch.tensor([math.ldexp(1.0, e) for e in exponents.tolist()], dtype=dtype)
    assert torch.equal(torch.ldexp(torch.ones(len(exponents), dtype=dtype), exponents.to(torch.int32)), exact)
    mantissa, exponent = torch.frexp(exact)
    assert bool((mantissa == 0.5).all())
    assert torch.equal(exponent.long(), exponents + 1)


def test_the_gradient_passes_power_of_two_unchanged():
    x = torch.tensor([0.3, 1.0, 5.0], requires_grad=True)
    y = PowerOfTwo.apply(x)
    assert isinstance(y, Tensor)
    assert y.tolist() == [0.25, 1.0, 4.0]
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_no_power_of_two_is_near_what_is_no_positive_number():
    assert nearest_power_of_two(torch.tensor([0.0, math.inf, math.nan, -math.inf])).isnan().all()
