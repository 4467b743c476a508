"""Drop-in convolutions with quantized weights and activations: BitConv1d, BitConv2d, BitConvTranspose2d."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitcore.config import FLOAT
from bitcore.engine.convolution import Geometry, convolve, make_tiles
from bitcore.engine.fused import FusedConv2d
from bitcore.graph import Conv2d, GraphBuilder, Value
from bitcore.kernels import KernelRegistry
from bitcore.presets import Quant
from bitcore.quantizers import PackedTensor, QTensor, Quantizer
from bitlayers.base import BitLayer
from bitlayers.fused import FusedLayer

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class _BitConv(BitLayer):
    """What the convolutions share: everything. Their torch halves know the dimensions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        quant_config: Quant = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
        self._init_quantization(quant_config)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution, plus ``bias``; padding as the layer's ``padding_mode`` says."""
        return self._conv_forward(x, weight, bias)  # type: ignore[operator]

    def machine_layout(self, weight: PackedTensor) -> Tensor | None:
        """For float activations: torch computes the convolution, but the machine's layout is decoded faster."""
        if self.activation_quantizer is not None or not weight.uniform:
            return None
        return KernelRegistry.rearrange(weight, FLOAT)

    def accumulator_dtype(self, largest: int) -> torch.dtype:
        # Where oneDNN does not serve, float32 may go to NNPACK, whose Winograd transform rounds.
        onednn = _HAS_ONEDNN and torch.backends.mkldnn.enabled
        return super().accumulator_dtype(largest) if onednn else torch.float64


class BitConv1d(_BitConv, nn.Conv1d):
    """Applies a one-dimensional convolution with quantized weights (and input, if the config says so).

    All of `nn.Conv1d`'s arguments, by the same names and in the same order; ``quant_config`` as in `BitLinear`.
    A dynamic ``per_token`` activation scale is one a sample. A padded zero adds nothing, in every format.

    Shape:
        Input ``[batch, in_channels, length]``, output as in `nn.Conv1d`.
    """

    token_dims = 2


