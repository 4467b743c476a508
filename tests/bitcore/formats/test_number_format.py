"""Number formats against references in plain Python: levels, rounding, codes, entropy."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcore import BitLabError
from bitcore.formats import FORMATS, NumberFormat, get_format, round_half_even
from bitcore.formats.packing import Packing

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


def table() -> dict[str, tuple[list[int], float]]:
    """The formats as they are specified: name -> (sorted levels, bits)."""
    formats: dict[str, tuple[list[int], float]] = {"binary": ([-1, 1], 1), "ternary": ([-1, 0, 1], 1.6)}
    formats |= {f"{b}bitsym": ([n for n in range(-(2**b), 2**b) if n % 2], b) for b in (2, 4, 5)}
    formats |= {f"int{b}": (list(range(-(2 ** (b - 1)) + 1, 2 ** (b - 1))), b) for b in range(2, 9)}
    formats |= {f"{b}bit": (list(range(-(2 ** (b - 1)), 2 ** (b - 1))), b) for b in (4, 8)}
    formats |= {f"uint{b}": (list(range(2**b)), b) for b in range(1, 9)}
    formats["fp130"] = (sorted([2**e for e in range(8)] + [-(2**e) for e in range(8)]), 4)
    formats["nf4"] = (normal_float_levels(), 4)
    return formats


def normal_float_levels() -> list[int]:
    """NF4 from its definition: quantiles of the normal distribution, 8 above zero, 7 below it, and zero."""
    edge = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))

    def quantiles(count: int) -> torch.Tensor:
        return torch.special.ndtri(torch.linspace(edge, 0.5, count + 1, dtype=torch.float64)[:-1])

    above, below = quantiles(8), -quantiles(7)
    largest = above.max()
    return sorted(round(127 * float(q / largest)) for q in [*above, *below, torch.zeros(())])


def reference(x: float, levels: list[int]) -> int:
    """The nearest of the sorted levels; a tie goes to the even one of consecutive integers, else to the upper one."""
    if math.isinf(x):
        return levels[-1] if x > 0 else levels[0]
    exact = Fraction(x)
    i = bisect_right(levels, exact)
    if i == 0:
        return levels[0]
    if i == len(levels):
        return levels[-1]
    below, above = levels[i - 1], levels[i]
    if exact - below != above - exact:
        return below if exact - below < above - exact else above
    consecutive = levels[-1] - levels[0] == len(levels) - 1
    return below if consecutive and below % 2 == 0 else above


def critical_values(levels: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Every level, every midpoint, their neighbours in this dtype, and values far outside."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    outer = [levels[0] - 0.5, levels[0] - 1, levels[0] - 9000, levels[-1] + 0.5, levels[-1] + 1, levels[-1] + 9000]
    x = torch.tensor([*levels, *middles, *outer, 0.0], dtype=torch.float64).to(dtype)
    limit = torch.tensor(math.inf, dtype=dtype)
    info = torch.finfo(dtype)
    far = torch.tensor([info.max, info.min, info.tiny, -info.tiny, math.inf, -math.inf, -0.0], dtype=dtype)
    return torch.cat([x, torch.nextafter(x, limit), torch.nextafter(x, -limit), far])


def test_the_formats_are_the_specified_ones():
    assert {name: (sorted(fmt.levels), fmt.bits) for name, fmt in FORMATS.items()} == table()


@every_format
def test_codes_number_the_levels_upwards_except_sign_and_exponent(fmt: NumberFormat):
    if fmt.name == "fp130":
        assert all(fmt.levels[code] == (-1 if code & 8 else 1) << (code & 7) for code in range(16))
    else:
        assert list(fmt.levels) == sorted(fmt.levels)


@every_format
def test_properties_follow_from_the_levels(fmt: NumberFormat):
    ordered = sorted(fmt.levels)
    gaps = {b - a for a, b in itertools.pairwise(ordered)}
    assert (fmt.low, fmt.high) == (ordered[0], ordered[-1])
    assert fmt.step == (gaps.pop() if len(gaps) == 1 else 0)
    assert fmt.affine == all(level == fmt.low + fmt.step * code for code, level in enumerate(fmt.levels))
    assert fmt.signed == any(level < 0 for level in fmt.levels)
    assert FORMATS[fmt.name] is get_format(fmt.name) is fmt
    assert len(fmt.levels) <= fmt.packing.radix <= 256
    assert fmt.name in fmt.describe() and str(fmt.high) in fmt.describe()


@every_format
def test_level_dtype_is_the_narrowest_that_holds_all_levels(fmt: NumberFormat):
    fitting = [
        dtype
        for dtype in (torch.int8, torch.uint8, torch.int16)
        if torch.iinfo(dtype).min <= fmt.low and fmt.high <= torch.iinfo(dtype).max
    ]
    assert fmt.level_dtype == fitting[0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@every_format
def test_nearest_at_every_level_tie_and_limit(fmt: NumberFormat, dtype: torch.dtype):
    levels = sorted(fmt.levels)
    x = critical_values(levels, dtype)
    nearest = fmt.nearest(x)
    assert nearest.dtype == dtype
    assert nearest.tolist() == [reference(value, levels) for value in x.tolist()]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@every_format
def test_nearest_of_random_values_keeps_shape(fmt: NumberFormat, dtype: torch.dtype):
    levels = sorted(fmt.levels)
    x = (torch.randn(3, 0 + 5, 20, dtype=torch.float64) * fmt.high).to(dtype)
    nearest = fmt.nearest(x)
    assert nearest.shape == x.shape
    assert nearest.flatten().tolist() == [reference(value, levels) for value in x.flatten().tolist()]
    assert fmt.nearest(x[:, :0]).shape == (3, 0, 20)
    assert fmt.nearest(x[0, 0, 0]).shape == ()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@every_format
def test_nearest_keeps_nan_and_only_nan(fmt: NumberFormat, dtype: torch.dtype):
    x = torch.tensor([math.nan, 1.0, -math.nan], dtype=dtype)
    assert fmt.nearest(x).isnan().tolist() == [True, False, True]


@every_format
def test_zero_rounds_to_plus_one_where_it_is_no_level(fmt: NumberFormat):
    expected = 0 if 0 in fmt.levels else 1
    assert fmt.nearest(torch.tensor([0.0, -0.0])).tolist() == [expected, expected]


def test_round_half_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5])
    assert round_half_even(x).tolist() == [-2, -2, 0, 0, 2, 2, 126, 128]


@every_format
def test_encode_and_decode_all_codes(fmt: NumberFormat):
    codes = torch.arange(len(fmt.levels), dtype=torch.uint8)
    levels = fmt.decode(codes)
    assert levels.dtype == fmt.level_dtype
    assert levels.tolist() == list(fmt.levels)
    for dtype in (fmt.level_dtype, torch.int16, torch.int64, torch.float32, torch.float64):
        encoded = fmt.encode(levels.to(dtype).reshape(1, -1, 1))
        assert encoded.dtype == torch.uint8
        assert torch.equal(encoded, codes.reshape(1, -1, 1))
    assert torch.equal(fmt.decode(codes.to(torch.int64)), levels)
    for empty in (fmt.encode(torch.zeros(0, 4)), fmt.decode(torch.zeros(0, 4, dtype=torch.uint8))):
        assert empty.shape == (0, 4)


@every_format
def test_encode_refuses_foreign_values(fmt: NumberFormat):
    integers = set(range(fmt.low - 3, fmt.high + 4)) | {-(2**31), 2**31, -(2**62), 2**62}
    for foreign in integers - set(fmt.levels):
        with pytest.raises(ValueError, match=fmt.name):
            fmt.encode(torch.tensor([fmt.levels[0], foreign]))
    for foreign in (fmt.low + 0.5, fmt.high - 0.25, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=fmt.name):
            fmt.encode(torch.tensor([fmt.levels[0], foreign]))


@every_format
def test_decode_refuses_codes_without_a_level(fmt: NumberFormat):
    for code in (-1, len(fmt.levels), 255 if len(fmt.levels) < 256 else 256, -(2**40), 2**40):
        with pytest.raises(ValueError, match="corrupted"):
            fmt.decode(torch.tensor([0, code]))


@every_format
def test_entropy_equals_numpys(fmt: NumberFormat):
    codes = torch.randint(len(fmt.levels), (7, 33)).to(torch.uint8)
    shares = np.bincount(codes.numpy().ravel()) / codes.numel()
    shares = shares[shares > 0]
    assert fmt.entropy(codes) == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-12)
    every_code = torch.arange(len(fmt.levels), dtype=torch.uint8)
    assert fmt.entropy(every_code) == pytest.approx(math.log2(len(fmt.levels)), rel=1e-12)
    assert fmt.entropy(every_code[:1].repeat(9)) == 0
    assert fmt.entropy(every_code[:0]) == 0


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(BitLabError, match="did you mean 'ternary'"):
        get_format("ternery")


@pytest.mark.parametrize("levels", [(1,), (0, 0), tuple(range(5))])
def test_a_format_needs_distinct_levels_that_its_packing_holds(levels: tuple[int, ...]):
    with pytest.raises(ValueError, match="broken"):
        NumberFormat("broken", levels, Packing(radix=4, codes=4, word=1))
