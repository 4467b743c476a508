"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from bitcore.errors import BitLabError, unknown
from bitcore.quantizers import Quantizer
from bitlayers.base import BitLayer
from bittrain.fields import parse_pairs
from bittrain.recipe import Recipe

_ONE_CYCLE_RISE = 0.3  # share of the run, unless the recipe says how long the warm-up is
_ONE_CYCLE_START = 1 / 25
_REGIME_KEYS = ("optimizer", "lr", "momentum", "weight_decay")


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Returns the recipe's optimizer for a model (see `decay_groups`)."""
    groups = decay_groups(model, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)  # fused cannot add parameters
    kind = Adam if recipe.optimizer == "adam" else AdamW
    clips_mixed = recipe.gradient_clip > 0 and recipe.precision != "32"  # a fused step unscales the gradients itself
    return kind(groups, lr=recipe.lr, fused=not clips_mixed)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters into one group with weight decay and one without.

    Decayed are weight matrices and kernels alone: not vectors (biases, norms), not what a quantizer learns, and not the
    latent weights of binary layers, of which only the sign counts: decay would but make all of them flip at random.
    """
    spared = {p for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    spared |= {
        m.weight for m in model.modules() if isinstance(m, BitLayer) and m.quant_config.weight_format == "binary"
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 and p not in spared]
    rest = [p for p in parameters if p.ndim <= 1 or p in spared]
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


@dataclass(frozen=True)
class Regime:
    """What the training uses from an epoch on (BNN's training regimes).

    Attributes:
        epoch: The first epoch, counted from 0.
        recipe: The recipe with the optimizer's options of that time.
    """

    epoch: int
    recipe: Recipe


def regimes(recipe: Recipe) -> list[Regime]:
    """Returns a recipe's regimes in their order, the recipe itself first; each keeps what it does not change.

    Raises:
        BitLabError: An entry is not of the form ``EPOCH key=value …``, or a key or value is wrong.
    """
    found = [Regime(0, recipe)]
    for text in recipe.regime:
        epoch, *pairs = text.split() or [""]
        if not epoch.isdigit() or int(epoch) < found[-1].epoch or not pairs:
            raise BitLabError(
                f"regime '{text}': begin with an epoch, in ascending order, then what changes, such as '101 lr=1e-3'"
            )
        changes = parse_pairs(pairs, "regime")
        for key in changes:
            if key not in _REGIME_KEYS:
                raise unknown("key of a regime", key, _REGIME_KEYS)
        found.append(Regime(int(epoch), found[-1].recipe.replace(**changes)))
        if "momentum" in changes and found[-1].recipe.optimizer != "sgd":
            raise BitLabError(f"regime '{text}': momentum needs optimizer sgd; set that, or leave momentum out")
    return found


def regime_at(recipe: Recipe, epoch: int) -> Recipe:
    """Returns the recipe with the optimizer's options of an epoch."""
    return [r for r in regimes(recipe) if r.epoch <= epoch][-1].recipe


def restarting(recipe: Recipe, steps_per_epoch: int, starts: Sequence[int]) -> Callable[[int], float]:
    """Returns a schedule that runs from its beginning to its end between each two of ``starts`` (epochs, from 0 on).

    Recipes that say the rate of every epoch (regimes) keep it.
    """
    if recipe.regime:
        return learning_rate(recipe, steps_per_epoch)
    ends = [*starts[1:], recipe.epochs]
    parts = [
        (start * steps_per_epoch, learning_rate(recipe.replace(epochs=end - start), steps_per_epoch))
        for start, end in zip(starts, ends, strict=True)
    ]

    def factor(step: int) -> float:
        first, part = [(first, part) for first, part in parts if first <= step][-1]
        return part(step - first)

    return factor


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns the schedule: an optimizer step's number to its factor of ``lr``, a pure function."""
    total = recipe.epochs * steps_per_epoch
    rise = recipe.warmup_epochs * steps_per_epoch
    start = 0.0
    if recipe.schedule == "one-cycle":
        rise, start = rise or _ONE_CYCLE_RISE * total, _ONE_CYCLE_START
    regime = [(r.epoch * steps_per_epoch, r.recipe.lr / recipe.lr if recipe.lr else 0.0) for r in regimes(recipe)]

    def factor(step: int) -> float:
        if step < rise:
            return start + (1 - start) * (step + 1) / (rise + 1)
        if recipe.regime:
            return [value for first, value in regime if first <= step][-1]
        if recipe.schedule == "step":
            return recipe.lr_gamma ** (step // (recipe.lr_step_epochs * steps_per_epoch))
        if recipe.schedule == "constant":
            return 1.0
        if recipe.schedule == "warm-restarts":
            share = _place_in_period(step - rise, recipe.lr_restart_epochs * steps_per_epoch, recipe.lr_restart_factor)
        else:
            share = min(1.0, (step - rise) / max(1.0, total - rise))
        return recipe.lr_final + (1 - recipe.lr_final) * (1 + math.cos(math.pi * share)) / 2

    return factor


def _place_in_period(step: float, period: float, growth: float) -> float:
    """The place, 0 to 1, within SGDR's present period (arXiv:1608.03983); each is ``growth`` times the last one."""
    while step >= period:
        step, period = step - period, period * growth
    return step / period
