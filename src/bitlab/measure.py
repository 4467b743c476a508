"""Measures an exported network on its chip, in an emulator: accuracy, equality, flash, RAM, instructions, time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bitcore.errors import BitLabError, unknown
from bitexport.targets import Manifest, open_export
from bitexport.targets.c.chips import CHIPS
from bitexport.targets.c.emulate import emulate
from bitexport.targets.c.host import run_on_host
from bitlab import console
from bitlab.samples import Samples, find_samples

_HOST = ("c", "host")


def measure_export(
    folder: Path,
    target: str | None = None,
    dataset: str | None = None,
    samples: int | None = 100,
    inputs: Path | None = None,
    labels: Path | None = None,
) -> dict[str, Any]:
    """Runs test images, or other inputs, on a chip.

    Args:
        folder: An exported folder.
        target: A chip's name, "wasm32" or "host"; by default what it was exported for.
        dataset: Another data set than the one it was trained on.
        samples: The first so many test images; ``None`` for all.
        inputs: Other inputs, see `bitlab.samples.find_samples`; so are labels their classes.
        labels: See there.

    Returns:
        Plain values: accuracy (``None`` without classes), mismatches (samples whose outputs or class differ from the
        interpreter's), and on chips flash, static RAM, stack and their sum, instructions (AVR: cycles) of a sample,
        milliseconds at the chip's clock if an instruction takes one cycle.

    Raises:
        BitLabError: If a tool is missing, the network does not fit, or a program fails.
    """
    artifact, graph = open_export(folder)
    manifest = Manifest.load(folder)
    target = target or manifest.target
    if not manifest.sources:
        raise BitLabError(f"'{folder}' is made for the {manifest.target}, see bitlab verify; export it for a chip")
    if target not in (*_HOST, *CHIPS):
        raise unknown("target", target, ("host", *CHIPS))
    found = find_samples(graph, dataset, inputs, labels, samples)
    codes, expected = found.codes, graph.run(found.codes)
    result: dict[str, Any] = {
        "name": artifact.name,
        "target": target,
        "optimize": manifest.optimize,
        "samples": len(codes),
        "inputs": f"{found.noun} ({found.source})",
        "macs": graph.macs(),
    }
    if target in _HOST:
        outputs = run_on_host(folder, artifact.name, codes, sources=manifest.sources)
        return {**result, "chip": "this machine", **_compare(outputs, outputs.argmax(1), expected, found)}
    chip = CHIPS[target]
    ran = emulate(chip, folder, manifest, codes)
    result |= {"chip": chip.chip, **_compare(ran.outputs, ran.classes, expected, found)}
    if ran.size is None:
        return result
    mean = float(ran.counts.mean())
    return {
        **result,
        "flash": ran.size.flash,
        "flash_free": chip.flash - ran.size.flash,
        "ram": ran.ram,
        "ram_static": ran.size.ram,
        "ram_stack": ran.stack,
        "ram_free": chip.ram - ran.ram,
        chip.emulator.counter: round(mean),
        f"{chip.emulator.counter}_most": int(ran.counts.max()),
        "milliseconds": round(1000 * mean / chip.clock_hz, 2),
    }


def _compare(outputs: np.ndarray, classes: np.ndarray, expected: np.ndarray, found: Samples) -> dict[str, Any]:
    if outputs.shape != expected.shape:
        raise BitLabError(f"the network has {outputs.shape[1]} outputs, its graph {expected.shape[1]}; export it again")
    wrong = (outputs != expected).any(axis=1) | (classes != expected.argmax(1))
    accuracy = None if found.labels is None else float((classes == found.labels).mean())
    return {"accuracy": accuracy, "mismatches": int(wrong.sum())}


def rows_of(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of a table."""
    rows = [
        ("accuracy", console.percent(result["accuracy"]), f"of {result['samples']:,} {result['inputs']}"),
        ("mismatches", f"{result['mismatches']:,}", "samples that differ from the interpreter"),
    ]
    if "flash" not in result:
        return rows
    counter, assumed = ("cycles", "") if "cycles" in result else ("instructions", ", an instruction a cycle")
    return [
        *rows,
        ("flash", console.size(result["flash"]), f"{result['flash_free']:,} B free"),
        ("RAM", console.size(result["ram"]), f"with input; stack {result['ram_stack']}; {result['ram_free']:,} B free"),
        (counter, f"{result[counter]:,}", f"an image, at most {result[counter + '_most']:,}"),
        ("time", f"{result['milliseconds']} ms", f"at the chip's clock{assumed}"),
    ]
