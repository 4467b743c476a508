"""The memory plan: fused steps, buffers that never meet, a small arena."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitcore.graph import Flatten, Graph, InputSpec, MaxPool2d, Node, NormShift, Op, Requantize, plan_memory
from bitcore.graph.memory import MemoryPlan
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
    sources = {node.name: node.inputs[0] if isinstance(node.op, Flatten) else node.name for node in graph.nodes}
    assert set(buffers) == {step.target for step in plan.steps[:-1]}
    written = {"input"}
    for i, step in enumerate(plan.steps):
        assert step.target == step.nodes[-1].name
        assert step.source in written, "every step reads what an earlier one has written"
        assert all(node.op.fused for node in step.nodes[1:])
        for before, node in zip(step.nodes, step.nodes[1:], strict=False):
            assert sources[node.inputs[0]] == before.name
        written.add(step.target)
        for name in (step.source, step.target):
            if name in buffers:
                assert buffers[name].first <= i <= buffers[name].last
    for b in plan.buffers:
        assert b.offset % 4 == 0
        assert b.bytes == types[b.name].bytes
        assert b.offset + b.bytes <= plan.arena
    for i in range(len(plan.steps)):
        alive = sorted((b for b in plan.buffers if b.first <= i <= b.last), key=lambda b: b.offset)
        for left, right in itertools.pairwise(alive):
            assert left.offset + left.bytes <= right.offset, f"{left} and {right} meet in step {i}"


def needed(plan: MemoryPlan) -> int:
    """No plan can do with less: what is alive in one step."""
    return max(
        (sum(b.bytes for b in plan.buffers if b.first <= i <= b.last) for i in range(len(plan.steps))), default=0
    )


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
