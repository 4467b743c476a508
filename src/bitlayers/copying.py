"""Conversions leave the model that they are given as it is, unless they may change it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from bitcore.errors import BitLabError

M = TypeVar("M", bound=nn.Module)


def owned(model: M, inplace: bool) -> M:
    """Returns the model itself where ``inplace`` says so, else a deep copy: tied weights stay tied, hooks stay.

    Raises:
        BitLabError: If the model cannot be copied.
    """
    if inplace:
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:  # anything that a model holds may refuse, each in its own way
        raise BitLabError(
            f"the model cannot be copied ({error}); inplace=True converts the model itself and makes no copy"
        ) from error


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Makes the model what it was, in every module and tensor, where the block ends with an error.

    Costs the memory of a copy of its tensors while the block runs.
    """
    modules = [(module, type(module), _attributes(module)) for module in model.modules()]
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    except BaseException:
        for module, kind, attributes in modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        raise


def _attributes(module: nn.Module) -> dict[str, object]:
    """A module's attributes; those that are dictionaries, as torch's of children, tensors and hooks, are copies."""
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
