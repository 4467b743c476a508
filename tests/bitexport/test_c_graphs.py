"""Random graphs of every operation become C that computes what the interpreter computes."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bitcore.formats import FORMATS
from bitcore.graph import OPS, Conv2d, Flatten, Graph, InputSpec, MaxPool2d, Node, Op, Requantize, Threshold
from bitexport.targets import OPTIMIZE, CTarget
from bitexport.targets.c import calls, plan
from bitexport.targets.c.rows import BYTES, PACKED, start_of
from graphs import plain_network, random_graph
from networks import extreme_codes
from programs import SANITIZERS, build

Tool = Callable[[str, str], str]
BUILDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gcc-sanitized": ("gcc", SANITIZERS),
    "clang-no-multiplier": ("clang", ("-O1", "-fsanitize=undefined", "-fsanitize-trap=all", "-DBIT_NO_MULTIPLIER")),
}


def check(
    graphs: dict[str, Graph],
    folder: Path,
    compiler: str,
    flags: tuple[str, ...],
    samples: int = 20,
    runtimes: Sequence[str] = OPTIMIZE,
) -> None:
    made = [
        CTarget(optimize=optimize).emit(graph, folder / f"{name}_{optimize}", f"{name}_{optimize}")
        for name, graph in graphs.items()
        for optimize in runtimes
    ]
    program = build(made, folder / "build", compiler, flags)
    for name, graph in graphs.items():
        codes = extreme_codes(graph, samples)
        expected = graph.run(codes)
        for optimize in runtimes:
            bad = np.argwhere(expected != program.run(f"{name}_{optimize}", codes))
            assert not len(bad), f"{name}, {optimize}: first difference at {bad[0]}"


@pytest.mark.parametrize("how", BUILDS)
def test_random_graphs(how: str, tmp_path: Path, require_tool: Tool) -> None:
    compiler, flags = BUILDS[how]
    first = 12 * list(BUILDS).index(how)
    graphs = {f"n{seed}": random_graph(np.random.default_rng(seed)) for seed in range(first, first + 12)}
    check(graphs, tmp_path, require_tool(compiler, compiler), flags, runtimes=["speed"])


@pytest.mark.parametrize("how", BUILDS)
def test_plain_networks(how: str, tmp_path: Path, require_tool: Tool) -> None:
    """What the compact runtime takes as a whole: formats, sizes, strides, paddings, poolings, both kinds of scales."""
    compiler, flags = BUILDS[how]
    first = 12 * list(BUILDS).index(how)
    graphs = {f"p{seed}": plain_network(np.random.default_rng(seed)) for seed in range(first, first + 12)}
    taken = [layer.compact for graph in graphs.values() for layer in plan.plan_layers(graph, compact=True).layers]
    assert all(taken)
    check(graphs, tmp_path, require_tool(compiler, compiler), flags, runtimes=["flash"])


def test_the_random_graphs_hold_every_operation() -> None:
    graphs = [random_graph(np.random.default_rng(seed)) for seed in range(12 * len(BUILDS))]
    assert {node.op.kind for graph in graphs for node in graph.nodes} == set(OPS)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("how", BUILDS)
def test_many_random_graphs(how: str, part: int, tmp_path: Path, require_tool: Tool) -> None:
    compiler, flags = BUILDS[how]
    seeds = range(1000 + 40 * part, 1040 + 40 * part)
    graphs = {f"n{seed}": random_graph(np.random.default_rng(seed)) for seed in seeds}
    graphs |= {f"p{seed}": plain_network(np.random.default_rng(seed)) for seed in seeds}
    check(graphs, tmp_path, require_tool(compiler, compiler), flags)


def convolution(fmt: str, seed: int, channels: int = 7, outputs: int = 21) -> Graph:
    """Convolution, requantization, pooling; then another convolution whose result creeps over its input."""
    rng = np.random.default_rng(seed)
    spec = InputSpec((channels, 9, 8), str(rng.choice(["int8", "uint8"])), 0.5)
    nodes: list[Node] = []
    source, kind = "input", spec.type

    def add(name: str, op: Conv2d | MaxPool2d | Requantize) -> None:
        nonlocal source, kind
        kind = op.infer(kind)
        nodes.append(Node(name, op, (source,), kind))
        source = name

    for i, n in enumerate((outputs, 6)):
        levels = rng.choice(FORMATS[fmt].levels, (n, kind.shape[0], 3, 3))
        conv = Conv2d(levels, fmt, rng.integers(-50, 50, n), (1, 1), (1, 1), (1, 1), 1)
        add(f"conv{i}", conv)
        shift = rng.integers(0, max(1, kind.high.bit_length() - 6), n)
        add(f"fold{i}", Requantize(np.ones(1, dtype=np.int64), rng.integers(-9, 9, n), shift, 0, 255))
        add(f"pool{i}", MaxPool2d((2, 2), (2, 2), (0, 0)))
    nodes.append(Node("flat", OPS["flatten"](), (source,), OPS["flatten"]().infer(kind)))
    return Graph(spec, tuple(nodes), 1.0)


def test_every_format_in_convolutions(tmp_path: Path, require_tool: Tool) -> None:
    """Tails of octets, groups of inputs that are not full, pairs of pixels and single ones."""
    graphs = {f"conv_{fmt}": convolution(fmt, seed) for seed, fmt in enumerate(FORMATS)}
    check(graphs, tmp_path, require_tool("gcc", "gcc"), ("-O1",))


def same_convolutions(width: int, channels: int, pool: bool, seed: int) -> Graph:
    """Two ternary 3x3 convolutions that keep the size of their maps; with thresholds in between."""
    rng = np.random.default_rng(seed)
    spec = InputSpec((channels, 6, width), "uint8", 0.5)
    nodes: list[Node] = []

    def add(name: str, op: Op) -> None:
        source, kind = (nodes[-1].name, nodes[-1].type) if nodes else ("input", spec.type)
        nodes.append(Node(name, op, (source,), op.infer(kind)))

    def conv(name: str, outputs: int) -> None:
        inputs = nodes[-1].type.shape[0] if nodes else channels
        levels = rng.choice([-1, 0, 1], (outputs, inputs, 3, 3))
        add(name, Conv2d(levels, "ternary", rng.integers(-99, 99, outputs), (1, 1), (1, 1), (1, 1), 1))

    conv("first", 11)
    thresholds = np.sort(rng.integers(-900, 900, (11, 15)), axis=1)
    add("few", Threshold(thresholds, np.ones(1, dtype=np.int64), 0, 1))
    conv("second", 9)
    add("fold", Requantize(np.ones(1, dtype=np.int64), rng.integers(-9, 9, 9), rng.integers(0, 4, 9), 0, 200))
    if pool:
        add("pool", MaxPool2d((2, 2), (2, 2), (0, 0)))
    add("flat", Flatten())
    return Graph(spec, tuple(nodes), 1.0)


def runtime_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("bit_*.c")}


@pytest.mark.parametrize("how", BUILDS)
def test_rows_of_ternary_weights(how: str, tmp_path: Path, require_tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel by pixel: at both edges, of single pixels and pairs, with sums within 16 bits and beyond."""
    monkeypatch.setattr(calls, "takes_rows", lambda *_: False)
    compiler, flags = BUILDS[how]
    sizes = itertools.product((2, 3, 8), (1, 50), (False, True))
    graphs = {f"w{w}c{c}p{int(p)}": same_convolutions(w, c, p, w + c) for w, c, p in sizes}
    check(graphs, tmp_path, require_tool(compiler, compiler), flags, runtimes=["speed"])
    for name in graphs:
        used = runtime_files(tmp_path / f"{name}_speed")
        assert {"bit_columns_ternary3.c", "bit_finish_shift.c", "bit_finish_value.c"} < used
        assert not {"bit_columns_ternary.c", "bit_conv2d_rows.c"} & used


