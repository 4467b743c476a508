"""What quantizers cost in training: a step of ResNet-20 with each preset against its full-precision twin.

CPU, eager, one thread, batch 128 of 32×32 images. The models take turns, so that a busy machine slows all
of them alike; the ratio is the median of the rounds' ratios.

    python benchmarks/quantizer_overhead.py --rounds 7
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from bitmodels import AutoBitModel

LIMITS = {"bitnet-cnn": 1.35, "pact-sawb-4": 1.6}


def stepper(preset: str | None, batch: int) -> Callable[[], float]:
    """Returns a function that trains one step of ResNet-20 and returns its seconds."""
    torch.manual_seed(0)
    model = AutoBitModel.from_name("resnet20", quant=preset).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    """Measures and prints the table; exits with 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("presets", nargs="*", default=list(LIMITS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = {name: stepper(name, options.batch) for name in (None, *options.presets)}
    for step in steps.values():
        step()  # warm up
    times = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(step())
    broken = False
    print(f"float32: {statistics.median(times[None]):.3f} s a step")  # noqa: T201
    for name in options.presets:
        ratio = statistics.median(own / twin for own, twin in zip(times[name], times[None], strict=True))
        limit = LIMITS.get(name)
        broken |= limit is not None and ratio > limit
        print(f"{name}: {ratio:.2f} times" + (f" (limit {limit})" if limit else ""))  # noqa: T201
    raise SystemExit(int(broken))


if __name__ == "__main__":
    main()
