"""The C runtime's primitives against the operations' references, exhaustively or at the extremes."""

import ctypes
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import bitcore.kernels
from bitcore.formats import FORMATS
from bitcore.graph import NormShift, Requantize, Threshold
from bitcore.graph.ops import shift_half_even
from bitexport.targets.c.host import STRICT
from programs import compile_all

RUNTIME = Path(bitcore.kernels.__file__).parent / "csrc" / "portable"
LOW, HIGH = -(2**31), 2**31 - 1
INT32 = 4  # BIT_INT32
EDGES = sorted(
    {
        v
        for b in (0, 1, 7, 8, 15, 16, 24, 30, 31)
        for s in (1, -1)
        for d in (-1, 0, 1)
        if LOW <= (v := s * 2**b + d) <= HIGH
    }
    | {LOW, HIGH, 0, 3, 5, -3, -5, 12345, -98765}
)
VARIANTS = {
    "multiplier": (),
    "no multiplier": ("-DBIT_NO_MULTIPLIER",),
    "undefined behaviour traps": ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
    "no multiplier, traps": ("-DBIT_NO_MULTIPLIER", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
}


class Runtime:
    """The runtime and the harness as a shared library; arguments are numpy arrays or integers."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def call(self, name: str, *arguments: np.ndarray | int) -> int:
        kept = [np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        plain = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else ctypes.c_int32(a) for a in kept]
        return getattr(self.library, name)(*plain)

    def map(self, name: str, *columns: tuple[np.ndarray, type] | int, result: type = np.int32) -> np.ndarray:
        """Calls a function of the harness that works on whole arrays; `columns` are values and their C type."""
        arrays = [c if isinstance(c, int) else c[0].astype(c[1]) for c in columns]
        n = next(len(a) for a in arrays if not isinstance(a, int))
        y = np.zeros(n, dtype=result)
        self.call(name, *arrays, y, n)
        return y.astype(np.int64)


@pytest.fixture(scope="module", params=VARIANTS)
def runtime(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str, str], str]
) -> Runtime:
    out = tmp_path_factory.mktemp("runtime") / "runtime.so"
    sources = [str(path) for path in RUNTIME.glob("*.c") if path.name != "bit_linear.c"]
    sources.append(str(Path(__file__).with_name("runtime_harness.c")))
    gcc = require_tool("gcc", "gcc")
    flags = ["-O2", "-fPIC", "-shared", *VARIANTS[request.param]]
    compile_all([[gcc, *STRICT, *flags, f"-I{RUNTIME}", *sources, "-o", str(out)]])
    return Runtime(out)


def columns(*choices: list[int]) -> list[np.ndarray]:
    """Every combination, one array an argument."""
    return list(np.array(list(product(*choices)), dtype=np.int64).T)


def exact(
    x: np.ndarray, multiplier: np.ndarray, bias: np.ndarray, shift: np.ndarray, low: int, high: int
) -> np.ndarray:
    """The reference of Requantize, one channel a value."""
    return Requantize(multiplier, bias, shift, low, high).reference(x[None])[0]


def test_mul_wraps_as_uint32(runtime: Runtime) -> None:
    a, b = columns(EDGES, EDGES)
    got = runtime.map("test_mul", (a, np.uint32), (b, np.uint32), result=np.uint32)
    assert got.tolist() == [int(x) * int(y) % 2**32 for x, y in zip(a, b, strict=True)]


def test_shift_right_floors(runtime: Runtime) -> None:
    x, shift = columns(EDGES, list(range(32)))
    assert np.array_equal(runtime.map("test_shift_right", (x, np.int32), (shift, np.uint32)), x >> shift)


def test_round_shift(runtime: Runtime) -> None:
    for values in (EDGES, list(range(-1030, 1030))):
        x, shift = columns(values, list(range(32)))
        assert np.array_equal(
            runtime.map("test_round_shift", (x, np.int32), (shift, np.uint32)), shift_half_even(x, shift)
        )


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (0, 255), (LOW, HIGH)])
def test_requantize_at_the_extremes(runtime: Runtime, low: int, high: int) -> None:
    multipliers = [0, 1, -1, 3, -3, 2**29, 2**30, -(2**30), HIGH, LOW]
    biases = [0, 1, -1, 2**30 + 1, 2**61, -(2**61)]
    x, m, b, s = columns(EDGES, multipliers, biases, [0, 1, 2, 30, 31, 32, 33, 61, 62])
    bounds = [(np.full_like(x, low), np.int32), (np.full_like(x, high), np.int32)]
    got = runtime.map("test_requantize", (x, np.int32), (m, np.int32), (b, np.int64), (s, np.uint32), *bounds)
    assert np.array_equal(got, exact(x, m, b, s, low, high))


@pytest.mark.parametrize("multiplier", [1, -1, 3, -5])
def test_requantize_of_every_small_value_and_tie(runtime: Runtime, multiplier: int) -> None:
    x, b, s = columns(list(range(-260, 261)), [-3, 0, 2], list(range(10)))
    m = np.full_like(x, multiplier)
    bounds = [(np.full_like(x, -100), np.int32), (np.full_like(x, 100), np.int32)]
    got = runtime.map("test_requantize", (x, np.int32), (m, np.int32), (b, np.int64), (s, np.uint32), *bounds)
    assert np.array_equal(got, exact(x, m, b, s, -100, 100))


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (0, 255), (LOW, HIGH)])
def test_requantize_shift(runtime: Runtime, low: int, high: int) -> None:
    for values, biases in ((EDGES, [0, 1, -1, 4096, -4097, HIGH, LOW]), (list(range(-600, 600)), [0, 5])):
        x, b, s = columns(values, biases, list(range(32)))
        fits = (x + b >= LOW) & (x + b <= HIGH)
        x, b, s = x[fits], b[fits], s[fits]
        bounds = [(np.full_like(x, low), np.int32), (np.full_like(x, high), np.int32)]
        got = runtime.map("test_requantize_shift", (x, np.int32), (b, np.int32), (s, np.uint32), *bounds)
        assert np.array_equal(got, exact(x, np.ones_like(x), b, s, low, high))


@pytest.mark.parametrize("multiplier", [0, 1, 2, 3, 16384, 24577, 32767, 65535])
def test_scale(runtime: Runtime, multiplier: int) -> None:
    values = [v for v in EDGES if abs(v) < 2**30] + list(range(-9, 10))
    biases = [0, 1, -1, 2**14, 2**29 + 12345, -(2**29), 2**30 - 1]
    x, b, s = columns(values, biases, [s for s in (2, 3, 14, 15, 16, 20, 31) if multiplier < 2**s])
    got = [
        runtime.call("bit_scale", v, multiplier, *rest)
        for v, *rest in zip(*(a.tolist() for a in (x, b, s)), strict=True)
    ]
    m = np.full_like(x, multiplier)
    assert got == exact(x, m, b, s, LOW, HIGH).tolist()


@pytest.mark.parametrize("thresholds", [[0], [LOW, HIGH], [-5, -5, 0, 3, 3, 3, HIGH], EDGES[:15], []])
def test_threshold(runtime: Runtime, thresholds: list[int]) -> None:
    x = np.array(EDGES)
    array = np.array(thresholds, dtype=np.int32)
    got = np.zeros(len(x), dtype=np.int32)
    runtime.call("test_threshold", x.astype(np.int32), array, len(thresholds), got, len(x))
    op = Threshold(np.array([thresholds], dtype=np.int64), np.array([1]), 0, 1)
    assert np.array_equal(got, op.reference(x[None, None])[0, 0])


def normshift(runtime: Runtime, x: np.ndarray, high: int, relu: bool) -> np.ndarray:
    y = np.zeros(len(x), dtype=np.uint8)
    runtime.call("bit_normshift", x.astype(np.int32), INT32, y, len(x), high, int(relu))
    return (y if relu else y.view(np.int8)).astype(np.int64)


@pytest.mark.parametrize("relu", [False, True])
def test_normshift_at_every_boundary(runtime: Runtime, relu: bool) -> None:
    for high in (1, 3, 7, 15, 31, 63, 127, *((255, 254, 129) if relu else ())):
        largest = {v for e in range(32) for v in (high * 2**e, high * 2**e + 1, 2**e, -(2**e)) if LOW <= v <= HIGH}
        samples = [[v, v // 2, -(v // 3), 1, 0, -1, v // 4 * 3] for v in sorted(largest | {LOW, HIGH, 0})]
        x = np.clip(np.array(samples), LOW, HIGH)
        got = np.stack([normshift(runtime, sample, high, relu) for sample in x])
        assert np.array_equal(got, NormShift(high, relu).reference(x))
    assert normshift(runtime, np.zeros(3, dtype=np.int64), 127, relu).tolist() == [0, 0, 0]


def test_normshift_of_any_sample(runtime: Runtime) -> None:
    elements = st.one_of(st.integers(LOW, HIGH), st.integers(-300, 300), st.sampled_from(EDGES))

    @given(npst.arrays(np.int64, st.integers(1, 20), elements=elements), st.integers(1, 255), st.booleans())
    def check(x: np.ndarray, high: int, relu: bool) -> None:
        high = high if relu else min(high, 127)
        assert np.array_equal(normshift(runtime, x, high, relu), NormShift(high, relu).reference(x[None])[0])

    check()


@pytest.mark.parametrize("x", [[3], [1, 2, 2], [5, 5, 5], [LOW, HIGH, HIGH], [-1, LOW, -1], [0, -1]])
def test_argmax_is_the_first_of_equals(runtime: Runtime, x: list[int]) -> None:
    assert runtime.call("bit_argmax", np.array(x, dtype=np.int32), len(x)) == int(np.argmax(x))


@pytest.mark.parametrize("name", FORMATS)
def test_dot_of_every_code_and_tail(runtime: Runtime, name: str) -> None:
    """Rows of each length up to 70, of all codes; extreme activations of both signs."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(0)
    for kind, least, most in ((np.int8, -128, 127), (np.uint8, 0, 255)):
        for n in (*range(1, 20), 33, 70, 300):
            codes = np.concatenate([np.arange(n) % len(fmt.levels), rng.integers(0, len(fmt.levels), n)])[
                rng.integers(n + 1) :
            ][:n]
            levels = fmt.decode(torch.from_numpy(codes)).numpy().astype(np.int64)
            packed = fmt.packing.pack(torch.from_numpy(codes)).numpy()
            for x in (
                np.full(n, least),
                np.full(n, most),
                np.where(levels > 0, most, least),
                rng.integers(least, most + 1, n),
            ):
                got = runtime.call(f"test_dot_{name}_{np.dtype(kind).name}", packed, x.astype(kind), n)
                assert got == int(levels @ x)


def test_sums(runtime: Runtime) -> None:
    for kind, least, most in ((np.int8, -128, 127), (np.uint8, 0, 255)):
        for n in (1, 7, 1000):
            for value in (least, most):
                assert runtime.call(f"bit_sum_{np.dtype(kind).name}", np.full(n, value, dtype=kind), n) == n * value


def test_dot_wraps_on_the_way_but_not_at_the_end(runtime: Runtime) -> None:
    """8bit: low * sum(x) and sum(code * x) leave int32 before they meet; the result is exact."""
    fmt = FORMATS["8bit"]
    n = 130_000
    for level, x in ((127, 127), (-128, 127), (-128, -128), (127, -128)):
        codes = fmt.encode(torch.full((n,), level))
        packed = fmt.packing.pack(codes).numpy()
        assert runtime.call("test_dot_8bit_int8", packed, np.full(n, x, dtype=np.int8), n) == level * x * n
