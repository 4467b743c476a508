"""Matrix products of packed weights: the portable C kernel and its torch stand-in, as one torch operator each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitcore.config import FLOAT
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, get_format
from bitcore.kernels.native import library
from bitcore.kernels.registry import Kernel, KernelRegistry, takes_bytes
from bitcore.quantizers import PackedTensor

OPERATORS = torch.library.Library("bitcore", "DEF")
_FORMAT_NUMBERS = {name: number for number, name in enumerate(FORMATS)}


def _linear_portable(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    native = library()
    if native is None:
        raise BitLabError("the native kernels are not installed; install a C compiler and reinstall bitlab")
    inputs, row_bytes = x.shape[-1], get_format(format_name).packing.row_bytes(x.shape[-1])
    if x.dtype not in (torch.int8, torch.uint8) or weight.dtype != torch.uint8 or weight.shape[1:] != (row_bytes,):
        raise ValueError(
            f"int8 or uint8 [..., {inputs}] times packed {format_name} takes weights uint8 [outputs, {row_bytes}], "
            f"not {x.dtype} and {weight.dtype} {list(weight.shape)}"
        )
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.int32)
    function = native.bit_linear_int8_portable if x.dtype == torch.int8 else native.bit_linear_uint8_portable
    failed = function(
        _FORMAT_NUMBERS[format_name], weight.data_ptr(), row_bytes, x.data_ptr(), y.data_ptr(),
        math.prod(x.shape[:-1]), weight.shape[0], inputs,
    )  # fmt: skip
    if failed:
        raise BitLabError(f"the native library does not know the format {format_name}; reinstall bitlab")
    return y


def _linear_torch(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    fmt = get_format(format_name)
    levels = fmt.decode(fmt.packing.unpack(weight, x.shape[-1]))
    if x.is_floating_point():
        return torch.nn.functional.linear(x, levels.to(x.dtype))
    return torch.nn.functional.linear(x.double(), levels.double()).to(torch.int32)  # float64 sums are exact


def _linear_shape(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    dtype = x.dtype if x.is_floating_point() else torch.int32
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


for _name, _function, _key in (
    ("linear_portable", _linear_portable, "CPU"),
    ("linear_torch", _linear_torch, "CompositeExplicitAutograd"),
):
    OPERATORS.define(f"{_name}(Tensor x, Tensor weight, str format_name) -> Tensor")
    OPERATORS.impl(_name, _function, _key)
    torch.library.register_fake(f"bitcore::{_name}", _linear_shape, lib=OPERATORS)


@KernelRegistry.register
class PortableLinear(Kernel):
    """Portable C (csrc/portable/bit_linear.c): every weight format, int8 and uint8 activations."""

    op, has_cpp_backend, priority = "linear", True, 1

    def available(self) -> bool:  # noqa: D102
        return library() is not None

    def supports(self, weight_format: str, activation_dtype: str, device: str) -> bool:  # noqa: D102
        return device == "cpu" and weight_format in FORMATS and takes_bytes(activation_dtype)

    def prepare(self, weight: PackedTensor, activation_dtype: str = "int8") -> Tensor:  # noqa: D102
        return weight.data

    def __call__(self, x: Tensor, prepared: Tensor, weight: PackedTensor) -> Tensor:  # noqa: D102
        return torch.ops.bitcore.linear_portable(x, prepared, weight.format.name)


@KernelRegistry.register
class TorchLinear(Kernel):
    """Unpacks and multiplies with torch: runs everywhere, and takes float activations too."""

    op, has_cpp_backend, priority = "linear", False, 0

    def available(self) -> bool:  # noqa: D102
        return True

    def supports(self, weight_format: str, activation_dtype: str, device: str) -> bool:  # noqa: D102
        return weight_format in FORMATS or weight_format == FLOAT

    def prepare(self, weight: PackedTensor, activation_dtype: str = "int8") -> Tensor:  # noqa: D102
        return weight.data

    def __call__(self, x: Tensor, prepared: Tensor, weight: PackedTensor) -> Tensor:  # noqa: D102
        return torch.ops.bitcore.linear_torch(x, prepared, weight.format.name)
