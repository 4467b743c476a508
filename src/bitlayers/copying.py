"""Conversions leave the model that they are given as it is, unless they may change it."""

from __future__ import annotations

import copy
from typing import TypeVar

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
