"""Writes the C source of a network: one function a step of the memory plan, constants named after the layers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from bitcore.formats import get_format
from bitcore.graph import Graph, Linear, MemoryPlan, Node, NormShift, Requantize, Step, Threshold, plan_memory
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT32

_INDENT = "    "
_C_TYPES = (("int8_t", 8, True), ("uint8_t", 8, False), ("int16_t", 16, True), ("int32_t", 32, True))


@dataclass(frozen=True)
class Constant:
    """A constant array of the network.

    Attributes:
        name: Its C name.
        type: Its C element type.
        values: The elements.
    """

    name: str
    type: str
    values: list[int]

    @property
    def bytes(self) -> int:
        """Its size in flash."""
        bits = int(re.sub(r"\D", "", self.type))
        return len(self.values) * bits // 8

    def declaration(self) -> str:
        """Returns the C declaration."""
        body = textwrap.fill(", ".join(map(str, self.values)), 120, initial_indent=_INDENT, subsequent_indent=_INDENT)
        return f"static const {self.type} {self.name}[{len(self.values)}] = {{\n{body}\n}};\n"


@dataclass
class CSource:
    """The C source of a graph.

    Attributes:
        graph: The graph.
        name: The network's name, a C identifier.
        plan: Its memory plan.
        constants: All constant arrays, filled while the functions are written.
        runtime: The runtime's C files that the network needs.
    """

    graph: Graph
    name: str
    plan: MemoryPlan = field(init=False)
    constants: list[Constant] = field(default_factory=list)
    runtime: set[str] = field(default_factory=lambda: {"bit_elementwise.c"})

    def __post_init__(self) -> None:
        """Plans the memory."""
        self.plan = plan_memory(self.graph)
        self._labels: dict[str, str] = {}

    def header(self) -> str:
        """Returns ``NAME.h``."""
        upper, name, spec = self.name.upper(), self.name, self.graph.input
        output = self.graph.output.type
        return f"""\
/* {name}: a network exported by BitLab. The interface; {name}.c holds the network. */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

/* {_shape(spec.shape)} values, {spec.type.storage}, {spec.format}. */
#define {upper}_INPUT_SIZE {spec.type.size}
/* int32 scores, {output.low} to {output.high}. */
#define {upper}_OUTPUT_SIZE {output.size}
/* Bytes of working memory. */
#define {upper}_ARENA_SIZE {self.plan.arena}

/* Runs the network on {upper}_INPUT_SIZE values and writes {upper}_OUTPUT_SIZE scores; uses a static arena. */
void {name}_run(const int8_t *input, int32_t *output);

/* The same in the caller's arena of {upper}_ARENA_SIZE bytes, aligned to 4: reentrant. */
void {name}_run_in(const int8_t *input, int32_t *output, void *arena);

/* Returns the class with the highest score. */
int {name}_predict(const int8_t *input);

#endif
"""

    def source(self) -> str:
        """Returns ``NAME.c``."""
        functions = "\n".join(self._function(step) for step in self.plan.steps if not _is_call(step))
        calls = "\n".join(_INDENT + self._call(step) for step in self.plan.steps)
        constants = "\n".join(constant.declaration() for constant in self.constants)
        upper, name = self.name.upper(), self.name
        arena = "uint8_t *const arena = (uint8_t *)memory;" if self.plan.arena else "(void)memory;"
        return f"""\
/* {name}: a network exported by BitLab from a trained model. Generated; see README.md for its sizes.
 *
{self._map()} */
#include "{name}.h"

#include "bit_runtime.h"

{constants}
{functions}
void {name}_run_in(const int8_t *input, int32_t *output, void *memory) {{
    {arena}
{calls}
}}

