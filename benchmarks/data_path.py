"""How much of a training step is waiting for data: ResNet-20 on CIFAR-10, crop and flip, all in this process.

    python benchmarks/data_path.py [--batches 20] [--batch-size 128] [--threads 2] [--loading memory|disk]

CIFAR-10 comes from the folder that BITLAB_DATA names, or from the hub; its pictures are decoded into the cache first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from bittrain.build import build_model
from bittrain.loader import Batch
from bittrain.optim import make_optimizer
from bittrain.prepare import prepare
from bittrain.recipe import Recipe


def measure(recipe: Recipe, batches: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of loading and of all else, of every batch."""
    prepared = prepare(recipe)
    loader, _ = prepared.loaders(torch.device("cpu"), 0, 1)
    model = build_model(recipe, prepared.preprocessing.shape, len(prepared.data.classes)).train()
    optimizer = make_optimizer(model, recipe)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    iterator: Iterator[Batch] = iter(loader)
    step(*next(iterator))  # allocations, kernels chosen
    loading, computing = [], []
    for _ in range(batches):
        start = time.perf_counter()
        images, labels = next(iterator)
        middle = time.perf_counter()
        step(images, labels)
        loading.append(middle - start)
        computing.append(time.perf_counter() - middle)
    return loading, computing


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loading", default="memory", choices=("memory", "disk"))
    parser.add_argument("--quant", default="bitnet-cnn", help="a preset, or none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(
        dataset="cifar10",
        loading=arguments.loading,
        model="resnet20",
        model_options={},
        quant=arguments.quant,
        augment=("crop padding=4", "flip"),
        batch_size=arguments.batch_size,
        optimizer="sgd",
    )
    loading, computing = measure(recipe, arguments.batches)
    share = sum(loading) / (sum(loading) + sum(computing))
    print(  # noqa: T201
        f"{arguments.threads} threads, batch {arguments.batch_size}: loading {1e3 * statistics.mean(loading):.1f} ms, "
        f"the rest {1e3 * statistics.mean(computing):.1f} ms a step: {share:.1%} of the time is loading"
    )


if __name__ == "__main__":
    main()
