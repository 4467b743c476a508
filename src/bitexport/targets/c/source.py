"""Writes the C source of a network: constants, a function and a description for each layer, and the calls in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from bitcore.graph import Conv2d, Graph, Linear
from bitcore.graph.types import IntTensor
from bitcore.naming import identifiers
from bitexport.targets.base import Sizes
from bitexport.targets.c.activation import Activations
from bitexport.targets.c.calls import Layer
from bitexport.targets.c.compact_dense import DENSE_HEADER, RICE, coded_sizes
from bitexport.targets.c.compact_source import COMPACT_HEADER, Compact
from bitexport.targets.c.constants import Constant, Constants
from bitexport.targets.c.layers import Layers
from bitexport.targets.c.orders import find_orders
from bitexport.targets.c.plan import CPlan, plan_layers
from bitexport.targets.c.runtime import runtime_version

_INDENT = "    "
_HEADERS = (
    "bit_runtime.h",
    "bit_formats.h",
    "bit_layers.h",
    "bit_store.h",
    "bit_conv2d.h",
    "bit_conv2d_rows.h",
    "bit_table.h",
    "bit_pool.h",
)


@dataclass
class CSource:
    """The C source of a graph.

    Attributes:
        graph: The graph, see `Graph.plainly_named`.
        name: The network's name, a C identifier.
        limit: Bytes that the arena should not exceed, see `plan_layers`.
        compact: Whether the compact runtime runs what it can.
        with_rice: Whether it has Rice codes, see `plan_layers`.
        packed: How many convolutions that run row by row have packed codes, see `plan_layers`.
        plan: Layers and memory.
        runtime: The runtime's C files that the network needs, filled while the source is written.
    """

    graph: Graph
    name: str
    limit: int | None = None
    compact: bool = False
    with_rice: bool | None = None
    packed: int | None = 0
    plan: CPlan = field(init=False)
    runtime: set[str] = field(init=False, default_factory=lambda: {"bit_argmax.c"})

    def __post_init__(self) -> None:
        """Gives the layers names that mean nothing in C, and plans the memory."""
        self.graph = self.graph.plainly_named()
        self.plan = plan_layers(self.graph, self.limit, self.compact, self.with_rice, self.packed)
        self._constants = Constants(identifiers(node.name for node in self.graph.nodes))
        orders = find_orders(self.graph)
        activations = Activations(self.graph, self.plan, self._constants, orders, self.runtime)
        self._layers = Layers(self.plan, self._constants, activations)
        self._compact = Compact(self.plan, self._constants, orders, self.name)

    @property
    def headers(self) -> tuple[str, ...]:
        """The runtime's headers."""
        compact = [COMPACT_HEADER] if self._compact.layers else []
        return (*_HEADERS, *compact, *([DENSE_HEADER] if self._dense else []))

    @property
    def _dense(self) -> bool:
        return any(layer.coding for layer in self.plan.layers)

    @property
    def constants(self) -> list[Constant]:
        """All constant arrays, after `source`."""
        return self._constants.arrays

    def weight_bytes(self, node: str) -> int:
        """Returns the bytes of a layer's packed weights, after `source`."""
        names = [f"{self._constants.labels[node]}_{what}" for what in ("weight", "weight_bytes")]
        return sum(constant.bytes for constant in self.constants if constant.name in names)

    @property
    def rice(self) -> dict[str, tuple[int, int]]:
        """Layers whose weights are Rice codes: their bytes, after `source`, and those of codes of a fixed size."""
        found = ((layer.nodes[0].name, layer.nodes[0].op) for layer in self.plan.layers if layer.coding == RICE)
        return {name: (self.weight_bytes(name), coded_sizes(op)[0]) for name, op in found if isinstance(op, Linear)}

    def sizes(self) -> Sizes:
        """Returns what it takes, after `source`."""
        weighted = [node.name for node in self.graph.nodes if isinstance(node.op, (Linear, Conv2d))]
        return Sizes(
            weights=sum(map(self.weight_bytes, weighted)),
            constants=sum(constant.bytes for constant in self.constants),
            arena=self.plan.arena,
            input_in_arena=True,
        )

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

#ifdef __cplusplus
extern "C" {{
#endif

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

#ifdef __cplusplus
}}
#endif

#endif
"""

    def source(self) -> str:
        """Returns ``NAME.c``."""
        layers = [self._layer(layer) for layer in self.plan.layers if not layer.compact]
        if self._compact.layers:
            comments = [self._comment(layer) for layer in self._compact.layers]
            layers.insert(0, self._compact.declare(comments))
        name = self.name
        return f"""\
