"""Traces a model with torch.fx and lowers it, operation by operation, to the integer graph."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx, nn

from bitcore.errors import BitLabError
from bitcore.graph import Graph, GraphBuilder, Value
from bitcore.quantizers import FromValues, Quantizer
from bitcore.quantizers.ranges import Unit
from bitexport.lowerings import ADDITIONS, CONCATENATIONS, LOWERINGS, MODULE_OF
from bitlayers.base import BitLayer
from bitlayers.modes import evaluating

_STATISTICS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
_RANGES = 8  # a value is expected within so many times the range of the layer that reads it
_BATCH = "batch"  # stands for the batch's size in shapes


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
    with torch.no_grad(), evaluating(model):
        return _Lowering(model, GraphBuilder(tuple(input_shape))).run(info or {})


class _Lowering:
    """One run over the operations of a traced model."""

    def __init__(self, model: nn.Module, g: GraphBuilder) -> None:
        self.model = nn.Sequential(model) if isinstance(model, BitLayer) or type(model) in LOWERINGS else model
        self.g = g
        self.values: dict[fx.Node, Any] = {}  # of shapes, tuples and numbers

    def run(self, info: dict[str, Any]) -> Graph:
        """Lowers every operation."""
        for node in _trace(self.model).nodes:
            self.g.layer = _layer(node)
            if node.op == "output":
                return self._finish(node, info)
            value = self._lower(node)
            if isinstance(value, Value) and value.node is not None:
                value = value.within(self._expected(node))
                value = self.g.materialize(value) if self._needs_grid(node) else value
            self.values[node] = value
        raise BitLabError("the model has no output")

    def _finish(self, node: fx.Node, info: dict[str, Any]) -> Graph:
        if not isinstance(node.args[0], fx.Node):
            raise self.g.error("several outputs; only models of one output can be exported")
        return self.g.finish(self.values[node.args[0]], info)

    def _lower(self, node: fx.Node) -> Any:
        g = self.g
        if node.op == "placeholder":
            if self.values:
                raise g.error("a second input; only models of one input can be exported")
            return g.source()
        known: Any = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        args, options = known
        values = [arg for arg in args if isinstance(arg, Value)]
        if node.op == "call_module" and len(args) == len(values) == 1 and not options:
            return self._module(self.model.get_submodule(str(node.target)), values[0])
        if node.target in ADDITIONS and len(args) == len(values) == 2 and not options:
            return g.add(*values, span=self._expected(node))
        if node.target in CONCATENATIONS and _is_concatenation(*args, **options):
            return g.concat(*args[0])
        if node.target in MODULE_OF and len(values) == 1 and args[0] is values[0]:
            return self._call(node, *args, **options)
        shape = self._shape(node, args, options)
        if shape is not None:
            return shape
        raise g.error(f"'{_name(node.target)}' has no integer operation; there are: {_known()}")

    def _module(self, module: nn.Module, x: Value) -> Value:
        if isinstance(module, BitLayer):
            return module.lower(self.g, x)
        if isinstance(module, nn.Sequential):
            for part in module:
                x = self._module(part, x)
            return x
        if type(module) in LOWERINGS:
            return LOWERINGS[type(module)](self.g, module, x)
        kind = type(module).__name__
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            raise self.g.error(f"it is a float {kind}; give it a preset or config to export it")
        if isinstance(module, _STATISTICS):
            raise self.g.error(
                f"{kind} needs each sample's own statistics, in real numbers; use batch norm to export it"
            )
        raise self.g.error(f"{kind} has no integer operation; there are: {_known()}")

    def _call(self, node: fx.Node, x: Value, *args: Any, **options: Any) -> Value:
        """Lowers a function or method as the module of the same meaning."""
        options = {name: value for name, value in options.items() if name not in ("training", "inplace")}
        try:
            module = MODULE_OF[node.target](*args, **options)
        except TypeError as error:
            raise self.g.error(
                f"'{_name(node.target)}' with arguments that integer graphs do not know: {error}"
            ) from error
        return self._module(module, x)

    def _shape(self, node: fx.Node, args: Any, options: dict[str, Any]) -> Any:
        """Follows what asks for shapes, and the views that flatten by them; ``None`` for anything else."""
        x = args[0] if args else None
        if isinstance(x, Value):
            sizes = (_BATCH, *x.shape)
            if node.target is getattr and args[1] == "shape":
                return sizes
            if node.target == "size":
                dims = [*args[1:], *options.values()]
                return sizes[dims[0]] if dims else sizes
            if node.target in ("view", "reshape", torch.reshape):
                wanted = tuple(args[1]) if isinstance(args[1], (tuple, list)) else tuple(args[1:])
                if len(wanted) == 2 and wanted[0] in (_BATCH, -1) and wanted[1] != _BATCH:
                    return self.g.flatten(x)
        elif isinstance(x, tuple) and node.target is operator.getitem:
            return x[args[1]]
        return None

    def _expected(self, node: fx.Node) -> float:
        """The largest magnitude to be expected of a value: a multiple of the ranges of the layers that read it."""
        ranges = [self._range(user) for user in node.users]
        return _RANGES * max(ranges) if ranges and max(ranges) > 0 else math.inf

    def _range(self, user: fx.Node) -> float:
        """The largest magnitude that a layer's trained quantizer keeps, also behind a ReLU; 0 where there is none."""
        if user.target in MODULE_OF and MODULE_OF[user.target] is nn.ReLU:
            return max((self._range(reader) for reader in user.users), default=0.0)
        module = self.model.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, (nn.ReLU, nn.Identity)):
            return max((self._range(reader) for reader in user.users), default=0.0)
        quantizer = module.activation_quantizer if isinstance(module, BitLayer) else None
        if quantizer is None or isinstance(quantizer.source, (FromValues, Unit)):
            return 0.0
        return float(quantizer.scale(torch.zeros(0))) * max(-quantizer.format.low, quantizer.format.high)

    def _needs_grid(self, node: fx.Node) -> bool:
        """Whether several operations read a value, which would then have to stay in int32."""
        users = [user for user in node.users if user.target not in (getattr, "size")]
        return len(users) > 1 and len({self._quantizer(user) for user in users}) > 1

    def _quantizer(self, user: fx.Node) -> Any:
        """What an operation does first with the value it reads: equal only if two operations do the same."""
        module = self.model.get_submodule(str(user.target)) if user.op == "call_module" else None
        quantizer = module.activation_quantizer if isinstance(module, BitLayer) else None
        return _signature(quantizer) if quantizer is not None else user


def _signature(quantizer: Quantizer) -> Any:
    source, name = quantizer.source, quantizer.format.name
    if isinstance(source, FromValues):
        return name, source.scaler, source.trailing
    codes = quantizer.quantize(torch.zeros(0))
    return name, float(codes.scale), None if codes.shift is None else float(codes.shift)


def _is_concatenation(x: Any, dim: int = 0) -> bool:
    return isinstance(x, (list, tuple)) and all(isinstance(v, Value) for v in x) and dim in (1, -len(x[0].shape))


def _layer(node: fx.Node) -> str:
    """Names an operation: a module by its path, anything else by its own name behind the path of its module."""
    if node.op == "call_module":
        return str(node.target)
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{stack[-1]}.{_name(node.target)}" if stack else node.name


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _known() -> str:
    return ", ".join(["bit layers", *sorted(kind.__name__ for kind in LOWERINGS), "additions and concatenations"])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (BitLayer, *_STATISTICS)) or type(m) in LOWERINGS
        return known or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds for code that it cannot follow
        raise BitLabError(f"the model's forward cannot be traced: {error}") from error
