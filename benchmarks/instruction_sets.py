"""Every instruction set of this machine against portable C: no case may be slower.

Linear layers of every width of code (int8 levels in, int32 sums out), of signs, of float activations; convolutions of
ResNet-18's first and last shape, a small and a depthwise one. All take turns in one run; what counts is the median of
the processor time of one thread. Prints a line a case; fails and lists them if any is slower than portable C.

    OMP_NUM_THREADS=1 python benchmarks/instruction_sets.py --rounds 9
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

from bitcore.config import FLOAT
from bitcore.engine.convolution import EngineConv2d, Geometry
from bitcore.formats import get_format
from bitcore.kernels import KernelRegistry
from bitcore.kernels.native import ISA_VARIABLE, PORTABLE, usable_sets
from bitcore.quantizers import PackedTensor, QTensor

SHAPES = ((1024, 1024), (70, 300))
ROWS = (1, 8, 128)
FORMATS = (("binary", "int8"), ("ternary", "int8"), ("int4", "int8"), ("nf4", "int8"), ("int8", "uint8"),
           ("binary", "binary"), ("ternary", FLOAT), ("int8", FLOAT))  # fmt: skip
CONVOLUTIONS = ((64, 56, 1), (512, 7, 1), (20, 9, 1), (64, 28, 64))  # channels, size, groups
SLICE = 2e-3  # seconds of a contestant's turn
TOLERANCE = 1.05  # of two runs of the same code on a busy machine

Run = Callable[[], object]


def packed(shape: tuple[int, ...], weight: str) -> PackedTensor:
    """Returns random weights."""
    fmt = get_format(weight)
    levels = torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), shape)]
    return QTensor(levels.float(), torch.ones(()), fmt).pack()


def activations(shape: tuple[int, ...], activation: str) -> torch.Tensor:
    """Returns random activations."""
    if activation == FLOAT:
        return torch.randn(shape)
    fmt = get_format(activation)
    return torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), shape)].to(fmt.level_dtype)


def linear(weight: str, activation: str, rows: int, size: tuple[int, int]) -> Run:
    """Returns a call of the instruction set's kernel; of float activations, portable C is that kernel's own."""
    kernel, w = KernelRegistry.find("linear", weight, activation, "cpu"), packed(size, weight)
    prepared, x = kernel.prepare(w, activation), activations((rows, size[1]), activation)
    return lambda: kernel(x, prepared, w)


def convolution(weight: str, activation: str, channels: int, size: int, groups: int) -> Run:
    """Returns a call of the engine's convolution."""
    kernel = KernelRegistry.get_kernel_by_name(EngineConv2d.__name__)
    assert isinstance(kernel, EngineConv2d)
    geometry = Geometry((channels, channels // groups, 3, 3), (1, 1), (1, 1), (1, 1), groups)
    w, x = packed(geometry.shape, weight), activations((1, channels, size, size), activation)
    prepared = kernel.prepare(w, activation, geometry)
    return lambda: kernel(x, prepared, w, activation, geometry)


def cases() -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yields the name of each case and what makes it for the instruction set that the environment names."""
    for weight, activation in FORMATS:
        for rows in ROWS:
            for size in SHAPES:
                if activation == FLOAT and rows > 64:  # torch's product
                    continue
                name = f"linear {weight} x {activation} {size[0]}x{size[1]} M={rows}"
                yield name, lambda w=weight, a=activation, r=rows, s=size: linear(w, a, r, s)
    for weight, activation in (("binary", "binary"), ("ternary", "int8"), ("int4", "int8"), ("int8", "uint8")):
        for channels, size, groups in CONVOLUTIONS:
            name = f"conv {weight} x {activation} {channels}x{size}x{size} groups={groups}"
            yield name, lambda w=weight, a=activation, c=channels, s=size, g=groups: convolution(w, a, c, s, g)


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each call, each under its instruction set."""
    times: dict[str, list[float]] = {isa: [] for isa in runs}
    repeats: dict[str, int] = {}
    for i in range(rounds + 1):
        for isa, run in runs.items():
            os.environ[ISA_VARIABLE] = isa
            run()
            start = time.thread_time()
            for _ in range(repeats.get(isa, 1)):
                run()
            taken = (time.thread_time() - start) / repeats.get(isa, 1)
            if i:
                times[isa].append(taken)
            else:
                repeats[isa] = max(1, int(SLICE / max(taken, 1e-6)))
    return {isa: statistics.median(taken) for isa, taken in times.items()}


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.pop(ISA_VARIABLE, None)
    sets, slower = [*usable_sets(), PORTABLE], []
    for name, make in cases():
        if options.only not in name:
            continue
        runs: dict[str, Run] = {}
        for isa in sets:
            os.environ[ISA_VARIABLE] = isa
            runs[isa] = make()
        times = interleaved(runs, options.rounds)
        line = f"{name}: " + ", ".join(f"{isa} {1e6 * t:.1f} us" for isa, t in times.items())
        print(line, flush=True)  # noqa: T201
        if any(times[isa] > times[PORTABLE] * TOLERANCE for isa in sets):
            slower.append(line)
    if slower:
        sys.exit("slower than portable C:\n" + "\n".join(slower))


if __name__ == "__main__":
    main()
