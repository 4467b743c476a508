"""What C can compute: operations, formats and sizes. A graph that holds more is refused before anything is written."""

from __future__ import annotations

from collections.abc import Iterator

from bitcore.graph import Conv2d, Flatten, Graph, Linear, MaxPool2d, Node, NormShift, SumPool2d, Threshold
from bitcore.graph.types import INT32, IntTensor
from bitexport.targets.base import Problem, weight_problems
from bitexport.targets.c.layers import FUNCTIONS
from bitexport.targets.c.plan import plan_layers

_LONGEST, _WIDEST = 2**16 - 1, 2**8 - 1  # of maps and vectors; of windows and their steps (csrc/portable/bit_layers.h)


def problems_of(graph: Graph) -> list[Problem]:
    """Returns what C cannot compute of a graph; empty if nothing."""
    problems = [*weight_problems(graph), *_unknown(graph)]
    if problems:  # such a graph cannot be planned
        return problems
    types = plan_layers(graph).types
    types |= {node.name: node.type for node in graph.nodes if node.name not in types}
    found = ((node.name, _excess(node, types[node.inputs[0]])) for node in graph.nodes)
    return [*_ends(graph), *(Problem(name, message) for name, message in found if message)]


def _unknown(graph: Graph) -> Iterator[Problem]:
    """Operations that C has no way for."""
    for node in graph.nodes:
        if type(node.op) not in FUNCTIONS and type(node.op) is not Flatten:
            yield Problem(node.name, f"{node.op.kind} has no C; there are: {', '.join(_known())}")
    if all(isinstance(node.op, Flatten) for node in graph.nodes):
        yield Problem(graph.output.name, "there is nothing to compute; add a layer")


def _ends(graph: Graph) -> Iterator[Problem]:
    """Inputs and outputs that the functions of an export do not have."""
    if graph.input.type.item_bytes > 1:
        yield Problem("input", f"C takes inputs of 8 bits, not {graph.input.format}; use int8 or uint8")
    if len(graph.output.type.shape) != 1:
        yield Problem(graph.output.name, "C gives a vector of scores, no map; flatten it")


def _known() -> list[str]:
    return sorted(op.kind for op in (*FUNCTIONS, Flatten))


def _excess(node: Node, source: IntTensor) -> str:
    """Says in what an operation exceeds C's integers; empty if in nothing."""
    op = node.op
    longest = max(*node.type.shape, *source.shape)
    if longest > _LONGEST and not isinstance(op, Flatten):
        return f"C counts to {_LONGEST}, not to {longest}; use a smaller layer"
    if isinstance(op, (Conv2d, MaxPool2d, SumPool2d)) and max(_steps(op)) > _WIDEST:
        return f"windows are wider than {_WIDEST}; use smaller ones"
    if isinstance(op, (Linear, Conv2d)) and source.item_bytes > 1:
        return "its input is wider than 8 bits; quantize it to 8 bits or fewer"
    if isinstance(op, NormShift) and node.type.item_bytes > 1:
        return "a dynamic range gives 8 bits; use int8 or uint8"
    if isinstance(op, Threshold) and max(abs(int(op.thresholds.min())), int(op.thresholds.max())) > INT32[1]:
        return "a threshold leaves int32; use fewer inputs or smaller weights"
    return ""


def _steps(op: Conv2d | MaxPool2d | SumPool2d) -> tuple[int, ...]:
    """A window's size, and what it moves by."""
    if isinstance(op, Conv2d):
        return (*op.levels.shape[2:], *op.padding, *op.stride, *op.dilation)
    return (*op.kernel, *op.padding, *op.stride)
