"""What every target can do: say whether it can express a graph, emit it, and run what it emitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.graph import Conv2d, Graph, Linear
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT16
from bitcore.naming import printable

GRAPH_FILE = "graph.safetensors"
"""In every artifact's folder: the graph it was made from."""


@dataclass(frozen=True)
class Problem:
    """Something in a graph that a target cannot express.

    Attributes:
        layer: The node's name.
        message: What is wrong and the remedy.
    """

    layer: str
    message: str


def weight_problems(graph: Graph) -> list[Problem]:
    """Returns the layers whose weights are no levels of their format, or whose format is unknown or beyond int16."""
    problems = []
    for node in graph.nodes:
        if isinstance(node.op, (Linear, Conv2d)):
            try:
                levels = get_format(node.op.format).levels
            except BitLabError as error:
                problems.append(Problem(node.name, str(error)))
                continue
            if not np.isin(node.op.levels, levels).all():
                problems.append(Problem(node.name, f"its weights are no levels of {node.op.format}; quantize them"))
            elif not INT16[0] <= min(levels) <= max(levels) <= INT16[1]:
                problems.append(Problem(node.name, f"levels of {node.op.format} leave int16; use a narrower format"))
    return problems


@dataclass(frozen=True)
class Artifact:
    """What a target emitted.

    Attributes:
        folder: Where the files are. ``graph.safetensors`` in it is the graph they were made from.
        name: The network's name.
    """

    folder: Path
    name: str


@dataclass(frozen=True)
class Sizes:
    """What an emitted network takes, in bytes.

    Attributes:
        weights: The weights, as they are stored.
        constants: All constants, weights among them; code is not counted.
        arena: Working memory.
        input_in_arena: Whether it has room for the input, which needs no other memory then.
    """

    weights: int
    constants: int
    arena: int
    input_in_arena: bool


class Target(ABC):
    """An export target."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, graph: Graph) -> list[Problem]:
        """Returns what the target cannot express; empty when it can emit the graph."""

    @abstractmethod
    def emit(self, graph: Graph, out: Path, name: str) -> Artifact:
        """Writes the network to the folder ``out``, all or nothing.

        Raises:
            BitLabError: If `check` finds problems, or the folder cannot be written.
        """

    @abstractmethod
    def run(self, artifact: Artifact, codes: Ints) -> Ints:
        """Runs the emitted network on integer inputs ``[batch, *shape]`` and returns int64 ``[batch, outputs]``."""

    @abstractmethod
    def describe(self, artifact: Artifact) -> Sizes:
        """Returns what the emitted network takes: as it was emitted, never as it would be planned anew.

        Raises:
            BitLabError: The export does not say it.
        """

    def require(self, graph: Graph) -> None:
        """Raises one error that lists every problem of the graph.

        Raises:
            BitLabError: If there are problems.
        """
        problems = self.check(graph)
        if problems:
            listed = "; ".join(f"layer '{printable(p.layer)}': {p.message}" for p in problems)
            raise BitLabError(f"target {self.name} cannot express this network: {listed}")
