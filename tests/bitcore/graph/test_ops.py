"""Every operation against plain Python integers and fractions, and its inferred bounds."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as npst

from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph import (
    OPS,
    Add,
    Concat,
    Conv2d,
    Flatten,
    IntTensor,
    Linear,
    Lookup,
    MaxPool2d,
    NormShift,
    Op,
    Requantize,
    SumPool2d,
    Threshold,
)
from bitcore.graph.ops import shift_half_even
from bitcore.graph.types import INT32, narrow

Draw = Callable[[st.SearchStrategy], Any]
INT8 = (-128, 127)


def ints(shape: tuple[int, ...], low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """int64 arrays, their extremes likely."""
    elements = st.one_of(st.integers(low, high), st.sampled_from(sorted({low, high, min(max(0, low), high)})))
    return npst.arrays(np.int64, shape, elements=elements)


def bounds(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: (min(pair), max(pair)))


def small(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


# ---- the cases: how to draw an operation with its input's type, and what it means in plain Python -----------------


def draw_linear(draw: Draw) -> tuple[Op, IntTensor]:
    fmt = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    n, k = draw(small(4)), draw(small(9))
    levels = np.array(draw(st.lists(st.sampled_from(fmt.levels), min_size=n * k, max_size=n * k))).reshape(n, k)
    bias = draw(ints((n,), -(2**20), 2**20)) if draw(st.booleans()) else np.zeros(1, dtype=np.int64)
    return Linear(levels, fmt.name, bias), narrow((k,), *draw(bounds(-128, 255)))


def plain_linear(op: Linear, x: np.ndarray) -> np.ndarray:
    n, k = op.levels.shape
    rows = [sum(int(op.levels[i, j]) * int(x[j]) for j in range(k)) for i in range(n)]
    return np.array([row + int(op.bias[i if len(op.bias) > 1 else 0]) for i, row in enumerate(rows)])


def draw_conv2d(draw: Draw) -> tuple[Op, IntTensor]:
    pair = st.tuples(small(3), small(3))
    groups, each, kernel, stride, dilation = draw(small(3)), draw(small(2)), draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [draw(st.integers(max(1, r - 2 * p), r + 4)) for r, p in zip(reach, padding, strict=True)]
    n = groups * draw(small(2))
    levels = draw(ints((n, each, *kernel), -127, 127))
    bias = draw(ints((n,), -1000, 1000))
    op = Conv2d(levels, "int8", bias, stride, padding, dilation, groups)
    return op, narrow((groups * each, *size), *draw(bounds(-128, 255)))


def plain_conv2d(op: Conv2d, x: np.ndarray) -> np.ndarray:
    n, each, kh, kw = op.levels.shape
    (sh, sw), (ph, pw), (dh, dw) = op.stride, op.padding, op.dilation
    height = (x.shape[1] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[2] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, height, width), dtype=object)
    for o, i, j in product(range(n), range(height), range(width)):
        total = int(op.bias[o])
        for c, a, b in product(range(each), range(kh), range(kw)):
            row, column = i * sh - ph + a * dh, j * sw - pw + b * dw
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                channel = o // (n // op.groups) * each + c
                total += int(op.levels[o, c, a, b]) * int(x[channel, row, column])
        y[o, i, j] = total
    return y


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(small(4), min_size=1, max_size=3).map(tuple)


def draw_requantize(draw: Draw) -> tuple[Op, IntTensor]:
    shape = draw(shapes())
    shared = st.sampled_from([1, shape[0]])
    multipliers = st.sampled_from([(1, 1), (-(2**30), 2**30), (-3, 3)])
    multiplier = draw(ints((draw(shared),), *draw(multipliers)))
    bias = draw(ints((draw(shared),), *draw(st.sampled_from([(0, 0), (-100, 100), (-(2**61), 2**61)]))))
    shift = draw(ints((draw(shared),), 0, draw(st.sampled_from([3, 31, 62]))))
    low, high = draw(st.one_of(bounds(-128, 127), bounds(0, 255), st.just(INT32), bounds(*INT32)))
    return Requantize(multiplier, bias, shift, low, high), IntTensor(shape, *draw(value_bounds()))


def value_bounds() -> st.SearchStrategy[tuple[int, int]]:
    """Few bits (so that ties are frequent) up to all of int32."""
    return st.sampled_from([3, 8, 16, 31]).flatmap(lambda bits: bounds(-(2**bits), 2**bits - 1))


def per_channel(values: np.ndarray, channel: int) -> int:
    return int(values[channel if len(values) > 1 else 0])


def elementwise(function: Callable[[int, int], int], x: np.ndarray) -> np.ndarray:
    """Applies a function of channel and value."""
    y = np.empty(x.shape, dtype=object)
    for index in np.ndindex(*x.shape):
        y[index] = function(index[0], int(x[index]))
    return y


def half_even(numerator: int, shift: int) -> int:
    return round(Fraction(numerator, 2**shift))  # Python rounds fractions to the nearest, ties to even


def plain_requantize(op: Requantize, x: np.ndarray) -> np.ndarray:
    def value(c: int, v: int) -> int:
        exact = v * per_channel(op.multiplier, c) + per_channel(op.bias, c)
        return max(op.low, min(op.high, half_even(exact, per_channel(op.shift, c))))

    return elementwise(value, x)


def draw_threshold(draw: Draw) -> tuple[Op, IntTensor]:
    shape = draw(shapes())
    channels = draw(st.sampled_from([1, shape[0]]))
    low, high = draw(value_bounds())
    thresholds = np.sort(draw(ints((channels, draw(small(15))), max(low, -(2**31) + 1), high)), axis=1)
    sign = draw(ints((draw(st.sampled_from([1, channels])),), 0, 1)) * 2 - 1
    op = Threshold(thresholds, sign, draw(st.sampled_from([-15, -1, 0])), draw(st.sampled_from([1, 2])))
    return op, IntTensor(shape, max(low, -(2**31) + 1), high)


def plain_threshold(op: Threshold, x: np.ndarray) -> np.ndarray:
    def value(c: int, v: int) -> int:
        row = op.thresholds[c if len(op.thresholds) > 1 else 0].tolist()
        return op.low + op.step * len([t for t in row if v * per_channel(op.sign, c) >= t])

    return elementwise(value, x)


def draw_normshift(draw: Draw) -> tuple[Op, IntTensor]:
    op = NormShift(draw(st.one_of(st.sampled_from([1, 7, 127, 255]), st.integers(1, 255))), draw(st.booleans()))
    return op, IntTensor(draw(shapes()), *draw(value_bounds()))


def plain_normshift(op: NormShift, x: np.ndarray) -> np.ndarray:
    values = [max(int(v), 0) if op.relu else int(v) for v in x.flat]
    largest = max((abs(v) for v in values), default=0)
    scale = Fraction(2) ** 40
    while largest and largest <= op.high * (scale / 2):
        scale /= 2
    return np.array([round(v / scale) if largest else 0 for v in values], dtype=object).reshape(x.shape)


def draw_maxpool2d(draw: Draw) -> tuple[Op, IntTensor]:
    kernel = draw(st.tuples(small(4), small(4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    op = MaxPool2d(kernel, draw(st.tuples(small(3), small(3))), (padding[0], padding[1]))
    size = [draw(st.integers(max(1, k - 2 * p), k + 4)) for k, p in zip(kernel, padding, strict=True)]
    low, high = draw(value_bounds())
    return op, draw(st.sampled_from([narrow, IntTensor]))((draw(small(3)), *size), low, high)


def plain_maxpool2d(op: MaxPool2d, x: np.ndarray) -> np.ndarray:
    (kh, kw), (sh, sw), (ph, pw) = op.kernel, op.stride, op.padding
    height, width = (x.shape[1] + 2 * ph - kh) // sh + 1, (x.shape[2] + 2 * pw - kw) // sw + 1
    y = np.empty((x.shape[0], height, width), dtype=object)
    for c, i, j in np.ndindex(*y.shape):
        top, left = i * sh - ph, j * sw - pw
        window = x[c, max(top, 0) : top + kh, max(left, 0) : left + kw]
        y[c, i, j] = max(window.flatten().tolist())
    return y


def draw_sumpool2d(draw: Draw) -> tuple[Op, IntTensor]:
    pool, source = draw_maxpool2d(draw)
    assert isinstance(pool, MaxPool2d)
    low, high = draw(st.sampled_from([INT8, (0, 255), (-(2**15), 2**15 - 1), (-(2**26), 2**26)]))
    return SumPool2d(pool.kernel, pool.stride, pool.padding), narrow(source.shape, low, high)


def plain_sumpool2d(op: SumPool2d, x: np.ndarray) -> np.ndarray:
    (kh, kw), (sh, sw), (ph, pw) = op.kernel, op.stride, op.padding
    padded = np.pad(x.astype(object), ((0, 0), (ph, ph), (pw, pw)))
    height, width = (padded.shape[1] - kh) // sh + 1, (padded.shape[2] - kw) // sw + 1
    y = np.empty((x.shape[0], height, width), dtype=object)
    for c, i, j in np.ndindex(*y.shape):
        y[c, i, j] = sum(padded[c, i * sh : i * sh + kh, j * sw : j * sw + kw].flatten().tolist())
    return y


def draw_add(draw: Draw) -> tuple[Op, *tuple[IntTensor, ...]]:
    shape, operands = draw(shapes()), draw(st.integers(2, 4))
    return Add(), *(narrow(shape, *draw(bounds(-(2**15), 2**15 - 1))) for _ in range(operands))


def plain_add(op: Add, *x: np.ndarray) -> np.ndarray:
    y = np.empty(x[0].shape, dtype=object)
    for index in np.ndindex(*y.shape):
        y[index] = sum(int(operand[index]) for operand in x)
    return y


def draw_concat(draw: Draw) -> tuple[Op, *tuple[IntTensor, ...]]:
    shape, operands = draw(shapes()), draw(st.integers(1, 4))
    return Concat(), *(
        narrow((draw(small(4)), *shape[1:]), *draw(bounds(-(2**15), 2**15 - 1))) for _ in range(operands)
    )


def plain_concat(op: Concat, *x: np.ndarray) -> np.ndarray:
    return np.array([channel for operand in x for channel in operand.tolist()])


def draw_lookup(draw: Draw) -> tuple[Op, IntTensor]:
    table = draw(ints((256,), *draw(st.sampled_from([INT8, (0, 255), (-(2**15), 2**15 - 1)]))))
    low, high = draw(st.one_of(bounds(*INT8), bounds(0, 255)))
    return Lookup(table), narrow(draw(shapes()), low, high)


def plain_lookup(op: Lookup, x: np.ndarray) -> np.ndarray:
    return elementwise(lambda _, v: int(op.table[v if v >= 0 else v + 256]), x)


def draw_flatten(draw: Draw) -> tuple[Op, IntTensor]:
    return Flatten(), IntTensor(draw(shapes()), *draw(value_bounds()))


def plain_flatten(op: Flatten, x: np.ndarray) -> np.ndarray:
    def walk(part: list | int) -> Iterator[int]:
        if isinstance(part, int):
            yield part
        else:
            for inner in part:
                yield from walk(inner)

    return np.array(list(walk(x.tolist())))


CASES: dict[str, tuple[Callable[[Draw], tuple[Any, ...]], Callable[..., np.ndarray]]] = {
    "linear": (draw_linear, plain_linear),
    "conv2d": (draw_conv2d, plain_conv2d),
    "requantize": (draw_requantize, plain_requantize),
    "threshold": (draw_threshold, plain_threshold),
    "normshift": (draw_normshift, plain_normshift),
    "lookup": (draw_lookup, plain_lookup),
    "add": (draw_add, plain_add),
    "concat": (draw_concat, plain_concat),
    "maxpool2d": (draw_maxpool2d, plain_maxpool2d),
    "sumpool2d": (draw_sumpool2d, plain_sumpool2d),
    "flatten": (draw_flatten, plain_flatten),
}


def test_every_operation_has_a_case() -> None:
    assert set(CASES) == set(OPS)
    assert all(kind == op.kind for kind, op in OPS.items())


@pytest.mark.parametrize("kind", OPS)
def test_reference_is_the_plain_meaning(kind: str) -> None:
    drawn, plain = CASES[kind]

    @given(st.data())
    def check(data: st.DataObject) -> None:
        op, *sources = drawn(data.draw)
        assert op.kind == kind
        x = [data.draw(ints((2, *source.shape), source.low, source.high)) for source in sources]
        out = op.infer(*sources)
        got = op.reference(*x)
        assert got.dtype == np.int64
        assert got.shape == (2, *out.shape)
        assert got.tolist() == [plain(op, *samples).tolist() for samples in zip(*x, strict=True)]

    check()


@pytest.mark.parametrize("kind", OPS)
def test_inferred_bounds_hold(kind: str) -> None:
    drawn, _ = CASES[kind]

    @given(st.data())
    def check(data: st.DataObject) -> None:
        op, *sources = drawn(data.draw)
        out = op.infer(*sources)
        x = []
        for source in sources:
            low, high = np.full(source.shape, source.low), np.full(source.shape, source.high)
            checker = np.where(np.indices(source.shape).sum(0) % 2, low, high)
            random = data.draw(ints((3, *source.shape), source.low, source.high))
            x.append(np.concatenate([np.stack([low, high, checker, low + high - checker]), random]))
        got = op.reference(*x)
        assert out.low <= got.min()
        assert got.max() <= out.high
        assert out.storage == storage(kind, out, sources[0])

    check()


def storage(kind: str, out: IntTensor, source: IntTensor) -> str:
    """What stores a result: accumulators int32, activations the first of int8, uint8 and int16 that holds them."""
    if kind in ("maxpool2d", "flatten"):
        return source.storage
    if kind in ("linear", "conv2d", "sumpool2d"):
        return "int32"
    return narrow(out.shape, out.low, out.high).storage


@pytest.mark.parametrize(
    ("low", "high", "name", "size"),
    [
        (-128, 127, "int8", 1),
        (0, 128, "uint8", 1),
        (-1, 128, "int16", 2),
        (-129, 0, "int16", 2),
        (0, 256, "int16", 2),
        (-(2**15), 2**15 - 1, "int16", 2),
        (0, 2**15, "int32", 4),
        (-(2**15) - 1, 0, "int32", 4),
    ],
)
def test_activations_take_as_little_room_as_they_can(low: int, high: int, name: str, size: int) -> None:
    kind = narrow((3, 5), low, high)
    assert (kind.storage, kind.item_bytes, kind.bytes) == (name, size, 15 * size)


def test_operands_that_do_not_match_are_refused() -> None:
    a, b, c = narrow((2, 3), 0, 1), narrow((3, 2), 0, 1), narrow((4, 3), 0, 1)
    with pytest.raises(BitLabError, match=r"of one shape, not \(2, 3\), \(3, 2\)"):
        Add().infer(a, b)
    with pytest.raises(BitLabError, match="two or more"):
        Add().infer(a)
    with pytest.raises(BitLabError, match="differ in their channels only"):
        Concat().infer(a, b)
    assert Concat().infer(a, c).shape == (6, 3)
    table = np.zeros(256, dtype=np.int64)
    with pytest.raises(BitLabError, match="256 entries"):
        Lookup(table).infer(narrow((2,), 0, 256))
    with pytest.raises(BitLabError, match=r"has shape \[8\]; it must have \[256\]"):
        Lookup(table[:8]).infer(a)


def test_multiplications() -> None:
    out = narrow((3, 5, 7), 0, 255)
    none, shift = np.zeros(1, dtype=np.int64), np.array([9])
    for multiplier, count in (([1], 0), ([-64], 0), ([3], 105), ([1, 2, -4], 0), ([1, 5, 7], 70)):
        assert Requantize(np.array(multiplier), none, shift, 0, 255).multiplications(out) == count
    assert Threshold(np.array([[1, 2]]), np.ones(1, dtype=np.int64), 0, 1).multiplications(out) == 0


def test_accumulator_bounds_are_reached() -> None:
    @given(st.data())
    def check(data: st.DataObject) -> None:
        op, source = draw_linear(data.draw)
        assert isinstance(op, Linear)
        out = op.infer(source)
        lowest = op.reference(np.where(op.levels > 0, source.low, source.high))
        highest = op.reference(np.where(op.levels > 0, source.high, source.low))
        assert (lowest.diagonal().min(), highest.diagonal().max()) == (out.low, out.high)

    check()


def test_requantize_bounds_are_reached() -> None:
    @given(st.data())
    def check(data: st.DataObject) -> None:
        op, source = draw_requantize(data.draw)
        out = op.infer(source)
        ends = op.reference(np.stack([np.full(source.shape, source.low), np.full(source.shape, source.high)]))
        assert (ends.min(), ends.max()) == (out.low, out.high)

    check()


# ---- rounding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1, 2, 30, 31, 32, 61, 62])
def test_shift_rounds_to_nearest_ties_to_even(shift: int) -> None:
    near = [k * 2**shift // 2 + d for k in range(-9, 10) for d in (-1, 0, 1)]
    values = np.array([v for v in near if -(2**62) <= v <= 2**62], dtype=np.int64)
    assert shift_half_even(values, np.array(shift)).tolist() == [half_even(int(v), shift) for v in values]


def test_requantize_of_ties_signs_and_channels() -> None:
    op = Requantize(np.array([1, -1, 3]), np.array([0, 1, -3]), np.array([1, 1, 0]), -4, 4)
    x = np.array([[[-5, -3, -1, 1, 3, 5]] * 3])
    expected = [[-2, -2, 0, 0, 2, 2], [3, 2, 1, 0, -1, -2], [-4, -4, -4, 0, 4, 4]]
    expected[1] = [half_even(1 - v, 1) for v in (-5, -3, -1, 1, 3, 5)]
    assert op.reference(x)[0].tolist() == expected


@pytest.mark.parametrize("high", [1, 7, 127, 255])
@pytest.mark.parametrize("relu", [False, True])
def test_normshift_at_the_boundaries(high: int, relu: bool) -> None:
    op = NormShift(high, relu)
    for e in range(int(math.log2(2**31 / high))):
        for largest in (high * 2**e, high * 2**e + 1):
            if largest > INT32[1]:
                continue
            x = np.array([[largest, -largest, largest // 2, 1, 0, -1]])
            assert op.reference(x).tolist() == [plain_normshift(op, x[0]).tolist()]
            used = e if largest == high * 2**e else e + 1
            assert op.reference(x)[0, 0] == half_even(largest, used)
    tiny = np.array([[1, 0, -1]])
    shifted = 2 ** int(math.log2(high))
    assert op.reference(tiny).tolist() == [[shifted, 0, 0 if relu else -shifted]]
    assert op.reference(np.zeros((2, 3), dtype=np.int64)).tolist() == [[0, 0, 0]] * 2
    assert op.reference(np.array([[-5, -9]])).tolist() == (
        [[0, 0]] if relu else op.reference(np.array([[-5, -9]])).tolist()
    )
    assert op.reference(np.array([[INT32[0], INT32[1]]])).tolist() == [
        plain_normshift(op, np.array([INT32[0], INT32[1]])).tolist()
    ]


def test_normshift_uses_each_samples_own_maximum() -> None:
    x = np.array([[3, 1], [300, 100]])
    assert NormShift(127, False).reference(x).tolist() == [[96, 32], [75, 25]]


# ---- what int32 cannot hold ----------------------------------------------------------------------------------------


def test_accumulators_beyond_int32_are_refused() -> None:
    levels, source = np.full((1, 2), 127), IntTensor((2,), 0, 2**22)
    fits = Linear(levels, "int8", np.array([INT32[1] - 254 * 2**22]))
    assert fits.infer(source).high == INT32[1]
    with pytest.raises(BitLabError, match=r"beyond int32: use fewer inputs, a narrower weight format"):
        Linear(levels, "int8", np.array([INT32[1] - 254 * 2**22 + 1])).infer(source)


def test_partial_sums_beyond_int32_are_refused() -> None:
    """The result would fit, but C adds in its own order."""
    levels = np.array([[127, -127]])
    with pytest.raises(BitLabError, match="beyond int32"):
        Linear(levels, "int8", np.zeros(1, dtype=np.int64)).infer(IntTensor((2,), 2**24, 2**24))


def test_convolutions_beyond_int32_are_refused() -> None:
    op = Conv2d(np.full((1, 8, 3, 3), 127), "int8", np.zeros(1, dtype=np.int64), (1, 1), (1, 1), (1, 1), 1)
    assert op.infer(IntTensor((8, 5, 5), 0, INT32[1] // (72 * 127))).high <= INT32[1]
    with pytest.raises(BitLabError, match="beyond int32"):
        op.infer(IntTensor((8, 5, 5), 0, INT32[1] // (72 * 127) + 1))


def test_sums_beyond_int64_are_refused_too() -> None:
    levels, source = np.full((1, 2**26), 127), IntTensor((2**26,), INT32[0], INT32[1])
    with pytest.raises(BitLabError, match="beyond int32"):
        Linear(levels, "int8", np.zeros(1, dtype=np.int64)).infer(source)
