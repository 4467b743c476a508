"""The engine as a target: the graph itself is what is shipped, and the engine compiles it where it runs."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bitcore.engine import Engine
from bitcore.engine.plan import OPERATIONS
from bitcore.engine.posts import elementwise
from bitcore.errors import BitLabError
from bitcore.graph import Graph, Threshold
from bitcore.graph.ops import Ints
from bitexport.targets.base import GRAPH_FILE, Artifact, Problem, Sizes, Target, weight_problems
from bitexport.targets.manifest import MANIFEST_FILE, Manifest
from bitexport.trace import lower


class EngineTarget(Target):
    """The CPU this runs on: one native call a batch (`bitcore.engine`)."""

    name = "engine"

    def check(self, graph: Graph) -> list[Problem]:
        """Returns what the engine cannot express: unknown operations, thresholds of accumulators as wide as int32."""
        problems = weight_problems(graph)
        types = {"input": graph.input.type, **{node.name: node.type for node in graph.nodes}}
        for node in graph.nodes:
            if type(node.op) not in OPERATIONS:
                problems.append(Problem(node.name, f"the engine has no {node.op.kind}; leave it out of the model"))
            elif isinstance(node.op, Threshold):
                try:
                    elementwise(node.op, types[node.inputs[0]])
                except BitLabError as error:
                    problems.append(Problem(node.name, str(error)))
        return problems

    def emit(self, graph: Graph, out: Path, name: str) -> Artifact:
        """Writes the graph, and ``export.json``, which says that it is for the engine."""
        self.require(graph)
        mine = (GRAPH_FILE, MANIFEST_FILE)
        if out.exists() and (not out.is_dir() or any(file.name not in mine for file in out.iterdir())):
            raise BitLabError(f"'{out}' holds other files; give a new or empty folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
            graph.save(out / GRAPH_FILE)
            Manifest(name, self.name, mine).save(out)
        except OSError as error:
            raise BitLabError(f"cannot write '{out}': {error.strerror or error}") from error
        return Artifact(out, name)

    def describe(self, artifact: Artifact) -> Sizes:
        """Compiles the graph for this machine and returns what it takes; the arena for each sample of a batch."""
        engine = Engine(Graph.load(artifact.folder / GRAPH_FILE))
        weights = sum(step["weights"] for step in engine.steps)
        return Sizes(weights, engine.weight_bytes, engine.arena_bytes, input_in_arena=True)

    def run(self, artifact: Artifact, codes: Ints) -> Ints:
        """Compiles the graph for this machine and runs every sample."""
        return Engine(Graph.load(artifact.folder / GRAPH_FILE)).run(codes)


def compile(  # noqa: A001
    model: nn.Module | Graph, input_shape: tuple[int, ...] | None = None
) -> Engine:
    """Compiles a network for this machine's CPU: integers throughout, one native call a batch, no Python in between.

    Args:
        model: A model whose weighted layers are bit layers, or its integer graph.
        input_shape: One sample's shape, without the batch dimension; a graph knows its own.

    Returns:
        A callable: float32 ``[batch, *input_shape]`` to float32 outputs, and ``run`` for integers. Equal to the integer
        graph's interpreter bit for bit.

    Raises:
        BitLabError: If a layer cannot be expressed in integers (it is named), or the shape is missing.
    """
    if isinstance(model, Graph):
        return Engine(model)
    if input_shape is None:
        raise BitLabError("compile(model) needs the shape of one sample, such as input_shape=(3, 224, 224)")
    return Engine(lower(model, input_shape))
