"""BitConv2d: a drop-in `nn.Conv2d` with quantized weights and activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.graph import Conv2d, GraphBuilder, Value
from bitlayers.base import BitLayer


class BitConv2d(BitLayer, nn.Conv2d):
    """Applies a two-dimensional convolution with quantized weights (and input, if the config says so).

    All of `nn.Conv2d`'s arguments, by the same names and in the same order; ``quant_config`` as in `BitLinear`.
    A dynamic ``per_token`` activation scale is one a sample. A padded zero adds nothing, in every format.

    Shape:
        Input ``[batch, in_channels, height, width]``, output as in `nn.Conv2d`.
    """

    token_dims = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options
        )
        self._init_quantization(quant_config)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution, plus ``bias``; padding as the layer's ``padding_mode`` says."""
        return self._conv_forward(x, weight, bias)

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
