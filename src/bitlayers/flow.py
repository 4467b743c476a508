"""What flows between the layers of a model, as far as torch.fx can follow its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from bitlayers.base import BitLayer

# What is never negative, and what keeps the sign: module types, functions, names of methods.
_NEVER_NEGATIVE: set[Any] = {nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus}
_NEVER_NEGATIVE |= {torch.relu, torch.sigmoid, torch.softmax, F.relu, F.relu6, F.sigmoid, F.hardsigmoid, F.softmax}
_NEVER_NEGATIVE |= {"relu", "relu_", "sigmoid", "softmax"}
_KEEPS_SIGN: set[Any] = {nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d}
_KEEPS_SIGN |= {nn.AdaptiveAvgPool2d, torch.flatten, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}
_KEEPS_SIGN |= {"flatten", "view", "reshape", "mean"}


class Tracer(fx.Tracer):
    """Follows a model's forward down to torch's own modules and bit layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return isinstance(m, BitLayer) or super().is_leaf_module(m, module_qualified_name)


def never_negative_inputs(model: nn.Module) -> Iterator[str]:
    """Yields the names of bit layers whose input is never negative (behind ReLU, sigmoid, …).

    Of models that torch.fx cannot follow, it yields none.
    """
    try:
        nodes = Tracer().trace(model).nodes
    except Exception:  # torch.fx raises many kinds for code that it cannot follow
        return
    for node in nodes:
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), BitLayer):
            source = _source(node)
            while _kind(model, source) in _KEEPS_SIGN:
                source = _source(source)
            if _kind(model, source) in _NEVER_NEGATIVE:
                yield str(node.target)


def _source(node: fx.Node | None) -> fx.Node | None:
    """The node that a node's first argument comes from."""
    first = node.args[0] if node is not None and node.args else None
    return first if isinstance(first, fx.Node) else None


def _kind(model: nn.Module, node: fx.Node | None) -> Any:
    """What a node calls: a module's type, a function, or a method's name."""
    if node is None:
        return None
    return type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
