"""The engine equals the interpreter: every operation, format, instruction set, batch, number of threads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from bitcore.engine import Engine, engine
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, get_format
from bitcore.graph import Add, Concat, Conv2d, Flatten, Graph, InputSpec, Linear, Node, Op, Requantize, Threshold
from bitcore.kernels.native import ISA_VARIABLE, PORTABLE, usable_sets
from graphs import BLOCKS, random_graph
from networks import Ints, extreme_codes

ISAS = [PORTABLE, *usable_sets()]
ONE, ZERO = np.ones(1, np.int64), np.zeros(1, np.int64)
FORMAT_GROUPS = [list(FORMATS)[i::4] for i in range(4)]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return request.param


def chain(shape: tuple[int, ...], input_format: str, *ops: Op) -> Graph:
    """A graph whose operations follow each other."""
    spec = InputSpec(shape, input_format, 0.5)
    nodes: list[Node] = []
    kind = spec.type
    for i, op in enumerate(ops):
        kind = op.infer(kind)
        nodes.append(Node(f"n{i}", op, (nodes[-1].name if nodes else "input",), kind))
    return Graph(spec, tuple(nodes), 0.5)


def conv(
    fmt: str,
    outputs: int,
    inputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    seed: int = 0,
) -> Conv2d:
    """A padded convolution with random weights, one row of them the largest, one the smallest."""
    rng, levels = np.random.default_rng(seed), np.array(get_format(fmt).levels)
    weights = rng.choice(levels, (outputs, inputs // groups, kernel, kernel)).astype(np.int64)
    weights[0], weights[-1] = levels.max(), levels.min()
    pad = kernel // 2 * dilation
    bias = rng.integers(-999, 999, outputs)
    return Conv2d(weights, fmt, bias, (stride, stride), (pad, pad), (dilation, dilation), groups)


def extremes(graph: Graph, samples: int) -> Ints:
    """Samples at the ends of the input's range, and random levels."""
    levels, rng = np.array(get_format(graph.input.format).levels), np.random.default_rng(1)
    codes = rng.choice(levels, (samples, *graph.input.shape)).astype(np.int64)
    codes[0], codes[1] = levels.max(), levels.min()
    return codes


def check(graph: Graph, codes: Ints) -> None:
    network = Engine(graph)
    assert network._native is not None
    assert np.array_equal(network.run(codes), graph.run(codes))


@pytest.mark.parametrize("block", BLOCKS)
def test_random_graphs(block: str, isa: str) -> None:
    for seed in range(3):
        graph = random_graph(np.random.default_rng(seed), [block])
        check(graph, extreme_codes(graph, 9))


@pytest.mark.parametrize("seed", range(8))
def test_long_random_graphs(seed: int, isa: str) -> None:
    graph = random_graph(np.random.default_rng(seed + 50))
    check(graph, extreme_codes(graph, 9))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_many_random_graphs(seed: int, isa: str) -> None:
    graph = random_graph(np.random.default_rng(seed + 1000))
    check(graph, extreme_codes(graph, 9))


@pytest.mark.parametrize("formats", FORMAT_GROUPS, ids=lambda names: names[0])
@pytest.mark.parametrize("activation", ["int8", "8bit", "uint8"])
def test_every_weight_format(formats: list[str], activation: str, isa: str) -> None:
    """Dense, grouped (in whole blocks, and several groups a block) and depthwise; odd numbers of channels; strides."""
    for fmt in formats:
        shapes = (
            conv(fmt, 70, 37, stride=2),
            conv(fmt, 18, 9, groups=3),
            conv(fmt, 67, 67, groups=67),
            conv(fmt, 17, 5, 1),
        )
        for op in shapes:
            graph = chain((op.levels.shape[1] * op.groups, 5, 4), activation, op)
            check(graph, extremes(graph, 3))


@pytest.mark.parametrize("outputs", [1, 16, 31, 48, 64, 129])
@pytest.mark.parametrize("inputs", [3, 64, 100])
def test_binary_by_binary_does_not_count_the_border(outputs: int, inputs: int, isa: str) -> None:
    for kernel, stride, dilation in ((3, 1, 1), (3, 2, 2), (1, 1, 1), (5, 1, 1)):
        op = conv("binary", outputs, inputs, kernel, stride, dilation=dilation)
        graph = chain((inputs, 6, 5), "binary", op)
        check(graph, extremes(graph, 3))


