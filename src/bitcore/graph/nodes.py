"""The nodes of a graph under construction."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from bitcore.errors import BitLabError
from bitcore.graph.fixed_point import MULTIPLIER_BITS, rescaling, shared
from bitcore.graph.graph import InputSpec, Node
from bitcore.graph.ops import Op, Requantize
from bitcore.graph.values import Value
from bitcore.naming import plain

INPUT, OUTPUT = "input", "output"  # the graph's own names


class NodeBuilder:
    """Adds nodes, each name once and each result once.

    Names only tell nodes apart: whatever a model calls its layers, none gets a name of the graph's own (`INPUT`,
    `OUTPUT`), one that is taken, or one with characters that mean something in C, Graphviz or a table.

    Attributes:
        layer: The layer being lowered: it names nodes and errors.
    """

    def __init__(self) -> None:
        self.layer = INPUT
        self._nodes: dict[str, Node] = {}
        self._input: InputSpec | None = None

    def error(self, message: str) -> BitLabError:
        """Returns an error that names the layer being lowered."""
        return BitLabError(f"layer '{self.layer}': {message}")

    def _add(self, name: str, op: Op, *sources: str | None, scale: float | None = None) -> Node:
        """Adds a node whose results count ``scale``, or returns the one that computes the same of the same.

        Its name is one that is `_free`, or the graph's own.
        """
        inputs = tuple(source for source in sources if source is not None)
        if len(inputs) < len(sources):
            raise self.error("its input was never quantized")
        for node in self._nodes.values():
            if node.inputs == inputs and _same(node.op, op):
                return node
        assert self._input is not None
        types = [self._nodes[i].type if i in self._nodes else self._input.type for i in inputs]
        try:
            node = Node(name, op, inputs, op.infer(*types), scale)
        except BitLabError as error:
            raise self.error(str(error)) from error
        self._nodes[name] = node
        return node

    def _free(self, name: str) -> str:
        """Returns a name that no node has yet: this one, or numbered."""
        name = plain(name)
        names = (name, *(f"{name}.{i}" for i in range(2, len(self._nodes) + 5)))
        return next(n for n in names if n not in (INPUT, OUTPUT, *self._nodes))

    def _append(self, x: Value, name: str, op: Op, scale: float) -> Value:
        """Adds what turns ``x`` into integers that count ``scale``, then what is pending."""
        known = None if x.relative else scale
        node = self._add(self._free(name), op, x.node, scale=known)
        for pending_name, pending in x.pending:
            node = self._add(self._free(pending_name), pending, node.name, scale=known)
        return Value.of_codes(node.name, node.type, scale, x.relative, x.layer)

    def _requantize(self, x: Value, scale: float, low: int, high: int, bits: int = MULTIPLIER_BITS) -> Requantize:
        """Folds scale, offset and clip into multiplier, bias and shift. Powers of two give shifts alone."""
        ratio, offset = x.scale / scale, x.offset / scale
        problem = "its requantization leaves 62 bits; the scales of weights and activations differ too much"
        if np.abs(ratio).max() >= 2**31:
            raise self.error(problem)
        multiplier, bias, shift = rescaling(ratio, offset, (low + high) / 2, bits)
        if int(np.abs(multiplier).max()) * x.type.largest + float(np.abs(bias).max()) >= 2**62:
            raise self.error(problem)
        return Requantize(*shared(multiplier, bias.astype(np.int64), shift), low=low, high=high)


def _same(a: Op, b: Op) -> bool:
    same = (np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))  # type: ignore[arg-type]
    return type(a) is type(b) and all(same)
