"""Writes what the compact runtime takes: the stream of weight codes and channels' words, the table of layers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bitcore.formats import get_format
from bitcore.graph import Conv2d, Linear
from bitcore.graph.ops import Ints
from bitexport.targets.c.calls import Layer
from bitexport.targets.c.compact import Channels, Words, channels_of, codes_of, pack_rows, row_bytes
from bitexport.targets.c.constants import Constants
from bitexport.targets.c.plan import CPlan

COMPACT_HEADER = "bit_compact.h"
Row = dict[str, int | None]  # None: any number will do


@dataclass
class Compact:
    """The compact layers of a network.

    Attributes:
        plan: The plan.
        constants: The network's constants: codes and words are added, so that they count.
        orders: For each vector, which of its elements each place in memory holds, if not one by one.
        name: The network's name.
    """

    plan: CPlan
    constants: Constants
    orders: dict[str, Ints | None]
    name: str
    layers: list[Layer] = field(init=False)

    def __post_init__(self) -> None:
        """Finds the layers and their constants."""
        self.layers = [layer for layer in self.plan.layers if layer.compact]
        self._channels = [self._channels_of(layer) for layer in self.layers]
        self._starts: list[int] = []  # of the layers' codes in the stream

    def _channels_of(self, layer: Layer) -> Channels:
        found = channels_of(layer.nodes, self.plan.types[layer.source], self.plan.gives_scores(layer))
        assert found is not None
        return found

    def declare(self, comments: Sequence[str]) -> str:
        """Returns the stream, the type of the table's rows, the runtime itself and the table; with layers' comments."""
        words = Words.fit(self._channels)
        stream, total = "", 0
        for layer, channels, comment in zip(self.layers, self._channels, comments, strict=True):
            codes, ends = self._codes(layer), words.pack(channels)
            label = self.constants.labels[layer.nodes[0].name]
            self.constants.add(f"{label}_weight", codes, "uint8_t")
            self.constants.add(f"{label}_channels", ends, "uint8_t")
            self._starts.append(total)
            total += len(codes) + len(ends)
            stream += f"{textwrap.indent(comment, '    ')}{_bytes(codes)}    /* Its channels. */\n{_bytes(ends)}"
        fields = _share(
            [self._row(layer, channels) for layer, channels in zip(self.layers, self._channels, strict=True)]
        )
        members = "".join(f"    uint{bits}_t {name};\n" for name, (bits, _) in fields.members.items())
        if not members:
            members = "    uint8_t unused;\n"
        table = "".join(f"    {row},\n" for row in fields.rows(len(self.layers)))
        defines = {
            "BIT_ANCHOR": self.plan.anchor,
            "BIT_WORD": words.size,
            "BIT_SHIFT": words.shift,
            "BIT_FACTOR": int(words.factor),
            **{f"BIT_LAYER_{key}(layer)": value for key, value in fields.macros.items()},
        }
        return f"""\
/* Weight codes and channels of the compact layers, see bit_compact.h. */
static const uint8_t {self.name}_codes[{total}] BIT_IN_FLASH = {{
{stream}}};

/* In what the compact layers differ, and what they share. */
typedef struct {{
{members}}} BitCompact;

{"".join(f"#define {key} {value}{chr(10)}" for key, value in defines.items())}
#include "{COMPACT_HEADER}"

