"""The integer graph: exact operations, the interpreter (the golden reference), lowering, the memory plan."""

from bitcore.graph.builder import GraphBuilder
from bitcore.graph.graph import Graph, InputSpec, Node
from bitcore.graph.memory import Buffer, MemoryPlan, Step, plan_memory
from bitcore.graph.ops import (
    OPS,
    Add,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    Lookup,
    MaxPool2d,
    NormShift,
    Op,
    Requantize,
    SumPool2d,
    Threshold,
)
from bitcore.graph.passes import bring_together, eliminate_dead
from bitcore.graph.render import graph_dot, graph_rows, graph_table
from bitcore.graph.types import IntTensor
from bitcore.graph.values import Value

__all__ = [
    "OPS",
    "Add",
    "Buffer",
    "Concat",
    "Conv2d",
    "Flatten",
    "Graph",
    "GraphBuilder",
    "InputSpec",
    "IntTensor",
    "Linear",
    "Lookup",
    "MaxPool2d",
    "MemoryPlan",
    "Node",
    "NormShift",
    "Op",
    "Requantize",
    "Step",
    "SumPool2d",
    "Threshold",
    "Value",
    "bring_together",
    "eliminate_dead",
    "graph_dot",
    "graph_rows",
    "graph_table",
    "plan_memory",
]
