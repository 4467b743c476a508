"""Traces a model with torch.fx and lowers it, operation by operation, to the integer graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from bitcore.errors import BitLabError
from bitcore.graph import Graph, GraphBuilder, Value
from bitcore.quantizers import FromValues, Quantizer
from bitcore.quantizers.ranges import Unit
from bitexport.calls import ARITHMETIC, CONCATENATIONS, MODULE_OF, NEGATIONS
from bitexport.lowerings import LOWERINGS
from bitexport.shapes import QUESTIONS, SHAPES, Sizes, View, sizes_of
from bitlayers.base import BitLayer
from bitlayers.modes import evaluating
from bitlayers.places import CONVERSIONS
from bitlayers.tracing import Tracer, name_of, place_of

_STATISTICS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
_LOWERING = ("lower", "add_to_graph")  # methods of bit layers that go with their forward
_RANGES = 8  # a value is expected within so many times the range of the layer that reads it
_REMEDY = "use one that has, such as ReLU, BatchNorm2d or AvgPool2d (docs/numbers.md lists them), or compute it outside"


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
        self.g = g
        self.model = nn.Sequential(model) if isinstance(model, BitLayer) or type(model) in LOWERINGS else model
        self.values: dict[fx.Node, Any] = {}  # of shapes, tuples and numbers

    def run(self, info: dict[str, Any]) -> Graph:
        """Lowers every operation."""
        self.g.layer = type(self.model).__name__
        for node in _trace(_plain(self.g, self.model)).nodes:
            self.g.layer = place_of(node)
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
        result = self.values[node.args[0]]
        if not isinstance(result, Value):
            raise self.g.error("the model must end in a linear layer with one vector of outputs a sample")
        return self.g.finish(result, info)

    def _lower(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.values:
                raise self.g.error("a second input; only models of one input can be exported")
            return self.g.source()
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.model.get_submodule(owner), name)
        known: Any = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        args, options = _positional(*known)
        try:
            return self._operation(node, args, options)
        except (TypeError, AssertionError, ValueError, IndexError) as error:
            problem = f"'{name_of(node.target)}' with arguments that integer graphs do not know: {error}"
            raise self.g.error(problem) from error

    def _operation(self, node: fx.Node, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if node.op != "call_module":
            return self._call(node, args, options)
        if len(args) != 1 or options or not isinstance(args[0], (Value, View)):
            raise self.g.error("it is called with something else than one value")
        return self._module(_plain(self.g, self.model.get_submodule(str(node.target))), args[0])

    def _module(self, module: nn.Module, x: Value | View) -> Any:
        if isinstance(module, nn.Flatten):
            return self._shaped(x, SHAPES["flatten"](sizes_of(x), module.start_dim, module.end_dim))
        if isinstance(module, nn.Sequential):
            for part in module:
                x = self._module(part, x)
            return x
        if isinstance(x, View):
            raise self.g.error(f"a value of shape {x.shape}; integer graphs take vectors and maps; flatten it")
        if isinstance(module, BitLayer):
            return module.lower(self.g, x)
        if type(module) in LOWERINGS:
            return LOWERINGS[type(module)](self.g, module, x)
        kind = type(module).__name__
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            raise self.g.error(f"it is a float {kind}; give it a preset or config to export it")
        if isinstance(module, _STATISTICS):
            raise self.g.error(
                f"{kind} needs each sample's own statistics, in real numbers; use batch norm to export it"
            )
        raise self.g.error(f"{kind} has no integer operation; {_REMEDY}")

    def _call(self, node: fx.Node, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Lowers a function or method: arithmetic, shapes, or as the module of the same meaning."""
        g, target = self.g, node.target
        question = args[1] if target is getattr else target
        x = args[0] if args else None
        if _is_python(node, args):
            return target(*args, **options)  # type: ignore[operator]
        if isinstance(x, (Value, View)) and question in QUESTIONS:
            return QUESTIONS[question](sizes_of(x), *args[2 if target is getattr else 1 :], **options)
        if isinstance(x, (Value, View)) and target in SHAPES:
            return self._shaped(x, SHAPES[target](sizes_of(x), *args[1:], **options))
        if target in CONCATENATIONS and _is_concatenation(*args, **options):
            return g.concat(*args[0])
        if any(isinstance(arg, View) for arg in args):
            raise g.error(f"a value of shape {x.shape}; integer graphs take vectors and maps; flatten it")  # type: ignore[union-attr]
        if target in NEGATIONS:
            return ARITHMETIC["mul"](g, x, -1, math.inf)
        if target in ARITHMETIC and len(args) == 2 and not options and any(isinstance(arg, Value) for arg in args):
            return ARITHMETIC[target](g, *args, span=self._expected(node))
        if target == "copy_" and all(isinstance(arg, Value) for arg in args) and len({arg.shape for arg in args}) == 1:
            return args[1]
        if target in MODULE_OF and isinstance(x, Value):
            return self._module(MODULE_OF[target](*args[1:], **options), x)
        raise g.error(f"'{name_of(target)}' has no integer operation; {_REMEDY}")

    def _shaped(self, x: Value | View, sizes: Sizes) -> Value | View:
        """The same values in another shape."""
        value, shape = x.value if isinstance(x, View) else x, sizes[1:]
        if shape == value.shape:
            return value
        return self.g.flatten(value) if len(shape) == 1 else View(value, shape)

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
        users = [user for user in node.users if user.target not in (getattr, *QUESTIONS)]
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


