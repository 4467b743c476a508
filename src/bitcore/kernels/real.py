"""Matrix products of weight levels and float activations, as torch operators.

Sums of floats depend on their order. Up to `FEW_ROWS` rows have one of their own, the same for packed and for unpacked
weights, on every instruction set (csrc/simd/bit_reals.h): input k belongs to sum k % 4, where products, each rounded,
are added in ascending order; the result is (sum 0 + sum 1) + (sum 2 + sum 3). Of more rows, where unpacking does not
count, torch multiplies the levels.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bitcore.config import FLOAT
from bitcore.formats import get_format
from bitcore.kernels import gate, machine
from bitcore.kernels.linear import OPERATORS
from bitcore.kernels.native import library, usable_sets
from bitcore.kernels.registry import Kernel, KernelRegistry
from bitcore.quantizers import PackedTensor

FEW_ROWS = 64
_PORTABLE = -1  # no vector instruction set has this number


def _in_order(x: Tensor) -> bool:
    """Whether the native kernels take these activations."""
    few = x.dtype == torch.float32 and math.prod(x.shape[:-1]) <= FEW_ROWS
    return few and hasattr(library(), "bit_linear_real") and not torch.is_autocast_enabled("cpu")


@lru_cache
def _c_format(name: str) -> Any:
    return ctypes.byref(machine.c_format(get_format(name)))


def _decode_shape(weight: Tensor, format_name: str, outputs: int, inputs: int) -> Tensor:
    gate.expect("weight", weight, (torch.uint8,), (None,), weight.device)
    get_format(format_name)
    gate.expect_count("outputs", outputs)
    gate.expect_count("inputs", inputs)
    return weight.new_empty((outputs, inputs), dtype=torch.float32)


def _decode(weight: Tensor, format_name: str, outputs: int, inputs: int) -> Tensor:
    _decode_shape(weight, format_name, outputs, inputs)
    return machine.levels(weight.contiguous(), get_format(format_name), (outputs, inputs))


def _linear_real_shape(x: Tensor, weight: Tensor, format_name: str, outputs: int) -> Tensor:
    gate.expect("x", x, gate.FLOATS, (..., None), x.device)
    gate.expect("weight", weight, (torch.uint8,), (None,), x.device)
    get_format(format_name)
    gate.expect_count("outputs", outputs)
    return x.new_empty((*x.shape[:-1], outputs))


def _linear_real(x: Tensor, weight: Tensor, format_name: str, outputs: int) -> Tensor:
    if not _in_order(x):
        _linear_real_shape(x, weight, format_name, outputs)
        return linear(x, _decode(weight, format_name, outputs, x.shape[-1]).to(x.dtype))
    y = _linear_real_shape(x, weight, format_name, outputs)
    native, x, weight, rows = library(), x.contiguous(), weight.contiguous(), math.prod(x.shape[:-1])
    assert native is not None
    number = next(iter(usable_sets().values()), _PORTABLE)
    memory = (*machine.memory_of(weight), x.data_ptr(), y.data_ptr())
    sizes = (rows, outputs, x.shape[-1], torch.get_num_threads())
    machine.check(native.bit_linear_real(number, _c_format(format_name), *memory, *sizes))
    return y


def _linear_levels_shape(x: Tensor, levels: Tensor) -> Tensor:
    gate.expect("levels", levels, gate.FLOATS, (None, None), x.device)
    gate.expect("x", x, gate.FLOATS, (..., levels.shape[1]), x.device)
    return x.new_empty((*x.shape[:-1], levels.shape[0]))


def _linear_levels(x: Tensor, levels: Tensor) -> Tensor:
    y = _linear_levels_shape(x, levels)
    if not _in_order(x):
        return linear(x, levels.to(x.dtype))
    native, x, levels, rows = library(), x.contiguous(), levels.float().contiguous(), math.prod(x.shape[:-1])
    assert native is not None
    pointers = (levels.data_ptr(), x.data_ptr(), y.data_ptr())
    machine.check(native.bit_linear_levels(*pointers, rows, *levels.shape, torch.get_num_threads()))
    return y


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.arguments = (*inputs[2:], inputs[0].shape[-1])


def _gradient_of_real(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    levels = torch.ops.bitcore.decode(ctx.saved_tensors[0], *ctx.arguments)
    return gradient @ levels.to(gradient.dtype), None, None, None


def _gradient_of_levels(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient @ ctx.saved_tensors[0].to(gradient.dtype), None


for _name, _arguments, _function, _shape, _gradient, _key in (
    ("decode", "Tensor weight, str format_name, SymInt outputs, SymInt inputs", _decode, _decode_shape, None, "CPU"),
    ("linear_real", "Tensor x, Tensor weight, str format_name, SymInt outputs", _linear_real, _linear_real_shape,
     _gradient_of_real, "CPU"),
    ("linear_levels", "Tensor x, Tensor levels", _linear_levels, _linear_levels_shape, _gradient_of_levels, "CPU"),
):  # fmt: skip
    OPERATORS.define(f"{_name}({_arguments}) -> Tensor")
    OPERATORS.impl(_name, _function, _key)
    torch.library.register_fake(f"bitcore::{_name}", _shape, lib=OPERATORS)
    if _gradient is not None:
        torch.library.register_autograd(f"bitcore::{_name}", _gradient, setup_context=_keep, lib=OPERATORS)


def multiply_levels(x: Tensor, levels: Tensor) -> Tensor:
    """Returns ``x`` ``[..., inputs]`` times levels ``[outputs, inputs]``, as the packed kernel multiplies them."""
    if x.device.type != "cpu":
        return linear(x, levels.to(x.dtype))
    return torch.ops.bitcore.linear_levels(x, levels)


@KernelRegistry.register
class RealLinear(Kernel):
    """Float activations: levels looked up in registers; every weight format."""

    op, has_cpp_backend, rearranges, priority = "linear", True, True, 10

    def available(self) -> bool:  # noqa: D102
        return hasattr(library(), "bit_linear_real")

    def supports(self, weight_format: str, activation_dtype: str, device: str) -> bool:  # noqa: D102
        known = device == "cpu" and weight_format != FLOAT and machine.holds(get_format(weight_format))
        return known and activation_dtype == FLOAT

    def prepare(self, weight: PackedTensor, activation_dtype: str = FLOAT) -> Tensor:  # noqa: D102
        return weight.machine if isinstance(weight, machine.PreparedTensor) else machine.prepare(weight)

    def __call__(self, x: Tensor, prepared: Tensor, weight: PackedTensor) -> Tensor:
        """Returns float sums, ``[..., outputs]``."""
        return torch.ops.bitcore.linear_real(x, prepared, weight.format.name, weight.shape[0])
