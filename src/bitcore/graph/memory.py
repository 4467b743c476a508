"""The memory plan: which steps run, which buffers they need and where in one arena each buffer lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bitcore.graph.graph import Graph, Node
from bitcore.graph.ops import Flatten

_ALIGNMENT = 4


@dataclass(frozen=True, eq=False)
class Step:
    """Nodes that run as one: the first, and the elementwise nodes fused behind it.

    Attributes:
        nodes: In order; only the last one's result is stored.
        reads: The buffers that each node reads, apart from the result that the node before it in the step hands on:
            all inputs of the first node, the other operands of an addition, nothing for most.
        target: The buffer that is written (the last node's name).
        overwrites: The buffer in whose place the target lies, or ``None``. Its elements are as wide as the target's,
            and element i is read for result i alone, so that they may be computed in any order.
    """

    nodes: tuple[Node, ...]
    reads: tuple[tuple[str, ...], ...]
    target: str
    overwrites: str | None = None

    @property
    def source(self) -> str:
        """The (first) buffer that the first node reads."""
        return self.reads[0][0]

    @property
    def sources(self) -> tuple[str, ...]:
        """All buffers that are read, each once."""
        return tuple(dict.fromkeys(name for names in self.reads for name in names))


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


@dataclass
class _Place:
    """Buffers that follow each other in one place, each written over the one before."""

    names: list[str]
    bytes: int
    first: int
    last: int


# In which order places are given addresses. None is best for every graph; all are tried.
_ORDERS: tuple[Callable[[_Place], tuple[int, ...]], ...] = (
    lambda p: (-p.bytes, p.first),
    lambda p: (p.first - p.last, -p.bytes),
    lambda p: (-p.bytes * (p.last - p.first + 1), p.first),
    lambda p: (p.first, -p.bytes),
    lambda p: (-p.last, -p.bytes),
)


def plan_memory(graph: Graph) -> MemoryPlan:
    """Fuses elementwise nodes, lets results overwrite operands that die, then gives every buffer its address.

    Two buffers may overlap exactly when no step needs both, apart from a step's target and what it overwrites. Each
    buffer in turn gets the lowest free address; of several orders the one with the smallest arena wins.
    """
    steps = tuple(_fuse(graph))
    steps, places = _places(steps)
    layouts = (_layout(sorted(places, key=order)) for order in _ORDERS)
    offsets = min(layouts, key=lambda layout: layout[0])[1]
    last = _last_uses(steps)
    buffers = [
        Buffer(step.target, offsets[step.target], step.nodes[-1].type.bytes, i, last[step.target])
        for i, step in enumerate(steps[:-1])
    ]
    return MemoryPlan(steps, tuple(buffers))


def _fuse(graph: Graph) -> Iterator[Step]:
    """Groups the nodes: a fused node joins the step before it when nothing else reads that step's result."""
    alias: dict[str, str] = {}  # a flattened tensor is its source under another shape
    for node in graph.nodes:
        if isinstance(node.op, Flatten):
            alias[node.name] = alias.get(node.inputs[0], node.inputs[0])
    nodes = [node for node in graph.nodes if not isinstance(node.op, Flatten)]
    reads = {node.name: tuple(alias.get(name, name) for name in node.inputs) for node in nodes}
    readers = Counter(name for names in reads.values() for name in names)
    step: Step | None = None
    for node in nodes:
        names = reads[node.name]
        if step is not None and node.op.fused and step.target in names and readers[step.target] == 1:
            others = tuple(name for name in names if name != step.target)
            step = Step((*step.nodes, node), (*step.reads, others), node.name)
            continue
        if step is not None:
            yield step
        step = Step((node,), (names,), node.name)
    if step is not None:
        yield step


def _last_uses(steps: tuple[Step, ...]) -> dict[str, int]:
    """The last step that reads each target, or that writes it where none does."""
    last = {step.target: i for i, step in enumerate(steps)}
    last.update({name: i for i, step in enumerate(steps) for name in step.sources if name in last})
    return last


def _places(steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], list[_Place]]:
    """Returns the steps with what each overwrites, and the places that buffers share in turn."""
    last = _last_uses(steps)
    of: dict[str, _Place] = {}
    types = {step.target: step.nodes[-1].type for step in steps}
    done: list[Step] = []
    for i, step in enumerate(steps[:-1]):
        kind = types[step.target]
        whole = () if step.nodes[0].op.fused else step.reads[0]  # what is not read element by element
        free = (
            name
            for name in step.sources
            if name not in whole
            and name in of
            and last[name] == i
            and (types[name].size, types[name].item_bytes) == (kind.size, kind.item_bytes)
        )
        over = next(free, None)
        if over is None:
            of[step.target] = _Place([step.target], kind.bytes, i, last[step.target])
        else:
            place = of[step.target] = of[over]
            place.names.append(step.target)
            place.last = last[step.target]
        done.append(Step(step.nodes, step.reads, step.target, over))
    places = {id(place): place for place in of.values()}
    return (*done, *steps[-1:]), list(places.values())


def _layout(places: list[_Place]) -> tuple[int, dict[str, int]]:
    """Gives each place, in this order, the lowest address that is free while it lives: the arena's size and offsets."""
    placed: list[tuple[_Place, int]] = []
    for place in places:
        busy = sorted((at, at + p.bytes) for p, at in placed if p.first <= place.last and place.first <= p.last)
        offset = 0
        for begin, end in busy:
            if offset + place.bytes <= begin:
                break
            offset = max(offset, -(-end // _ALIGNMENT) * _ALIGNMENT)
        placed.append((place, offset))
    arena = max((at + place.bytes for place, at in placed), default=0)
    return arena, {name: at for place, at in placed for name in place.names}