static const BitCompact {self.name}_layers[{len(self.layers)}] BIT_IN_FLASH = {{
{table}}};
"""

    def call(self, layer: Layer, source: str) -> list[str]:
        """Returns the statement that runs a layer and those that follow it; nothing for those.

        Args:
            layer: The layer.
            source: Where its input is.
        """
        runs = list(self._runs())
        run = next((run for run in runs if run[0] is layer), None)
        if run is None:
            return []
        first = self.layers.index(layer)
        rows = f"{self.name}_layers + {first}" if first else f"{self.name}_layers"
        codes = f"{self.name}_codes + {self._starts[first]}" if first else f"{self.name}_codes"
        return [f"bit_compact({rows}, {len(run)}, {codes}, {source}, arena);"]

    def _runs(self) -> Iterator[list[Layer]]:
        """Layers that one call runs: each takes the result of the one before."""
        run: list[Layer] = []
        for layer in self.plan.layers:
            if run and layer.compact and layer.source == run[-1].target:
                run.append(layer)
                continue
            if run:
                yield run
            run = [layer] if layer.compact else []
        if run:
            yield run

    def _codes(self, layer: Layer) -> list[int]:
        op = _weighted(layer)
        if isinstance(op, Conv2d):
            levels = op.levels.transpose(0, 2, 3, 1).reshape(len(op.levels), -1)
        else:
            order = self.orders[layer.nodes[0].inputs[0]]
            levels = op.levels if order is None else op.levels[:, order]
        return pack_rows(levels, get_format(op.format))

    def _row(self, layer: Layer, channels: Channels) -> Row:
        """A layer's fields."""
        op, source = _weighted(layer), self.plan.types[layer.source]
        fmt = get_format(op.format)
        digits, shift = codes_of(fmt)
        final = self.plan.gives_scores(layer)
        common: Row = {
            "target": self.plan.offset("output" if final else layer.target),
            "flip": 128 if source.low < 0 else 0,
            "outputs": len(op.levels),
            "high": channels.high,
            "weight_row": row_bytes(fmt, len(op.levels)),
            "levels": len(fmt.levels),
            "digits": digits,
            "shift": shift,
        }
        if isinstance(op, Linear):
            n = source.size
            window: Row = {"kernel_height": 1, "kernel_row": n, "left": 0, "top": 0, "right": None, "down": None}
            pool = None if final else 0
            return {**common, "row": n, "size": n, **window, "columns": 1, "rows": 1, "pool": pool}
        pixels, (_, rows, columns) = 2 if layer.pool else 1, layer.type.shape
        pixel, row = source.shape[0], source.shape[0] * source.shape[2]
        return {
            **common,
            "row": row,
            "size": row * source.shape[1],
            "kernel_height": op.levels.shape[2],
            "kernel_row": op.levels.shape[3] * pixel,
            "left": op.padding[1] * pixel,
            "top": op.padding[0] * row,
            "right": op.stride[1] * pixel if columns * pixels > 1 else None,
            "down": op.stride[0] * row if rows * pixels > 1 else None,
            "columns": columns * pixels,
            "rows": rows * pixels,
            "pool": pixels - 1,
        }


def _weighted(layer: Layer) -> Linear | Conv2d:
    op = layer.nodes[0].op
    assert isinstance(op, (Linear, Conv2d))
    return op


@dataclass(frozen=True)
class _Fields:
    """How fields are read, and those that the table holds: their bits and values."""

    macros: dict[str, str]
    members: dict[str, tuple[int, list[int]]]

    def rows(self, count: int) -> Iterator[str]:
        """The rows of the table."""
        for i in range(count):
            values = ", ".join(f".{name} = {values[i]}" for name, (_, values) in self.members.items())
            yield textwrap.fill(f"{{{values}}}" if values else "{0}", 115, subsequent_indent="     ")


def _share(rows: list[Row]) -> _Fields:
    """Finds fields that are the same number in all rows, or the same as another field."""
    macros: dict[str, str] = {}
    kept: dict[str, list[int | None]] = {}
    for name in rows[0]:
        column = [row[name] for row in rows]
        known = {value for value in column if value is not None}
        if len(known) <= 1:
            macros[name] = str(known.pop() if known else 0)
            continue
        same = next((other for other, values in kept.items() if _agree(values, column)), None)
        if same is None:
            kept[name] = column
            macros[name] = name
        else:
            kept[same] = [a if b is None else b for a, b in zip(kept[same], column, strict=True)]
            macros[name] = same
    members: dict[str, tuple[int, list[int]]] = {}
    for name, column in kept.items():
        values = [value or 0 for value in column]
        members[name] = next(bits for bits in (8, 16, 32) if max(values) < 1 << bits), values
    for name, other in macros.items():
        if other in members:
            macros[name] = f"BIT_FLASH{members[other][0]}(&(layer)->{other})"
    return _Fields(macros, dict(sorted(members.items(), key=lambda member: -member[1][0])))


def _agree(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    return all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))


def _bytes(values: list[int]) -> str:
    text = ", ".join(map(str, values)) + ","
    return textwrap.fill(text, 120, initial_indent="    ", subsequent_indent="    ") + "\n"
