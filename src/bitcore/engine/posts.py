"""Elementwise operations as the engine applies them to tiles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bitcore.engine.program import TILE_ROWS, PostKind
from bitcore.engine.weights import padded
from bitcore.errors import BitLabError
from bitcore.graph.ops import Ints, Lookup, Op, Requantize, Threshold
from bitcore.graph.types import INT32, IntTensor

_EXACT_DOUBLE = 2**53


@dataclass(eq=False)
class Post:
    """One operation on a tile (``struct bit_post``).

    Attributes:
        kind: Which.
        numbers: Fields that are numbers.
        arrays: Fields that are arrays.
    """

    kind: PostKind
    numbers: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def elementwise(op: Op, source: IntTensor) -> Post:
    """Returns what an operation does to each tile of a tensor of that type.

    Raises:
        BitLabError: If it is no elementwise operation of one tensor.
    """
    if isinstance(op, Requantize):
        return _requantize(op, source)
    if isinstance(op, Threshold):
        return _threshold(op, source)
    if isinstance(op, Lookup):
        return Post(PostKind.LOOKUP, {}, {"table": op.table.astype(np.int32)})
    raise BitLabError(f"the engine has no '{op.kind}' of single values")


def _parameters(channels: int, *arrays: Ints) -> tuple[bool, list[Ints]]:
    """Returns whether parameters are shared by all channels, and each of them repeated or padded for whole blocks."""
    shared = all(len(a) == 1 for a in arrays)
    count = TILE_ROWS if shared else padded(channels)
    spread = [np.broadcast_to(a, (1 if shared else channels, *a.shape[1:])) for a in arrays]
    return shared, [np.concatenate([a, np.repeat(a[-1:], count - len(a), axis=0)]) for a in spread]


def _requantize(op: Requantize, source: IntTensor) -> Post:
    shared, (multiplier, bias, shift) = _parameters(source.shape[0], op.multiplier, op.bias, op.shift)
    largest = np.abs(multiplier) * max(-source.low, source.high) + np.abs(bias)
    fits = largest.max() < _EXACT_DOUBLE and (largest >> shift).max() < INT32[1]
    scale = np.ldexp(1.0, -shift.astype(np.int32))
    arrays = {
        "factor": multiplier * scale,
        "addend": bias * scale,
        "multiplier": multiplier,
        "bias": bias,
        "shift": shift,
    }
    return Post(
        PostKind.REQUANTIZE,
        {"shared": shared, "low": op.low, "high": op.high, "in_double": bool(fits)},
        {name: np.ascontiguousarray(a) for name, a in arrays.items()},
    )


def _threshold(op: Threshold, source: IntTensor) -> Post:
    shared, (thresholds, sign) = _parameters(source.shape[0], op.thresholds, np.asarray(op.sign).reshape(-1))
    ends = max(-source.low, source.high)
    if ends >= INT32[1]:
        raise BitLabError(
            "thresholds of accumulators that reach the ends of int32; use fewer inputs or narrower formats"
        )
    inside = np.clip(thresholds, -ends - 1, ends + 1)  # beyond the reachable values it makes no difference where
    table = np.concatenate([inside.T, sign[None]]).astype(np.int32)
    numbers = {
        "shared": shared,
        "low": op.low,
        "high": op.step,
        "count": thresholds.shape[1],
        "channels": table.shape[1],
    }
    return Post(PostKind.THRESHOLD, numbers, {"table": np.ascontiguousarray(table)})
