"""Convolutions of packed weights as a torch operator: integer levels in, int32 accumulators out."""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitcore.config import FLOAT
from bitcore.engine.engine import BAD_CODE, Engine, Made, instruction_set
from bitcore.engine.memory import aligned
from bitcore.engine.plan import Plan
from bitcore.engine.program import COutput, CProgram, CStep
from bitcore.engine.steps import Step
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, get_format
from bitcore.graph import Conv2d, Graph, InputSpec, Node
from bitcore.graph.ops import Ints
from bitcore.kernels import gate
from bitcore.kernels.linear import OPERATORS
from bitcore.kernels.machine import check
from bitcore.kernels.native import library
from bitcore.kernels.registry import Kernel, KernelRegistry
from bitcore.quantizers import PackedTensor

_INT32_MAX = 2**31 - 1
_MARK = 64  # bytes in front of tiles
_BEHIND = 64  # and behind them: kernels read whole vectors


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
        """Returns it from what torch's operators take.

        Raises:
            BitLabError: If there is no such convolution.
        """
        least = ((shape, 4, 1), (stride, 2, 1), (padding, 2, 0), (dilation, 2, 1), ((groups,), 1, 1))
        if any(len(v) != n or min(v) < low or max(v) > _INT32_MAX for v, n, low in least) or shape[0] % groups:
            raise BitLabError(
                f"there is no convolution of a weight {shape} with stride {stride}, padding {padding}, "
                f"dilation {dilation} and {groups} groups"
            )
        pairs = [(v[0], v[1]) for v in (stride, padding, dilation)]
        return cls(tuple(shape), pairs[0], pairs[1], pairs[2], groups)

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.groups


GEOMETRY = "int[] shape, int[] stride, int[] padding, int[] dilation, int groups"
"""How operators' schemas write the arguments of `Geometry.of`."""


def expect_images(x: Tensor, tiles: Tensor, dtypes: tuple[torch.dtype, ...], g: Geometry) -> None:
    """Raises unless images and tiles are what a convolution takes.

    Raises:
        BitLabError: If they are others, or images are smaller than the kernel.
    """
    gate.expect("x", x, dtypes, (None, g.inputs, None, None), x.device)
    gate.expect("tiles", tiles, (torch.uint8,), (None,), x.device)
    expect_result(x.shape[2:], g)


def expect_result(size: Sequence[int], g: Geometry) -> list[int]:
    """Returns height and width of the result, as `output_size`.

    Raises:
        BitLabError: If nothing would be left.
    """
    result = output_size(size, g)
    if result[0] < 1 or result[1] < 1:
        raise BitLabError(f"images of {size[0]} × {size[1]} are smaller than the kernel; pad or enlarge them")
    return result


def output_size(size: Sequence[int], g: Geometry) -> list[int]:
    """Returns height and width of the result for those of the input (integers, or symbols of them)."""
    sizes = zip(size, g.shape[2:], g.stride, g.padding, g.dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]


def _graph(g: Geometry, weight: str, activation: str, size: tuple[int, ...], levels: Ints | None = None) -> Graph:
    spec = InputSpec((g.inputs, *size), activation, 1.0)
    if levels is None:  # any will do
        levels = np.full(g.shape, min(get_format(weight).levels, key=abs), np.int64)
    op = Conv2d(levels, weight, np.zeros(1, np.int64), g.stride, g.padding, g.dilation, g.groups)
    return Graph(spec, (Node("conv", op, ("input",), op.infer(spec.type)),), 1.0)


class Template(Engine):
    """A program whose weights come with each call: its pointers are offsets into them.

    Args:
        graph: The convolution.
        mark: What its weights begin with (`_mark`).
    """

    def __init__(self, graph: Graph, mark: Tensor) -> None:
        self._at, self._mark = len(mark), mark
        self._offsets: dict[str, int] = {}
        super().__init__(graph)
        self._made = Made([], [], 0, 0)  # its arrays are those of weights that it does not have

    def _step(self, step: Step) -> CStep:
        c = super()._step(step)
        self._offsets = {name: getattr(c, name) or 0 for name in step.arrays}  # of the last step: the convolution
        return c

    def _hold(self, arrays: dict[str, np.ndarray], name: str) -> int:
        at, self._at = self._at, self._at + aligned(arrays[name].nbytes)
        return at

    def program(self, machine: Tensor) -> CProgram:
        """Returns the program with these weights, whose memory it uses: the caller keeps them as long.

        Raises:
            BitLabError: If they were made for another convolution.
        """
        at = gate.address(machine)
        fits = machine.shape == (self._at + _BEHIND,) and machine.dtype == torch.uint8 and machine.is_contiguous()
        if at is None or not fits or not torch.equal(machine[: len(self._mark)], self._mark):
            raise BitLabError("these tiles were made for another convolution, or for other formats")
        count = len(self.steps)
        steps = (CStep * count).from_buffer_copy(ctypes.string_at(self._program.steps, count * ctypes.sizeof(CStep)))
        program = CProgram.from_buffer_copy(self._program)
        program.steps = steps
        for name, offset in self._offsets.items():
            setattr(steps[-1], name, at + offset)
        return program

    def convolve(self, x: Tensor, program: CProgram) -> Tensor:
        """Returns int32 accumulators, channels last in memory."""
        return self._call(x, program=program)

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
    largest = get_format(weight).largest * get_format(activation).largest
    if math.prod(g.shape[1:]) * largest > _INT32_MAX:
        raise BitLabError(f"sums of {math.prod(g.shape[1:])} products up to {largest} leave int32; use fewer channels")
    return Template(_graph(g, weight, activation, size), _mark(g, weight, activation))


@lru_cache(maxsize=256)
def _mark(g: Geometry, weight: str, activation: str) -> Tensor:
    """What a weight begins with: for what it was made, as a digest of `_MARK` bytes.

    Its bytes mean something else for another kernel, padding or format.
    """
    text = repr((*map(tuple, g[:4]), g.groups, weight, activation))
    digest = hashlib.blake2b(text.encode(), digest_size=_MARK).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def _conv2d(x: Tensor, machine: Tensor, weight_format: str, activation: str, *geometry: Any) -> Tensor:
    y = _conv2d_shape(x, machine, weight_format, activation, *geometry)
    made = template(Geometry.of(*geometry), weight_format, activation, tuple(x.shape[2:]))
    machine = machine.contiguous()
    program = made.program(machine)
    gate.expect_levels("x", x, get_format(activation))
    if not len(x):
        return y
    if x.dtype not in (torch.int8, torch.uint8):
        x = x.to(torch.int32).contiguous()
    elif not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    return made.convolve(x, program)


def _conv2d_shape(x: Tensor, machine: Tensor, weight_format: str, activation: str, *geometry: Any) -> Tensor:
    g = Geometry.of(*geometry)
    expect_images(x, machine, gate.INTEGERS, g)
    for name in (weight_format, activation):
        get_format(name)
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
        mark = _mark(g, weight.format.name, activation_dtype)
        at, behind = len(mark), sum(aligned(a.nbytes) for a in arrays.values()) + _BEHIND
        machine = torch.cat([mark, torch.zeros(behind, dtype=torch.uint8)])
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
