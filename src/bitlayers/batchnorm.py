"""Batch-norm statistics: freezing, and re-estimation for weights that have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitlayers.base import BitLayer
from bitlayers.modes import evaluating, frozen

_Batch = TypeVar("_Batch")


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms with running statistics, those folded into bit layers too."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def freeze_batchnorm(model: nn.Module) -> None:
    """Makes batch norms use their running statistics until ``model.train()`` is called; γ and β still learn."""
    for norm in batch_norms(model):
        norm.eval()


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces running statistics by the plain averages over some batches, for the model as it is now.

    Running averages lag behind weights whose quantization has just changed (PROFIT, arXiv:2008.04693, section 3.3). All
    else stays in eval mode: weights and ranges do not change, dropout is off. Batch norms that are frozen (in eval mode
    in a model that trains) stay as they are.

    Args:
        model: Any model; the mode of every module is restored.
        batches: The inputs; without any, nothing changes.
    """
    reestimate_with(model, batches, model)


@torch.no_grad()
def reestimate_with(model: nn.Module, batches: Iterable[_Batch], run: Callable[[_Batch], object]) -> None:
    """As `reestimate_batchnorm`, with a function that runs the model on a batch."""
    with _averaging(model):
        for batch in batches:
            run(batch)


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """Within, all is in eval mode, but batch norms normalize by each batch and average the batches' statistics."""
    norms = [norm for norm in batch_norms(model) if not frozen(model, norm)]
    inside = [m for m in model.modules() if isinstance(m, BitLayer) and m.batch_norm in norms]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.train()
            norm.momentum = None  # the average of all batches that are tracked: the first one replaces what there was
            norm.num_batches_tracked.zero_()  # type: ignore[union-attr]
            if not all(bool(statistic.isfinite().all()) for statistic in (norm.running_mean, norm.running_var)):  # type: ignore[union-attr]
                norm.reset_running_stats()  # NaN would stay in the average
        for layer in inside:
            layer.training = True  # it looks at the batch in training mode alone; its quantizers stay in eval mode
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
