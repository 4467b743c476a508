"""The README of an exported network: what an embedded engineer needs to use it."""

from __future__ import annotations

import math

from bitcore.graph import Conv2d, Linear
from bitcore.naming import cell
from bitexport.targets.c.chips import Chip
from bitexport.targets.c.compact_dense import RICE_COST
from bitexport.targets.c.source import CSource

_FORMULA = 1000
"""Letters that are shown of how pixels become the input."""


def export_readme(source: CSource, chip: Chip | None = None, saved: float = math.inf) -> str:
    """Returns the README of an exported network.

    Args:
        source: The network, after its source has been written.
        chip: The chip it was made for.
        saved: Bytes of flash that its Rice codes save, their decoder included; infinite if unknown.
    """
    graph, name, upper = source.graph, source.name, source.name.upper()
    spec = graph.input
    constants = sum(constant.bytes for constant in source.constants)
    rows = []
    for node in graph.nodes:
        if isinstance(node.op, (Linear, Conv2d)):
            shape = "x".join(map(str, node.op.levels.shape))
            rice = source.rice.get(node.name)
            coding = f", Rice codes: {rice[1] - rice[0]} bytes less" if rice else ""
            cells = cell(node.name), shape, f"{node.op.format}{coding}", str(source.weight_bytes(node.name))
            rows.append(f"| {' | '.join(cells)} |")
    layers = "\n".join(rows) + ("\n\n" + _rice_text(source, saved) if source.rice else "")
    return f"""\
# {name}

A neural network as C99, exported by BitLab: no malloc, no libc, no floating point.

| layer | weights | format | bytes |
|---|---|---|---|
{layers}

| | bytes |
|---|---|
| constants (weights, thresholds, biases) | {constants} |
| arena (static, or the caller's) with room for the input | {source.plan.arena} |
| input, where it is not put into the arena | {spec.type.size} |

## Use

```c
#include "{name}.h"

int8_t *input = {upper}_INPUT; /* {upper}_INPUT_SIZE values, {spec.format}: in the arena, or any other memory */
int label = {name}_predict(input);
```

Compile all `.c` files here; add `-DBIT_NO_MULTIPLIER` for a chip without a multiplier, and link with
`-ffunction-sections -Wl,--gc-sections` so that unused functions take no flash.

## Input

{_input_text(source)}

{_chip_text(chip)}## Proof

{_proof_text(source)}
"""


def _proof_text(source: CSource) -> str:
    info = source.graph.info
    pictures = "preprocessing" in info and "dataset" in info
    inputs = f"on the test images of {cell(info['dataset'])}" if pictures else "on random inputs of its whole range"
    shape = ", ".join(["samples", *map(str, source.graph.input.shape)])
    return (
        "`bitlab verify FOLDER` compiles this folder and compares every output with the reference, `graph.safetensors`,"
        f" {inputs}; `bitlab measure FOLDER` does so in an emulator of the chip. Both take `--inputs x.npy`, an array "
        f"[{shape}] of integers as above or of real values, and `--labels y.npy`, their classes, for the accuracy."
    )


def _rice_text(source: CSource, saved: float) -> str:
    sizes = [node.op.levels.size for node in source.graph.nodes if node.name in source.rice]  # type: ignore[attr-defined]
    flash = f"save {saved:.0f} bytes of flash, their decoder included" if math.isfinite(saved) else "need a decoder"
    return (
        f"Rice codes {flash}. Each weight that meets an input other than zero takes about {RICE_COST} instructions "
        f"more (RISC-V; 18 on Cortex-M0): at most {RICE_COST * sum(sizes):,} an image."
    )


def _chip_text(chip: Chip | None) -> str:
    if chip is None or not chip.flash:
        return ""
    run = f"`make -C firmware run < IMAGE` runs it in {chip.emulator.program} ({chip.emulator.package})"
    if not chip.link:
        run = "it reads images from the serial port at 115200 baud"
    return (
        f"## {chip.chip}\n\n`make -C firmware` builds a firmware for the {chip.chip} (Debian: apt-get install make "
        f"{chip.package}) that prints the class of each image; {run}. `bitlab measure` counts flash, RAM and "
        f"{chip.emulator.counter} in {chip.emulator.program} ({chip.emulator.package}).\n\n"
    )


def _input_text(source: CSource) -> str:
    spec = source.graph.input
    shape = "x".join(map(str, spec.shape))
    order = ", channels last (in memory the channels of a pixel lie side by side)" if len(spec.shape) > 1 else ""
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
    real = f" The real input is made from pixels so: {cell(preprocessing, _FORMULA)}." if preprocessing else ""
    return f"{shape} values{order}, {spec.type.storage}: {meaning}.{real}"
