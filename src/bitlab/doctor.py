"""`bitlab doctor`: what this machine has, whether its kernels compute the right thing, and which would run."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import numpy as np
import torch

from bitcore.config import FLOAT
from bitcore.formats import FORMATS, NumberFormat
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
    if kernel.op == "linear" and found["available"]:
        for fmt in FORMATS.values():
            for activation in _ACTIVATIONS:
                if kernel.supports(fmt.name, activation, "cpu"):
                    found["tested"] += 1
                    if not linear_is_right(kernel, fmt, activation):
                        found["failed"].append(f"{fmt.name} × {activation}")
    found["seconds"] = round(time.perf_counter() - start, 3)
    return found


def linear_is_right(kernel: Kernel, fmt: NumberFormat, activation: str) -> bool:
    """Whether a product of 3 × 37 activations and 70 × 37 weights, extreme ones too, is that of plain int64."""
    draw = np.random.default_rng(0)
    info = np.iinfo(activation)
    x = draw.integers(info.min, info.max, (3, 37), endpoint=True).astype(info.dtype)
    x[0], levels = info.max, draw.choice(fmt.levels, (70, 37))
    levels[0], levels[1] = fmt.high, fmt.low
    weight = QTensor(torch.from_numpy(levels).float(), torch.ones(()), fmt).pack()
    try:
        y = kernel(torch.from_numpy(x), kernel.prepare(weight, activation), weight).numpy()
    except (ValueError, RuntimeError):
        return False
    return np.array_equal(y, x.astype(np.int64) @ levels.T)


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
        state = "not on this machine"
        if kernel["failed"]:
            state = f"[bold red]WRONG[/]: {', '.join(kernel['failed'])}"
        elif kernel["tested"]:
            state = f"[green]right[/] on {kernel['tested']} products"
        elif kernel["available"]:
            state = "available"
        rows.append((kernel["name"], kernel["op"], state))
    console.show_table("Kernels", ("kernel", "operation", "state"), rows)
    rows = [
        (activation, kernel, "all formats" if len(formats) == len(FORMATS) else ", ".join(formats))
        for activation, chosen in result["chosen"].items()
        for kernel, formats in chosen.items()
    ]
    console.show_table("Used for linear layers", ("activations", "kernel", "weights"), rows)
