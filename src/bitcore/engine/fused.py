"""Packed convolutions from float to float in one call: quantize, convolve, scale, add the bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitcore.engine.convolution import GEOMETRY, Geometry, Template, expect_images, expect_result, template
from bitcore.engine.program import COutput, CProgram
from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.kernels import gate
from bitcore.kernels.gradients import refuse
from bitcore.kernels.linear import OPERATORS
from bitcore.kernels.simd import Fused, expect_layer, quantizes

_SIZES = 64  # of images whose programs are kept


class FusedConv2d(Fused):
    """A convolution from float to float, bit for bit as `Quantizer` and `BitLayer.dequantize` compute it.

    Args:
        tiles: The weight, from `make_tiles`.
        geometry: What it was made for.
        weight_format: Its format.
        activation: The activations' format, one that `bitcore.kernels.simd.quantizes` takes.
        weight_scale: float32, one or ``[outputs]`` (any shape).
        bias: float32 ``[outputs]``, or ``None``.
        bias_on_grid: Round the bias to the accumulator's grid.
    """

    def __init__(
        self,
        tiles: Tensor,
        geometry: Geometry,
        weight_format: str,
        activation: str,
        weight_scale: Tensor,
        bias: Tensor | None,
        bias_on_grid: bool,
    ) -> None:
        if not quantizes(get_format(activation)):
            raise BitLabError(f"no kernel rounds to the levels of {activation}; quantize first")
        super().__init__(tiles, geometry.shape[0], weight_scale, bias)
        self.geometry, self._channels, self.formats = geometry, geometry.inputs, (weight_format, activation)
        scale, bias_at = self.pointers[1:]
        self._output = COutput(
            weight_scale=scale, bias=bias_at, weight_scales=weight_scale.numel(), bias_on_grid=bias_on_grid
        )
        self._programs: dict[torch.Size, tuple[Template, CProgram]] = {}

    def __call__(self, x: Tensor, x_scale: Tensor | None = None, per_tensor: bool = False) -> Tensor:
        """Applies the layer to float32 ``[samples, inputs, height, width]``.

        The result lies in memory as torch's convolution leaves it: channels last where ``x`` does.
        """
        if x.dtype != torch.float32 or x.ndim != 4 or x.shape[1] != self._channels or not x.is_cpu or x.is_neg():
            gate.expect("x", x, (torch.float32,), (None, self._channels, None, None))
            x = x.resolve_neg()
        layout = memory_format(x)
        x = x.contiguous(memory_format=layout)
        size = x.shape[2:]
        height, width = expect_result(size, self.geometry)
        y = torch.empty(len(x), self.outputs, height, width, dtype=x.dtype, memory_format=layout)
        count = -per_tensor
        if x_scale is not None:
            gate.expect_scales("x_scale", x_scale, len(x), "samples")
            x_scale = x_scale.contiguous()
            count = x_scale.numel()
        made, program = self._programs.get(size) or self._program(size)
        if not len(x):
            return y
        last = layout == torch.channels_last
        if made.convolve_floats(program, self._output, x, y, last, x_scale, count):
            y.masked_fill_(self._meets_nan(x), torch.nan)
        return y

    def _program(self, size: torch.Size) -> tuple[Template, CProgram]:
        """Makes the program for images of a size."""
        if len(self._programs) >= _SIZES:
            self._programs.clear()
        made = template(self.geometry, *self.formats, tuple(size))
        assert self.tensors[0] is not None
        found = self._programs[size] = made, made.program(self.tensors[0])
        return found

    def _meets_nan(self, x: Tensor) -> Tensor:
        """Whose window holds NaN."""
        g = self.geometry
        window = x.new_ones(g.groups, *g.shape[1:])
        found = torch.nn.functional.conv2d(x.isnan().float(), window, None, g.stride, g.padding, g.dilation, g.groups)
        return (found > 0.5).repeat_interleave(g.shape[0] // g.groups, 1)


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns how torch's convolution of ``x`` [samples, channels, height, width] leaves its result in memory."""
    last = not x.is_contiguous() and x.stride(1) < x.stride(3)
    return torch.channels_last if last else torch.contiguous_format


def _conv2d_float(x: Tensor, tiles: Tensor, weight_format: str, activation: str, *arguments: Any) -> Tensor:
    *geometry, per_tensor, x_scale, weight_scale, bias, bias_on_grid = arguments
    _conv2d_float_shape(x, tiles, weight_format, activation, *arguments)
    layer = FusedConv2d(tiles, Geometry.of(*geometry), weight_format, activation, weight_scale, bias, bias_on_grid)
    return layer(x, x_scale, per_tensor)


def _conv2d_float_shape(x: Tensor, tiles: Tensor, weight_format: str, activation: str, *arguments: Any) -> Tensor:
    g, (_, x_scale, weight_scale, bias, _) = Geometry.of(*arguments[:5]), arguments[5:]
    for name in (weight_format, activation):
        get_format(name)
    expect_images(x, tiles, (torch.float32,), g)
    expect_layer(tiles, g.shape[0], weight_scale, bias, x.device)
    if x_scale is not None:
        gate.expect_scales("x_scale", x_scale, x.shape[0], "samples", x.device)
    shape = x.shape[0], g.shape[0], *expect_result(x.shape[2:], g)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


OPERATORS.define(
    f"conv2d_float(Tensor x, Tensor tiles, str weight_format, str activation, {GEOMETRY}, bool per_tensor, "
    "Tensor? x_scale, Tensor weight_scale, Tensor? bias, bool bias_on_grid) -> Tensor"
)
OPERATORS.impl("conv2d_float", _conv2d_float, "CPU")
torch.library.register_fake("bitcore::conv2d_float", _conv2d_float_shape, lib=OPERATORS)
refuse("conv2d_float")
