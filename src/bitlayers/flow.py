"""What flows between the layers of a model: which layers read its input, which come last, and the signs of inputs.

The code is followed by torch.fx where it can be, else the calls of an example.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from bitcore.errors import BitLabError
from bitlayers.activations import RPReLU, RSign
from bitlayers.base import BitLayer
from bitlayers.bitattention import PROJECTIONS, BitMultiheadAttention
from bitlayers.modes import evaluating
from bitlayers.signs import JOINS, NO_TENSOR, Sign, joined, options_of, sign_of, word
from bitlayers.tracing import Tracer, changed_by, either, name_of

Layer = tuple[nn.Module, str]
"""A layer: a module, or an attention module and the name of its projection."""
INPUT = (nn.Identity(), "input")
"""Stands for the model's input among what a value comes from."""


@dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        sign: Whether it can be negative.
        sources: What it was computed from with no layer in between: layers, and `INPUT`.
    """

    sign: Sign
    sources: frozenset[Layer] = frozenset()


@dataclass
class Flow:
    """What flows between a model's layers.

    Attributes:
        inputs: What each layer reads (of all its calls); layers that were not met are missing.
        outputs: What the model returns comes from these.
        problem: Why the model could not be followed, empty if it could.
    """

    inputs: dict[Layer, Value] = field(default_factory=dict)
    outputs: frozenset[Layer] = frozenset()
    problem: str = ""

    def sign(self, layer: Layer) -> Sign:
        """Returns what is known of a layer's input."""
        return self.inputs[layer].sign if layer in self.inputs else Sign.UNKNOWN

    def reads_input(self, layer: Layer) -> bool:
        """Whether the model's input, or channels of it, arrive at a layer with no other layer in between."""
        return layer in self.inputs and INPUT in self.inputs[layer].sources

    def meet(self, layer: Layer, value: Value) -> None:
        """Notes a call of a layer."""
        seen = [value, self.inputs[layer]] if layer in self.inputs else [value]
        self.inputs[layer] = any_of(seen)


def follow(model: nn.Module, layers: Iterable[nn.Module], example: Any = None, *, hardtanhs: bool = False) -> Flow:
    """Returns what flows between the layers of a model.

    Args:
        model: Any model.
        layers: Its layers with weights.
        example: An input, a tuple of inputs or a dictionary of named ones: the model is called with it, in eval mode.
            Without, torch.fx follows the code, which some code does not allow.
        hardtanhs: Look at ReLU modules as if they were Hardtanhs already.

    Raises:
        BitLabError: If the model cannot be called with the example.
    """
    walk = _Walk(model, layers, hardtanhs)
    if example is not None:
        return _called(walk, example)
    if model in walk.layers:
        walk.flow.outputs = walk.call(model, [Value(Sign.CAN, frozenset([INPUT]))] * 3, {}).sources
        return walk.flow
    return _traced(walk)


