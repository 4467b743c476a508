"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@contextmanager
def evaluating(model: M) -> Iterator[M]:
    """Puts a model in eval mode and gives every module its own mode back afterwards, also after an error.

    ``model.train(mode)`` gives all modules one mode: batch norms that were frozen would learn again.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def frozen(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module of a model in training mode was put in eval mode by hand."""
    return model.training and not module.training