def convolution_by_rows(fmt: str, height: int, width: int, outputs: int, pool: bool, seed: int) -> Graph:
    """A 3x3 convolution that keeps the size of its map, and a bias and a shift for each output."""
    rng = np.random.default_rng(seed)
    spec = InputSpec((1 if FORMATS[fmt].high > 5 else 5, height, width), ("int8", "uint8")[seed % 2], 0.5)
    likely = 1 / (1 + np.square(FORMATS[fmt].levels))  # so that sums fit 16 bits
    levels = rng.choice(FORMATS[fmt].levels, (outputs, spec.shape[0], 3, 3), p=likely / likely.sum())
    levels[0, :, 0] = FORMATS[fmt].low
    bias, shift = rng.integers(-99, 99, outputs), rng.integers(0, 4 + FORMATS[fmt].high.bit_length(), outputs)
    ops: list[Op] = [Conv2d(levels, fmt, bias, (1, 1), (1, 1), (1, 1), 1)]
    ops.append(Requantize(np.ones(1, dtype=np.int64), rng.integers(-9, 9, outputs), shift, 0, 200))
    ops += [MaxPool2d((2, 2), (2, 2), (0, 0))] if pool else []
    nodes: list[Node] = []
    for op in [*ops, Flatten()]:
        source, kind = (nodes[-1].name, nodes[-1].type) if nodes else ("input", spec.type)
        nodes.append(Node(f"{op.kind}{len(nodes)}", op, (source,), op.infer(kind)))
    return Graph(spec, tuple(nodes), 1.0)


