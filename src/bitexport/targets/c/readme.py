"""The README of an exported network: what an embedded engineer needs to use it."""

from __future__ import annotations

from bitcore.formats import get_format
from bitcore.graph import Linear
from bitexport.targets.c.source import CSource


def export_readme(source: CSource) -> str:
    """Returns the README of an exported network (after its source has been written)."""
    graph, name, upper = source.graph, source.name, source.name.upper()
    spec = graph.input
    constants = sum(constant.bytes for constant in source.constants)
    rows = []
    for node in graph.nodes:
        if isinstance(node.op, Linear):
            fmt = get_format(node.op.format)
            n, k = node.op.levels.shape
            rows.append(f"| {node.name} | {k} -> {n} | {fmt.name} | {n * fmt.packing.row_bytes(k)} |")
    layers = "\n".join(rows)
    return f"""\
# {name}

A neural network as C99, exported by BitLab: no malloc, no libc, no floating point.

| layer | size | weights | bytes |
|---|---|---|---|
{layers}

| | bytes |
|---|---|
| constants (weights, thresholds, biases) | {constants} |
| arena (static, or the caller's) | {source.plan.arena} |
| input | {spec.type.size} |

## Use

```c
#include "{name}.h"

int8_t input[{upper}_INPUT_SIZE]; /* {spec.format} */
int label = {name}_predict(input);
```

Compile all `.c` files here; add `-DBIT_NO_MULTIPLIER` for a chip without a multiplier, and link with
`-ffunction-sections -Wl,--gc-sections` so that unused functions take no flash.

## Input

{_input_text(source)}

`bitlab verify` on this folder compiles it and compares every output with the reference, `graph.safetensors`.
"""


def _input_text(source: CSource) -> str:
    spec = source.graph.input
    shape = "x".join(map(str, spec.shape))
    if spec.scale is not None:
        meaning = f"value = round(real / {spec.scale!r}), limited to {spec.type.low}...{spec.type.high}"
    else:
        meaning = (
            f"value = round(real / scale), limited to {spec.type.low}...{spec.type.high}; each sample has a scale "
            "of its own, the smallest"
            + (" power of two" if spec.scaler.endswith("pow2") else "")
            + " that clips nothing"
        )
    preprocessing = source.graph.info.get("pixels")
    real = f" The real input is made from pixels so: {preprocessing}." if preprocessing else ""
    return f"{shape} values, channels first, {spec.type.storage}: {meaning}.{real}"
