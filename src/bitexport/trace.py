"""Traces a model with torch.fx and lowers it, module by module, to the integer graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bitcore.errors import BitLabError
from bitcore.graph import Graph, GraphBuilder, Value
from bitlayers.activations import RSign
from bitlayers.base import BitLayer
from bitlayers.folding import affine_of

Lowering = Callable[[GraphBuilder, Any, Value], Value]
LOWERINGS: dict[type[nn.Module], Lowering] = {}


def lowers(*kinds: type[nn.Module]) -> Callable[[Lowering], Lowering]:
    """Function decorator: registers how modules of some types become integer operations."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(kinds, function))
        return function

    return register


@lowers(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def _nothing(g: GraphBuilder, module: nn.Module, x: Value) -> Value:
    return x


@lowers(nn.Flatten)
def _flatten(g: GraphBuilder, module: nn.Flatten, x: Value) -> Value:
    if module.start_dim != 1 or module.end_dim != -1:
        raise g.error("only nn.Flatten() of everything but the batch can be exported")
    return g.flatten(x)


@lowers(nn.ReLU, nn.ReLU6, nn.Hardtanh)
def _clip(g: GraphBuilder, module: nn.Module, x: Value) -> Value:
    low = 0.0 if not isinstance(module, nn.Hardtanh) else module.min_val
    high = module.max_val if isinstance(module, nn.Hardtanh) else math.inf
    return g.clip(x, low, high, lambda v: v.clamp(low, None if high == math.inf else high))


@lowers(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(g: GraphBuilder, module: nn.BatchNorm1d, x: Value) -> Value:
    if module.running_mean is None or module.running_var is None:
        raise g.error("batch norm without running statistics; use track_running_stats=True")
    gain, offset = affine_of(module, module.running_mean.double(), module.running_var.double())
    return g.affine(x, gain.numpy(), offset.numpy(), module)


@lowers(RSign)
def _shift(g: GraphBuilder, module: RSign, x: Value) -> Value:
    threshold = module.threshold.detach().double().numpy()
    return g.affine(x, np.ones_like(threshold), -threshold, module)


@lowers(nn.MaxPool2d)
def _max_pool(g: GraphBuilder, module: nn.MaxPool2d, x: Value) -> Value:
    if module.ceil_mode or module.dilation not in (1, (1, 1)) or module.return_indices:
        raise g.error("max pooling with ceil_mode, dilation or indices")
    return g.max_pool2d(x, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding))


def lower(model: nn.Module, input_shape: tuple[int, ...], info: dict[str, Any] | None = None) -> Graph:
    """Lowers a model to its integer graph.

    Args:
        model: Any model whose weighted layers are bit layers. It is used in eval mode, and left as it was.
        input_shape: One sample's shape, without the batch dimension.
        info: What travels along in the graph's file.

    Raises:
        BitLabError: If a layer cannot be expressed in integers; the message names it and the remedy. Float layers,
            and accumulators that could leave int32, are such.
    """
    training = model.training
    try:
        with torch.no_grad():
            return _lower(model.eval(), input_shape, info or {})
    finally:
        model.train(training)


def _lower(model: nn.Module, input_shape: tuple[int, ...], info: dict[str, Any]) -> Graph:
    g = GraphBuilder(tuple(input_shape))
    if isinstance(model, BitLayer) or type(model) in LOWERINGS:
        model = nn.Sequential(model)
    values: dict[fx.Node, Value] = {}
    for node in _trace(model).nodes:
        g.layer = str(node.target if node.op == "call_module" else node.name)
        if node.op == "placeholder":
            if values:
                raise g.error("a second input; only models of one input can be exported")
            values[node] = g.source()
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise g.error("several outputs; only models of one output can be exported")
            return g.finish(values[node.args[0]], info)
        elif node.op == "call_module" and len(node.args) == 1 and isinstance(node.args[0], fx.Node):
            values[node] = _lower_module(g, model.get_submodule(g.layer), values[node.args[0]])
        elif _is_flatten(node):
            values[node] = g.flatten(values[node.args[0]])  # type: ignore[index]
        else:
            raise g.error(f"'{node.target}' has no integer operation; write it as a module: {_known()}")
    raise BitLabError("the model has no output")


def _lower_module(g: GraphBuilder, module: nn.Module, x: Value) -> Value:
    if isinstance(module, BitLayer):
        return module.lower(g, x)
    if type(module) in LOWERINGS:
        return LOWERINGS[type(module)](g, module, x)
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        raise g.error(f"it is a float {type(module).__name__}; give it a preset or config to export it")
    raise g.error(f"{type(module).__name__} has no integer operation; there are: {_known()}")


def _known() -> str:
    return ", ".join(["bit layers", *sorted(kind.__name__ for kind in LOWERINGS)])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BitLayer) or type(m) in LOWERINGS or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds for code that it cannot follow
        raise BitLabError(f"the model's forward cannot be traced: {error}") from error


def _is_flatten(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim")
    return node.target in (torch.flatten, "flatten") and bool(start == 1) and len(node.args) <= 2


def _pair(value: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(value, (2,))
    return int(first), int(second)
