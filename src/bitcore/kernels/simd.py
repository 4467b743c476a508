"""Matrix products on vector instructions, one kernel an instruction set, as torch operators on the machine's layout.

``bitcore::linear_simd``: integer levels in, int32 accumulators out. ``bitcore::linear_simd_float``: float in, quantized
by the quantizer's own arithmetic, multiplied, scaled, float out. Results do not depend on the instruction set.
"""

from __future__ import annotations

import ctypes
import math
from typing import ClassVar

import torch
from torch import Tensor

from bitcore.config import FLOAT
from bitcore.errors import BitLabError
from bitcore.formats import NumberFormat, get_format
from bitcore.kernels import gate, machine
from bitcore.kernels.gradients import refuse
from bitcore.kernels.linear import OPERATORS
from bitcore.kernels.native import library, usable_sets
from bitcore.kernels.registry import Kernel, KernelRegistry, takes_bytes
from bitcore.quantizers import PackedTensor

_SPLIT = 300_000  # bytes of weights, times rows, beyond which a second thread is worth waking: about 6 µs


def _number(isa: str) -> int:
    sets = usable_sets()
    if not sets or (isa and isa not in sets):
        raise BitLabError(
            f"this machine has no {isa or 'vector'} kernels, which the model was prepared for; load it anew from its "
            "file, or export it again here"
        )
    return sets[isa] if isa else next(iter(sets.values()))


def _linear_shape(x: Tensor, weight: Tensor, outputs: int, isa: str = "") -> Tensor:
    gate.expect("x", x, gate.BYTES, (..., None), x.device)
    gate.expect("weight", weight, (torch.uint8,), (None,), x.device)
    gate.expect_count("outputs", outputs)
    return x.new_empty((*x.shape[:-1], outputs), dtype=torch.int32)


def _linear(x: Tensor, weight: Tensor, outputs: int, isa: str = "") -> Tensor:
    y, number, native = _linear_shape(x, weight, outputs), _number(isa), library()
    assert native is not None
    x, weight = x.contiguous(), weight.contiguous()
    machine.check(
        native.bit_linear_int8_simd(
            number, *machine.memory_of(weight), x.data_ptr(), x.dtype == torch.uint8, y.data_ptr(),
            math.prod(x.shape[:-1]), outputs, x.shape[-1], torch.get_num_threads(),
        )
    )  # fmt: skip
    return y