def _positional(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts the operands that are given by name in front, as ``torch.cat(tensors=[x, y])`` and ``layer(input=x)`` do."""
    named = ("input", "tensors", "x", "other") if not args else ("other",)
    first = [name for name in named if name in options]
    rest = {name: value for name, value in options.items() if name not in first}
    return (*args, *(options[name] for name in first)), rest


def _is_python(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """Whether Python's operators compute it of sizes and numbers alone."""
    found: list[Any] = []
    map_aggregate(args, found.append)
    plain = not any(isinstance(arg, (Value, View, Tensor)) for arg in found)
    return plain and getattr(node.target, "__module__", "") == "_operator"


def _is_concatenation(x: Any, dim: int = 0, *, axis: int | None = None) -> bool:
    dim = dim if axis is None else axis
    values = isinstance(x, (list, tuple)) and bool(x) and all(isinstance(v, Value) for v in x)
    return values and dim in (1, -len(x[0].shape))


def _plain(g: GraphBuilder, module: nn.Module) -> nn.Module:
    """Returns a module that computes what its type says.

    Raises:
        BitLabError: Hooks, or a forward of the instance or of a subclass, which a graph would leave out.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise g.error("it has forward hooks, which integer graphs leave out; remove them (handle.remove())")
    if "forward" in vars(module):
        raise g.error("its forward was replaced on the instance; integer graphs leave that out; remove it")
    kinds = type(module).__mro__
    first = {name: next(i for i, k in enumerate(kinds) if name in vars(k)) for name in ("forward", *_LOWERING)
             if hasattr(module, name)}  # fmt: skip
    other = isinstance(module, BitLayer) and type(module) not in CONVERSIONS.values()
    if other and first["forward"] < min(first[name] for name in _LOWERING):
        kind = kinds[first["forward"]].__name__
        raise g.error(f"{kind} has a forward of its own; put what it adds to the bit layer into a module around it")
    return module


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, _STATISTICS) or type(m) in LOWERINGS
        return known or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    """The operations that the output needs."""
    try:
        graph = _Tracer().functional(model)
    except BitLabError:
        raise
    except Exception as error:  # torch.fx raises many kinds for code that it cannot follow
        raise BitLabError(f"the model's forward cannot be traced: {error}") from error
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return graph
