"""In which order elements lie in memory: maps channels last, and flattened maps as they were."""

from __future__ import annotations

import numpy as np

from bitcore.graph import Concat, Flatten, Graph, Linear
from bitcore.graph.ops import Ints


def memory_order(shape: tuple[int, ...]) -> Ints | None:
    """Which element, counted channels first, each place of a map holds; ``None`` if all are where they are counted."""
    order = np.moveaxis(np.arange(np.prod(shape)).reshape(shape), 0, -1).ravel()
    return None if np.array_equal(order, np.arange(len(order))) else order


def find_orders(graph: Graph) -> dict[str, Ints | None]:
    """Returns the order of every vector of a graph: flattened maps keep the order in which they lie in memory."""
    orders: dict[str, Ints | None] = {"input": None}
    shapes = {"input": graph.input.shape, **{node.name: node.type.shape for node in graph.nodes}}
    for node in graph.nodes:
        source = node.inputs[0]
        if len(node.type.shape) > 1 or isinstance(node.op, Linear):
            orders[node.name] = None
        elif isinstance(node.op, Flatten) and len(shapes[source]) > 1:
            orders[node.name] = memory_order(shapes[source])
        elif isinstance(node.op, Concat):
            known = ((orders[i], shapes[i][0]) for i in node.inputs)
            parts = [np.arange(size) if part is None else part for part, size in known]
            starts = np.cumsum([0, *(len(part) for part in parts)])
            order = np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])
            orders[node.name] = None if np.array_equal(order, np.arange(len(order))) else order
        else:
            orders[node.name] = orders[source]
    return orders
