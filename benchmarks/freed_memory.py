"""What a training step on the CPU gains when freed memory stays with the process, as the command line has it.

One thread, batch 128. Each measurement is a process of its own; the two kinds take turns.

    python benchmarks/freed_memory.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from bitlab.process import keep_freed_memory
from bitmodels import AutoBitModel

NETWORKS = {  # model, preset, shape of an image
    "netcnn": ("bitnet-cnn", (1, 28, 28)),
    "resnet20": ("pact-sawb-4", (3, 32, 32)),
    "mcunet": ("mcu-ternary-static", (1, 16, 16)),
}
BATCH, STEPS = 128, 6


def measure(name: str, keeps: bool) -> tuple[float, int]:
    """Returns the median seconds of processor time of a step, and the MiB of memory that the process took."""
    if keeps:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset, shape = NETWORKS[name]
    model = (
        AutoBitModel.from_name(name, quant=preset, in_channels=shape[0]).train().to(memory_format=torch.channels_last)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images, labels = torch.randn(BATCH, *shape).contiguous(memory_format=torch.channels_last), torch.arange(BATCH) % 10
    seconds = []
    for _ in range(STEPS):
        start = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    """Prints a line a network, or, for one measurement, its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=("returned", "kept"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.networks[0], options.one == "kept")))  # noqa: T201
        return
    for name in options.networks:
        rounds = [
            [
                json.loads(subprocess.check_output([sys.executable, __file__, name, "--one", kind]))
                for kind in ("returned", "kept")
            ]
            for _ in range(options.rounds)
        ]
        times = [statistics.median(r[kind][0] for r in rounds) for kind in (0, 1)]
        gain = statistics.median(returned / kept for (returned, _), (kept, _) in rounds)
        memory = [statistics.median(r[kind][1] for r in rounds) for kind in (0, 1)]
        print(  # noqa: T201
            f"{name}: {times[0]:.3f} s a step, {times[1]:.3f} s with memory kept: {gain:.2f} times as fast;"
            f" {memory[0]:.0f} and {memory[1]:.0f} MiB"
        )


if __name__ == "__main__":
    main()
