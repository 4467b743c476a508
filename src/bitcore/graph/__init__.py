"""The integer graph: exact operations, the interpreter (the golden reference), lowering, the memory plan."""

from bitcore.graph.builder import GraphBuilder, Value, eliminate_dead
from bitcore.graph.graph import Graph, InputSpec, Node
from bitcore.graph.memory import Buffer, MemoryPlan, Step, plan_memory
from bitcore.graph.ops import OPS, Conv2d, Flatten, Linear, MaxPool2d, NormShift, Op, Requantize, Threshold
from bitcore.graph.render import graph_dot, graph_rows, graph_table
from bitcore.graph.types import IntTensor

__all__ = [
    "OPS",
    "Buffer",
    "Conv2d",
    "Flatten",
    "Graph",
    "GraphBuilder",
    "InputSpec",
    "IntTensor",
    "Linear",
    "MaxPool2d",
    "MemoryPlan",
    "Node",
    "NormShift",
    "Op",
    "Requantize",
    "Step",
    "Threshold",
    "Value",
    "eliminate_dead",
    "graph_dot",
    "graph_rows",
    "graph_table",
    "plan_memory",
]
