"""Targets know exactly what they compute: the right result, or a refusal that names the layer before it writes a file.

Operations and number formats are registered here at run time, as a user's would be.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bitcore.engine import Engine
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, NumberFormat
from bitcore.formats.packing import bit_packing
from bitcore.graph import OPS, Add, Conv2d, Flatten, Graph, InputSpec, IntTensor, Linear, Node, Op, Requantize
from bitcore.graph.ops import Ints
from bitexport.targets import OPTIMIZE, TARGETS, CTarget, EngineTarget, Target
from bitexport.targets.c.activation import VALUES
from bitexport.targets.c.layers import FUNCTIONS
from graphs import GraphMaker, random_graph
from networks import extreme_codes
from programs import build

NONE = np.zeros(1, dtype=np.int64)
LEVELS: dict[str, tuple[int, ...]] = {
    "five": (-9, -2, 0, 1, 30),
    "sixteen": (*range(1, 16), -40),
    "unsorted": (3, -3, 0, 1),
    "many": tuple(sorted({round(1.2**i) for i in range(40)})),
    "no more codes than a byte has": tuple(range(-300, 301, 5)),
    "steps of 3": (-3, 0, 3),
    "steps of 200": (-200, 0, 200),
    "even": (-4, -2, 0, 2, 4),
    "three even": (-2, 0, 2),
    "two": (3, 5),
    "0 and -1": (-1, 0),
    "six bits, odd": tuple(range(-63, 64, 2)),
    "eight bits, odd": tuple(range(-255, 256, 2)),
}
"""Formats that nobody has registered: tables of any size, and evenly spaced levels that no format here has."""


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_any_format_is_right_in_c_and_in_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str, str], str]
) -> None:
    """Convolutions and a dense layer behind them, by every runtime: one program of them all."""
    graphs: dict[str, Graph] = {}
    for i, (name, levels) in enumerate(LEVELS.items()):
        monkeypatch.setitem(FORMATS, name, NumberFormat(name, levels, bit_packing(8)))
        rng = np.random.default_rng(i)
        graphs[f"n{i}"] = random_graph(rng, ["conv2d", "maxpool2d"], (2, 5, 6), "int8", [name], "linear")
    made = [
        CTarget(optimize=optimize).emit(graph, tmp_path / f"{name}_{optimize}", f"{name}_{optimize}")
        for name, graph in graphs.items()
        for optimize in OPTIMIZE
    ]
    program = build(made, tmp_path / "build", require_tool("gcc", "gcc"), ("-O0",))
    for name, graph in graphs.items():
        codes = extreme_codes(graph, 12)
        expected = graph.run(codes)
        assert np.array_equal(Engine(graph).run(codes), expected), name
        for optimize in OPTIMIZE:
            assert np.array_equal(program.run(f"{name}_{optimize}", codes), expected), (name, optimize)


@pytest.mark.parametrize("target", [CTarget(), CTarget(optimize="flash"), EngineTarget()], ids=("c", "flash", "engine"))
def test_weights_that_are_no_levels_are_refused(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "wide", NumberFormat("wide", (-(2**15) - 1, 0, 5), bit_packing(2)))

    def network(fmt: str, level: int) -> Graph:  # a graph whose operations nobody asked for their types
        linear = Linear(np.full((2, 3), level, dtype=np.int64), fmt, NONE)
        return Graph(InputSpec((3,), "int8", 1.0), (Node("fc", linear, ("input",), IntTensor((2,), -999, 999)),), 1.0)

    for fmt, level, words in (
        ("ternary", 2, "its weights are no levels of ternary; quantize them"),
        ("wide", 5, "levels of wide leave int16; use a narrower format"),
        ("tenary", 1, "unknown number format 'tenary'; did you mean 'ternary'"),
    ):
        [problem] = target.check(network(fmt, level))
        assert problem.layer == "fc" and words in problem.message
        with pytest.raises(BitLabError, match="layer 'fc'"):
            target.emit(network(fmt, level), tmp_path / "out", "net")
    assert not list(tmp_path.iterdir())


# ---- operations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Absolute(Op):
    """The magnitude of each value."""

    kind = "absolute"

    def infer(self, *types: IntTensor) -> IntTensor:
        return replace(types[0], low=0, high=types[0].largest)

    def reference(self, *x: Ints) -> Ints:
        return np.abs(x[0])


class FusedAbsolute(Absolute):
    """The same, behind other operations."""

    kind = "fused-absolute"
    fused = True


class Halved(Requantize):
    """A known operation's fields with another meaning."""

    kind = "halved"

    def reference(self, *x: Ints) -> Ints:
        return super().reference(x[0] // 2)


class Difference(Add):
    """An operation of two tensors."""

    kind = "difference"

    def reference(self, *x: Ints) -> Ints:
        return x[0] - x[1]


HALVED = Halved(np.ones(1, dtype=np.int64), NONE, NONE + 1, 0, 255)
NEW: tuple[Op, ...] = (Absolute(), FusedAbsolute(), HALVED, Difference())
PLACES = ("first", "behind a convolution", "behind its activation", "last")


def network_with(op: Op, place: str) -> tuple[Graph, str]:
    """A small network with an operation somewhere; also the operation's layer."""
    maker = GraphMaker(np.random.default_rng(0), (2, 5, 5), "int8")
    layer = ""

    def at(here: str) -> None:
        nonlocal layer
        if place == here:
            layer = maker.add(op, *[maker.at] * (2 if isinstance(op, Difference) else 1))

    at("first")
    maker.conv_formats = ["int4"]
    maker.add(Conv2d(maker.levels((4, 2, 3, 3), "int4"), "int4", NONE, (1, 1), (0, 0), (1, 1), 1))
    at("behind a convolution")
    maker.add(Requantize(np.ones(1, dtype=np.int64), NONE, NONE + 4, 0, 127))
    at("behind its activation")
    maker.add(Flatten())
    maker.linear(3)
    at("last")
    return Graph(maker.spec, tuple(maker.nodes), 1.0), layer


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", NEW, ids=lambda op: op.kind)
def test_a_new_operation_is_refused_by_name(
    op: Op, place: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPS, op.kind, type(op))
    graph, layer = network_with(op, place)
    assert any(problem.layer == layer and op.kind in problem.message for problem in TARGETS[target].check(graph))
    with pytest.raises(BitLabError, match=f"layer '{layer}': .*{op.kind}"):
        TARGETS[target].emit(graph, tmp_path / "out", "net")
    with pytest.raises(BitLabError, match=f"layer '{layer}': the engine has no '{op.kind}'"):
        Engine(graph)
    assert not list(tmp_path.iterdir())


def test_every_registered_operation_has_c() -> None:
    """The tests of random graphs compare what it computes."""
    assert set(OPS.values()) == {*FUNCTIONS, Flatten}
    assert {op for op in OPS.values() if op.fused} == set(VALUES)


# ---- forms of graphs -------------------------------------------------------------------------------------------------


def test_forms_that_c_has_no_way_for_are_refused(tmp_path: Path) -> None:
    requantize = Requantize(np.ones(1, dtype=np.int64), NONE, NONE, -127, 127)
    cases: list[tuple[tuple[int, ...], str, list[Op], str]] = [
        ((4,), "fp130", [requantize], "layer 'input': C takes inputs of 8 bits, not fp130"),
        ((2, 3, 3), "int8", [requantize], "layer 'n0.requantize': C gives a vector of scores, no map; flatten it"),
        ((2, 3, 3), "int8", [Flatten()], "layer 'n0.flatten': there is nothing to compute"),
    ]
    for shape, fmt, ops, words in cases:
        maker = GraphMaker(np.random.default_rng(0), shape, fmt)
        for op in ops:
            maker.add(op)
        with pytest.raises(BitLabError, match=words):
            CTarget().emit(Graph(InputSpec(shape, fmt, 1.0), tuple(maker.nodes), 1.0), tmp_path / "out", "net")
    assert not list(tmp_path.iterdir())
