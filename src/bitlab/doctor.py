"""`bitlab doctor`: what this machine has, whether its kernels compute the right thing, and which would run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.text import Text
from torch import Tensor

from bitcore.config import FLOAT
from bitcore.engine.convolution import EngineConv2d, Geometry
from bitcore.engine.fused import FusedConv2d
from bitcore.formats import FORMATS, NumberFormat
from bitcore.graph import Conv2d
from bitcore.graph.ops import Ints
from bitcore.kernels import Kernel, KernelRegistry
from bitcore.kernels.machine import last_level_cache
from bitcore.kernels.native import ISA_VARIABLE, built_sets, library, usable_sets
from bitcore.quantizers import QTensor
from bitlab import console

_ACTIVATIONS = ("int8", "uint8")


def examine() -> dict[str, Any]:
    """Returns the machine, every kernel with the formats it failed on, and the kernel of each format, as plain data."""
    kernels = [_examine_kernel(kernel) for kernel in KernelRegistry.all()]
    return {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "last_level_cache": last_level_cache(),
            "library": library() is not None,
            "built_for": built_sets(),
            "usable": list(usable_sets()),
            ISA_VARIABLE: os.environ.get(ISA_VARIABLE, ""),
        },
        "kernels": kernels,
        "chosen": {
            activation: _grouped(
                {name: KernelRegistry.find("linear", name, activation, "cpu").name for name in FORMATS}
            )
            for activation in (*_ACTIVATIONS, "binary", FLOAT)
        },
        "healthy": not any(kernel["failed"] for kernel in kernels),
    }


def _examine_kernel(kernel: Kernel) -> dict[str, Any]:
    found: dict[str, Any] = {"name": kernel.name, "op": kernel.op, "available": kernel.available(), "failed": []}
    start, found["tested"] = time.perf_counter(), 0
    for fmt in FORMATS.values() if found["available"] else ():
        for activation in (*_ACTIVATIONS, FLOAT):
            if kernel.supports(fmt.name, activation, "cpu"):
                found["tested"] += 1
                if not _TESTS[kernel.op](kernel, fmt, activation):
                    found["failed"].append(f"{fmt.name} × {activation}")
    found["seconds"] = round(time.perf_counter() - start, 3)
    return found


def _draw(fmt: NumberFormat, activation: str, inputs: Sequence[int], weights: Sequence[int]) -> tuple[Tensor, Ints]:
    """Returns activations (of float32: integers, whose sums are exact in any order) and levels, extreme ones too."""
    draw = np.random.default_rng(0)
    info = np.iinfo(np.int8 if activation == FLOAT else activation)
    x, levels = draw.integers(info.min, info.max, inputs, endpoint=True), draw.choice(fmt.levels, weights)
    x[0], levels[0], levels[1] = info.max, fmt.high, fmt.low
    return torch.from_numpy(x.astype(activation)), levels


def linear_is_right(kernel: Kernel, fmt: NumberFormat, activation: str) -> bool:
    """Whether a product of 3 × 37 activations and 70 × 37 weights is that of plain int64."""
    x, levels = _draw(fmt, activation, (3, 37), (70, 37))
    weight = QTensor(torch.from_numpy(levels).float(), torch.ones(()), fmt).pack()
    try:
        y = kernel(x, kernel.prepare(weight, activation), weight)
    except (ValueError, RuntimeError):
        return False
    return np.array_equal(y.numpy(), x.numpy().astype(np.int64) @ levels.T)


def conv2d_is_right(kernel: Kernel, fmt: NumberFormat, activation: str) -> bool:
    """Whether a padded 3 × 3 convolution of 2 × 5 × 4 × 5 activations to 70 channels is that of plain int64.

    So is the layer from float to float, whose scales are 1.
    """
    x, levels = _draw(fmt, activation, (2, 5, 4, 5), (70, 5, 3, 3))
    weight = QTensor(torch.from_numpy(levels).float(), torch.ones(()), fmt).pack()
    assert isinstance(kernel, EngineConv2d)
    geometry = Geometry(tuple(levels.shape), (1, 1), (1, 1), (1, 1), 1)
    x = x.clamp(min=FORMATS[activation].low)
    try:
        tiles = kernel.prepare(weight, activation, geometry)
        y = kernel(x, tiles, weight, activation, geometry)
        layer = FusedConv2d(tiles, geometry, fmt.name, activation, torch.ones(()), None, False)
        real = layer(x.float(), torch.ones(()))
    except (ValueError, RuntimeError):
        return False
    op = Conv2d(levels, fmt.name, np.zeros(1, np.int64), (1, 1), (1, 1), (1, 1), 1)
    expected = op.reference(x.numpy().astype(np.int64))
    return np.array_equal(y.numpy(), expected) and np.array_equal(real.numpy(), expected.astype(np.float32))


_TESTS = {"linear": linear_is_right, "conv2d": conv2d_is_right}


def _grouped(chosen: dict[str, str]) -> dict[str, list[str]]:
    return {kernel: [f for f, k in chosen.items() if k == kernel] for kernel in dict.fromkeys(chosen.values())}


def show(result: dict[str, Any]) -> None:
    """Prints what `examine` found."""
    machine = result["machine"]
    forced = f", {ISA_VARIABLE}={machine[ISA_VARIABLE]}" if machine[ISA_VARIABLE] else ""
    sets = ", ".join(machine["usable"]) or "none"
    console.out.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used, last-level cache "
        f"{machine['last_level_cache'] / 2**20:.0f} MiB. Vector kernels: {sets}{forced}."
    )
    console.native_kernels()
    rows = []
    for kernel in result["kernels"]:
        state = Text("not on this machine")
        if kernel["failed"]:
            state = Text.assemble(("WRONG", "bold red"), f": {', '.join(kernel['failed'])}")
        elif kernel["tested"]:
            state = Text.assemble(("right", "green"), f" on {kernel['tested']} products")
        rows.append((kernel["name"], kernel["op"], state))
    console.show_table("Kernels", ("kernel", "operation", "state"), rows)
    rows = [
        (activation, kernel, "all formats" if len(formats) == len(FORMATS) else ", ".join(formats))
        for activation, chosen in result["chosen"].items()
        for kernel, formats in chosen.items()
    ]
    console.show_table("Used for linear layers", ("activations", "kernel", "weights"), rows)