class _Layer(ctypes.Structure):
    """``struct bit_linear_layer``."""

    _fields_ = (
        ("prepared", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("weight_scale", ctypes.c_void_p),
        ("weight_scales", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("isa", ctypes.c_int32),
        ("low", ctypes.c_int32),
        ("high", ctypes.c_int32),
        ("step", ctypes.c_int32),
        ("bias_on_grid", ctypes.c_int32),
    )


class Fused:
    """A layer from float to float in one call. It may be called from several threads.

    Args:
        weight: The weight in the machine's layout.
        outputs: Its outputs.
        weight_scale: float32, one or ``[outputs]`` (any shape).
        bias: float32 ``[outputs]``, or ``None``.
    """

    def __init__(self, weight: Tensor, outputs: int, weight_scale: Tensor, bias: Tensor | None) -> None:
        expect_layer(weight, outputs, weight_scale, bias, gate.CPU)
        tensors = [weight.contiguous(), weight_scale.contiguous(), None if bias is None else bias.contiguous()]
        self.tensors = tensors  # their memory is in use
        self.pointers = [gate.address(t) for t in tensors]
        self.outputs = outputs

    def uses(self, weight: Tensor, weight_scale: Tensor | None, bias: Tensor | None) -> bool:
        """Whether these are still its tensors, where they were."""
        assert weight_scale is not None
        there = self.pointers
        return (
            weight.data_ptr() == there[0]
            and weight_scale.data_ptr() == there[1]
            and (None if bias is None else bias.data_ptr()) == there[2]
        )

    def __call__(self, x: Tensor, x_scale: Tensor | None = None, per_tensor: bool = False) -> Tensor:
        """Applies the layer to float32 ``[rows, ...]``.

        Args:
            x: The input.
            x_scale: One scale, or one a row (or sample); by default, from the largest value of each,
            per_tensor: or of all.
        """
        raise NotImplementedError


def expect_layer(weight: Tensor, outputs: int, weight_scale: Tensor, bias: Tensor | None, device: torch.device) -> None:
    """Raises unless a layer's tensors are what `Fused` takes.

    Raises:
        BitLabError: If they are others.
    """
    gate.expect_count("outputs", outputs)
    gate.expect("weight", weight, (torch.uint8,), (None,), device)
    gate.expect_scales("weight_scale", weight_scale, outputs, "outputs", device)
    if bias is not None:
        gate.expect("bias", bias, (torch.float32,), (outputs,), device)


class FusedLinear(Fused):
    """A linear layer from float to float in one call: quantize, multiply, scale, add the bias.

    The arithmetic is that of `Quantizer` and of `BitLayer.dequantize`, to the last bit.

    Args:
        weight: The weight in the machine's layout.
        inputs: Its inputs.
        outputs: Its outputs.
        activation: The activations' format, one that `quantizes` takes.
        weight_scale: float32, one or ``[outputs]`` (any shape).
        bias: float32 ``[outputs]``, or ``None``.
        bias_on_grid: Round the bias to the accumulator's grid.
        isa: The instruction set, the best one by default.
    """

    def __init__(
        self,
        weight: Tensor,
        inputs: int,
        outputs: int,
        activation: NumberFormat,
        weight_scale: Tensor,
        bias: Tensor | None,
        bias_on_grid: bool,
        isa: str = "",
    ) -> None:
        if not quantizes(activation):
            raise BitLabError(f"no kernel rounds to the levels of {activation.name}; quantize first")
        number, native = _number(isa), library()
        assert native is not None
        super().__init__(weight, outputs, weight_scale, bias)
        self.inputs = inputs
        self._bytes = weight.numel()
        self._layer = _Layer(
            self.pointers[0], self._bytes, outputs, inputs, self.pointers[1], weight_scale.numel(), self.pointers[2],
            number, activation.low, activation.high, activation.step, bias_on_grid,
        )  # fmt: skip
        self._address, self._function = ctypes.addressof(self._layer), native.bit_linear_float_simd

    def __call__(self, x: Tensor, x_scale: Tensor | None = None, per_tensor: bool = False) -> Tensor:
        """Applies the layer to float32 ``[..., inputs]``."""
        shape = x.shape
        if x.dtype != torch.float32 or shape[-1] != self.inputs or not x.is_cpu or x.is_neg():
            gate.expect("x", x, (torch.float32,), (..., self.inputs))
            x = x.resolve_neg()
        x = x.contiguous()
        y = torch.empty(*shape[:-1], self.outputs, dtype=x.dtype)
        rows = math.prod(shape[:-1])
        address, count = None, -per_tensor
        if x_scale is not None:
            gate.expect_scales("x_scale", x_scale, rows, "rows")
            x_scale = x_scale.contiguous()
            address, count = gate.address(x_scale), x_scale.numel()
        threads = torch.get_num_threads() if rows * self._bytes > _SPLIT else 1
        error = self._function(self._address, x.data_ptr(), y.data_ptr(), rows, threads, address, count)
        if error:
            machine.check(error)
        return y


def _linear_float(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    activation: str,
    per_tensor: bool,
    x_scale: Tensor | None,
    weight_scale: Tensor,
    bias: Tensor | None,
    bias_on_grid: bool,
    isa: str = "",
) -> Tensor:
    _linear_float_shape(x, weight, outputs, activation, per_tensor, x_scale, weight_scale, bias)
    fmt = get_format(activation)
    layer = FusedLinear(weight, x.shape[-1], outputs, fmt, weight_scale, bias, bias_on_grid, isa)
    return layer(x, x_scale, per_tensor)


def _linear_float_shape(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    activation: str,
    per_tensor: bool,
    x_scale: Tensor | None,
    weight_scale: Tensor,
    bias: Tensor | None,
    *others: object,
) -> Tensor:
    gate.expect("x", x, (torch.float32,), (..., None), x.device)
    expect_layer(weight, outputs, weight_scale, bias, x.device)
    get_format(activation)
    if x_scale is not None:
        gate.expect_scales("x_scale", x_scale, math.prod(x.shape[:-1]), "rows", x.device)
    return x.new_empty((*x.shape[:-1], outputs))


for _name, _arguments, _function, _shape in (
    ("linear_simd", "", _linear, _linear_shape),
    (
        "linear_simd_float",
        "str activation, bool per_tensor, Tensor? x_scale, Tensor weight_scale, Tensor? bias, bool bias_on_grid, ",
        _linear_float,
        _linear_float_shape,
    ),
):
    OPERATORS.define(f"{_name}(Tensor x, Tensor weight, SymInt outputs, {_arguments}str isa='') -> Tensor")
    OPERATORS.impl(_name, _function, "CPU")
    torch.library.register_fake(f"bitcore::{_name}", _shape, lib=OPERATORS)
    refuse(_name)


def traced(x: Tensor) -> bool:
    """Whether something watches torch's operators, so that memory must not be used directly."""
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
        or torch._C._is_tracing()
    )


def quantizes(fmt: NumberFormat) -> bool:
    """Whether ``linear_simd_float`` rounds to the levels of an activation format: consecutive or odd integers."""
    return takes_bytes(fmt.name) and (fmt.step == 1 or (fmt.step == 2 and fmt.low % 2 == 1))


class SimdLinear(Kernel):
    """Vector instructions (csrc/simd): every weight format, int8 and uint8 activations; binary ones as bits.

    Attributes:
        dense: Whether ternary weights that live in DRAM take 1.6 bits in place of 2: where unpacking is cheap.
    """

    op, has_cpp_backend, rearranges = "linear", True, True
    dense: ClassVar[bool] = False

    def available(self) -> bool:  # noqa: D102
        return self.isa in usable_sets()

    def supports(self, weight_format: str, activation_dtype: str, device: str) -> bool:  # noqa: D102
        known = device == "cpu" and weight_format != FLOAT and machine.holds(get_format(weight_format))
        return known and takes_bytes(activation_dtype)

    def prepare(self, weight: PackedTensor, activation_dtype: str = "int8") -> Tensor:  # noqa: D102
        if isinstance(weight, machine.PreparedTensor):
            return weight.machine
        return machine.prepare(weight, activation_dtype == "binary", self.dense and machine.live_in_dram())

    def __call__(self, x: Tensor, prepared: Tensor, weight: PackedTensor) -> Tensor:  # noqa: D102
        return torch.ops.bitcore.linear_simd(x, prepared, weight.shape[0], self.isa)


@KernelRegistry.register
class Avx512Linear(SimdLinear):
    """AVX-512 with VNNI and VPOPCNTDQ."""

    isa, priority, dense = "avx512", 40, True


@KernelRegistry.register
class AvxVnniLinear(SimdLinear):
    """AVX-VNNI: dot products of bytes on processors without AVX-512."""

    isa, priority = "avxvnni", 35


@KernelRegistry.register
class Avx2Linear(SimdLinear):
    """AVX2."""

    isa, priority = "avx2", 30


@KernelRegistry.register
class I8mmLinear(SimdLinear):
    """Arm with dot products and int8 matrix multiplication."""

    isa, priority = "i8mm", 40


@KernelRegistry.register
class NeonLinear(SimdLinear):
    """Arm with dot products."""

    isa, priority = "neon", 30
