"""The engine: whole integer networks on the CPU's fast kernels."""

from bitcore.engine.engine import Engine

__all__ = ["Engine"]
