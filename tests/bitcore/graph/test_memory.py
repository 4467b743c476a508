"""The memory plan: fused steps, buffers that never meet, a small arena."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitcore.graph import (
    Add,
    Flatten,
    Graph,
    InputSpec,
    MaxPool2d,
    Node,
    NormShift,
    Op,
    Requantize,
    bring_together,
    plan_memory,
)
from bitcore.graph.memory import MemoryPlan
from graphs import GraphMaker, random_graph
from networks import random_chain, random_linear


def sequence(shape: tuple[int, ...], *ops: Op) -> Graph:
    spec = InputSpec(shape, "int8", 1.0)
    nodes: list[Node] = []
    for i, op in enumerate(ops):
        source, kind = (nodes[-1].name, nodes[-1].type) if nodes else ("input", spec.type)
        nodes.append(Node(f"n{i}", op, (source,), op.infer(kind)))
    return Graph(spec, tuple(nodes), 1.0)


def halve() -> Requantize:
    return Requantize(np.array([1]), np.array([0]), np.array([1]), -127, 127)


def check_plan(graph: Graph, plan: MemoryPlan) -> None:
    """What every plan must keep."""
    computed = [node for step in plan.steps for node in step.nodes]
    assert computed == [node for node in graph.nodes if not isinstance(node.op, Flatten)]
    buffers = {b.name: b for b in plan.buffers}
    types = {node.name: node.type for node in graph.nodes}
    sources = {"input": "input"}
    for node in graph.nodes:
        sources[node.name] = sources[node.inputs[0]] if isinstance(node.op, Flatten) else node.name
    assert set(buffers) == {step.target for step in plan.steps[:-1]}
    written = {"input"}
    for i, step in enumerate(plan.steps):
        assert step.target == step.nodes[-1].name
        assert written.issuperset(step.sources), "every step reads what earlier ones have written"
        assert all(node.op.fused for node in step.nodes[1:])
        handed_on = ""
        for node, reads in zip(step.nodes, step.reads, strict=True):
            inputs = [sources[name] for name in node.inputs]
            assert inputs.count(handed_on) == (handed_on != "")
            assert list(reads) == [name for name in inputs if name != handed_on]
            handed_on = node.name
        written.add(step.target)
        for name in (*step.sources, step.target):
            if name in buffers:
                assert buffers[name].first <= i <= buffers[name].last
    for b in plan.buffers:
        assert b.offset % 4 == 0
        assert b.bytes == types[b.name].bytes
        assert b.offset + b.bytes <= plan.arena
    for i, step in enumerate(plan.steps):
        alive = [b for b in plan.buffers if b.first <= i <= b.last]
        for left, right in itertools.combinations(sorted(alive, key=lambda b: b.offset), 2):
            if {left.name, right.name} == {step.target, step.overwrites}:
                assert (left.offset, left.bytes) == (right.offset, right.bytes)
                old, new = types[str(step.overwrites)], types[step.target]
                assert (old.size, old.item_bytes) == (new.size, new.item_bytes)
                assert buffers[str(step.overwrites)].last == i
                assert step.nodes[0].op.fused or step.overwrites not in step.reads[0], "it is read as a whole"
            else:
                assert left.offset + left.bytes <= right.offset, f"{left} and {right} meet in step {i}"


def needed(plan: MemoryPlan) -> int:
    """No plan can do with less: what is alive in one step (once, where one is written over the other)."""
    alive = ({b.offset: b.bytes for b in plan.buffers if b.first <= i <= b.last} for i in range(len(plan.steps)))
    return max((sum(sizes.values()) for sizes in alive), default=0)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), min_size=3, max_size=9))
def test_chains(seed: int, widths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    graph = random_chain(rng, formats=["int8"] * (len(widths) - 1), widths=widths)
    plan = plan_memory(graph)
    check_plan(graph, plan)
    assert needed(plan) <= plan.arena <= sum(-(-b.bytes // 4) * 4 for b in plan.buffers)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_the_arena_of_up_to_three_buffers_is_minimal(a: int, b: int, c: int) -> None:
    rng = np.random.default_rng(0)
    for fold in ("normshift", "shift"):
        graph = random_chain(rng, formats=["int8"] * 3, folds=[fold, "shift"], widths=[5, a, b, c])
        plan = plan_memory(graph)
        check_plan(graph, plan)
        assert plan.arena - needed(plan) < 4  # less than 4: alignment


def test_fused_nodes_need_no_buffer() -> None:
    rng = np.random.default_rng(0)
    graph = random_chain(rng, formats=["int8"] * 3, folds=["shift", "threshold"], widths=[5, 6, 7, 8])
    plan = plan_memory(graph)
    assert [[node.name for node in step.nodes] for step in plan.steps] == [
        ["fc0", "fc1.input"],
        ["fc1", "fc2.input"],
        ["fc2"],
    ]
    assert [(b.name, b.bytes) for b in plan.buffers] == [("fc1.input", 6), ("fc2.input", 7)]
    assert plan.arena == 8 + 6


def test_a_dynamic_range_needs_the_whole_accumulator() -> None:
    rng = np.random.default_rng(0)
    graph = random_chain(rng, formats=["int8"] * 2, folds=["normshift"], widths=[5, 6, 7])
    plan = plan_memory(graph)
    assert [[node.name for node in step.nodes] for step in plan.steps] == [["fc0"], ["fc1.input"], ["fc1"]]
    assert [(b.name, b.bytes, b.first, b.last) for b in plan.buffers] == [("fc0", 24, 0, 1), ("fc1.input", 6, 1, 2)]
    assert plan.arena == 24 + 6


def test_flatten_shares_its_source() -> None:
    rng = np.random.default_rng(0)
    pool = MaxPool2d((2, 2), (2, 2), (0, 0))
    graph = sequence((2, 4, 4), pool, Flatten(), halve(), NormShift(127, False), Flatten())
    plan = plan_memory(graph)
    check_plan(graph, plan)
    assert [[node.name for node in step.nodes] for step in plan.steps] == [["n0", "n2"], ["n3"]]
    linear = random_linear(rng, graph.nodes[1].type, 3, "int8")
    graph = sequence((2, 4, 4), Flatten(), random_linear(rng, InputSpec((32,), "int8", 1.0).type, 3, "int8"))
    plan = plan_memory(graph)
    assert [(step.source, step.target) for step in plan.steps] == [("input", "n1")]
    assert plan.arena == 0
    graph = sequence((2, 4, 4), pool, Flatten(), linear)
    check_plan(graph, plan_memory(graph))


def test_a_result_that_two_nodes_read_is_not_fused_away() -> None:
    rng = np.random.default_rng(0)
    spec = InputSpec((4,), "int8", 1.0)
    linear = random_linear(rng, spec.type, 4, "int8")
    kind = linear.infer(spec.type)
    act = halve().infer(kind)
    nodes = (
        Node("fc", linear, ("input",), kind),
        Node("a", halve(), ("fc",), act),
        Node("b", halve(), ("fc",), act),
    )
    plan = plan_memory(Graph(spec, nodes, 1.0))
    assert [step.target for step in plan.steps] == ["fc", "a", "b"]
    assert [(step.source, step.target) for step in plan.steps[1:]] == [("fc", "a"), ("fc", "b")]


@pytest.mark.parametrize("flat", ["before", "both"])
def test_a_result_read_through_flatten_too_is_not_fused_away(flat: str) -> None:
    spec = InputSpec((2, 2, 2), "int8", 1.0)
    pool = MaxPool2d((1, 1), (1, 1), (0, 0))
    kind = pool.infer(spec.type)
    vector = Flatten().infer(kind)
    nodes = [
        Node("pool", pool, ("input",), kind),
        Node("flat", Flatten(), ("pool",), vector),
        Node("a", halve(), ("flat",), halve().infer(vector)),
    ]
    if flat == "both":
        nodes.append(Node("flat2", Flatten(), ("pool",), vector))
    nodes.append(Node("b", halve(), ("flat2" if flat == "both" else "pool",), halve().infer(vector)))
    plan = plan_memory(Graph(spec, tuple(nodes), 1.0))
    assert [(step.source, step.target) for step in plan.steps] == [("input", "pool"), ("pool", "a"), ("pool", "b")]


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed))
    for variant in (graph, bring_together(graph)):
        plan = plan_memory(variant)
        check_plan(variant, plan)
        assert needed(plan) <= plan.arena


def residual_graph(blocks: int) -> Graph:
    """A residual network: [conv, requantize, conv, requantize to int16, add] with its stream in int16."""
    maker = GraphMaker(np.random.default_rng(0), (4, 8, 8), "int8")
    stream = [maker.conv(8, 1, keep=True), maker.grid()][-1]
    for _ in range(blocks):
        maker.at = stream
        for outputs in (16, 8):
            maker.add(Requantize(np.array([1]), np.array([0]), np.array([8]), -127, 127))
            maker.conv(outputs, 1, keep=True)
        branch = maker.grid(13)
        stream = maker.add(Add(), branch, stream)
        stream = maker.add(Requantize(np.array([1]), np.array([0]), np.array([1]), -(2**13), 2**13))
    return bring_together(maker.finish("linear"))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_residual_network_keeps_its_stream_in_one_place(blocks: int) -> None:
    """Sums are written over the operand that dies; the arena holds stream, hidden map and nothing else."""
    graph = residual_graph(blocks)
    plan = plan_memory(graph)
    check_plan(graph, plan)
    adds = [step for step in plan.steps if any(isinstance(node.op, Add) for node in step.nodes)]
    assert len(adds) == blocks
    assert all(step.overwrites is not None and len(step.nodes) == 4 for step in adds), "conv, grid, add, halve"
    stream, hidden, read = 8 * 64 * 2, 16 * 64, 8 * 64
    assert plan.arena == needed(plan) == stream + hidden + read


def test_a_sum_with_what_a_convolution_reads_is_not_written_over_it() -> None:
    maker = GraphMaker(np.random.default_rng(0), (4, 8, 8), "int8")
    maker.conv(4, 1, keep=True)
    source = maker.add(Requantize(np.array([1]), np.array([0]), np.array([8]), -127, 127))
    maker.conv(4, 1, keep=True)
    maker.add(Requantize(np.array([1]), np.array([0]), np.array([9]), -63, 63))
    maker.add(Add(), maker.at, source)
    maker.add(Requantize(np.array([1]), np.array([0]), np.array([1]), -127, 127))
    graph = maker.finish("linear")
    plan = plan_memory(graph)
    check_plan(graph, plan)
    assert [step.overwrites for step in plan.steps if len(step.sources) == 1 and len(step.nodes) == 4] == [None]
