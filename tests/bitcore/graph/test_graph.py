"""The graph: interpreter, files, dead code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save, save_file

from bitcore.container import save_container
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph import (
    OPS,
    Add,
    Flatten,
    Graph,
    InputSpec,
    IntTensor,
    Linear,
    Node,
    NormShift,
    Op,
    Requantize,
    bring_together,
    eliminate_dead,
)
from bitcore.quantizers import SCALERS
from graphs import BLOCKS, ENDS, GraphMaker, random_graph
from networks import extreme_codes, random_chain


def chain(spec: InputSpec, *ops: Op) -> Graph:
    nodes: list[Node] = []
    source, kind = "input", spec.type
    for i, op in enumerate(ops):
        kind = op.infer(kind)
        nodes.append(Node(f"n{i}", op, (source,), kind))
        source = f"n{i}"
    return Graph(spec, tuple(nodes), 0.5, {"made": "by hand"})


def small_graph() -> Graph:
    spec = InputSpec((2, 3), "int8", 0.25)
    return chain(
        spec,
        Flatten(),
        Linear(np.arange(-12, 12).reshape(4, 6), "int8", np.array([1, -2, 3, -4])),
        NormShift(127, True),
        Linear(np.array([[1, -1, 0, 1], [0, 1, 1, -1]]), "ternary", np.zeros(1, dtype=np.int64)),
    )


def test_run_and_trace() -> None:
    graph = small_graph()
    codes = np.arange(-6, 6).reshape(2, 2, 3)
    trace = dict(graph.trace(codes))
    assert list(trace) == ["input", *(node.name for node in graph.nodes)]
    assert np.array_equal(trace["n3"], graph.run(codes))
    for sample, output in zip(codes, graph.run(codes), strict=True):
        accumulators = np.arange(-12, 12).reshape(4, 6) @ sample.flatten() + [1, -2, 3, -4]
        shifted = NormShift(127, True).reference(accumulators[None])[0]
        assert output.tolist() == [shifted[0] - shifted[1] + shifted[3], shifted[1] + shifted[2] - shifted[3]]
    assert graph.run(codes[:0]).shape == (0, 2)
    assert graph.macs() == 24 + 8


@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 3), ()])
def test_wrong_input_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BitLabError, match=r"this network takes \(2, 3\)"):
        small_graph().run(np.zeros((4, *shape), dtype=np.int64))
    with pytest.raises(BitLabError, match=r"this network takes \(2, 3\)"):
        small_graph().input.quantize(torch.zeros(4, *shape))


@pytest.mark.parametrize("value", [-128, 128, 1000])
def test_codes_out_of_range_are_refused(value: int) -> None:
    codes = np.zeros((1, 2, 3), dtype=np.int64)
    codes[0, 1, 2] = value
    with pytest.raises(BitLabError, match=r"-127…127 \(int8\)"):
        small_graph().run(codes)


def test_the_interpreter_checks_int32() -> None:
    """Even where a graph was put together with types that lie."""
    op = Linear(np.full((1, 1), 2**28), "int8", np.zeros(1, dtype=np.int64))
    graph = Graph(InputSpec((1,), "int8", 1.0), (Node("fc", op, ("input",), IntTensor((1,), 0, 0)),), 1.0)
    assert graph.run(np.array([[7]])).tolist() == [[7 * 2**28]]
    with pytest.raises(BitLabError, match="'fc' leaves int32"):
        graph.run(np.array([[8]]))


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.bits >= 8])
@pytest.mark.parametrize("scale", [0.25, 0.1, None])
def test_input_quantization_is_the_formats(name: str, scale: float | None) -> None:
    fmt = FORMATS[name]
    x = torch.randn(5, 2, 3) * 20
    for scaler in ("absmax", "absmax_pow2"):
        spec = InputSpec((2, 3), name, scale, scaler)
        scales = torch.tensor(scale) if scale else SCALERS[scaler](x.flatten(1), fmt)[..., None]
        expected = fmt.nearest(x / scales)
        got = spec.quantize(x)
        assert got.dtype == np.int64
        assert np.array_equal(got, expected.numpy())
        assert spec.type.low <= got.min() and got.max() <= spec.type.high


def test_random_graphs_have_every_operation() -> None:
    graphs = [random_graph(np.random.default_rng(0), list(BLOCKS), end=end) for end in ENDS]
    assert {node.op.kind for graph in graphs for node in graph.nodes} == set(OPS)
    assert {node.type.storage for graph in graphs for node in graph.nodes} == {"int8", "uint8", "int16", "int32"}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("make", [random_chain, random_graph])
def test_save_and_load_give_the_same_graph(make: Callable[..., Graph], seed: int, tmp_path: Path) -> None:
    graph = make(np.random.default_rng(seed))
    graph.save(tmp_path / "deep" / "g.safetensors")
    loaded = Graph.load(tmp_path / "deep" / "g.safetensors")
    assert loaded.input == graph.input
    assert loaded.output_scale == graph.output_scale
    assert loaded.info == graph.info
    assert [(n.name, n.op.kind, n.inputs, n.type) for n in loaded.nodes] == [
        (n.name, n.op.kind, n.inputs, n.type) for n in graph.nodes
    ]
    codes = np.random.default_rng(seed).integers(
        graph.input.type.low, graph.input.type.high + 1, (7, *graph.input.shape)
    )
    assert np.array_equal(loaded.run(codes), graph.run(codes))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "deep" / "g.safetensors").read_bytes()


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    small_graph().save(path)
    whole = path.read_bytes()
    for size in (0, 4, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BitLabError, match="no file|no intact safetensors file"):
            Graph.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    with pytest.raises(BitLabError, match="no file|no intact safetensors file"):
        Graph.load(path)
    with pytest.raises(BitLabError, match="no file|no intact safetensors file"):
        Graph.load(tmp_path)
    path.write_bytes(b"\x80\x04\x95 a pickle is not read")
    with pytest.raises(BitLabError, match="no file|no intact safetensors file"):
        Graph.load(path)
    for metadata in (None, {"something": "else"}):
        save_file({"a": np.zeros(3)}, path, metadata)
        with pytest.raises(BitLabError, match="something else, not of a BitLab graph"):
            Graph.load(path)


@pytest.mark.parametrize("damage", ["no json", "no nodes", "op", "field", "input", "tensor", "format", "null"])
def test_damaged_headers_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    kind = "bitlab-graph-1"
    tensors = {"fc.levels": np.ones((2, 3), dtype=np.int64), "fc.bias": np.zeros(1, dtype=np.int64)}
    node: dict = {"name": "fc", "op": "linear", "inputs": ["input"], "fields": {"format": "ternary"}}
    header: dict = {
        "input": {"shape": [3], "format": "int8", "scale": 1.0, "scaler": "absmax"},
        "nodes": [node],
        "output_scale": 1.0,
        "info": {},
    }
    save_container(path, kind, header, tensors, save)
    assert Graph.load(path).run(np.ones((1, 3), dtype=np.int64)).tolist() == [[3, 3]]
    if damage == "no nodes":
        del header["nodes"]
    elif damage == "op":
        node["op"] = "teleport"
    elif damage == "field":
        node["fields"] = {"format": "ternary", "colour": 1}
    elif damage == "input":
        node["inputs"] = ["nowhere"]
    elif damage == "tensor":
        del tensors["fc.bias"]
    elif damage == "format":
        header["input"]["format"] = "int99"
    save_container(path, kind, header, tensors, save)
    if damage in ("no json", "null"):
        save_file(tensors, path, {kind: {"no json": "{", "null": "null"}[damage]})
    with pytest.raises(BitLabError):
        Graph.load(path)


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.safetensors"
    small_graph().save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(BitLabError, match="No space left"):
        random_chain(np.random.default_rng(0)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_eliminate_dead_keeps_what_the_output_needs() -> None:
    spec = InputSpec((3,), "int8", 1.0)
    linear = Linear(np.ones((2, 3), dtype=np.int64), "int8", np.zeros(1, dtype=np.int64))
    shift = Requantize(np.array([1]), np.array([0]), np.array([1]), -127, 127)
    accumulator = linear.infer(spec.type)
    activation = shift.infer(accumulator)
    nodes = (
        Node("a", linear, ("input",), accumulator),
        Node("dead1", shift, ("a",), activation),
        Node("b", shift, ("a",), activation),
        Node("dead2", Flatten(), ("dead1",), activation),
        Node("c", Flatten(), ("b",), activation),
    )
    graph = Graph(spec, nodes, 1.0)
    alive = eliminate_dead(graph)
    assert [node.name for node in alive.nodes] == ["a", "b", "c"]
    codes = np.array([[1, 2, 3], [-4, 5, -6]])
    assert np.array_equal(alive.run(codes), graph.run(codes))
    assert [node.name for node in eliminate_dead(alive).nodes] == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(30))
def test_bringing_together_changes_no_result(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed))
    codes = extreme_codes(graph, 8)
    before = dict(graph.trace(codes))
    after = bring_together(graph)
    assert after.output is graph.output
    assert set(after.nodes) == set(graph.nodes)
    assert all(np.array_equal(value, before[name]) for name, value in after.trace(codes))


def test_elementwise_nodes_are_brought_behind_what_they_read() -> None:
    """Two convolutions, then what makes their results narrow, then their sum: no int32 map is left."""
    maker = GraphMaker(np.random.default_rng(0), (2, 6, 6), "int8")
    convolutions = [maker.conv(3, 1, keep=True)]
    maker.at = "input"
    convolutions.append(maker.conv(3, 1, keep=True))
    ends = []
    for maker.at in convolutions:
        ends.append(maker.grid())
    maker.add(Add(), *ends)
    maker.grid()
    graph = bring_together(maker.finish("maps"))
    kinds = [node.op.kind for node in graph.nodes]
    assert kinds[:6] == ["conv2d", "requantize", "conv2d", "requantize", "add", "requantize"]
