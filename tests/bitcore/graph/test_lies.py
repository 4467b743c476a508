"""Graph files from strangers: what a file says is refused with one clear message, or means the same everywhere."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitcore.engine import Engine
from bitcore.errors import BitLabError
from bitcore.graph import OPS, Add, Concat, Flatten, Graph, InputSpec, Linear, Lookup, Node, NormShift, Requantize
from bitcore.graph.types import INT32
from graphs import BLOCKS, ENDS, random_graph
from lies import KIND, decode, encode, judge, lie
from networks import extreme_codes


def check_lies(count: int, seed: int, path: Path) -> tuple[int, set[str]]:
    rng = np.random.default_rng(seed)
    accepted, kinds = 0, set()
    for i in range(count):
        graph = random_graph(rng, list(rng.choice(sorted(BLOCKS), 2)), [2, 5, 6], end=ENDS[i % len(ENDS)])
        graph.save(path)
        header, tensors = decode(path.read_bytes())
        for _ in range(10):
            changed = json.loads(json.dumps(header)), dict(tensors)
            what = lie(*changed, rng)
            kinds.add(what)
            path.write_bytes(encode(*changed))
            accepted += judge(path, f"seed {seed}, graph {i}: {what}")
    return accepted, kinds


def test_lies_are_refused_or_mean_the_same_everywhere(tmp_path: Path) -> None:
    accepted, kinds = check_lies(40, 0, tmp_path / "graph.safetensors")
    assert 0 < accepted < 200
    assert len(kinds) > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_many_lies(seed: int, tmp_path: Path) -> None:
    check_lies(500, seed, tmp_path / "graph.safetensors")


@pytest.mark.parametrize("kind", OPS)
def test_every_parameter_of_every_operation_is_checked(kind: str) -> None:
    """No parameter may be of another type, and no array of another shape, whatever operations are registered."""
    graph = random_graph(np.random.default_rng(0), list(BLOCKS), end="requantize")
    node = next(node for node in graph.nodes if node.op.kind == kind)
    types = {"input": graph.input.type, **{n.name: n.type for n in graph.nodes}}
    inputs = [types[name] for name in node.inputs]
    assert node.op.infer(*inputs) == node.type
    for wrong in ([], [*inputs, inputs[0]] if kind not in ("add", "concat") else []):
        with pytest.raises(BitLabError):
            node.op.infer(*wrong)
    for field in fields(node.op):  # type: ignore[arg-type]
        value = getattr(node.op, field.name)
        lies = [None, "x", 1.5, 10**30, [1], {}]
        if isinstance(value, np.ndarray):
            lies += [value.astype(np.float64), value.astype(np.int32), value[:0], value[None], value[..., None]]
        for wrong in lies:
            with pytest.raises(BitLabError):
                replace(node.op, **{field.name: wrong}).infer(*inputs)  # type: ignore[type-var]


def test_an_altered_file_is_refused_wherever_it_was_altered(tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    random_graph(np.random.default_rng(0), ["conv2d"]).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(0, len(whole), max(1, len(whole) // 200)), len(whole) - 1]:
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises(BitLabError):
            Graph.load(path)


def test_long_chains_and_deep_concatenations_take_no_longer_than_their_nodes(tmp_path: Path) -> None:
    spec = InputSpec((2,), "int8", 1.0)
    one, zero = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    chain = [Requantize(one, np.array([i % 3 - 1]), zero, -127, 127) for i in range(3000)]
    graphs = [[*chain, Linear(np.ones((1, 2), dtype=np.int64), "ternary", zero)]]
    signs = InputSpec((1,), "binary", 1.0)
    nodes, types, last = [], {"input": signs.type}, "input"
    for i in range(12):
        types[f"c{i}"] = Concat().infer(types[last], types[last])
        nodes.append(Node(f"c{i}", Concat(), (last, last), types[f"c{i}"]))
        last = f"c{i}"
    op = Linear(np.ones((1, 2**12), dtype=np.int64), "binary", zero)
    nodes.append(Node("fc", op, (last,), op.infer(types[last])))
    made = [Graph(signs, tuple(nodes), 1.0)]
    for ops in graphs:
        nodes, kind, last = [], spec.type, "input"
        for i, op in enumerate(ops):
            kind = op.infer(kind)
            nodes.append(Node(f"n{i}", op, (last,), kind))
            last = f"n{i}"
        made.append(Graph(spec, tuple(nodes), 1.0))
    for graph in made:
        graph.save(tmp_path / "g.safetensors")
        graph = Graph.load(tmp_path / "g.safetensors")
        codes = extreme_codes(graph, 9)
        assert np.array_equal(Engine(graph).run(codes), graph.run(codes))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"input": {"shape": [2], "format": "int8", "scale": 1, "scale": 2}}', "a key occurs twice"),
        ('{"output_scale": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "no JSON object"),
        ("{}", "its checksum is not that of its content"),
    ],
)
def test_headers_that_are_no_plain_json_are_refused(header: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"

    save_file({"x": np.zeros(1, dtype=np.int8)}, path, {KIND: header})
    with pytest.raises(BitLabError, match=message):
        Graph.load(path)


def test_a_graph_checks_its_nodes() -> None:
    spec = InputSpec((4,), "int8", 1.0)
    node = Node("a", NormShift(127, False), ("input",), NormShift(127, False).infer(spec.type))
    for nodes in ((), (node, node), (replace(node, name="input"),), (replace(node, inputs=("b",)),)):
        with pytest.raises(BitLabError):
            Graph(spec, nodes, 1.0)
    for scale in (0.0, -1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(BitLabError, match="must be a positive number"):
            Graph(spec, (node,), scale)  # type: ignore[arg-type]
        with pytest.raises(BitLabError, match="must be a positive number"):
            InputSpec((4,), "int8", scale)  # type: ignore[arg-type]


def test_the_bounds_of_parameters_are_sharp() -> None:
    """What just fits is accepted, one more is not."""
    kind = InputSpec((4,), "uint8", 1.0).type
    one, zero = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    good = Requantize(np.array([INT32[1]]), np.array([2**62 - 1 - 255 * INT32[1]]), np.array([62]), 0, 255)
    good.infer(kind)
    for bad in (
        replace(good, bias=good.bias + 1),
        replace(good, shift=np.array([63])),
        replace(good, low=256),
        replace(good, multiplier=np.array([INT32[1] + 1]), bias=zero),
    ):
        with pytest.raises(BitLabError):
            bad.infer(kind)
    Lookup(np.full(256, INT32[1])).infer(kind)
    Add().infer(kind, kind)
    assert Flatten().infer(kind) == kind
    assert Requantize(one, zero, zero, 7, 7).infer(kind).high == 7
