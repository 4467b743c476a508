"""Convolutions of packed weights as a torch operator: integer levels in, int32 accumulators out."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitcore.config import FLOAT
from bitcore.engine.engine import BAD_CODE, Engine, instruction_set
from bitcore.engine.memory import aligned
from bitcore.engine.plan import Plan
from bitcore.engine.program import COutput, CProgram, CStep
from bitcore.engine.steps import Step
from bitcore.formats import FORMATS, get_format
from bitcore.graph import Conv2d, Graph, InputSpec, Node
from bitcore.graph.ops import Ints
from bitcore.kernels.linear import OPERATORS
from bitcore.kernels.machine import check
from bitcore.kernels.native import library
from bitcore.kernels.registry import Kernel, KernelRegistry
from bitcore.quantizers import PackedTensor


class Geometry(NamedTuple):
    """What a convolution is besides its weights; pairs are vertical, horizontal.

    Attributes:
        shape: Of the weight, ``[outputs, inputs / groups, height, width]``.
        stride: Likewise for padding (zeros, on both sides) and dilation.
        padding: See above.
        dilation: See above.
        groups: Of channels.
    """

    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, shape: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Geometry:
        """Returns it from what torch's operators take."""
        pairs = [(v[0], v[1]) for v in (stride, padding, dilation)]
        return cls(tuple(shape), pairs[0], pairs[1], pairs[2], groups)


GEOMETRY = "int[] shape, int[] stride, int[] padding, int[] dilation, int groups"
"""How operators' schemas write the arguments of `Geometry.of`."""


def output_size(size: Sequence[int], g: Geometry) -> list[int]:
    """Returns height and width of the result for those of the input (integers, or symbols of them)."""
    sizes = zip(size, g.shape[2:], g.stride, g.padding, g.dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]


def _graph(g: Geometry, weight: str, activation: str, size: tuple[int, ...], levels: Ints | None = None) -> Graph:
    spec = InputSpec((g.shape[1] * g.groups, *size), activation, 1.0)
    if levels is None:  # any will do
        levels = np.full(g.shape, min(get_format(weight).levels, key=abs), np.int64)
    op = Conv2d(levels, weight, np.zeros(1, np.int64), g.stride, g.padding, g.dilation, g.groups)
    return Graph(spec, (Node("conv", op, ("input",), op.infer(spec.type)),), 1.0)


class Template(Engine):
    """A program whose weights come with each call: its pointers are offsets into them."""

    def __init__(self, graph: Graph) -> None:
        self._at = 0
        self._offsets: dict[str, int] = {}
        super().__init__(graph)

    def _step(self, step: Step) -> CStep:
        c = super()._step(step)
        self._offsets = {name: getattr(c, name) or 0 for name in step.arrays}  # of the last step: the convolution
        return c

    def _hold(self, array: np.ndarray) -> int:
        at, self._at = self._at, self._at + aligned(array.nbytes)
        return at

    def program(self, machine: Tensor) -> CProgram:
        """Returns the program with these weights, whose memory it uses."""
        count = len(self.steps)
        steps = (CStep * count).from_buffer_copy(ctypes.string_at(self._program.steps, count * ctypes.sizeof(CStep)))
        program = CProgram.from_buffer_copy(self._program)
        program.steps = steps
        for name, offset in self._offsets.items():
            setattr(steps[-1], name, machine.data_ptr() + offset)
        return program

    def convolve(self, x: Tensor, machine: Tensor) -> Tensor:
        """Returns int32 accumulators, channels last in memory."""
        return self._call(x, program=self.program(machine))

    def convolve_floats(
        self, program: CProgram, output: COutput, x: Tensor, y: Tensor, last: bool, x_scale: Tensor | None, scales: int
    ) -> bool:
        """Fills ``y`` (see bit_conv2d_float); returns whether ``x`` holds NaN, which it takes for numbers."""
        assert self._native is not None
        arena = self._arena(len(x))
        error = self._native.bit_conv2d_float(
            instruction_set(), ctypes.addressof(program), ctypes.addressof(output), x.data_ptr(), y.data_ptr(), last,
            None if x_scale is None else x_scale.data_ptr(), scales, len(x), torch.get_num_threads(), arena.data_ptr(),
        )  # fmt: skip
        self._arenas.append(arena)
        if error != BAD_CODE:
            check(error)
        return error == BAD_CODE


