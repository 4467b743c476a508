"""From factors to multipliers: the bound that the docs give, and exactness with powers of two."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitcore.graph.fixed_point import MULTIPLIER_BITS, OUTPUT_BITS, power_of_two_above, rescaling, shared


@pytest.mark.parametrize("bits", [MULTIPLIER_BITS, OUTPUT_BITS])
@given(
    st.floats(2.0**-30, 2.0**14),
    st.sampled_from([-1, 1]),
    st.floats(-(2.0**20), 2.0**20),
    st.integers(-(2**14), 2**14),
    st.integers(-(2**24), 2**24),
)
def test_the_result_is_off_by_no_more_than_documented(
    bits: int, size: float, sign: int, offset: float, centre: int, x: int
) -> None:
    """Before rounding: |y − centre| · 2^−bits, and the rounding of the bias, half a unit of the shift."""
    ratio = sign * size
    multiplier, bias, shift = rescaling(np.array([ratio]), np.array([offset]), centre, bits)
    m, b, s = int(multiplier[0]), int(bias[0]), int(shift[0])
    assert abs(m) <= 2**bits
    assert 0 <= s <= 62
    exact = Fraction(ratio) * x + Fraction(offset)
    got = Fraction(m * x + b, 2**s)
    slack = Fraction(1, 2 ** (s + 1)) + abs(exact - centre) * Fraction(1, 2**40) + Fraction(1, 2**20)  # float64
    assert abs(got - exact) <= abs(exact - centre) / 2**bits + slack


@given(st.integers(-40, 14), st.integers(-(2**10), 2**10), st.integers(-(2**20), 2**20))
def test_powers_of_two_are_exact(exponent: int, bias: int, x: int) -> None:
    ratio = 2.0**exponent
    multiplier, offset, shift = rescaling(np.array([ratio]), np.array([bias * min(ratio, 1)]), 3, MULTIPLIER_BITS)
    m, b, s = int(multiplier[0]), int(offset[0]), int(shift[0])
    assert m == max(1, ratio)
    assert Fraction(m * x + b, 2**s) == Fraction(ratio) * x + bias * Fraction(min(ratio, 1))


def test_a_factor_of_zero_leaves_the_offset() -> None:
    multiplier, bias, shift = rescaling(np.array([0.0, 0.3]), np.array([5.0, 1.0]), 0, MULTIPLIER_BITS)
    assert multiplier[0] == 0
    assert bias[0] == 5 * 2.0 ** shift[0]


@given(st.floats(1e-30, 1e30))
def test_the_power_of_two_above(value: float) -> None:
    power = power_of_two_above(value)
    assert math.frexp(power)[0] == 0.5
    assert power / 2 < value <= power
    assert power_of_two_above(0) == 1


def test_arrays_of_one_value_are_shared() -> None:
    same, other = shared(np.array([3, 3, 3]), np.array([1, 2, 1]))
    assert same.tolist() == [3]
    assert other.tolist() == [1, 2, 1]