/* {name}: a network exported by BitLab from a trained model. Generated; see README.md for its sizes.
 *
 * The arena:
{self._map()} */
#include "{name}.h"

#include "{DENSE_HEADER if self._dense else "bit_store.h"}"

#if BIT_RUNTIME != 0x{runtime_version()}
#error "the bit_* files here are another version's: keep them in the folder of the network that they came with"
#endif

{chr(10).join(layers)}
{self._functions()}"""

    def _functions(self) -> str:
        """What the header declares."""
        calls = "".join(f"{_INDENT}{call}\n" for layer in self.plan.layers for call in self._call(layer))
        if "buffers" in calls:
            calls = f"{_INDENT}const BitBuffers buffers = {{(const uint8_t *)input, arena}};\n{calls}"
        order, reorder = self._layers.reorder()
        upper, name, scores = self.name.upper(), self.name, self.plan.offset("output")
        run = f"""\
int32_t {name}_arena[({upper}_ARENA_SIZE + 3) / 4];

void {name}_run(const int8_t *input, int32_t *output) {{ {name}_run_in(input, output, {name}_arena); }}
"""
        last = self.plan.layers[-1]
        if last.compact and self.plan.gives_scores(last):  # it leaves its scores in the arena
            return f"""\
static void {name}_forward(const int8_t *input, uint8_t *arena) {{
{calls}}}

void {name}_run_in(const int8_t *input, int32_t *output, void *memory) {{
    const int32_t *const scores = (const int32_t *)memory + {scores // 4};
    {name}_forward(input, (uint8_t *)memory);
    for (unsigned i = 0; i < {upper}_OUTPUT_SIZE; i++) {{
        output[i] = scores[i];
    }}
}}

{run}
int {name}_predict(const int8_t *input) {{
    {name}_forward(input, (uint8_t *){name}_arena);
    return bit_argmax({name}_arena + {scores // 4}, {upper}_OUTPUT_SIZE);
}}
"""
        return f"""\
{order}void {name}_run_in(const int8_t *input, int32_t *output, void *memory) {{
    uint8_t *const arena = (uint8_t *)memory;
{calls}{reorder}}}

{run}
int {name}_predict(const int8_t *input) {{
    int32_t *const output = {name}_arena + {scores // 4};
    {name}_run(input, output);
    return bit_argmax(output, {upper}_OUTPUT_SIZE);
}}
"""

    def _call(self, layer: Layer) -> list[str]:
        """The statements that run a layer."""
        if not layer.compact:
            return self._layers.call(layer)
        offset = self.plan.offset(layer.source)
        place = f"arena + {offset}" if offset else "arena"
        return self._compact.call(layer, "(const uint8_t *)input" if layer.source == "input" else place)

    def _layer(self, layer: Layer) -> str:
        """The constants, functions and description of a layer, under a comment."""
        known = len(self.constants)
        text = self._layers.declare(layer)
        arrays = "\n".join(constant.declaration() for constant in self.constants[known:])
        above = self._comment(layer)
        return f"{above}{arrays}\n{text}" if arrays else f"{above}{text}"

    def _comment(self, layer: Layer) -> str:
        """What a layer is, as a comment."""
        lines = "".join(f" * {line}\n" for line in self._lines(layer))
        return f"/*{lines[2:-1]} */\n"

    def _lines(self, layer: Layer) -> Iterator[str]:
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
        graph, lines = self.graph, []
        scales = {
            **{node.name: node.scale for node in graph.nodes},
            "input": graph.input.scale,
            "output": graph.output_scale,
        }
        for place in self.plan.places:
            when = {"input": f"last read by layer {place.last + 1}", "output": f"of {self.name}_predict"}.get(
                place.name, f"layers {place.first + 1} to {place.last + 1}"
            )
            kind = self.plan.types.get(place.name)
            if place.name == "output":
                kind = replace(graph.output.type, storage="int32")
            what = "" if kind is None else f" {_values(kind, scales[place.name])},"
            lines.append(f" * [{place.offset}..{place.offset + place.bytes}): {place.name},{what} {when}\n")
        return "".join(lines)


def _values(kind: IntTensor, scale: float | None) -> str:
    """What a stretch of the arena holds."""
    step = "" if scale is None else f" in steps of {scale!r}"
    return f"{kind.storage} {kind.low} to {kind.high}{step}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
