"""FusedLayer: a packed layer that runs, from float to float, in one call of a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitcore.kernels.simd import Fused, quantizes, traced
from bitcore.quantizers import FromValues, Quantizer
from bitlayers.base import BitLayer

_INPUTS = (torch.float32, torch.bfloat16, torch.float16)


class FusedLayer(BitLayer):
    """A `BitLayer` whose packed state is one call of a kernel (`Fused`), bit for bit as `BitLayer` computes it.

    Half-precision inputs become float32 on the way in, and the outputs half precision. Inputs of float64, and
    quantizers that a kernel does not know, go the way of `BitLayer`.
    """

    _fused: Fused | None = None
    _float_bias: Tensor | None = None  # of a bias in half precision, whose values are copied here at every call
    # Of dynamic scales, whether a tensor has one; None: other scales
    _dynamic_per_tensor: bool | None = None

    def fuse(self, quantizer: Quantizer, scale: Tensor, bias: Tensor | None) -> Fused | None:
        """Returns the call of the packed layer; ``None`` where there is no kernel."""
        raise NotImplementedError

    def fused_operator(self, x: Tensor, x_scale: Tensor | None, per_tensor: bool, bias: Tensor | None) -> Tensor:
        """Returns the same as one of torch's operators, which tracing sees."""
        raise NotImplementedError

    def fused_weight(self) -> Tensor | None:
        """Returns the weight that `fuse` uses."""
        raise NotImplementedError

    def takes(self, x: Tensor) -> bool:
        """Whether the kernel takes an input of that shape."""
        return True

    def _to_machine(self) -> None:
        super()._to_machine()
        self._fused = self._fuse()

    def _to_bytes(self) -> None:
        super()._to_bytes()
        self._fused = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies make their own calls of kernels."""
        return {**super().__getstate__(), "_fused": None, "_float_bias": None}

    def _fuse(self) -> Fused | None:
        weight, scale, bias, quantizer = self.fused_weight(), self.weight_scale, self.bias, self.activation_quantizer
        if weight is None or scale is None or quantizer is None or not quantizes(quantizer.format):
            return None
        if scale.dtype != torch.float32 or (bias is not None and bias.dtype not in _INPUTS):
            return None
        if bias is not None and bias.dtype != torch.float32:
            bias = self._float_bias = bias.detach().float()
        source = quantizer.source
        dynamic = isinstance(source, FromValues) and source.largest_value and not quantizer.pow2
        self._dynamic_per_tensor = source.trailing is None if dynamic else None
        return self.fuse(quantizer, scale, bias)

    def _forward_levels(self, x: Tensor) -> Tensor:
        fused, weight = self._fused, self.fused_weight()
        if fused is None or weight is None or x.dtype not in _INPUTS or not x.is_cpu or not self.takes(x):
            return super()._forward_levels(x)
        scale, per_tensor = None, self._dynamic_per_tensor
        if per_tensor is None:
            quantizer = self.activation_quantizer
            assert quantizer is not None
            scale = quantizer.scale(x).detach()
            moved = quantizer.source.offset(x, quantizer.format) is not None
            if moved or quantizer.source.divisor(x, scale, quantizer.format) is not scale:
                return super()._forward_levels(x)
        bias = self._parameters["bias"]
        if traced(x):
            bias = None if bias is None else bias.float()
            return self.fused_operator(x.float(), scale, bool(per_tensor), bias).to(x.dtype)
        if bias is not None and bias.dtype != torch.float32 and self._float_bias is not None:
            bias = self._float_bias.copy_(bias.detach())
        if not fused.uses(weight, self._buffers["weight_scale"], bias):
            fused = self._fused = self._fuse()
            assert fused is not None
        if x.dtype == torch.float32:
            return fused(x, scale, bool(per_tensor))
        return fused(x.float(), scale, bool(per_tensor)).to(x.dtype)