@lru_cache(maxsize=256)
def template(g: Geometry, weight: str, activation: str, size: tuple[int, ...]) -> Template:
    """Returns the program of a convolution, but for its weights, for images of a size."""
    return Template(_graph(g, weight, activation, size))


def _conv2d(x: Tensor, machine: Tensor, weight_format: str, activation: str, *geometry: Any) -> Tensor:
    made = template(Geometry.of(*geometry), weight_format, activation, tuple(x.shape[2:]))
    if x.dtype not in (torch.int8, torch.uint8):
        x = x.to(torch.int32).contiguous()
    elif not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    return made.convolve(x, machine)


def _conv2d_shape(x: Tensor, machine: Tensor, weight_format: str, activation: str, *geometry: Any) -> Tensor:
    g = Geometry.of(*geometry)
    size = output_size(x.shape[2:], g)
    return x.new_empty((x.shape[0], *size, g.shape[0]), dtype=torch.int32).permute(0, 3, 1, 2)


OPERATORS.define(f"conv2d_packed(Tensor x, Tensor machine, str weight_format, str activation, {GEOMETRY}) -> Tensor")
OPERATORS.impl("conv2d_packed", _conv2d, "CPU")
torch.library.register_fake("bitcore::conv2d_packed", _conv2d_shape, lib=OPERATORS)


@KernelRegistry.register
class EngineConv2d(Kernel):
    """The engine's convolutions (csrc/simd/bit_conv.h): every format, on the best instructions of the machine."""

    op, has_cpp_backend, priority = "conv2d", True, 0

    def available(self) -> bool:  # noqa: D102
        return library() is not None and hasattr(library(), "bit_engine_run")

    def supports(self, weight_format: str, activation_dtype: str, device: str) -> bool:  # noqa: D102
        return device == "cpu" and weight_format in FORMATS and activation_dtype != FLOAT

    def prepare(self, weight: PackedTensor, activation_dtype: str = "int8", geometry: Geometry | None = None) -> Tensor:
        """Returns the weight in blocks of output channels: uint8, never saved."""
        g = geometry or _pointwise(weight)
        size = tuple(d * (k - 1) + 1 for d, k in zip(g.dilation, g.shape[2:], strict=True))
        levels = weight.unpack().levels.numpy().astype(np.int64).reshape(g.shape)
        arrays = Plan(_graph(g, weight.format.name, activation_dtype, size, levels)).steps[-1].arrays
        machine = torch.zeros(sum(aligned(a.nbytes) for a in arrays.values()) + 64, dtype=torch.uint8)
        at = 0
        for array in arrays.values():
            machine[at : at + array.nbytes] = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
            at += aligned(array.nbytes)
        return machine

    def __call__(
        self,
        x: Tensor,
        prepared: Tensor,
        weight: PackedTensor,
        activation_dtype: str = "int8",
        geometry: Geometry | None = None,
    ) -> Tensor:
        """Returns int32 accumulators for levels, both ``[batch, channels, height, width]``."""
        return convolve(x, prepared, weight.format.name, activation_dtype, geometry or _pointwise(weight))


def convolve(x: Tensor, tiles: Tensor, weight_format: str, activation_format: str, g: Geometry) -> Tensor:
    """Returns int32 accumulators of levels ``[batch, channels, height, width]`` and tiles (`make_tiles`)."""
    return torch.ops.bitcore.conv2d_packed(
        x, tiles, weight_format, activation_format, g.shape, g.stride, g.padding, g.dilation, g.groups
    )


def make_tiles(weight: PackedTensor, activation_format: str, geometry: Geometry) -> Tensor | None:
    """Returns a packed weight in blocks of output channels, or ``None`` where no kernel takes it."""
    kernel = KernelRegistry.get_kernel_by_name(EngineConv2d.__name__)
    assert isinstance(kernel, EngineConv2d)
    takes = kernel.available() and kernel.supports(weight.format.name, activation_format, weight.data.device.type)
    largest = weight.format.largest * FORMATS[activation_format].largest
    if not takes or not weight.uniform or math.prod(weight.shape[1:]) * largest >= 2**31:
        return None
    try:
        return kernel.prepare(weight, activation_format, geometry)
    except ValueError:  # bytes that hold no codes; who reads them will be told
        return None


def _pointwise(weight: PackedTensor) -> Geometry:
    """The geometry of a plain convolution with this weight."""
    shape = (*weight.shape, 1, 1)[:4] if len(weight.shape) < 4 else weight.shape
    return Geometry(tuple(shape), (1, 1), (0, 0), (1, 1), 1)