def test_signs_are_found_behind_thresholds(isa: str) -> None:
    signs = Threshold(np.arange(-16, 16)[:, None], np.repeat([1, -1], 16), -1, 2)
    graph = chain((3, 6, 6), "int8", conv("ternary", 32, 3), signs, conv("binary", 40, 32))
    assert [step["kind"] for step in Engine(graph).steps] == ["product", "signs", "count"]
    check(graph, extremes(graph, 4))
    ternary = Threshold(np.tile([-5, 5], (32, 1)), ONE, -1, 1)  # has a 0
    graph = chain((3, 6, 6), "int8", conv("ternary", 32, 3), ternary, conv("binary", 40, 32))
    assert [step["kind"] for step in Engine(graph).steps] == ["product", "product"]
    check(graph, extremes(graph, 4))


def test_inputs_wider_than_bytes(isa: str) -> None:
    wide = Requantize(ONE, ZERO, ZERO, -30000, 30000)
    for groups in (1, 2):
        last = conv("int4", 70, 6, groups=groups)
        graph = chain((3, 5, 5), "int8", conv("int8", 6, 3), wide, last, Requantize(ONE, ZERO, ONE * 9, -128, 127))
        check(graph, extremes(graph, 3))
    graph = chain((5, 4, 4), "fp130", conv("int4", 6, 5))
    check(graph, extremes(graph, 3))


def test_linear_layers_of_maps(isa: str) -> None:
    rng = np.random.default_rng(0)
    for fmt in ("ternary", "binary", "nf4", "int8"):
        levels = rng.choice(np.array(get_format(fmt).levels), (70, 6 * 20)).astype(np.int64)
        small = Requantize(ONE, ZERO, ONE * 4, -128, 127)
        graph = chain((2, 5, 4), "uint8", conv("int4", 6, 2), small, Flatten(), Linear(levels, fmt, ZERO))
        check(graph, extremes(graph, 7))
        images = chain((1, 20, 6), "int8", Flatten(), Linear(levels, fmt, ZERO))
        check(images, extremes(images, 3))


def test_many_inputs_of_one_output(isa: str) -> None:
    """More than nested fields can sum in 32 bits."""
    for fmt in ("4bit", "int2", "binary"):
        levels = np.full((17, 70000), get_format(fmt).levels[-1], np.int64)
        graph = chain((70000,), "8bit", Linear(levels, fmt, ZERO))
        check(graph, extremes(graph, 2))


def residual() -> Graph:
    spec = InputSpec((64, 6, 6), "int8", 0.1)
    first, second = conv("ternary", 64, 64), conv("ternary", 64, 64, seed=1)
    grid, fold = Requantize(ONE * 3, ZERO, ONE * 2, -8000, 8000), Requantize(ONE * 77, ONE * 99, ONE * 12, 0, 127)
    nodes, types = [], {"input": spec.type}
    for name, op, inputs in (
        ("a", first, ("input",)),
        ("grid", grid, ("a",)),
        ("small", fold, ("grid",)),
        ("b", second, ("small",)),
        ("grid2", grid, ("b",)),
        ("sum", Add(), ("grid2", "grid")),
        ("both", Concat(), ("sum", "small")),
        ("out", fold, ("both",)),
    ):
        types[name] = op.infer(*(types[i] for i in inputs))
        nodes.append(Node(name, op, inputs, types[name]))
    return Graph(spec, tuple(nodes), 0.5)


def test_what_follows_runs_on_the_tile(isa: str) -> None:
    graph = residual()
    posts = [step["posts"] for step in Engine(graph).steps]
    assert posts[0] == ["requantize", "store", "requantize", "store"]
    assert posts[1] == ["requantize", "add", "store"]
    check(graph, extremes(graph, 3))


