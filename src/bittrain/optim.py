"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from bitcore.quantizers import Quantizer
from bittrain.recipe import Recipe

_ONE_CYCLE_RISE = 0.3  # share of the run, unless the recipe says how long the warm-up is
_ONE_CYCLE_START = 1 / 25


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Returns the recipe's optimizer for a model.

    Weight decay applies to weight matrices and kernels alone, never to vectors (biases, norms) or to what a quantizer
    learns.
    """
    groups = decay_groups(model, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=True)
    kind = Adam if recipe.optimizer == "adam" else AdamW
    return kind(groups, lr=recipe.lr, fused=True)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters into one group with weight decay and one without."""
    learned = {p for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 and p not in learned]
    rest = [p for p in parameters if p.ndim <= 1 or p in learned]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def regroup(optimizer: Optimizer, model: nn.Module, weight_decay: float) -> None:
    """Gives an optimizer the parameters that a model has now (a layer was requantized), in the order of a new one.

    What it remembers of parameters that stay is kept, so that a resumed run has the same optimizer.
    """
    groups = decay_groups(model, weight_decay)
    for group, new in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = new["params"]
    there = {p for group in optimizer.param_groups for p in group["params"]}
    for parameter in list(optimizer.state):
        if parameter not in there:
            del optimizer.state[parameter]


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns the schedule: a step's number to its factor of ``lr``, a pure function."""
    total = recipe.epochs * steps_per_epoch
    rise = recipe.warmup_epochs * steps_per_epoch
    start = 0.0
    if recipe.schedule == "one-cycle":
        rise, start = rise or _ONE_CYCLE_RISE * total, _ONE_CYCLE_START

    def factor(step: int) -> float:
        if step < rise:
            return start + (1 - start) * (step + 1) / (rise + 1)
        if recipe.schedule == "step":
            return recipe.lr_gamma ** (step // (recipe.lr_step_epochs * steps_per_epoch))
        if recipe.schedule == "constant":
            return 1.0
        share = min(1.0, (step - rise) / max(1.0, total - rise))
        return recipe.lr_final + (1 - recipe.lr_final) * (1 + math.cos(math.pi * share)) / 2

    return factor
