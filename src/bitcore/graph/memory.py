"""The memory plan: which steps run, which buffers they need and where in one arena each buffer lives."""

from __future__ import annotations

from dataclasses import dataclass

from bitcore.graph.graph import Graph, Node
from bitcore.graph.ops import Flatten

_ALIGNMENT = 4


@dataclass(frozen=True, eq=False)
class Step:
    """Nodes that run as one: an accumulating node and the elementwise nodes fused behind it.

    Attributes:
        nodes: In order; only the last one's result is stored.
        source: The buffer that is read.
        target: The buffer that is written (the last node's name).
    """

    nodes: tuple[Node, ...]
    source: str
    target: str


@dataclass(frozen=True)
class Buffer:
    """One intermediate result.

    Attributes:
        name: The node whose result it holds.
        offset: Where it begins in the arena, in bytes (a multiple of 4).
        bytes: Its size.
        first: The step that writes it.
        last: The last step that reads it.
    """

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Steps and buffers of a graph. The input and the output belong to the caller and are not in the arena."""

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]

    @property
    def arena(self) -> int:
        """Bytes of the arena."""
        return max((b.offset + b.bytes for b in self.buffers), default=0)


def plan_memory(graph: Graph) -> MemoryPlan:
    """Fuses elementwise nodes, then places buffers: the largest first, each at the lowest free address.

    Two buffers may overlap exactly when no step needs both.
    """
    steps = _fuse(graph)
    writer = {step.target: i for i, step in enumerate(steps)}
    last = {step.target: i for i, step in enumerate(steps)}
    for i, step in enumerate(steps):
        if step.source in last:
            last[step.source] = max(last[step.source], i)
    sizes = {step.target: step.nodes[-1].type.bytes for step in steps[:-1]}
    placed: list[Buffer] = []
    for name in sorted(sizes, key=lambda n: (-sizes[n], writer[n])):
        busy = sorted(
            (b.offset, b.offset + b.bytes) for b in placed if b.first <= last[name] and writer[name] <= b.last
        )
        offset = 0
        for begin, end in busy:
            if offset + sizes[name] <= begin:
                break
            offset = max(offset, -(-end // _ALIGNMENT) * _ALIGNMENT)
        placed.append(Buffer(name, offset, sizes[name], writer[name], last[name]))
    return MemoryPlan(steps, tuple(sorted(placed, key=lambda b: b.first)))


def _fuse(graph: Graph) -> tuple[Step, ...]:
    """Groups the nodes: a fused node joins the step of its producer when nothing else reads that producer."""
    alias: dict[str, str] = {}  # a flattened tensor is its source under another shape
    readers: dict[str, int] = {}
    for node in graph.nodes:
        source = alias.get(node.inputs[0], node.inputs[0])
        if isinstance(node.op, Flatten):
            alias[node.name] = source
        else:
            readers[source] = readers.get(source, 0) + 1
    steps: list[Step] = []
    for node in graph.nodes:
        if isinstance(node.op, Flatten):
            continue
        source = alias.get(node.inputs[0], node.inputs[0])
        if node.op.fused and steps and steps[-1].target == source and readers[source] == 1:
            steps[-1] = Step((*steps[-1].nodes, node), steps[-1].source, node.name)
        else:
            steps.append(Step((node,), source, node.name))
    return tuple(steps)
