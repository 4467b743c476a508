"""Export: a model becomes an integer graph, the graph becomes code for a target, and `verify` proves them equal."""

from bitexport.trace import lower

__all__ = ["lower"]
