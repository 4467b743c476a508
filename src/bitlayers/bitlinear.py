"""BitLinear: a drop-in `nn.Linear` with quantized weights and activations; BitTransposedLinear: GPT-2's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitcore.config import FLOAT, BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.graph import GraphBuilder, Value
from bitcore.kernels import KernelRegistry
from bitcore.quantizers import PackedTensor, QTensor
from bitlayers.base import BitLayer


class BitLinear(BitLayer, nn.Linear):
    """Applies ``y = x W^T + b`` with ``W`` (and ``x``, if the config says so) quantized.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        bias: Whether there is a (float) bias.
        quant_config: Formats and scales; the default is ternary weights and float32 activations.
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
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._init_quantization(quant_config)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the matrix product, plus ``bias``."""
        return nn.functional.linear(x, weight, bias)

    def accumulate(self, x: QTensor | Tensor, weight: QTensor | PackedTensor) -> Tensor:
        """As in `BitLayer`; packed weights run on the best kernel of this machine."""
        if not isinstance(weight, PackedTensor):
            return super().accumulate(x, weight)
        features = x.shape[-1] if isinstance(x, Tensor) else x.levels.shape[-1]
        if features != self.in_features:  # kernels know the packed rows' bytes, not how many codes count
            raise BitLabError(f"the layer takes {self.in_features} features, its input has {features}")
        activation = FLOAT if isinstance(x, Tensor) else x.format.name
        kernel = KernelRegistry.find("linear", weight.format.name, activation, weight.data.device.type)
        return kernel(x if isinstance(x, Tensor) else x.integers(), kernel.prepare(weight), weight)

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
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous())
        self._init_quantization(quant_config)

    def _init_quantization(self, config: BitQuantConfig | None) -> None:
        self.in_features, self.out_features = self.weight.shape
        super()._init_quantization(config)

    def rows(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.T.contiguous()  # as unpacked codes lie, so that float sums take the same order

    def unrows(self, rows: Tensor) -> Tensor:  # noqa: D102
        return rows.T
