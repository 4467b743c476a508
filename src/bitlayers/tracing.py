"""A model's forward as a torch.fx graph in which nothing changes in place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from torch import fx, nn
from torch.fx.proxy import Attribute
from torch.nn.modules.dropout import _DropoutNd

from bitcore.errors import BitLabError
from bitlayers.base import BitLayer

_OPERATORS = "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift".split()
_CHANGING = frozenset({"setitem", "set", *_OPERATORS})  # ``__set__`` is ``x.data = y``
_NUMBERS = frozenset({"size", "dim", "ndimension", "numel", "shape", "ndim"})  # methods and attributes


class Sharing(Enum):
    """How a value shares memory with what it is made of."""

    WHOLE = "it is the same tensor"
    VIEW = "it always shares memory"
    PERHAPS = "it may share memory, or be a copy"


_SHARING: dict[str, Sharing] = {
    **dict.fromkeys(("detach", "pos", "positive"), Sharing.WHOLE),
    **dict.fromkeys(
        "adjoint as_strided chunk conj diagonal dsplit expand expand_as getitem H hsplit imag linalg_diagonal mH "
        "movedim moveaxis mT narrow permute real select split split_with_sizes squeeze swapaxes swapdims T t "
        "tensor_split transpose unbind unflatten unsafe_chunk unsafe_split unsqueeze view view_as view_as_complex "
        "view_as_real vsplit".split(),
        Sharing.VIEW,
    ),
    **dict.fromkeys(
        "alpha_dropout atleast_1d atleast_2d atleast_3d bfloat16 broadcast_tensors broadcast_to conj_physical "
        "contiguous cpu cuda data dequantize double dropout dropout1d dropout2d dropout3d einsum "
        "feature_alpha_dropout flatten float half ravel reshape reshape_as resolve_conj resolve_neg sum_to_size "
        "to to_dense type type_as unfold".split(),
        Sharing.PERHAPS,
    ),
}  # fmt: skip
"""Functions, methods and attributes by name; all others make new tensors."""


class _InPlace:
    """What Python changes in place. By itself, torch.fx takes ``x += y`` for ``x = x + y`` and loses ``x.data = y``."""

    tracer: fx.Tracer
    node: fx.Node

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            place = place_of(self.node)
            raise BitLabError(f"layer '{place}': '.{name}' of its result is set; make a new value instead")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)  # type: ignore[arg-type]


def _records(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in _OPERATORS:
    setattr(_InPlace, f"__{_name}__", _records(getattr(operator, _name)))


class _Proxy(_InPlace, fx.Proxy):
    pass


class _Attribute(_InPlace, Attribute):  # pyright: ignore[reportIncompatibleVariableOverride]
    pass


class Tracer(fx.Tracer):
    """Follows a model's forward down to torch's own modules and bit layers, and what it changes in place."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return isinstance(m, (BitLayer, nn.Identity)) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Returns what stands for a node's value in the model's code."""
        return _Proxy(node, self)

    def functional(self, model: nn.Module, given: dict[str, Any] | None = None, *, exact: bool = True) -> fx.Graph:
        """Traces a model; who reads a value after it was changed in place reads the result of the change.

        Args:
            model: The model.
            given: Arguments of its forward that are no inputs, by name.
            exact: Refuse what a graph cannot express. Without, such values are `either` in a graph to look at.

        Raises:
            BitLabError: The code changes what shares memory, or may, in ways that a graph cannot express.
        """
        graph = self.trace(model, given)
        _Changes(graph, dict(model.named_modules(remove_duplicate=False)), exact).follow()
        return graph


def either(before: Any, change: Any) -> Any:
    """Stands for a value that a change in place may have reached, or has in part; graphs with it cannot be run."""
    raise BitLabError("a graph that is not exact cannot be run")


def place_of(node: fx.Node) -> str:
    """Names an operation: a module by its path, anything else by its own name behind the path of its module."""
    if node.op == "call_module":
        return str(node.target)
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{stack[-1]}.{name_of(node.target)}" if stack else node.name