def test_results_do_not_depend_on_threads(isa: str) -> None:
    graph = residual()
    codes = extremes(graph, 4)
    network, expected, before = Engine(graph), graph.run(codes), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert np.array_equal(network.run(codes), expected)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(network.run, [codes[i % 4 : i % 4 + 1] for i in range(24)]))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(r, expected[i % 4 : i % 4 + 1]) for i, r in enumerate(results))


def test_batches_and_integer_types() -> None:
    graph = residual()
    network, codes = Engine(graph), extremes(graph, 5)
    expected = graph.run(codes)
    for batch in (1, 0, 5, 2):
        assert np.array_equal(network.run(codes[:batch]), expected[:batch])
    for dtype in (np.int8, np.int16, np.int32):
        assert np.array_equal(network.run(codes.astype(dtype)), expected)


@pytest.mark.parametrize("input_format", ["int8", "uint8", "uint4", "2bitsym", "ternary"])
@pytest.mark.parametrize("scale", [0.37, None])
def test_real_inputs(input_format: str, scale: float | None) -> None:
    graph = chain((3, 300, 2), input_format, conv("ternary", 4, 3), Requantize(ONE, ZERO, ONE, -128, 127))
    graph = Graph(InputSpec((3, 300, 2), input_format, scale), graph.nodes, 0.25)
    x = torch.randn(2, 3, 300, 2) * 30
    x[0, 0, :9, 0] = torch.arange(9) * 0.37 / 2  # ties
    expected = torch.from_numpy(graph.run(graph.input.quantize(x))).float() * 0.25
    assert torch.equal(Engine(graph)(x), expected)


def test_wrong_inputs_are_refused() -> None:
    network = Engine(residual())
    with pytest.raises(BitLabError, match=r"this network takes \(64, 6, 6\)"):
        network.run(np.zeros((1, 64, 6, 5), np.int64))
    for x in (torch.zeros(1, 3, 6, 6), torch.zeros(1, 64, 6, 6, device="meta"), torch.zeros(1, 64, 6, 6).bool()):
        with pytest.raises(BitLabError, match=r"the input must be .* \[any, 64, 6, 6\] on cpu, not"):
            network(x)
    with pytest.raises(BitLabError, match="the input is float64; integers are needed"):
        network.run(np.full((1, 64, 6, 6), 1.5))
    with pytest.raises(BitLabError, match="must lie in -127…127"):
        network.run(np.full((1, 64, 6, 6), 128))
    with pytest.raises(BitLabError, match="NaN"):
        network(torch.full((1, 64, 6, 6), torch.nan))


def test_without_the_library_the_interpreter_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "library", lambda: None)
    graph = residual()
    with pytest.warns(RuntimeWarning, match="the interpreter runs instead"):
        network = Engine(graph)
    codes = extremes(graph, 2)
    assert np.array_equal(network.run(codes), graph.run(codes))
    with pytest.raises(BitLabError, match="install a C compiler"):
        network.profile(codes)


def test_profile_and_memory(tmp_path: Path) -> None:
    graph = residual()
    network = Engine(graph)
    seconds = network.profile(extremes(graph, 2))
    assert len(seconds) == 1 + len(network.steps)
    assert min(seconds) > 0
    two_bits = 2 * 64 * 64 * 9 // 4
    assert two_bits <= network.weight_bytes <= two_bits + 2**14


def test_copies_and_pickles_are_engines_of_their_own() -> None:
    graph = residual()
    built, codes = Engine(graph), extremes(graph, 3)
    expected = built.run(codes)
    copies = [copy.copy(built), copy.deepcopy(built), pickle.loads(pickle.dumps(built))]
    weight_bytes, steps, arena_bytes = built.weight_bytes, built.steps, built.arena_bytes
    del built
    for one in copies:
        assert (one.run(codes) == expected).all()
        assert (one.weight_bytes, one.steps, one.arena_bytes) == (weight_bytes, steps, arena_bytes)


def test_arrays_of_numpy_are_inputs_too() -> None:
    built = Engine(chain((3,), "int8", Linear(np.eye(3, dtype=np.int64), "int8", np.zeros(3, np.int64))))
    x = np.array([[1.0, -2.0, 3.0]])
    assert torch.equal(built(x), built(torch.tensor(x)))
