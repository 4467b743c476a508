"""What a model's code says about shapes: sizes, views and flattenings."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitcore.graph import Value


class Batch:
    """The batch's size, which no graph knows."""

    def __repr__(self) -> str:
        """Returns what a shape's first number is called."""
        return "batch"


BATCH = Batch()
Sizes = tuple[Any, ...]


@dataclass(frozen=True)
class View:
    """A value in a shape that no integer operation takes, as ``squeeze`` leaves it between two dimensions.

    Attributes:
        value: The value: the same numbers in the same order.
        shape: One sample's shape.
    """

    value: Value
    shape: tuple[int, ...]


def sizes_of(x: Value | View) -> Sizes:
    """Returns the shape as torch has it, with the batch first."""
    return (BATCH, *x.shape)


def _flatten(sizes: Sizes, start_dim: int = 0, end_dim: int = -1) -> Sizes:
    start, end = _dimension(sizes, start_dim), _dimension(sizes, end_dim)
    return (*sizes[:start], math.prod(sizes[start : end + 1]), *sizes[end + 1 :])


def _view(sizes: Sizes, *shape: Any) -> Sizes:
    wanted: Sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if wanted[:1] not in ((BATCH,), (-1,)) or not all(isinstance(size, int) for size in wanted[1:]):
        raise TypeError("the batch must stay the first dimension: x.view(x.size(0), …)")
    count, rest = math.prod(sizes[1:]), list(wanted[1:])
    if -1 in rest and wanted[0] is BATCH:
        i, others = rest.index(-1), -math.prod(rest)
        rest[i] = count // others if others > 0 else -1
    if math.prod(rest) != count or min(rest, default=1) < 0:
        raise TypeError(f"shape {wanted} does not hold the {count} values of a sample")
    return (BATCH, *rest)


def _squeeze(sizes: Sizes, dim: int | Sequence[int] | None = None) -> Sizes:
    given = range(1, len(sizes)) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = {_dimension(sizes, d) for d in given}
    return tuple(size for i, size in enumerate(sizes) if i not in dims or size != 1)


def _unsqueeze(sizes: Sizes, dim: int) -> Sizes:
    i = _dimension((*sizes, 1), dim)
    return (*sizes[:i], 1, *sizes[i:])


def _index(sizes: Sizes, index: Any) -> Sizes:
    """Indices that take all there is: full slices, the only element of a dimension, new dimensions."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (len(sizes) - sum(e is not None for e in entries) + 1)
    left, result = list(sizes), []
    for entry in entries:
        if entry is None:
            result.append(1)
            continue
        size = left.pop(0)
        if _is_full(entry, size):
            result.append(size)
        elif not isinstance(entry, int) or size != 1 or entry not in (0, -1):
            raise TypeError(
                "a part of a value; only indices that take all there is, such as x[:, :, 0, 0] of a 1×1 map"
            )
    return (*result, *left)


def _is_full(entry: Any, size: Any) -> bool:
    if not isinstance(entry, slice):
        return False
    return entry.start in (None, 0) and entry.step in (None, 1) and entry.stop in (None, size)


def _dimension(sizes: Sizes, dim: int) -> int:
    """A dimension counted from the front, which must not be the batch's."""
    if not -len(sizes) <= dim < len(sizes) or dim % len(sizes) == 0:
        raise TypeError(f"dimension {dim}, of everything but the batch there are 1 to {len(sizes) - 1}")
    return dim % len(sizes)


SHAPES: dict[Any, Callable[..., Sizes]] = {
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _view),
    **dict.fromkeys((torch.squeeze, "squeeze"), _squeeze),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _unsqueeze),
    operator.getitem: _index,
}
"""What leaves the values and their order as they are: the new sizes, of those before and of the other arguments."""


def _size(sizes: Sizes, dim: int | None = None) -> Any:
    return sizes if dim is None else sizes[dim]


QUESTIONS: dict[Any, Callable[..., Any]] = {
    "size": _size,
    "shape": _size,
    **dict.fromkeys(("dim", "ndimension", "ndim"), len),
}
"""Methods and attributes that ask for sizes."""
