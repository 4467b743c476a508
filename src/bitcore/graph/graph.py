"""The integer graph: nodes in order, and the interpreter that gives it its meaning (the golden reference)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitcore.formats import get_format
from bitcore.graph.ops import OPS, Ints, Op
from bitcore.graph.types import INT32, IntTensor, narrow
from bitcore.quantizers import SCALERS, FromValues, QTensor

_FILE_KIND = "bitlab-graph-1"


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

    @property
    def type(self) -> IntTensor:
        """The integer type of the input."""
        fmt = get_format(self.format)
        return narrow(self.shape, fmt.low, fmt.high)

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
        if tuple(codes.shape[1:]) != tuple(self.input.shape):
            raise BitLabError(f"the input has shape {codes.shape[1:]}; this network takes {tuple(self.input.shape)}")
        kind = self.input.type
        if codes.size and (codes.min() < kind.low or codes.max() > kind.high):
            raise BitLabError(f"input values must lie in {kind.low}…{kind.high} ({self.input.format})")
        values = {"input": codes.astype(np.int64)}
        yield "input", values["input"]
        last_reader = {name: node.name for node in self.nodes for name in node.inputs}
        for node in self.nodes:
            value = node.op.reference(*(values[name] for name in node.inputs))
            if value.size and (value.min() < INT32[0] or value.max() > INT32[1]):
                raise BitLabError(f"'{node.name}' leaves int32: {value.min()}…{value.max()}")
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
        content = save_tensors(tensors, {_FILE_KIND: json.dumps(header)})
        write_atomically(path, content)

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Reads what `save` wrote; types are inferred anew, nothing is executed.

        Raises:
            BitLabError: If the file is missing, truncated or something else.
        """
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if _FILE_KIND not in metadata:
                    raise BitLabError(f"'{path}' is a safetensors file but no BitLab graph")
                header = json.loads(metadata[_FILE_KIND])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls._build(header, tensors)
        except (SafetensorError, OSError) as error:
            raise BitLabError(f"cannot read the graph '{path}': {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            message = f"the graph '{path}' is damaged, or of another version of BitLab ({error!r}); export it again"
            raise BitLabError(message) from error

    @classmethod
    def _build(cls, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Graph:
        """Builds the graph of a file's content."""
        spec = InputSpec(**{**header["input"], "shape": tuple(header["input"]["shape"])})
        types = {"input": spec.type}
        constants: dict[str, dict[str, np.ndarray]] = {}
        for key, value in tensors.items():
            name, _, part = key.rpartition(".")
            constants.setdefault(name, {})[part] = value.astype(np.int64)
        nodes = []
        for entry in header["nodes"]:
            name = entry["name"]
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["fields"].items()}
            arrays = constants.get(name, {})
            op = OPS[entry["op"]](**plain, **arrays)
            types[name] = op.infer(*(types[i] for i in entry["inputs"]))
            nodes.append(Node(name, op, tuple(entry["inputs"]), types[name], entry.get("scale")))
        return cls(spec, tuple(nodes), header["output_scale"], header["info"])


def _narrowest(values: Ints) -> np.ndarray:
    """Returns the same integers in the narrowest signed type."""
    low, high = int(values.min()), int(values.max())
    types = (np.int8, np.int16, np.int32, np.int64)
    return np.ascontiguousarray(values, next(t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max))
