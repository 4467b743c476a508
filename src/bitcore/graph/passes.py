"""Passes: changes of a graph that leave every result as it is."""

from __future__ import annotations

from dataclasses import replace

from bitcore.graph.graph import Graph, Node
from bitcore.graph.ops import Flatten


def eliminate_dead(graph: Graph) -> Graph:
    """Returns the graph without the nodes that the output does not need."""
    needed = {graph.output.name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.name in needed))


def bring_together(graph: Graph) -> Graph:
    """Returns the graph with every elementwise node as near behind its inputs as can be.

    Then they fuse with what they follow (see `plan_memory`), and no accumulator waits in int32 for a later addition.
    """
    waiting = dict.fromkeys(graph.nodes)
    done: dict[str, Node | None] = {"input": None}

    def place(node: Node) -> None:
        del waiting[node]
        done[node.name] = node
        for reader in [n for n in waiting if node.name in n.inputs and (n.op.fused or isinstance(n.op, Flatten))]:
            if reader in waiting and all(name in done for name in reader.inputs):
                place(reader)

    for node in graph.nodes:
        if node in waiting:
            place(node)
    return replace(graph, nodes=tuple(node for node in done.values() if node is not None))