@pytest.mark.parametrize("stored", [BYTES, PACKED])
@pytest.mark.parametrize("how", BUILDS)
def test_convolutions_by_rows(
    how: str, stored: str, tmp_path: Path, require_tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every format that has tables; one row and many, single pixels and pairs, outputs in one block and in two."""
    monkeypatch.setattr(calls, "BYTES", stored)
    compiler, flags = BUILDS[how]
    formats = [name for name, fmt in FORMATS.items() if fmt.affine and len(fmt.levels) <= 32 and fmt.low < 0]
    sizes = [(1, 2, 3, False), (1, 4, 9, False), (2, 2, 9, True), (5, 3, 5, True), (6, 9, 70, True), (4, 7, 70, False)]
    cases = itertools.product(formats, enumerate(sizes))
    graphs = {f"n{name}_{i}": convolution_by_rows(name, *size, i + len(name)) for name, (i, size) in cases}
    check(graphs, tmp_path, require_tool(compiler, compiler), flags, runtimes=["speed"])
    used = {name for name in graphs if f"bit_rows_{stored}.c" in runtime_files(tmp_path / f"{name}_speed")}
    assert {name.split("_")[0] for name in used} == {f"n{name}" for name in formats}
    assert len(used) > 0.8 * len(graphs), "too few whose sums fit 16 bits"


@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_of_one_sign_begin_elsewhere(sign: int, tmp_path: Path, require_tool: Tool) -> None:
    """Beyond int16, but not wider: 180 weights of one sign, inputs up to 255."""
    rng = np.random.default_rng(0)
    spec = InputSpec((20, 4, 6), "uint8", 0.5)
    conv = Conv2d(
        sign * rng.integers(0, 2, (7, 20, 3, 3)), "ternary", rng.integers(-99, 99, 7), (1, 1), (1, 1), (1, 1), 1
    )
    conv.levels[0] = sign
    bias = 2**15 * (sign < 0) + rng.integers(-99, 99, 7)
    fold = Requantize(np.ones(1, dtype=np.int64), bias - 2**14, np.full(7, 7), 0, 255)
    nodes: list[Node] = []
    for op in (conv, fold, Flatten()):
        source, kind = (nodes[-1].name, nodes[-1].type) if nodes else ("input", spec.type)
        nodes.append(Node(op.kind, op, (source,), op.infer(kind)))
    graph = Graph(spec, tuple(nodes), 1.0)
    assert start_of(spec.type, conv.levels) == -sign * (180 * 255 - 2**15 + (sign > 0))
    check({"n": graph}, tmp_path, require_tool("gcc", "gcc"), SANITIZERS, runtimes=["speed"])
    assert "bit_conv2d_rows.c" in runtime_files(tmp_path / "n_speed")


def test_convolutions_pool_on_the_way_and_take_the_place_of_their_input() -> None:
    graph = convolution("ternary", 0, channels=8, outputs=24)
    for packed, stored in ((None, ["", ""]), (0, [BYTES, BYTES]), (1, [PACKED, BYTES])):
        found = plan.plan_layers(graph, packed=packed)
        assert [layer.rows for layer in found.layers] == stored
        assert [layer.pool is not None for layer in found.layers] == [True, True]
        assert "conv0" not in found.types, "the map before the pooling is nowhere"
        places = {place.name: place for place in found.places}
        source, target = places["input"], places["pool0"]
        assert target.offset < source.offset + source.bytes
        assert source.offset < target.offset + target.bytes


def test_a_limit_makes_the_arena_smaller() -> None:
    graph = convolution("4bitsym", 1, outputs=40)
    free = plan.plan_layers(graph)
    tight = plan.plan_layers(graph, free.arena - 60)
    assert tight.arena <= free.arena - 60
    assert min(layer.block for layer in tight.layers) < 40
