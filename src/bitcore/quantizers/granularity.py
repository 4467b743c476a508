"""Which values of a tensor share a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Granularity:
    """Values that share a scale: all, those of the trailing dimensions, or groups of a row.

    Scales are kept compact: ``[]`` per tensor, ``[..., 1, 1]`` for trailing dimensions, ``[rows, groups of a row]``.

    Attributes:
        trailing: How many trailing dimensions share a scale; ``None`` for all of them (per tensor).
        group: Consecutive values of a row (everything behind the first dimension, flattened) that share one; 0 for
            no groups. The last group of a row may be shorter.
    """

    trailing: int | None = None
    group: int = 0

    def each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Applies a function of ``[groups, n]`` to ``[groups, 1]``; returns the compact scales."""
        if self.group:
            rows = x.reshape(len(x), -1)
            whole = rows.shape[1] // self.group * self.group
            parts = [function(rows[:, :whole].reshape(-1, self.group)).reshape(len(rows), -1)] if whole else []
            parts += [function(rows[:, whole:])] if whole < rows.shape[1] else []
            return torch.cat(parts, 1)
        shape = self.shape(x.shape)
        return function(x.reshape(math.prod(shape), -1)).reshape(shape)

    def shape(self, shape: Sequence[int]) -> list[int]:
        """Returns the shape of the compact scales of a tensor of that shape."""
        if self.group:
            return [shape[0], max(1, -(-math.prod(shape[1:]) // self.group))]
        if self.trailing is None:
            return []
        return [*shape[: len(shape) - self.trailing], *[1] * self.trailing]


def spread(scale: Tensor, levels: Tensor, group: int = 0) -> Tensor:
    """Makes a compact scale broadcastable to its levels.

    Args:
        scale: Compact; with one dimension more than the levels it holds two scales, for levels above and below 0.
        levels: The levels.
        group: As in `Granularity`.
    """
    if scale.ndim > levels.ndim:
        above, below = scale.unbind(0)
        return torch.where(levels < 0, below, above)
    if group:
        return scale.repeat_interleave(group, 1)[:, : math.prod(levels.shape[1:])].reshape(levels.shape)
    return scale


def sample(x: Tensor, count: int) -> Tensor:
    """Returns at most ``count`` values of a tensor, evenly spaced, ``[n]``.

    The distance between them has no factor in common with the tensor's sizes: else all of them might lie in the first
    column of a picture.
    """
    values = x.flatten()
    stride = -(-len(values) // count)
    while stride > 1 and math.gcd(stride, len(values)) > 1:
        stride += 1
    return values[:: max(1, stride)]
