"""Values: how real numbers are read from the integers of a graph while a model is lowered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitcore.graph.fixed_point import Reals, is_power_of_two
from bitcore.graph.ops import Op
from bitcore.graph.types import IntTensor

Function = Callable[[Tensor], Tensor]
ONE = np.ones(1)
ZERO = np.zeros(1)


@dataclass(frozen=True)
class Value:
    """A tensor of the model while it is lowered: ``real = function(clip(scale * integer + offset, low, high))``.

    Attributes:
        node: The node that holds the integers; ``None`` for the model's real-valued input.
        type: Their type.
        scale: Per channel or shared, float64; may be negative behind a batch norm.
        offset: Per channel or shared, float64.
        low: Lower clip (0 behind a ReLU), in real units.
        high: Upper clip.
        relative: Whether `scale` holds only up to an unknown positive factor of each sample.
        real: The model's own float32 arithmetic from accumulators ``[n, channels, ...]`` to real values.
        layer: The layer that made it last: nodes are named after it.
        span: The largest magnitude to be expected before `function`; ``inf`` where only the type says.
        function: A pointwise function behind the clip; ``None`` for the identity.
        pending: Poolings and flattenings, with their names, that the next quantization leaves for after it.
    """

    node: str | None
    type: IntTensor
    scale: Reals
    offset: Reals
    low: float
    high: float
    relative: bool
    real: Function
    layer: str
    span: float = math.inf
    function: Function | None = None
    pending: tuple[tuple[str, Op], ...] = ()

    @classmethod
    def of_input(cls, shape: tuple[int, ...]) -> Value:
        """Returns the model's real-valued input."""
        return cls(None, IntTensor(shape, 0, 0), ONE, ZERO, -math.inf, math.inf, False, lambda x: x, "input")

    @classmethod
    def of_codes(cls, node: str, kind: IntTensor, scale: float, relative: bool, layer: str) -> Value:
        """Returns integers that all count ``scale``."""
        step = torch.tensor(scale)
        return cls(
            node, kind, np.array([scale]), ZERO, -math.inf, math.inf, relative, lambda c: c * step, layer
        )  # fmt: skip

    def then(self, function: Function, /, **changes: Any) -> Value:
        """Returns the value behind an elementwise function, whose effect on the affine form is in ``changes``."""
        inner = self.real
        return replace(self, real=lambda x: function(inner(x)), **changes)

    def within(self, span: float) -> Value:
        """Returns the value, expected to be no larger than ``span`` (which says nothing of what `function` takes)."""
        return self if self.function is not None else replace(self, span=min(self.span, span))

    def flattened(self) -> Value:
        """Returns the value behind a flattening: parameters per channel become parameters per element."""
        shape, inner = self.type.shape, self.real
        repeat = self.type.size // shape[0]
        return replace(
            self,
            scale=np.repeat(self.scale, repeat) if self.scale.size > 1 else self.scale,
            offset=np.repeat(self.offset, repeat) if self.offset.size > 1 else self.offset,
            real=lambda v: inner(v.unflatten(1, shape)).flatten(1),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape, behind all that is pending."""
        kind = self.type
        for _, op in self.pending:
            kind = op.infer(kind)
        return kind.shape

    @property
    def bounds(self) -> tuple[float, float]:
        """What the real values lie between (before `function`): what type and clip say, and `span` expects."""
        ends = np.stack([self.scale * self.type.low, self.scale * self.type.high]) + self.offset
        low, high = max(float(ends.min()), -self.span), min(float(ends.max()), self.span)
        return min(max(low, self.low), self.high), max(min(high, self.high), self.low)

    @property
    def largest(self) -> float:
        """The largest magnitude within `bounds`."""
        return max(map(abs, self.bounds))

    @property
    def resolution(self) -> float:
        """What the integers resolve: the least scale where all are powers of two (shifts are exact then), else 0."""
        scales = np.abs(self.scale)
        exact = is_power_of_two(scales) and not np.any(self.offset) and self.function is None
        return float(scales.min()) if exact else 0.0

    @property
    def step(self) -> float | None:
        """What the integers count where they stand for the real values as they are, without int32; else ``None``."""
        plain = self.low == -math.inf and self.high == math.inf and self.function is None and not self.pending
        narrow = self.type.storage != "int32"
        if plain and narrow and self.scale.size == self.offset.size == 1 and self.scale[0] > 0 and not self.offset[0]:
            return float(self.scale[0])
        return None
