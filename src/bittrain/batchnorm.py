"""Batch-norm statistics: freezing, and re-estimation for weights that have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitlayers.base import BitLayer
from bitlayers.modes import evaluating


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms with running statistics, those folded into bit layers too."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def freeze_batchnorm(model: nn.Module) -> None:
    """Makes batch norms use their running statistics until ``model.train()`` is called; γ and β still learn."""
    for norm in batch_norms(model):
        norm.eval()


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces running statistics by the plain averages over some batches, for the model as it is now.

    Running averages lag behind weights whose quantization has just changed (PROFIT, arXiv:2008.04693, section 3.3). All
    else stays in eval mode: weights and ranges do not change, dropout is off.

    Args:
        model: Any model; every module's mode is restored.
        batches: The inputs.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        for layer in model.modules():
            if isinstance(layer, BitLayer) and layer.batch_norm is not None:
                layer.training = True  # it looks at the batch in training mode alone; its quantizers stay in eval mode
        try:
            for x in batches:
                model(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
