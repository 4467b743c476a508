"""From real values to integers of a common unit: grids of at most 16 bits, sums and concatenations on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from bitcore.formats import round_half_even
from bitcore.graph.fixed_point import is_power_of_two, power_of_two_above
from bitcore.graph.lookup import useful_interval
from bitcore.graph.nodes import NodeBuilder
from bitcore.graph.ops import Add, Concat, Lookup, Op
from bitcore.graph.values import Function, Value

_GRID = 2**14 - 2  # magnitude of materialized integers: two of them, rounded up, sum up within int16
_SUM = 2**15 - 8  # and of their sums


class GridBuilder(NodeBuilder):
    """Adds what brings values to a grid."""

    def materialize(self, x: Value, step: float | None = None) -> Value:
        """Returns the value as integers that stand for it as it is: multiples of one step, with no clip or function.

        Args:
            x: The value.
            step: What one integer counts; by default a power of two that gives the value 14 or 15 bits (sign included;
                see `Value.bounds`), never less than what its own integers resolve.
        """
        if x.node is None:
            raise self.error("an operation on the unquantized input; put a bit layer before it")
        if x.step is not None and (step is None or (step == x.step and x.type.largest * step <= x.span)):
            return x
        if x.function is not None:
            return self._materialize_function(x, step)
        low, high = x.bounds
        if step is None:
            step = max(power_of_two_above(x.largest / _GRID), x.resolution)
        limits = math.floor(low / step), math.ceil(high / step)
        name = f"{x.layer}.grid" if x.pending else x.layer  # what is pending has the layer's own name
        return self._append(x, name, self._requantize(x, step, *limits), step)

    def _materialize_function(self, x: Value, step: float | None) -> Value:
        assert x.function is not None
        if step is None:
            low, high = x.bounds
            largest = x.function(torch.linspace(low, high, 2**12)).abs().max()
            step = power_of_two_above(float(largest) / _GRID)
        grid = step
        return self._lookup(x, lambda real: round_half_even(real / grid), grid, f"{x.layer}.table")

    def add(self, *x: Value, span: float = math.inf) -> Value:
        """Adds a sum of real values (a residual connection).

        Args:
            x: The values.
            span: The largest magnitude that is to be expected of the sum; ``inf`` if unknown.
        """
        largest = self._magnitudes(x, "an addition")
        if len(x) == 2:  # what is added to the one cannot be larger than the other and the sum together
            x = tuple(v.within(span + other) for v, other in zip(x, largest[::-1], strict=True))
            largest = self._magnitudes(x, "an addition")
        if len({value.shape for value in x}) > 1:
            shapes = " and ".join(map(str, dict.fromkeys(value.shape for value in x)))
            raise self.error(f"an addition of different shapes {shapes}; integer graphs add tensors of one shape")
        return self._joined(Add(), x, sum(largest), span)

    def concat(self, *x: Value) -> Value:
        """Puts values one behind the other, along the channels."""
        largest = self._magnitudes(x, "a concatenation")
        return self._joined(Concat(), x, max(largest), max(largest))

    def _magnitudes(self, x: Sequence[Value], what: str) -> list[float]:
        """Returns how large the operands are."""
        if any(value.node is None for value in x):
            raise self.error(f"{what} of the unquantized input; put a bit layer before it")
        if any(value.relative for value in x):
            raise self.error(f"{what} behind a dynamic activation scale; use activation_scale=tracked or learned")
        return [value.largest if value.function is None else self.materialize(value).largest for value in x]

    def _joined(self, op: Op, x: Sequence[Value], needed: float, span: float) -> Value:
        """Adds an operation on one grid: exact for all operands, or as coarse as one that is on a grid."""
        resolution = min(value.resolution for value in x)
        steps = [resolution] if resolution else [value.step or 0 for value in x]
        step = max(*steps, power_of_two_above(needed / _SUM))
        sources = [self.materialize(value, step).node for value in x]
        node = self._add(self._free(self.layer), op, *sources, scale=step)
        return replace(Value.of_codes(node.name, node.type, step, False, self.layer), span=span)

    def _lookup(self, x: Value, results: Function, scale: float, name: str) -> Value:
        """Adds a table of ``results(real value)``, behind a requantization to the 256 points that matter to them."""
        function = x.function
        assert function is not None
        begin, step = useful_interval(lambda t: results(function(t)), x.bounds, is_power_of_two(x.scale))
        points = self._requantize(replace(x, offset=x.offset - begin), step, 0, 255)
        node = self._add(self._free(x.layer), points, x.node)
        table = results(function((begin + step * torch.arange(256, dtype=torch.float64)).clamp(x.low, x.high).float()))
        return self._append(replace(x, node=node.name), name, Lookup(table.numpy().astype(np.int64)), scale)
