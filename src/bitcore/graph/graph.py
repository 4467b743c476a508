"""The integer graph: nodes in order, and the interpreter that gives it its meaning (the golden reference)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from torch import Tensor

from bitcore.container import load_container, save_container
from bitcore.errors import BitLabError, unknown
from bitcore.formats import get_format
from bitcore.graph.ops import OPS, Ints, Op
from bitcore.graph.types import INT32, IntTensor, narrow
from bitcore.naming import plain_names, printable, shown
from bitcore.quantizers import SCALERS, FromValues, QTensor

_FILE_KIND = "bitlab-graph-1"


def check_scale(scale: object) -> None:
    """Checks that a scale is a positive number, or ``None`` where it differs from sample to sample.

    Raises:
        BitLabError: If it is something else, such as NaN.
    """
    real = isinstance(scale, (int, float)) and not isinstance(scale, bool) and 0 < scale < math.inf
    if scale is not None and not real:
        raise BitLabError(f"a scale is {shown(scale)}; it must be a positive number")


@dataclass(frozen=True)
class InputSpec:
    """How the network's real-valued input becomes integers.

    Attributes:
        shape: One sample's shape.
        format: The number format of the codes.
        scale: The static scale, or ``None`` where every sample has its own (`scaler`).
        scaler: The scaler's name where `scale` is ``None``.
    """

    shape: tuple[int, ...]
    format: str
    scale: float | None
    scaler: str = "absmax"

    def __post_init__(self) -> None:
        """Checks format, scale and scaler; the shape is checked by its type."""
        get_format(self.format)
        check_scale(self.scale)
        if self.scaler not in SCALERS:
            raise unknown("scaler", self.scaler, SCALERS)

    @property
    def type(self) -> IntTensor:
        """The integer type of the input."""
        fmt = get_format(self.format)
        return narrow(self.shape, fmt.low, fmt.high)

    def check(self, codes: NDArray[np.integer]) -> None:
        """Checks that integers are inputs.

        Raises:
            BitLabError: If they have another shape than ``[batch, *shape]``, or are no levels of the format.
        """
        if codes.ndim == 0 or tuple(codes.shape[1:]) != tuple(self.shape):
            raise BitLabError(f"the input has shape {tuple(codes.shape[1:])}; this network takes {tuple(self.shape)}")
        if not np.issubdtype(codes.dtype, np.integer):
            raise BitLabError(
                f"the input is {codes.dtype}; integers are needed (`input.quantize` makes them of floats)"
            )
        fmt = get_format(self.format)
        if codes.size and (codes.min() < fmt.low or codes.max() > fmt.high):
            raise BitLabError(f"input values must lie in {fmt.low}…{fmt.high} ({self.format})")
        if not fmt.holds(codes):
            raise BitLabError(
                f"input values must be levels of {self.format}: {', '.join(map(str, sorted(fmt.levels)))}"
            )

    def quantize(self, x: Tensor) -> Ints:
        """Turns float samples ``[batch, *shape]`` into integer levels, exactly as the model's first layer does.

        Raises:
            BitLabError: If the samples have another shape.
        """
        if tuple(x.shape[1:]) != tuple(self.shape):
            raise BitLabError(f"the input has shape {tuple(x.shape[1:])}; this network takes {tuple(self.shape)}")
        fmt = get_format(self.format)
        if self.scale is None:
            scale = FromValues(SCALERS[self.scaler], len(self.shape))(x, fmt)
        else:
            scale = torch.tensor(self.scale, dtype=x.dtype)
        return QTensor(fmt.nearest(x / scale), scale, fmt).levels.to(torch.int64).numpy()


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of a graph.

    Attributes:
        name: Unique; the model's layer it comes from, plus its role.
        op: The operation.
        inputs: Names of the nodes it reads (``"input"`` is the graph's input).
        type: The type of its result.
        scale: The real value of one step of its result, ``None`` where it differs (or nobody said it).
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    type: IntTensor
    scale: float | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A network in integers. Nodes are in execution order; the last one is the output, int32 ``[classes]``.

    Attributes:
        input: The input's specification.
        nodes: The operations.
        output_scale: The real value of one output step, ``None`` where it differs from sample to sample.
        info: What travels along (data set, preprocessing, model), JSON-serializable.
    """

    input: InputSpec
    nodes: tuple[Node, ...]
    output_scale: float | None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that nodes have names of their own and read what stands before them; their operations are checked."""
        if not isinstance(self.info, dict):
            raise BitLabError("a graph's info must be a dictionary")
        if not self.nodes:
            raise BitLabError("a graph needs a node")
        known = {"input"}
        for node in self.nodes:
            if not isinstance(node.name, str) or not node.name or node.name in known:
                raise BitLabError(f"a node is called {shown(node.name)}; every node needs a name of its own")
            for name in node.inputs:
                if name not in known:
                    raise BitLabError(f"node {shown(node.name)} reads {shown(name)}, which no node before it computes")
            known.add(node.name)
        for scale in (self.output_scale, *(node.scale for node in self.nodes)):
            check_scale(scale)

    @property
    def output(self) -> Node:
        """The last node."""
        return self.nodes[-1]

    def trace(self, codes: Ints) -> Iterator[tuple[str, Ints]]:
        """Runs the graph and yields the name and value of the input and every node, checking int32 all the way.

        Args:
            codes: int64 ``[batch, *input.shape]`` within the input format's levels.

        Raises:
            BitLabError: If the input has another shape or holds values that are no levels.
        """
        self.input.check(codes)
        values = {"input": codes.astype(np.int64)}
        yield "input", values["input"]
        last_reader = {name: node.name for node in self.nodes for name in node.inputs}
        for node in self.nodes:
            value = node.op.reference(*(values[name] for name in node.inputs))
            if value.size and (value.min() < INT32[0] or value.max() > INT32[1]):
                raise BitLabError(f"'{printable(node.name)}' leaves int32: {value.min()}…{value.max()}")
            values = {name: v for name, v in values.items() if last_reader.get(name) != node.name}
            values[node.name] = value
            yield node.name, value

    def run(self, codes: Ints) -> Ints:
        """Returns the outputs, int64 ``[batch, *output shape]``, for integer inputs (see `trace`)."""
        return deque(self.trace(codes), maxlen=1).pop()[1]

    def macs(self) -> int:
        """Returns the multiply-accumulates of one sample."""
        return sum(node.op.macs(node.type) for node in self.nodes)

    def multiplications(self) -> int:
        """Returns the multiplications of one sample beside the products of weights and activations.

        0 where all requantizations are shifts or thresholds. Products with binary and ternary weights are additions,
        with powers of two shifts, and the C runtime has a way without multiplications for every format.
        """
        return sum(node.op.multiplications(node.type) for node in self.nodes)

    def plainly_named(self) -> Graph:
        """Returns the same graph with `plain_names`, none of them that of the input or, in an export, the scores."""
        new = plain_names((node.name for node in self.nodes), taken=("input", "output"))
        nodes = (
            replace(node, name=new[node.name], inputs=tuple(new.get(name, name) for name in node.inputs))
            for node in self.nodes
        )
        return replace(self, nodes=tuple(nodes))

    def save(self, path: Path) -> None:
        """Writes the graph to one safetensors file: constants as tensors, everything else in the header."""
        tensors: dict[str, np.ndarray] = {}
        nodes = []
        for node in self.nodes:
            plain: dict[str, Any] = {}
            for f in fields(node.op):  # type: ignore[arg-type]
                value = getattr(node.op, f.name)
                if isinstance(value, np.ndarray):
                    tensors[f"{node.name}.{f.name}"] = _narrowest(value)
                else:
                    plain[f.name] = value
            nodes.append(
                {
                    "name": node.name,
                    "op": node.op.kind,
                    "inputs": node.inputs,
                    "fields": plain,
                    "scale": node.scale,
                }
            )
        header = {"input": asdict(self.input), "nodes": nodes, "output_scale": self.output_scale, "info": self.info}
        save_container(path, _FILE_KIND, header, tensors, save_tensors)

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Reads what `save` wrote. Nothing is executed; types are inferred anew, and every operation checks itself.

        A file may call its nodes anything, see `plainly_named`; the names that `bitexport.lower` gives stay.

        Raises:
            BitLabError: If the file is missing, truncated, altered, something else, or no valid graph.
        """
        header, tensors = load_container(Path(path), _FILE_KIND, "BitLab graph", "np")
        try:
            return cls._build(header, tensors)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            message = f"the graph '{path}' is damaged, or of another version of BitLab ({error!r:.99}); export it again"
            raise BitLabError(message) from error
        except BitLabError as error:
            raise BitLabError(f"the graph '{path}': {error}") from error

    @classmethod
    def _build(cls, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Graph:
        """Builds the graph of a file's content."""
        spec = InputSpec(**{**header["input"], "shape": tuple(header["input"]["shape"])})
        types = {"input": spec.type}
        constants: dict[str, dict[str, np.ndarray]] = {}
        for key, value in tensors.items():
            if not np.issubdtype(value.dtype, np.signedinteger):
                raise BitLabError(f"its tensor {shown(key)} is {value.dtype}; constants are signed integers")
            name, _, part = key.rpartition(".")
            constants.setdefault(name, {})[part] = value.astype(np.int64)
        nodes = []
        for entry in header["nodes"]:
            name, inputs = entry["name"], tuple(entry["inputs"])
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["fields"].items()}
            op = OPS[entry["op"]](**plain, **constants.pop(name, {}))
            try:
                types[name] = op.infer(*(types[i] for i in inputs))
            except BitLabError as error:
                raise BitLabError(f"node {shown(name)}: {error}") from error
            nodes.append(Node(name, op, inputs, types[name], entry.get("scale")))
        if constants:
            raise BitLabError(f"it holds constants of the unknown node {shown(next(iter(constants)))}")
        return cls(spec, tuple(nodes), header["output_scale"], header["info"]).plainly_named()


def _narrowest(values: Ints) -> np.ndarray:
    """Returns the same integers in the narrowest signed type."""
    low, high = int(values.min()), int(values.max())
    types = (np.int8, np.int16, np.int32, np.int64)
    return np.ascontiguousarray(values, next(t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max))
