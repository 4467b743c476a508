"""The gate in front of every native function: what a tensor must be before its address leaves Python.

Operators of torch are checked by their shape functions, which real calls, fake tensors and ``meta`` tensors share; what
only data tell (values, memory) is checked in front of the call. Native functions check sizes again, in 64 bits.
"""

from __future__ import annotations

from collections.abc import Collection
from types import EllipsisType

import torch
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.formats import NumberFormat

BYTES = (torch.int8, torch.uint8)
INTEGERS = (*BYTES, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CPU = torch.device("cpu")
_INT32 = 2**31


def expect(
    name: str,
    x: Tensor,
    dtypes: Collection[torch.dtype],
    shape: tuple[int | EllipsisType | None, ...],
    device: torch.device = CPU,
) -> None:
    """Raises unless a tensor is what a function takes.

    Args:
        name: What the function calls it.
        x: The tensor.
        dtypes: Those that it may have.
        shape: Its sizes, ``None`` for any; ``...`` in front stands for any dimensions.
        device: Where it must be.

    Raises:
        BitLabError: It says what is taken and what came.
    """
    open_ended = shape[:1] == (...,)
    wanted = shape[1:] if open_ended else shape
    there = x.shape[x.ndim - len(wanted) :] if open_ended and x.ndim >= len(wanted) else x.shape
    fits = len(there) == len(wanted) and all(n is None or n == size for n, size in zip(wanted, there, strict=True))
    if not fits or x.dtype not in dtypes or x.device != device or x.layout != torch.strided:
        sizes = ", ".join("..." if n is ... else "any" if n is None else str(n) for n in shape)
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        came = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"
        dense = "" if x.layout == torch.strided else f", {x.layout}"
        raise BitLabError(f"{name} must be {kinds} [{sizes}] on {device}, not {came}{dense}")


def address(x: Tensor | None) -> int | None:
    """Returns where a contiguous tensor's memory begins, ``None`` for ``None``; the caller keeps the tensor meanwhile.

    Raises:
        BitLabError: If it has values but no memory, as a module's that was offloaded.
    """
    if x is None:
        return None
    at = x.data_ptr()
    if not at and x.numel():
        raise BitLabError(f"a tensor {list(x.shape)} on {x.device} has no memory: it was freed or offloaded")
    return at


def expect_scales(name: str, scale: Tensor, count: int, of: str, device: torch.device = CPU) -> None:
    """Raises unless scales are float32, one or ``count`` of them, in any shape.

    Raises:
        BitLabError: If they are others.
    """
    expect(name, scale, (torch.float32,), (...,), device)
    if scale.numel() not in (1, count):
        raise BitLabError(f"{name} holds {scale.numel()} scales for {count} {of}; one is taken, or one each")


def expect_count(name: str, number: int) -> None:
    """Raises unless a number of rows, inputs or outputs is one.

    Raises:
        BitLabError: If it is negative.
    """
    if number < 0:
        raise BitLabError(f"{name} must be 0 or more, not {number}")


def expect_sums(x: Tensor, magnitude: int, terms: int) -> None:
    """Raises unless sums of products of integers fit the kernels' int32.

    Args:
        x: The integers.
        magnitude: The largest of the other factors.
        terms: The products of a sum.

    Raises:
        BitLabError: If they could leave it.
    """
    info = torch.iinfo(x.dtype)
    if terms * magnitude * max(-info.min, info.max) < _INT32 or not x.numel():
        return
    low, high = (int(end) for end in torch.aminmax(x))
    largest = magnitude * max(-low, high)
    if terms * largest >= _INT32:
        raise BitLabError(f"sums of {terms} products up to {largest} leave int32; use fewer inputs")


def expect_levels(name: str, x: Tensor, fmt: NumberFormat) -> None:
    """Raises unless integers lie within a format's levels (of ``binary``, are levels).

    Raises:
        BitLabError: If one does not.
    """
    if not x.numel():
        return
    low, high = (int(end) for end in torch.aminmax(x))
    if low < fmt.low or high > fmt.high or (fmt.levels == (-1, 1) and not bool(x.bitwise_and(1).all())):
        raise BitLabError(f"{name} must hold levels of {fmt.name}, {fmt.low} to {fmt.high}, not {low} to {high}")