class BitConv2d(FusedLayer, _BitConv, nn.Conv2d):
    """Applies a two-dimensional convolution with quantized weights (and input, if the config says so).

    All of `nn.Conv2d`'s arguments, by the same names and in the same order; ``quant_config`` as in `BitLinear`.
    A dynamic ``per_token`` activation scale is one a sample. A padded zero adds nothing, in every format.

    Shape:
        Input ``[batch, in_channels, height, width]``, output as in `nn.Conv2d`.
    """

    token_dims = 3
    tiles: Tensor | None  # the packed weight as kernels read it,
    _geometry: Geometry | None = None  # and what else they know

    def _init_quantization(self, config: Quant) -> None:
        super()._init_quantization(config)
        self.register_buffer("tiles", None, persistent=False)

    def geometry(self) -> Geometry | None:
        """Returns what kernels know of the convolution; ``None`` where they do not pad as it does."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros" or left != right or top != bottom:
            return None
        stride, dilation = ((int(v[0]), int(v[1])) for v in (self.stride, self.dilation))
        return Geometry(self.weight_shape, stride, (int(top), int(left)), dilation, self.groups)

    def _to_machine(self) -> None:
        geometry = self._geometry = self.geometry()
        if self.packed_weight is not None and self.activation_quantizer is not None and geometry is not None:
            self.tiles = make_tiles(self.packed_tensor(), self.activation_quantizer.format.name, geometry)
        super()._to_machine()

    def _to_bytes(self) -> None:
        super()._to_bytes()
        self.tiles = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies make tiles of their own."""
        state = super().__getstate__()
        return {**state, "_buffers": {**state["_buffers"], "tiles": None}}

    def fused_weight(self) -> Tensor | None:  # noqa: D102
        return self._buffers["tiles"]

    def fuse(self, quantizer: Quantizer, scale: Tensor, bias: Tensor | None) -> FusedConv2d | None:  # noqa: D102
        tiles, geometry, formats = self.tiles, self._geometry, (self.quant_config.weight_format, quantizer.format.name)
        assert tiles is not None
        assert geometry is not None
        return FusedConv2d(tiles, geometry, *formats, scale, bias, quantizer.source.static)

    def fused_operator(  # noqa: D102
        self, x: Tensor, x_scale: Tensor | None, per_tensor: bool, bias: Tensor | None
    ) -> Tensor:
        assert self._geometry is not None
        assert self.activation_quantizer is not None
        return torch.ops.bitcore.conv2d_float(
            x, self.tiles, self.quant_config.weight_format, self.activation_quantizer.format.name, *self._geometry,
            per_tensor, x_scale, self.weight_scale, bias, self._static_input,
        )  # fmt: skip

    def takes(self, x: Tensor) -> bool:
        """Whether ``x`` has samples and channels; torch refuses others, or gives them a meaning."""
        return x.ndim == 4 and x.shape[1] == self.in_channels

    def accumulate(self, x: QTensor | Tensor, weight: QTensor | PackedTensor) -> Tensor:
        """As in `BitLayer`; packed weights run on the engine's kernels where there are some."""
        tiles, geometry = self.tiles, self._geometry
        if tiles is None or geometry is None or isinstance(x, Tensor) or x.levels.ndim != 4 or x.shift is not None:
            return super().accumulate(x, weight)
        sums = convolve(x.integers(), tiles, weight.format.name, x.format.name, geometry)
        # In memory as torch's convolution leaves it: what reads a map next, such as a mean, adds in that order.
        last = x.levels.is_contiguous(memory_format=torch.channels_last) and not x.levels.is_contiguous()
        return sums if last else sums.contiguous()

    def add_to_graph(  # noqa: D102
        self,
        g: GraphBuilder,
        x: Value,
        levels: NDArray[np.int64],
        bias: NDArray[np.int64],
        scale: NDArray[np.float64],
        real: Any,
    ) -> Value:
        if self.padding_mode != "zeros":
            raise g.error(f"padding_mode '{self.padding_mode}'; integer graphs pad with zeros")
        # torch keeps what it pads in the order left, right, top, bottom (also for padding='same').
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if left != right or top != bottom:
            raise g.error("padding='same' with an even kernel pads one side more; use an odd kernel or a number")
        op = Conv2d(
            levels,
            self.quant_config.weight_format,
            np.broadcast_to(bias, levels.shape[:1]).copy(),
            stride=(int(self.stride[0]), int(self.stride[1])),
            padding=(top, left),
            dilation=(int(self.dilation[0]), int(self.dilation[1])),
            groups=self.groups,
        )
        return g.conv2d(x, op, scale, real)


class BitConvTranspose2d(BitLayer, nn.ConvTranspose2d):
    """Applies a transposed convolution with quantized weights (and input, if the config says so).

    All of `nn.ConvTranspose2d`'s arguments, by the same names and in the same order; ``quant_config`` as in
    `BitLinear`. The latent weight has torch's layout ``[in_channels, out_channels / groups, height, width]``; it is
    quantized and packed with the output channels first, ``[out_channels, in_channels / groups, height, width]``, so
    that ``per_channel`` means the same everywhere.

    Shape:
        Input ``[batch, in_channels, height, width]``, output as in `nn.ConvTranspose2d`.
    """

    token_dims = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        quant_config: Quant = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, **options
        )
        self._init_quantization(quant_config)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Applies the layer; ``output_size`` (``[height, width]``) chooses among the sizes that a stride allows."""
        if output_size is None:
            return super().forward(input)
        usual = self.output_padding
        sizes = [list(v) for v in (self.stride, self.padding, self.kernel_size, self.dilation)]
        self.output_padding = tuple(self._output_padding(input, output_size, *sizes[:3], 2, sizes[3]))  # type: ignore[arg-type]
        try:
            return super().forward(input)
        finally:
            self.output_padding = usual

    @property
    def inputs_first(self) -> int:  # noqa: D102
        return self.groups

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the transposed convolution, plus ``bias``."""
        padding: Any = self.padding  # torch's base class also knows names here, this layer does not
        return nn.functional.conv_transpose2d(
            x, self.unrows(weight), bias, self.stride, padding, self.output_padding, self.groups, self.dilation
        )
