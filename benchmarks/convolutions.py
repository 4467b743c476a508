"""3×3 convolutions of ResNet-18's four shapes, batch 1: engine and packed layers, onnxruntime's int8, torch's float32.

Each case is a chain of convolutions with what follows each of them (int8 activations in, int8 out), so that a network's
input and output hardly count. All cases take turns; the figures are the least and the median CPU time of one
convolution (wall time on several threads).

    OMP_NUM_THREADS=1 python benchmarks/convolutions.py --rounds 15
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peers import quantized_convolutions, runner

from bitcore import BitQuantConfig
from bitcore.engine import Engine
from bitcore.formats import get_format
from bitcore.graph import Conv2d, Graph, InputSpec, Node, Op, Requantize, SumPool2d, Threshold
from bitlayers import BitConv2d, pack

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
CHAIN = 12
WEIGHTS = {"ternary": "int8", "binary": "binary", "4bitsym": "int8", "int8": "int8"}


def engine(channels: int, size: int, weight: str, activation: str) -> Callable[[], Any]:
    """Returns a function that runs a chain of convolutions in the engine."""
    rng = np.random.default_rng(0)
    spec = InputSpec((channels, size, size), activation, 1.0)
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    post: Op = Requantize(one * 181, zero, one * 16, 0, 127)
    if activation == "binary":
        post = Threshold(rng.integers(-20, 20, (channels, 1)), one, -1, 2)
    nodes: list[Node] = []
    kind = spec.type
    levels = np.array(get_format(weight).levels)
    for i in range(CHAIN):
        weights = rng.choice(levels, (channels, channels, 3, 3))
        for name, op in ((f"conv{i}", Conv2d(weights, weight, zero, (1, 1), (1, 1), (1, 1), 1)), (f"post{i}", post)):
            kind = op.infer(kind)
            nodes.append(Node(name, op, (nodes[-1].name if nodes else "input",), kind))
    pool = SumPool2d((size, size), (1, 1), (0, 0))  # so that the output is small
    nodes.append(Node("pool", pool, (nodes[-1].name,), pool.infer(kind)))
    network = Engine(Graph(spec, tuple(nodes), 1.0))
    codes = rng.choice(np.array(get_format(activation).levels), (1, *spec.shape)).astype(np.int8)
    return lambda: network.run(codes)


def float32(channels: int, size: int) -> Callable[[], Any]:
    """Returns a function that runs the chain in torch."""
    layers = (torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(CHAIN))
    model = torch.nn.Sequential(*layers).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1, channels, size, size).to(memory_format=torch.channels_last)
    return torch.no_grad()(lambda: model(x))


def layers(channels: int, size: int, weight: str) -> Callable[[], Any]:
    """Returns a function that runs a chain of packed layers, each from float to float."""
    config = BitQuantConfig(weight, weight_granularity="per_channel", activation_dtype="int8", activation_scale="unit")
    model = torch.nn.Sequential(
        *(BitConv2d(channels, channels, 3, padding=1, quant_config=config) for _ in range(CHAIN))
    )
    pack(model, inplace=True)
    x = torch.randn(1, channels, size, size)
    return torch.no_grad()(lambda: model(x))


def interleaved(cases: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Returns the least and the median time of each case, in seconds, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            run()
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: [min(t), sorted(t)[len(t) // 2]] for name, t in times.items()}


def main() -> None:
    """Prints one JSON line a shape: milliseconds of one convolution, least and median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    for channels, size in SHAPES:
        x = np.random.default_rng(0).integers(0, 128, (1, channels, size, size)).astype(np.uint8)
        cases = {f"engine {w} x {a}": engine(channels, size, w, a) for w, a in WEIGHTS.items()}
        cases["BitConv2d ternary x int8, float to float"] = layers(channels, size, "ternary")
        cases["onnxruntime int8"] = runner(quantized_convolutions(channels, size, CHAIN), x, options.threads)
        cases["torch float32"] = float32(channels, size)
        found = interleaved(cases, options.rounds, clock)
        ms = {name: [round(1e3 * t / CHAIN, 4) for t in pair] for name, pair in found.items()}
        print(json.dumps({"shape": [channels, size, size], "threads": options.threads, "ms": ms}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
