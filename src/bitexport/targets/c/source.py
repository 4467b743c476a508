"""Writes the C source of a network: constants, a function and a description for each layer, and the calls in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bitcore.graph import Conv2d, Graph, Linear
from bitexport.targets.c.activation import Activations
from bitexport.targets.c.constants import Constant, Constants
from bitexport.targets.c.layers import Layers
from bitexport.targets.c.orders import find_orders
from bitexport.targets.c.plan import CPlan, Layer, plan_layers

_INDENT = "    "
HEADERS = ("bit_runtime.h", "bit_formats.h", "bit_layers.h", "bit_store.h", "bit_table.h", "bit_pool.h")


@dataclass
class CSource:
    """The C source of a graph.

    Attributes:
        graph: The graph.
        name: The network's name, a C identifier.
        limit: Bytes that the arena should not exceed, see `plan_layers`.
        plan: Layers and memory.
        runtime: The runtime's C files that the network needs, filled while the source is written.
    """

    graph: Graph
    name: str
    limit: int | None = None
    plan: CPlan = field(init=False)
    runtime: set[str] = field(default_factory=lambda: {"bit_argmax.c"})

    def __post_init__(self) -> None:
        """Plans the memory."""
        self.plan = plan_layers(self.graph, self.limit)
        self._constants = Constants()
        activations = Activations(self.graph, self.plan, self._constants, find_orders(self.graph), self.runtime)
        self._layers = Layers(self.plan, self._constants, activations)

    @property
    def constants(self) -> list[Constant]:
        """All constant arrays, after `source`."""
        return self._constants.arrays

    def weight_bytes(self, node: str) -> int:
        """Returns the bytes of a layer's packed weights, after `source`."""
        names = [f"{self._constants.label(node)}_{what}" for what in ("weight", "weight_bytes")]
        return sum(constant.bytes for constant in self.constants if constant.name in names)

    def header(self) -> str:
        """Returns ``NAME.h``."""
        upper, name, spec = self.name.upper(), self.name, self.graph.input
        output = self.graph.output.type
        order = ", channels last" if len(spec.shape) > 1 else ""
        return f"""\
/* {name}: a network exported by BitLab. The interface; {name}.c holds the network. */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

/* {_shape(spec.shape)} values{order}, {spec.type.storage}, {spec.format}. */
#define {upper}_INPUT_SIZE {spec.type.size}
/* int32 scores, {output.low} to {output.high}. */
#define {upper}_OUTPUT_SIZE {output.size}
/* Bytes of working memory. It has room for the input, which is overwritten there: the input needs no other memory. */
#define {upper}_ARENA_SIZE {self.plan.arena}
#define {upper}_INPUT_OFFSET {self.plan.offset("input")}

/* The static arena of {name}_run and {name}_predict, and the input's place in it. */
extern int32_t {name}_arena[({upper}_ARENA_SIZE + 3) / 4];
#define {upper}_INPUT ((int8_t *){name}_arena + {upper}_INPUT_OFFSET)

/* Runs the network on {upper}_INPUT_SIZE values and writes {upper}_OUTPUT_SIZE scores; uses the static arena. */
void {name}_run(const int8_t *input, int32_t *output);

/* The same in the caller's arena of {upper}_ARENA_SIZE bytes, aligned to 4: reentrant. */
void {name}_run_in(const int8_t *input, int32_t *output, void *arena);

/* Returns the class with the highest score. */
int {name}_predict(const int8_t *input);

#endif
"""

    def source(self) -> str:
        """Returns ``NAME.c``."""
        layers = "\n".join(self._layer(layer) for layer in self.plan.layers)
        calls = "".join(f"{_INDENT}{call}\n" for layer in self.plan.layers for call in self._layers.call(layer))
        order, reorder = self._layers.reorder()
        upper, name = self.name.upper(), self.name
        return f"""\
/* {name}: a network exported by BitLab from a trained model. Generated; see README.md for its sizes.
 *
 * The arena:
{self._map()} */
#include "{name}.h"

#include "bit_store.h"

{layers}
{order}void {name}_run_in(const int8_t *input, int32_t *output, void *memory) {{
    uint8_t *const arena = (uint8_t *)memory;
    const BitBuffers buffers = {{(const uint8_t *)input, arena}};
{calls}{reorder}}}

int32_t {name}_arena[({upper}_ARENA_SIZE + 3) / 4];

void {name}_run(const int8_t *input, int32_t *output) {{ {name}_run_in(input, output, {name}_arena); }}

int {name}_predict(const int8_t *input) {{
    int32_t *const output = {name}_arena + {self.plan.offset("output") // 4};
    {name}_run(input, output);
    return bit_argmax(output, {upper}_OUTPUT_SIZE);
}}
"""

    def _layer(self, layer: Layer) -> str:
        """The constants, functions and description of a layer, under a comment."""
        known = len(self.constants)
        text = self._layers.declare(layer)
        arrays = "\n".join(constant.declaration() for constant in self.constants[known:])
        comment = "".join(f" * {line}\n" for line in self._comment(layer))
        return f"/*{comment[2:-1]} */\n{arrays}\n{text}" if arrays else f"/*{comment[2:-1]} */\n{text}"

    def _comment(self, layer: Layer) -> Iterator[str]:
        for node in (*layer.nodes, *([layer.pool] if layer.pool else [])):
            weights = ""
            if isinstance(node.op, (Linear, Conv2d)):
                kernel = _shape(node.op.levels.shape)
                weights = f" of {kernel} {node.op.format} weights"
            kind = node.type
            yield f"{node.name}: {node.op.kind}{weights}, {_shape(kind.shape)} results from {kind.low} to {kind.high}."
        if layer is not self.plan.layers[-1]:
            start = self.plan.offset(layer.target)
            yield f"Stored as {layer.type.storage} in arena[{start}..{start + layer.type.bytes})."

    def _map(self) -> str:
        """The arena's map, for the comment at the top."""
        lines = []
        for place in self.plan.places:
            when = {"input": f"last read by layer {place.last + 1}", "output": f"of {self.name}_predict"}.get(
                place.name, f"layers {place.first + 1} to {place.last + 1}"
            )
            lines.append(f" * [{place.offset}..{place.offset + place.bytes}): {place.name}, {when}\n")
        return "".join(lines)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
