"""BitEmbedding: a drop-in `nn.Embedding` with quantized vectors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bitcore.config import FLOAT, BitQuantConfig
from bitcore.presets import Quant, resolve
from bitcore.quantizers import PackedTensor
from bitlayers.base import BitLayer


class BitEmbedding(BitLayer, nn.Embedding):
    """Looks up quantized vectors. Its input are integers, so its config's ``activation_dtype`` is float32.

    ``per_channel`` weight scales are one a vector. Formats without a level 0 (``binary``, ``4bitsym``) quantize the
    zeros of ``padding_idx`` to their smallest level too.

    Args:
        num_embeddings: The number of vectors.
        embedding_dim: Their length.
        padding_idx: As in `nn.Embedding`: this vector gets no gradient.
        scale_grad_by_freq: As in `nn.Embedding`.
        quant_config: Format and scale of the vectors; the default is ternary.
        device: As in `nn.Embedding`.
        dtype: As in `nn.Embedding`.

    Shape:
        Input ``[...]`` of int32 or int64 in ``0 … num_embeddings − 1``, output ``[..., embedding_dim]``.
    """

    token_dims = 1
    bias = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale_grad_by_freq: bool = False,
        quant_config: Quant = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Embedding.__init__(
            self, num_embeddings, embedding_dim, padding_idx, None, 2.0, scale_grad_by_freq, device=device, dtype=dtype
        )
        self._init_quantization(quant_config)

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:  # noqa: D102
        assert isinstance(layer, nn.Embedding)
        if layer.max_norm is not None:
            return "max_norm changes its float weights in forward"
        if layer.sparse:
            return "its gradients are sparse, which no gradient estimator passes on; use sparse=False"
        return super().obstacle(layer)

    def _init_quantization(self, config: Quant) -> None:
        super()._init_quantization((resolve(config) or BitQuantConfig()).replace(activation_dtype=FLOAT))

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Looks up rows of ``weight``."""
        return nn.functional.embedding(x, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def _forward_levels(self, x: Tensor) -> Tensor:
        """Dequantizes the rows that are looked up: each value is one level times one scale, so nothing is summed."""
        self._check_device(x)
        if self.weight_quantizer is None:
            return self.operate(x, self.weight)
        index = x.flatten()
        weight = self.packed_tensor() if self.packed else self.quantized_weight()
        per_row = weight.scale.ndim > 1 and weight.scale.shape[-2] == self.num_embeddings
        scale = weight.scale.index_select(-2, index) if per_row else weight.scale
        if isinstance(weight, PackedTensor):
            shape = (len(index), self.embedding_dim)
            packed = replace(weight, data=weight.data.index_select(0, index), scale=scale, shape=shape)
            weight = packed.unpack(scale.dtype)
        else:
            weight = replace(weight, levels=weight.levels.index_select(0, index), scale=scale)
        dtype = self.weight_dtype if self.packed else self.weight.dtype
        return weight.dequantize().to(dtype).reshape(*x.shape, self.embedding_dim)