void {name}_run(const int8_t *input, int32_t *output) {{
    static int32_t arena[{max(1, -(-self.plan.arena // 4))}]; /* {upper}_ARENA_SIZE bytes */
    {name}_run_in(input, output, arena);
}}

int {name}_predict(const int8_t *input) {{
    int32_t output[{upper}_OUTPUT_SIZE];
    {name}_run(input, output);
    return bit_argmax(output, {upper}_OUTPUT_SIZE);
}}
"""

    def _map(self) -> str:
        """The arena's map, for the comment at the top."""
        lines = [
            f" * arena[{b.offset}..{b.offset + b.bytes}): {b.name}, written by step {b.first + 1}, "
            f"last read by step {b.last + 1}\n"
            for b in self.plan.buffers
        ]
        return "".join(lines) or " * No working memory.\n"

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _call(self, step: Step) -> str:
        node = step.nodes[-1]
        x, y = self._pointer(step.source), self._pointer(step.target)
        if isinstance(node.op, NormShift):
            self.runtime.add("bit_normshift.c")
            y = y if node.type.storage == "uint8" else f"(uint8_t *)({y})"
            return f"bit_normshift({x}, {y}, {node.type.size}, {node.op.high}, {int(node.op.relu)}); /* {node.name} */"
        return f"run_{self._label(step.nodes[0].name)}({x}, {y});"

    def _pointer(self, name: str) -> str:
        if name == "input":
            return "input" if self.graph.input.type.storage == "int8" else "(const uint8_t *)input"
        if name == self.plan.steps[-1].target:
            return "output"
        buffer = next(b for b in self.plan.buffers if b.name == name)
        storage = next(step.nodes[-1].type.storage for step in self.plan.steps if step.target == name)
        place = f"arena + {buffer.offset}" if buffer.offset else "arena"
        return place if storage == "uint8" else f"({storage}_t *)({place})"

    def _function(self, step: Step) -> str:
        first, last = step.nodes[0], step.nodes[-1]
        label = self._label(first.name)
        x_type = self._storage(step.source)
        body = list(self._values(first, label, x_type))
        loop = [f"int32_t value = {body.pop()};"]
        for node in step.nodes if not isinstance(first.op, Linear) else step.nodes[1:]:
            if isinstance(node.op, Threshold):
                body.append(self._thresholds(node.name, node.op))
            loop += self._elementwise(node)
        y_type = "int32" if last is self.graph.output else last.type.storage
        loop.append("y[i] = value;" if y_type == "int32" else f"y[i] = ({y_type}_t)value;")
        if isinstance(first.op, Linear):
            loop.append(f"weight += {get_format(first.op.format).packing.row_bytes(first.op.levels.shape[1])};")
        lines = [
            *(f"/* {line} */" for line in self._comment(step)),
            f"static void run_{label}(const {x_type}_t *x, {y_type}_t *y) {{",
            *(_INDENT + line for line in body),
            f"{_INDENT}for (uint32_t i = 0; i < {last.type.size}; i++) {{",
            *(_INDENT * 2 + line for line in loop),
            f"{_INDENT}}}",
            "}",
            "",
        ]
        return "\n".join(lines)

    def _values(self, node: Node, label: str, x_type: str) -> Iterator[str]:
        """Yields the statements before the loop, then the expression of the step's value ``i``."""
        if not isinstance(node.op, Linear):
            yield "x[i]"
            return
        fmt, inputs = get_format(node.op.format), node.op.levels.shape[1]
        packed = fmt.packing.pack(fmt.encode(torch.from_numpy(node.op.levels))).flatten().tolist()
        self._constant(f"{label}_weight", packed, "uint8_t")
        yield f"const uint8_t *weight = {label}_weight;"
        offset = is_offset(node.op.format)
        if offset:
            yield f"const int32_t sum = bit_sum_{x_type}(x, {inputs});"
        self.runtime.add(dot_file(node.op.format))
        dot = f"bit_dot_{fmt.name}_{x_type}(weight, x, {inputs}, {'sum' if offset else '0'})"
        yield f"{dot} + {self._element(f'{label}_bias', node.op.bias)}" if np.any(node.op.bias) else dot

    def _elementwise(self, node: Node) -> Iterator[str]:
        label, op = self._label(node.name), node.op
        if isinstance(op, Threshold):
            yield from self._threshold(label, op)
        elif isinstance(op, Requantize):
            shift = self._element(f"{label}_shift", op.shift, "uint8_t")
            bias = self._element(f"{label}_bias", op.bias)
            if op.shifts_only and self._fits_int32(node, op):
                yield f"value = bit_requantize_shift(value, {bias}, {shift}, {op.low}, {op.high});"
            else:
                factors = f"{self._element(f'{label}_multiplier', op.multiplier)}, {bias}, {shift}"
                yield f"value = bit_requantize(value, {factors}, {_int32(op.low)}, {_int32(op.high)});"

    def _thresholds(self, name: str, op: Threshold) -> str:
        array = f"{self._label(name)}_thresholds"
        self._constant(array, op.thresholds.flatten().tolist(), "int32_t")
        return f"const int32_t *thresholds = {array};"

    def _threshold(self, label: str, op: Threshold) -> Iterator[str]:
        if np.any(op.sign < 0):
            yield f"value = {self._element(f'{label}_sign', op.sign)} < 0 ? -value : value;"
        reached = f"bit_threshold(value, thresholds, {op.thresholds.shape[1]})"
        reached = f"{op.step} * {reached}" if op.step > 1 else reached
        yield f"value = {reached};" if op.low == 0 else f"value = {op.low} + {reached};"
        if len(op.thresholds) > 1:
            yield f"thresholds += {op.thresholds.shape[1]};"

    def _fits_int32(self, node: Node, op: Requantize) -> bool:
        source = self._types()[node.inputs[0]]
        largest = max(abs(source.low), abs(source.high)) + int(np.abs(op.bias).max())
        return largest <= INT32[1] and int(op.shift.max()) <= 31

    def _types(self) -> dict:
        return {"input": self.graph.input.type, **{n.name: n.type for n in self.graph.nodes}}

    def _storage(self, name: str) -> str:
        return self._types()[name].storage

    def _comment(self, step: Step) -> Iterator[str]:
        first = step.nodes[0]
        if isinstance(first.op, Linear):
            n, k = first.op.levels.shape
            yield f"{first.name}: {k} {self._storage(step.source)} -> {n}, {first.op.format} weights, accumulators \
{first.type.low} to {first.type.high}."
        for node in step.nodes if not isinstance(first.op, Linear) else step.nodes[1:]:
            yield f"{node.name}: {node.op.kind} to {node.type.storage}, {node.type.low} to {node.type.high}."

    # ---- constants -----------------------------------------------------------------------------------------------

    def _element(self, name: str, values: Ints, c_type: str | None = None) -> str:
        """Returns the expression of channel ``i``'s parameter: an array's element, or a number shared by all."""
        if len(values) == 1:
            return str(int(values[0]))
        self._constant(name, values.tolist(), c_type)
        return f"{name}[i]"

    def _constant(self, name: str, values: list[int], c_type: str | None = None) -> None:
        self.constants.append(Constant(name, c_type or _narrowest(values), values))

    def _label(self, name: str) -> str:
        """A node's name as a C identifier, distinct from every other node's and from the functions, ``run_LABEL``."""
        if name not in self._labels:
            base = re.sub(r"\W", "_", name, flags=re.ASCII)
            label = base = f"layer_{base}" if re.match(r"\d|run(_|$)", base) else base
            while label in self._labels.values():
                label = f"{base}_{len(self._labels)}"
            self._labels[name] = label
        return self._labels[name]


def dot_file(format_name: str) -> str:
    """Returns the runtime file that holds a format's dot product."""
    return f"bit_dot_{format_name}.c" if format_name in ("ternary", "fp130", "nf4") else "bit_dot_bits.c"


def is_offset(format_name: str) -> bool:
    """Whether a format's dot product needs the sum of the activations."""
    return dot_file(format_name) == "bit_dot_bits.c" and get_format(format_name).low != 0


def _is_call(step: Step) -> bool:
    """Whether a step is a call of the runtime rather than a function of its own."""
    return isinstance(step.nodes[0].op, NormShift)


def _narrowest(values: list[int]) -> str:
    low, high = min(values), max(values)
    for name, bits, signed in _C_TYPES:
        if (-(1 << (bits - 1)) if signed else 0) <= low and high < 1 << (bits - signed):
            return name
    return "int64_t"


def _int32(value: int) -> str:
    """INT32_MIN has no literal of its own in C."""
    return "INT32_MIN" if value == INT32[0] else str(value)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
