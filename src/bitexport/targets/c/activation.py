"""What happens to a value between an accumulator and memory, as a C function of one value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from bitcore.graph import Add, Conv2d, Graph, Linear, Lookup, Node, Op, Requantize, Threshold
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT32, IntTensor
from bitexport.targets.c.calls import Layer
from bitexport.targets.c.constants import Constants, literal
from bitexport.targets.c.orders import memory_order
from bitexport.targets.c.plan import CPlan

Kind = TypeVar("Kind", bound=Op)
_C_OF = {"int8": "int8_t", "uint8": "uint8_t", "int16": "BitInt16", "int32": "BitInt32"}
RUNTIME = {  # files of the functions that are called here
    "bit_requantize_shift": "bit_requantize_shift.c",
    "bit_requantize": "bit_requantize.c",
    "bit_threshold": "bit_threshold.c",
    "bit_threshold16": "bit_threshold.c",
}


@dataclass(frozen=True)
class _Value(Generic[Kind]):
    """An operation on single values.

    Attributes:
        first: The node that its call begins with.
        node: The node.
        op: Its operation.
        bias: What is added to the value before.
        source: The value's type.
        others: The buffers that it reads beside the value.
    """

    first: Node
    node: Node
    op: Kind
    bias: Ints
    source: IntTensor
    others: tuple[str, ...]


@dataclass
class Activations:
    """Writes the functions of all layers.

    Attributes:
        graph: The graph.
        plan: Its plan.
        constants: Where constants are added.
        orders: For each node, which of its elements (channels first) each place in memory holds, if not one by one.
        files: The runtime's files that are needed, added to while functions are written.
    """

    graph: Graph
    plan: CPlan
    constants: Constants
    orders: dict[str, Ints | None]
    files: set[str]

    def function(self, layer: Layer) -> str:
        """Returns the C function of a layer: ``static int32_t LABEL_value(...)``."""
        label = self.constants.labels[layer.nodes[0].name]
        self._used: list[str] = []  # requantizations of this function
        lines = list(self._lines(layer))
        text = "\n".join(lines)
        unused = [name for name in ("channel", "element", "buffers") if name not in text]
        body = [*(f"(void){name};" for name in unused), *lines, "return value;"]
        inner = "\n".join(f"    {line}" for line in body)
        return (
            f"static int32_t {label}_value(int32_t value, uint32_t channel, uint32_t element, "
            f"const BitBuffers *buffers) {{\n{inner}\n}}\n"
        )

    def _lines(self, layer: Layer) -> Iterator[str]:
        first = layer.nodes[0]
        bias = first.op.bias if isinstance(first.op, (Linear, Conv2d)) else np.zeros(1, dtype=np.int64)
        nodes = list(zip(layer.nodes, layer.reads, strict=True))
        if not first.op.fused:
            nodes = nodes[1:]
        source = first.type
        if not nodes or not isinstance(nodes[0][0].op, (Requantize, Threshold)):
            if np.any(bias):
                yield f"value += {self._element(first, first, 'bias', bias)};"
            bias = np.zeros(1, dtype=np.int64)
        if first.op.fused:
            source = self.plan.types[layer.source]
        for node, reads in nodes:
            others = reads[1:] if node is first else reads
            yield from VALUES[type(node.op)](self, _Value(first, node, node.op, bias, source, others))
            bias = np.zeros(1, dtype=np.int64)
            source = node.type

    def _requantize(self, value: _Value[Requantize]) -> Iterator[str]:
        first, node, op, bias = value.first, value.node, value.op, value.bias
        largest = value.source.largest
        m, b, s = np.broadcast_arrays(op.multiplier, op.bias, op.shift)
        fits = int((np.abs(m) * largest + np.abs(b)).max()) <= INT32[1] and int(s.max()) <= 31
        if np.any(bias):  # (x + bias) * m + b = x * m + (b + bias * m)
            m, b, s = np.broadcast_arrays(m, b + bias * m, s)
        suffix = f"_{len(self._used)}" if self._used else ""
        self._used.append(node.name)
        wide = "int32_t" if fits else "int64_t"
        names = []
        for what, values, c_type in (("multiplier", m, "int32_t"), ("bias", b, wide), ("shift", s, "unsigned")):
            expression = self._element(first, node, what, values)
            names.append(f"{what}{suffix}")
            if what == "multiplier" and fits and op.shifts_only:
                continue
            if re.match(r"-?\w", expression):  # a number
                names[-1] = expression
            else:
                yield f"const {c_type} {names[-1]} = {expression};"
        factor, offset, shift = names
        rest = f"{offset}, {shift}, {literal(op.low)}, {literal(op.high)}"
        function = "bit_requantize_shift" if fits else "bit_requantize"
        self.files.add(RUNTIME[function])
        if fits and not op.shifts_only:
            yield f"value = (int32_t)bit_mul((uint32_t)value, (uint32_t){factor});"
        yield f"value = {function}(value, {rest});" if fits else f"value = {function}(value, {factor}, {rest});"

    def _lookup(self, value: _Value[Lookup]) -> Iterator[str]:
        table = self.constants.labels[value.node.name] + "_table"
        self.constants.add(table, value.op.table.tolist())
        yield f"value = {self._read(table, '(uint8_t)value')};"

    def _add(self, value: _Value[Add]) -> Iterator[str]:
        for i, name in enumerate(value.others):
            yield f"value += {self._operand(value.node, i, name)};"

    def _threshold(self, value: _Value[Threshold]) -> Iterator[str]:
        first, node, op, bias = value.first, value.node, value.op, value.bias
        signs, thresholds = op.sign, op.thresholds
        if np.any(bias):  # sign * (x + bias) >= t exactly where sign * x >= t - sign * bias
            signs = np.broadcast_to(signs, np.broadcast_shapes(signs.shape, bias.shape))
            thresholds = thresholds - (signs * bias)[:, None]
        thresholds = np.clip(thresholds, *INT32)
        if np.any(signs < 0):
            yield f"value = {self._element(first, node, 'sign', signs)} < 0 ? -value : value;"
        count = thresholds.shape[1]
        name = f"{self.constants.labels[node.name]}_thresholds"
        if len(thresholds) > 1:
            thresholds = self._in_memory_order(node, thresholds)
        small = thresholds.min() >= -(2**15) and thresholds.max() < 2**15
        self.constants.add(name, thresholds.ravel().tolist(), "int16_t" if small else "int32_t")
        function = "bit_threshold16" if small else "bit_threshold"
        self.files.add(RUNTIME[function])
        row = name
        if len(thresholds) > 1:
            row = f"{name} + bit_mul({self._index(first, node)}, {count})"
        reached = f"{function}(value, {row}, {count})"
        reached = f"{op.step} * {reached}" if op.step > 1 else reached
        yield f"value = {reached};" if op.low == 0 else f"value = {op.low} + {reached};"

    # ---- elements ----------------------------------------------------------------------------------------------------

    def _element(self, first: Node, node: Node, what: str, values: Ints) -> str:
        """The expression of a node's parameter for this channel, or this element where a map has been flattened."""
        if len(values) > 1:
            values = self._in_memory_order(node, values)
        name, c_type = f"{self.constants.labels[node.name]}_{what}", "uint8_t" if what == "shift" else None
        return self.constants.element(name, values, self._index(first, node), c_type)

    def _index(self, first: Node, node: Node) -> str:
        return "element" if len(first.type.shape) > 1 and len(node.type.shape) == 1 else "channel"

    def _in_memory_order(self, node: Node, values: Ints) -> Ints:
        order = self.orders[node.name]
        return values if order is None or len(node.type.shape) > 1 else values[order]

    def _operand(self, node: Node, i: int, name: str) -> str:
        """The element of the ``i``-th other result that is added."""
        storage = self.plan.types[name].storage
        index = "element"
        mine = self.orders[node.name]
        other = (
            self.orders[name] if len(self.plan.types[name].shape) == 1 else memory_order(self.plan.types[name].shape)
        )
        if len(node.type.shape) == 1 and not _same(mine, other):
            size = node.type.size
            inverse = np.argsort(np.arange(size) if other is None else other)
            array = f"{self.constants.labels[node.name]}_order_{i}"
            self.constants.add(array, inverse[np.arange(size) if mine is None else mine].tolist())
            index = self._read(array, "element")
        if name == "input":
            return f"((const {_C_OF[storage]} *)buffers->input)[{index}]"
        return f"((const {_C_OF[storage]} *)(const void *)(buffers->arena + {self.plan.offset(name)}))[{index}]"

    def _read(self, array: str, index: str) -> str:
        """An element of an array that has just been added, in flash."""
        constant = self.constants.arrays[-1]
        return f"({constant.type})BIT_FLASH{constant.bits}(&{array}[{index}])"


VALUES: dict[type[Op], Callable[[Activations, _Value[Any]], Iterator[str]]] = {
    Requantize: Activations._requantize,
    Threshold: Activations._threshold,
    Lookup: Activations._lookup,
    Add: Activations._add,
}
"""What writes the statements of each operation on single values: these, and no other, run behind another operation."""


def _same(a: Ints | None, b: Ints | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))
