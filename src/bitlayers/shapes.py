"""Running a model for the shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bitlayers.base import BitLayer
from bitlayers.modes import evaluating


@contextmanager
def for_shapes(model: nn.Module) -> Iterator[nn.Module]:
    """As `evaluating`; within, layers run even where their ranges have seen no data: only shapes mean anything."""
    layers = [module for module in model.modules() if isinstance(module, BitLayer)]
    with evaluating(model):
        for layer in layers:
            layer.examine_again(needed=False)
        try:
            yield model
        finally:
            for layer in layers:
                layer.examine_again()
