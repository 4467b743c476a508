"""How much of a training step is data: ResNet-20 on CIFAR-10, crop and flip.

    python benchmarks/data_path.py [--batches 20] [--batch-size 128] [--threads 2] [--loading memory|disk] [--workers 2]

Two shares are printed: of the time, what the step waits for its batch, which means something on a quiet machine only;
and of the processor's time, all that loading takes, in worker threads too, which other programs hardly change. CIFAR-10
comes from the folder that BITLAB_DATA names, or from the hub; its pictures are decoded into the cache first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from bittrain.build import build_model
from bittrain.loader import Batch
from bittrain.optim import make_optimizer
from bittrain.prepare import prepare
from bittrain.recipe import Recipe


def measure(recipe: Recipe, batches: int) -> dict[str, float]:
    """Returns seconds a batch: ``wait`` and ``rest`` of the clock, ``load`` and ``step`` of the processor."""
    prepared = prepare(recipe)
    loader, _ = prepared.loaders(torch.device("cpu"), 0, 1)
    model = build_model(recipe, prepared.preprocessing.shape, len(prepared.data.classes)).train()
    optimizer = make_optimizer(model, recipe)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    seconds = dict.fromkeys(("wait", "rest", "load", "step"), 0.0)
    iterator: Iterator[Batch] = iter(loader)
    batch = next(iterator)
    step(*batch)  # allocations, kernels chosen
    for _ in range(batches):
        start = time.perf_counter()
        batch = next(iterator)
        middle = time.perf_counter()
        step(*batch)
        seconds["wait"] += middle - start
        seconds["rest"] += time.perf_counter() - middle
    del iterator  # its threads end

    start = time.process_time()
    for _ in range(batches):
        step(*batch)
    seconds["step"] = time.process_time() - start
    start = time.process_time()
    read = sum(1 for _ in loader.epoch(1, len(loader) - batches))  # to the end, so that nothing is loaded ahead
    seconds["load"] = time.process_time() - start
    assert read == batches
    return {name: value / batches for name, value in seconds.items()}


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loading", default="memory", choices=("memory", "disk"))
    parser.add_argument("--workers", type=int, default=2, help="threads that decode, with loading disk")
    parser.add_argument("--quant", default="bitnet-cnn", help="a preset, or none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(
        dataset="cifar10",
        loading=arguments.loading,
        workers=arguments.workers,
        model="resnet20",
        model_options={},
        quant=arguments.quant,
        augment=("crop padding=4", "flip"),
        batch_size=arguments.batch_size,
        optimizer="sgd",
    )
    found = measure(recipe, arguments.batches)
    milliseconds = {name: round(1e3 * value, 1) for name, value in found.items()}
    print(  # noqa: T201
        f"{arguments.loading}, {arguments.threads} threads, batch {arguments.batch_size}, ms a step {milliseconds}: "
        f"waits for data {found['wait'] / (found['wait'] + found['rest']):.1%} of the time, "
        f"loading is {found['load'] / (found['load'] + found['step']):.1%} of the processor's"
    )


if __name__ == "__main__":
    main()
