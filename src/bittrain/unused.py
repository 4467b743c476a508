"""Options that do nothing in a recipe, because another option does not call for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError
from bittrain.optim import regimes
from bittrain.recipe import Recipe


@dataclass(frozen=True)
class _Need:
    """What options need to have an effect.

    Attributes:
        options: Their names.
        by: The options that decide.
        met: Whether a recipe has what they need.
        words: What that is.
    """

    options: tuple[str, ...]
    by: tuple[str, ...]
    met: Callable[[Recipe], bool]
    words: str


def _uses_sgd(recipe: Recipe) -> bool:
    return any(regime.recipe.optimizer == "sgd" for regime in regimes(recipe))


def _follows(*schedules: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.schedule in schedules and not recipe.regime


NEEDS = (
    _Need(("momentum", "nesterov"), ("optimizer", "regime"), _uses_sgd, "optimizer sgd"),
    _Need(("schedule",), ("regime",), lambda r: not r.regime, "no regime"),
    _Need(("lr_step_epochs", "lr_gamma"), ("schedule", "regime"), _follows("step"), "schedule step"),
    _Need(
        ("lr_restart_epochs", "lr_restart_factor"),
        ("schedule", "regime"),
        _follows("warm-restarts"),
        "schedule warm-restarts",
    ),
    _Need(
        ("lr_final",),
        ("schedule", "regime"),
        _follows("cosine", "one-cycle", "warm-restarts"),
        "schedule cosine, one-cycle or warm-restarts",
    ),
    _Need(("label_smoothing",), ("loss",), lambda r: r.loss == "cross_entropy", "loss cross_entropy"),
    _Need(
        ("augment_probability", "augment_copies", "augment_size"),
        ("augment",),
        lambda r: bool(r.augment),
        "augmentations (augment)",
    ),
    _Need(("augment_probability",), ("augment_copies",), lambda r: not r.augment_copies, "no augment_copies"),
    _Need(
        ("kd_temperature", "kd_alpha", "hint_weight", "attention_weight", "hint_layers"),
        ("teacher",),
        lambda r: r.teacher is not None,
        "a teacher",
    ),
    _Need(("kd_temperature",), ("kd_alpha",), lambda r: r.kd_alpha > 0, "kd_alpha above 0"),
    _Need(("scale_op", "act_bits"), ("quant",), lambda r: r.quant is not None, "quantization (quant)"),
    _Need(
        ("eval_ternary",),
        ("quant", "quant_overrides"),
        lambda r: r.quant is not None or bool(r.quant_overrides),
        "quantization (quant)",
    ),
    _Need(("workers",), ("loading",), lambda r: r.loading != "memory", "loading disk or stream"),
    _Need(
        ("sync_batchnorm",),
        ("devices", "num_nodes"),
        lambda r: r.devices * r.num_nodes > 1,
        "several processes (devices, num_nodes)",
    ),
)
"""An option that is in none of them always has an effect."""


def find_unused(recipe: Recipe, said: Collection[str] = ()) -> dict[str, _Need]:
    """Returns the options that do nothing, of those that differ from the default or are in ``said``."""
    set_here = {spec.name for spec in fields(recipe) if getattr(recipe, spec.name) != spec.default} | set(said)
    return {name: need for need in NEEDS if not need.met(recipe) for name in need.options if name in set_here}


def without_unused(recipe: Recipe) -> Recipe:
    """Returns the recipe with the defaults of the options that do nothing."""
    defaults = {spec.name: spec.default for spec in fields(recipe)}
    return recipe.replace(**{name: defaults[name] for name in find_unused(recipe)})


def refuse_unused(recipe: Recipe) -> None:
    """Checks that all that a recipe sets has an effect.

    Raises:
        BitLabError: An option has none; the message says what it needs.
    """
    for name, need in find_unused(recipe).items():
        raise _refused(name, need)


def load_with_flags(path: Path | None, flags: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """Returns the recipe of a file (or the default) with flags, which win, and the options that are ignored.

    Flags over a recipe may leave some of it without effect, and the recipe some of them: these are ignored, and said.

    Args:
        path: The recipe's file.
        flags: As `Recipe.replace`.

    Raises:
        BitLabError: As `Recipe.load`; or an option needs another one than the same file, or the same command, sets.
    """
    if path is not None:
        try:
            refuse_unused(Recipe.load(path))
        except BitLabError as error:
            raise BitLabError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    recipe = Recipe.load(path, flags) if path is not None else Recipe.from_dict({}, flags)
    ignored = []
    for name, need in find_unused(recipe, flags).items():
        if name in flags and any(other in flags for other in need.by):
            raise _refused(name, need)
        ignored.append(f"{name} (it needs {need.words})")
    return without_unused(recipe), ignored


def _refused(name: str, need: _Need) -> BitLabError:
    return BitLabError(f"{name} does nothing here: it needs {need.words}; set that, or leave {name} out")
