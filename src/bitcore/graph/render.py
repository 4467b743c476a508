"""The graph for people: rows of a table, and Graphviz."""

from __future__ import annotations

from collections.abc import Mapping

from bitcore.graph.graph import Graph
from bitcore.graph.memory import plan_memory
from bitcore.graph.ops import Conv2d, Linear
from bitcore.graph.types import IntTensor
from bitcore.naming import identifiers, printable

COLUMNS = ("node", "operation", "reads", "shape", "range", "stored as", "arena")


def graph_rows(graph: Graph, arena: Mapping[str, tuple[int, int]] | None = None) -> list[tuple[str, ...]]:
    """Returns one row of `COLUMNS` for the input and for every node; fused results have no place in the arena.

    Args:
        graph: The graph.
        arena: Where an export has its results, the input and the ``"output"``: the first byte and the one behind the
            last. Without it, the places of the graph's own plan, in which input and output belong to the caller.
    """
    if arena is None:
        arena = {b.name: (b.offset, b.offset + b.bytes) for b in plan_memory(graph).buffers}
    places = {"input": "input", **{name: f"{begin}…{end - 1}" for name, (begin, end) in arena.items()}}
    places[graph.output.name] = places.pop("output", "output")
    spec = graph.input
    scale = f"scale {spec.scale:g}" if spec.scale is not None else "scale of the sample"
    rows = [
        (
            "input",
            f"{spec.format}, {scale}",
            "",
            _shape(spec.shape),
            _range(spec.type),
            spec.type.storage,
            places["input"],
        )
    ]
    for node in graph.nodes:
        op = node.op
        what = f"{op.kind} {op.format}" if isinstance(op, (Linear, Conv2d)) else op.kind
        what += ", multiplies" if op.multiplications(node.type) else ""
        place = places.get(node.name, "")
        rows.append(
            (
                printable(node.name),
                what,
                ", ".join(map(printable, node.inputs)),
                _shape(node.type.shape),
                _range(node.type),
                node.type.storage,
                place,
            )
        )
    return rows


def graph_table(graph: Graph, arena: Mapping[str, tuple[int, int]] | None = None) -> str:
    """Returns the graph as a plain text table; arguments as of `graph_rows`."""
    rows = [COLUMNS, *graph_rows(graph, arena)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def graph_dot(graph: Graph) -> str:
    """Returns the graph in Graphviz's language (``dot -Tsvg``)."""
    lines = ["digraph network {", '  node [shape=box, fontname="sans-serif"];']
    names = ["input", *(node.name for node in graph.nodes)]
    boxes = identifiers(names)
    for box, (name, what, _, shape, bounds, stored, _place) in zip(boxes.values(), graph_rows(graph), strict=True):
        label = "\\n".join(map(_escaped, (name, what, f"{shape} {stored}", bounds)))
        lines.append(f'  "{box}" [label="{label}"];')
    for node in graph.nodes:
        lines += [f'  "{boxes[source]}" -> "{boxes[node.name]}";' for source in node.inputs]
    return "\n".join([*lines, "}", ""])


def _escaped(text: str) -> str:
    """Printable text inside quotes of Graphviz, which knows escapes and the entities of HTML."""
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _range(kind: IntTensor) -> str:
    return f"{kind.low}…{kind.high}"
