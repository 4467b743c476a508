"""What every target can do: say whether it can express a graph, emit it, and run what it emitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bitcore.errors import BitLabError
from bitcore.graph import Graph
from bitcore.graph.ops import Ints

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


@dataclass(frozen=True)
class Artifact:
    """What a target emitted.

    Attributes:
        folder: Where the files are. ``graph.safetensors`` in it is the graph they were made from.
        name: The network's name.
    """

    folder: Path
    name: str


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

    def require(self, graph: Graph) -> None:
        """Raises one error that lists every problem of the graph.

        Raises:
            BitLabError: If there are problems.
        """
        problems = self.check(graph)
        if problems:
            listed = "; ".join(f"layer '{p.layer}': {p.message}" for p in problems)
            raise BitLabError(f"target {self.name} cannot express this network: {listed}")
