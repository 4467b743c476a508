"""Matrix products of packed weights: the portable C kernel and its torch stand-in, as one torch operator each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitcore.config import FLOAT
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, get_format
from bitcore.kernels import gate
from bitcore.kernels.native import library
from bitcore.kernels.registry import Kernel, KernelRegistry, takes_bytes
from bitcore.quantizers import PackedTensor

OPERATORS = torch.library.Library("bitcore", "DEF")
_FORMAT_NUMBERS = {name: number for number, name in enumerate(FORMATS)}


def _linear_shape(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    gate.expect("x", x, (*gate.INTEGERS, *gate.FLOATS), (..., None), x.device)
    row_bytes = get_format(format_name).packing.row_bytes(x.shape[-1])
    gate.expect("weight", weight, (torch.uint8,), (None, row_bytes), x.device)
    dtype = x.dtype if x.is_floating_point() else torch.int32
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _linear_portable_shape(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    gate.expect("x", x, gate.BYTES, (..., None), x.device)
    return _linear_shape(x, weight, format_name)


def _linear_portable(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    native = library()
    if native is None:
        raise BitLabError("the native kernels are not installed; install a C compiler and reinstall bitlab")
    y = _linear_portable_shape(x, weight, format_name)
    gate.expect_sums(x, get_format(format_name).largest, x.shape[-1])
    x, weight = x.contiguous(), weight.contiguous()
    function = native.bit_linear_int8_portable if x.dtype == torch.int8 else native.bit_linear_uint8_portable
    failed = function(
        _FORMAT_NUMBERS[format_name], gate.address(weight), weight.shape[1], gate.address(x), y.data_ptr(),
        math.prod(x.shape[:-1]), weight.shape[0], x.shape[-1],
    )  # fmt: skip
    if failed:
        raise BitLabError(f"the native library does not know the format {format_name}; reinstall bitlab")
    return y


def _linear_torch(x: Tensor, weight: Tensor, format_name: str) -> Tensor:
    _linear_shape(x, weight, format_name)
    fmt = get_format(format_name)
    levels = fmt.decode(fmt.packing.unpack(weight, x.shape[-1]))
    if x.is_floating_point():
        return torch.nn.functional.linear(x, levels.to(x.dtype))
    gate.expect_sums(x, fmt.largest, x.shape[-1])
    return torch.nn.functional.linear(x.double(), levels.double()).to(torch.int32)  # float64 sums are exact


for _name, _function, _shape, _key in (
    ("linear_portable", _linear_portable, _linear_portable_shape, "CPU"),
    ("linear_torch", _linear_torch, _linear_shape, "CompositeExplicitAutograd"),
):
    OPERATORS.define(f"{_name}(Tensor x, Tensor weight, str format_name) -> Tensor")
    OPERATORS.impl(_name, _function, _key)
    torch.library.register_fake(f"bitcore::{_name}", _shape, lib=OPERATORS)


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
