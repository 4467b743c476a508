"""Threads for tests."""

import threading

import torch
from torch import Tensor, nn


def results_in_threads(layer: nn.Module, x: Tensor, calls: int) -> list[Tensor]:
    """Returns what three threads get that call a layer ``calls`` times each, each on three threads of its own."""
    before, results = torch.get_num_threads(), []

    def call() -> None:
        for _ in range(calls):
            results.append(layer(x))

    try:
        torch.set_num_threads(3)
        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert len(results) == 3 * calls
    return results