class _Walk:
    """Works out values call by call, in the order of the calls."""

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], hardtanhs: bool) -> None:
        self.model, self.hardtanhs, self.flow = model, hardtanhs, Flow()
        known = {*layers, *(module for module in model.modules() if isinstance(module, nn.MultiheadAttention))}
        self.layers = {layer for layer in known if isinstance(layer, nn.MultiheadAttention) or not _holds(layer, known)}
        self.relus = {module for module in model.modules() if hardtanhs and type(module) in (nn.ReLU, nn.ReLU6)}

    def call(self, module: nn.Module, values: Sequence[Value], named: Mapping[str, Value]) -> Value:
        """Returns the value of a module's output; notes what it reads if it is a layer.

        Args:
            module: The module.
            values: Of its tensors, in the order of its arguments.
            named: Those that were given by name.
        """
        if isinstance(module, nn.MultiheadAttention):
            return self._attend(module, values, named)
        if module in self.layers:
            self.flow.meet((module, ""), any_of(values[:1]))
            return Value(Sign.CAN if _of_torch(module) else Sign.UNKNOWN, frozenset([(module, "")]))
        if module in self.relus:
            return self.apply(nn.Hardtanh, values, (), {"min_val": -1.0, "max_val": 1.0})
        return self.apply(type(module) if _of_torch(module) else "", values, (), options_of(module))

    def apply(self, operation: Any, values: Sequence[Value], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        """Returns the value of an operation's result.

        Args:
            operation: A type of module, a function or a method's name.
            values: Of the tensors among the arguments.
            args: All arguments.
            kwargs: Likewise, by name.
        """
        name = word(name_of(operation))
        if name in NO_TENSOR:
            return Value(Sign.UNKNOWN)
        sources: frozenset[Layer] = frozenset().union(*(value.sources for value in values))
        if name not in JOINS and any(value.sources and INPUT not in value.sources for value in values):
            sources -= {INPUT}  # a layer's output that the input is added to is no longer the input
        return Value(sign_of(operation, args, kwargs, [value.sign for value in values]), sources)

    def _attend(self, attention: nn.MultiheadAttention, values: Sequence[Value], named: Mapping[str, Value]) -> Value:
        q, k, v, out = (
            (getattr(attention, name), "") if isinstance(attention, BitMultiheadAttention) else (attention, name)
            for name in PROJECTIONS
        )
        given = [named.get(name) for name in ("query", "key", "value")]
        for layer, value, other in zip((q, k, v), given, [*values[:3], *[None] * 3], strict=False):
            self.flow.meet(layer, value or other or Value(Sign.UNKNOWN))
        self.flow.meet(out, Value(Sign.CAN, frozenset([q, k, v])))
        return Value(Sign.CAN, frozenset([out]))


def any_of(values: Sequence[Value]) -> Value:
    """Returns what is known of a tensor that may be any of these."""
    if not values:
        return Value(Sign.UNKNOWN)
    return Value(joined([v.sign for v in values]), frozenset().union(*(v.sources for v in values)))


def constant(value: Any) -> Value:
    """Returns what is known of a parameter or a buffer."""
    fixed = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_meta
    return Value(Sign.NEVER if fixed and not value.is_complex() and bool((value >= 0).all()) else Sign.CAN)


def _holds(layer: nn.Module, layers: Collection[nn.Module]) -> bool:
    return any(child in layers for child in layer.modules() if child is not layer)


def _of_torch(module: nn.Module) -> bool:
    ours = isinstance(module, (BitLayer, RSign, RPReLU))
    return ours or type(module).__module__.startswith(("torch.nn.modules.", "transformers."))


# ---- by torch.fx -----------------------------------------------------------------------------------------------------


class _Tracer(Tracer):
    """Follows a model's forward down to the layers that are looked at."""

    def __init__(self, layers: Collection[nn.Module]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        if m in self.layers or isinstance(m, (BitLayer, nn.MultiheadAttention, RSign, RPReLU)):
            return True
        holds = _holds(m, self.layers)  # as torch's transformers do
        return not holds and super().is_leaf_module(m, module_qualified_name)


def _traced(walk: _Walk) -> Flow:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's encoder layers ask their input whether they may take it
    try:
        nodes = _Tracer(walk.layers).functional(walk.model, _defaults(walk.model), exact=False).nodes
    except Exception as error:  # torch.fx raises many kinds for code that it cannot follow
        return Flow(problem=next(iter(str(error).splitlines()), type(error).__name__))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    known: dict[fx.Node, Value] = {}
    for node in nodes:
        values: list[Value] = []
        fx.map_arg((node.args, node.kwargs), lambda n, values=values: values.append(known[n]))
        if node.op == "output":
            walk.flow.outputs = any_of(values).sources - {INPUT}
        else:
            named = {name: known[n] for name, n in node.kwargs.items() if isinstance(n, fx.Node)}
            known[node] = _value(walk, node, values, named)
    return walk.flow


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments that a caller need not give, such as masks, as they are then."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is None or isinstance(p.default, (bool, int, float))}


def _value(walk: _Walk, node: fx.Node, values: list[Value], named: Mapping[str, Value]) -> Value:
    """Works out a node's value from those of its arguments."""
    if node.op == "placeholder":
        return Value(Sign.CAN, frozenset([INPUT]))
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        return constant(getattr(walk.model.get_submodule(path), name, None))
    if node.op == "call_module":
        return walk.call(walk.model.get_submodule(str(node.target)), values, named)
    if node.target is either:
        return any_of(values)
    if node.target is getattr:
        return values[0] if node.args[1] in ("T", "mT", "H", "data") else Value(Sign.UNKNOWN)
    return walk.apply(node.target, values, node.args, node.kwargs)


# ---- by an example ---------------------------------------------------------------------------------------------------


def _called(walk: _Walk, example: Any) -> Flow:
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    args = () if kwargs else example if isinstance(example, tuple) else (example,)
    calls = _Calls(walk)
    for tensor in _tensors((args, kwargs)):
        calls.set(tensor, Value(Sign.CAN, frozenset([INPUT])))
    handles = [handle for module in (*walk.layers, *walk.relus) for handle in calls.watch(module)]
    try:
        with torch.no_grad(), evaluating(walk.model), calls:
            outputs = walk.model(*args, **kwargs)
    except Exception as error:  # a model's own code may raise anything
        raise BitLabError(f"the model cannot be called with example_input: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    walk.flow.outputs = any_of([calls.get(tensor) for tensor in _tensors(outputs)]).sources - {INPUT}
    return walk.flow


class _Calls(TorchFunctionMode):
    """Sees every call of torch's functions, and works out the values of the tensors that come out."""

    def __init__(self, walk: _Walk) -> None:
        super().__init__()
        self.walk = walk
        self.inside = 0
        self.values: dict[int, tuple[Tensor, Value]] = {}  # the tensors too, so that no id is used twice

    def get(self, tensor: Tensor) -> Value:
        """Returns the value of a tensor."""
        return self.values[id(tensor)][1] if id(tensor) in self.values else constant(tensor)

    def set(self, tensor: Tensor, value: Value) -> None:
        """Notes the value of a tensor."""
        self.values[id(tensor)] = tensor, value

    def watch(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Makes a module one call, whatever it calls itself."""
        results: list[Value] = []

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.inside += 1
            named = {name: self.get(x) for name, x in kwargs.items() if isinstance(x, Tensor)}
            results.append(self.walk.call(module, [self.get(x) for x in _tensors((args, kwargs))], named))

        def after(module: nn.Module, args: Any, outputs: Any) -> None:
            self.inside -= 1
            value = results.pop()
            for tensor in _tensors(outputs):
                self._store(tensor, value, changed=bool(getattr(module, "inplace", False)))

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function and notes its results."""
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        values = [self.get(x) for x in _tensors((args, kwargs))]  # before a function changes them
        result = func(*args, **kwargs)
        changed = changed_by(func, args, kwargs)
        if tensors := _tensors(result if changed is None else changed):  # x[i] = y has no result
            value = self.walk.apply(func, values, args, kwargs)
            for tensor in tensors:
                self._store(tensor, value, changed=changed is not None)
        return result

    def _store(self, tensor: Tensor, value: Value, *, changed: bool) -> None:
        if changed:
            memory = tensor.untyped_storage()
            whole = tensor.numel() * tensor.element_size() == memory.nbytes()
            for other, old in list(self.values.values()):
                if other.untyped_storage().data_ptr() == memory.data_ptr():
                    self.set(other, value if whole else any_of([old, value]))
        self.set(tensor, value)


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]