def name_of(target: Any) -> str:
    """Returns the name of a function or method."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def changed_by(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns the argument that a function or method changes in place; ``None`` if it makes new values."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    name = name_of(operation)
    named = name.endswith("_") and not name.endswith("__")
    changes = named or name.strip("_") in _CHANGING or _asks_for_inplace(operation, args, kwargs)
    return _first(args, kwargs) if changes else None


class _Changes:
    """Turns changes in place into new values that all later readers get."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], exact: bool) -> None:
        self._graph, self._modules, self._exact = graph, modules, exact
        self._sources: dict[fx.Node, tuple[fx.Node, Sharing]] = {}  # whose memory a value shares
        self._numbers: set[fx.Node] = set()

    def follow(self) -> None:
        """Goes through the operations in order."""
        for node in list(self._graph.nodes):
            if self._is_number(node):
                self._numbers.add(node)
            changed = self._changed(node)
            if changed is not None and changed not in self._numbers:
                self._pass_on(node, changed)
                self._sources[node] = changed, Sharing.WHOLE
            elif (sharing := self._sharing(node)) is not None:
                self._sources[node] = _first(node.args, node.kwargs), sharing

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a value is a size, or made of sizes by Python's operators."""
        name = node.args[1] if node.target is getattr else node.target
        inputs = node.all_input_nodes
        plain = getattr(node.target, "__module__", "") == "_operator" and bool(inputs)
        return name in _NUMBERS or (plain and all(i in self._numbers for i in inputs))

    def _changed(self, node: fx.Node) -> fx.Node | None:
        """The value that an operation changes in place, if it does."""
        changed = None
        if node.op in ("call_function", "call_method"):
            changed = changed_by(node.target, node.args, node.kwargs)
        elif node.op == "call_module" and getattr(self._modules[str(node.target)], "inplace", False):
            changed = _first(node.args, node.kwargs)
        return changed if isinstance(changed, fx.Node) else None

    def _sharing(self, node: fx.Node) -> Sharing | None:
        source = _first(node.args, node.kwargs)
        if not isinstance(source, fx.Node) or source in self._numbers:
            return None
        if node.target is operator.getitem:
            return self._picking(node.args[1])
        if node.op != "call_module":
            return _SHARING.get(node.args[1] if node.target is getattr else name_of(node.target))  # type: ignore[arg-type]
        module = self._modules[str(node.target)]
        if isinstance(module, (nn.Identity, _DropoutNd)):
            return Sharing.WHOLE if isinstance(module, nn.Identity) or not module.training else Sharing.PERHAPS
        return Sharing.PERHAPS if isinstance(module, (nn.Flatten, nn.Unflatten)) else None

    def _picking(self, key: Any) -> Sharing | None:
        """How ``x[key]`` shares memory with ``x``: lists pick copies, and tensors do unless they are one number."""
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, (list, tuple, bool)) for k in keys):
            return None
        plain = all(k is None or k is ... or isinstance(k, (int, slice)) or k in self._numbers for k in keys)
        return Sharing.VIEW if plain else Sharing.PERHAPS

    def _pass_on(self, change: fx.Node, changed: fx.Node) -> None:
        """Gives all that read the changed memory after the change what is in it then."""
        order = {node: i for i, node in enumerate(self._graph.nodes)}
        again = {self._whole(changed): change}
        for node in [*self._sources, self._origin(changed)]:
            readers = [user for user in node.users if order.get(user, -1) > order[change]]
            if readers and self._origin(node) is self._origin(changed):
                new = self._remade(node, again) or self._either(node, change, again)
                for reader in readers:
                    reader.replace_input_with(node, new)

    def _remade(self, node: fx.Node, again: dict[fx.Node, fx.Node]) -> fx.Node | None:
        """The value of a node after the change: the change's result itself, or the same view of it, if it is that."""
        node = self._whole(node)
        if node in again:
            return again[node]
        source, sharing = self._sources.get(node, (node, None))
        new_source = self._remade(source, again) if sharing is Sharing.VIEW else None
        if new_source is None:
            return None
        with self._after(again):
            new = again[node] = self._graph.node_copy(node, lambda n: new_source if n is source else n)
        self._sources[new] = new_source, Sharing.VIEW
        return new

    def _either(self, node: fx.Node, change: fx.Node, again: dict[fx.Node, fx.Node]) -> fx.Node:
        """What stands for a value that may have changed, or has in part."""
        if self._exact:
            raise BitLabError(
                f"layer '{place_of(change)}': it changes in place what '{place_of(node)}', which is read later, may "
                "share; let it return a new value (y = relu(x), y = x + 1, no inplace=True)"
            )
        with self._after(again):
            new = again[self._whole(node)] = self._graph.call_function(either, (node, change))
        self._sources[new] = node, Sharing.WHOLE
        return new

    def _after(self, nodes: dict[fx.Node, fx.Node]) -> Any:
        """Puts new nodes behind all of these."""
        return self._graph.inserting_after(max(nodes.values(), key=list(self._graph.nodes).index))

    def _whole(self, node: fx.Node) -> fx.Node:
        """The first node that is the same tensor."""
        while node in self._sources and self._sources[node][1] is Sharing.WHOLE:
            node = self._sources[node][0]
        return node

    def _origin(self, node: fx.Node) -> fx.Node:
        """The node whose memory it is."""
        while node in self._sources:
            node = self._sources[node][0]
        return node


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The value that an operation is of, ``x`` in ``x.f()``, ``f(x)`` and ``f(input=x)``; ``None`` without one."""
    return args[0] if args else kwargs.get("input")


def _asks_for_inplace(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function is called with ``inplace=True``, by name or by position."""
    if kwargs.get("inplace"):
        return True
    try:
        given = inspect.signature(operation).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a method, or a function in C, which has no such argument
        return False
    return bool(given.arguments.get("inplace"))
