"""BitLinear: a drop-in `nn.Linear` with quantized weights and activations; BitTransposedLinear: GPT-2's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitcore.config import FLOAT
from bitcore.errors import BitLabError
from bitcore.graph import GraphBuilder, Value
from bitcore.kernels import KernelRegistry
from bitcore.kernels.machine import count_weights
from bitcore.kernels.real import multiply_levels
from bitcore.kernels.simd import FusedLinear
from bitcore.presets import Quant
from bitcore.quantizers import PackedTensor, QTensor, Quantizer
from bitlayers.fused import FusedLayer

_INT32 = 2**31


class BitLinear(FusedLayer, nn.Linear):
    """Applies ``y = x W^T + b`` with ``W`` (and ``x``, if the config says so) quantized.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        bias: Whether there is a (float) bias.
        quant_config: Formats and scales, or a preset's name; the default is ternary weights and float32 activations.
        device: As in `nn.Linear`.
        dtype: As in `nn.Linear`.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``.
    """

    token_dims = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        quant_config: Quant = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._init_quantization(quant_config)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the matrix product, plus ``bias``."""
        return nn.functional.linear(x, weight, bias)

    def _init_quantization(self, config: Quant) -> None:
        super()._init_quantization(config)
        count_weights(self, self.in_features * self.out_features)

    def machine_layout(self, weight: PackedTensor) -> Tensor | None:  # noqa: D102
        quantizer = self.activation_quantizer
        if not weight.uniform or (quantizer is not None and not self._fits_int32(weight)):
            return None
        activation = FLOAT if quantizer is None else quantizer.format.name
        return KernelRegistry.rearrange(weight, activation)

    def fused_weight(self) -> Tensor | None:  # noqa: D102
        return self._buffers["machine_weight"]

    def fuse(self, quantizer: Quantizer, scale: Tensor, bias: Tensor | None) -> FusedLinear | None:  # noqa: D102
        weight, grid = self.machine_weight, quantizer.source.static
        assert weight is not None
        return FusedLinear(weight, self.in_features, self.out_features, quantizer.format, scale, bias, grid)

    def fused_operator(  # noqa: D102
        self, x: Tensor, x_scale: Tensor | None, per_tensor: bool, bias: Tensor | None
    ) -> Tensor:
        assert self.activation_quantizer is not None
        return torch.ops.bitcore.linear_simd_float(
            x, self.machine_weight, self.out_features, self.activation_quantizer.format.name, per_tensor, x_scale,
            self.weight_scale, bias, self._static_input,
        )  # fmt: skip

    def takes(self, x: Tensor) -> bool:
        """Always, or it raises an error."""
        self._check_features(x.shape[-1] if x.ndim else 0)
        return True

    def _fits_int32(self, weight: PackedTensor) -> bool:
        """Whether sums of products fit the accumulators of kernels."""
        assert self.activation_quantizer is not None
        return self.in_features * self.activation_quantizer.format.largest * weight.format.largest < _INT32

    def _check_features(self, features: int) -> None:
        """Kernels know the packed rows' bytes, not how many codes count."""
        if features != self.in_features:
            raise BitLabError(f"the layer takes {self.in_features} features, its input has {features}")

    def accumulate(self, x: QTensor | Tensor, weight: QTensor | PackedTensor) -> Tensor:
        """As in `BitLayer`; packed weights run on the best kernel of this machine."""
        if not isinstance(weight, PackedTensor):
            return multiply_levels(x, weight.levels) if isinstance(x, Tensor) else super().accumulate(x, weight)
        shape = x.shape if isinstance(x, Tensor) else x.levels.shape
        features = shape[-1] if shape else 0
        self._check_features(features)
        if not isinstance(x, Tensor) and features * x.format.largest * weight.format.largest >= _INT32:
            return super().accumulate(x, weight)  # kernels sum in int32
        activation = FLOAT if isinstance(x, Tensor) else x.format.name
        kernel = KernelRegistry.find("linear", weight.format.name, activation, weight.scale.device.type)
        prepared = kernel.prepare(weight, activation)
        if isinstance(x, Tensor):
            return kernel(x, prepared, weight)
        levels = x.integers()
        sums = kernel(levels, prepared, weight)
        if x.shift is None:
            return sums
        # The shift adds itself times the row's sum, which is the product with ones: levels may stay within a byte.
        rows = kernel(levels.new_ones(1, features), prepared, weight)
        return sums.double() + x.shift * rows.double()

    def add_to_graph(  # noqa: D102
        self,
        g: GraphBuilder,
        x: Value,
        levels: NDArray[np.int64],
        bias: NDArray[np.int64],
        scale: NDArray[np.float64],
        real: object,
    ) -> Value:
        return g.linear(x, levels, self.quant_config.weight_format, bias, scale, real)  # type: ignore[arg-type]


class BitTransposedLinear(BitLinear):
    """A `BitLinear` whose latent weight is kept as ``[in_features, out_features]``: the "Conv1D" of GPT-2.

    Codes and scales are those of a `BitLinear` with the transposed weight: ``per_channel`` is per output.
    Arguments and shapes as in `BitLinear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        quant_config: Quant = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous())
        self._init_quantization(quant_config)

    def _init_quantization(self, config: Quant) -> None:
        self.in_features, self.out_features = self.weight.shape
        super()._init_quantization(config)

    @property
    def inputs_first(self) -> int:  # noqa: D102
        return 1
