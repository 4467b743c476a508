"""BitMultiheadAttention: `nn.MultiheadAttention` whose four projections are bit layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.errors import BitLabError
from bitcore.presets import Quant
from bitlayers.bitlinear import BitLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class BitMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention with quantized projections; scores, softmax and the weighted sum stay float.

    Arguments, inputs, outputs and masks are those of `nn.MultiheadAttention`; ``quant_config`` as in `BitLinear`. The
    projections are modules ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``; torch's ``in_proj_weight`` is gone, but a
    state dictionary that holds one still loads.

    Shape:
        Query ``[batch, L, embed_dim]``, key ``[batch, S, kdim]``, value ``[batch, S, vdim]`` with ``batch_first``, else
        with the first two swapped, or without the batch. Output as the query; weights ``[batch, L, S]``, or
        ``[batch, heads, L, S]`` with ``average_attn_weights=False``, or ``None`` with ``need_weights=False``.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        quant_config: Quant = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self._split({})
        for name in PROJECTIONS:
            BitLinear.adopt(getattr(self, name), quant_config)

    @classmethod
    def adopt(cls, attention: nn.MultiheadAttention, split: dict[Tensor, tuple[nn.Parameter, ...]]) -> None:
        """Turns torch's module into this one, in place, with float projections that its owner may then quantize.

        Args:
            attention: The module.
            split: What became of packed parameters: shared ones stay shared, if each call is given the same dictionary.
        """
        attention.__class__ = cls
        assert isinstance(attention, cls)
        attention._split(split)

    def _split(self, split: dict[Tensor, tuple[nn.Parameter, ...]]) -> None:
        """Replaces the packed parameters by one linear module a projection."""
        if self.in_proj_weight is not None:
            weights = _thirds(self.in_proj_weight, split)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else _thirds(self.in_proj_bias, split)
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, None)  # None also tells torch's encoder layers to take no fused path
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=False):
            layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            layer.weight = weight
            layer.register_parameter("bias", bias)
            self.add_module(name, layer.train(self.training))
        self.out_proj.__class__ = nn.Linear  # type: ignore[assignment]  # of torch's empty subclass

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends; see `nn.MultiheadAttention.forward` for the arguments (``is_causal`` is but a hint: masks count).

        Raises:
            BitLabError: If a mask has another shape than the inputs ask for, or ``is_causal`` comes without a mask.
        """
        if is_causal and attn_mask is None:
            raise BitLabError("is_causal is only a hint: pass the causal attn_mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = self._mask(query, key, attn_mask, key_padding_mask)
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout > 0 else weights
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), weights
        return y if self.batch_first else y.transpose(0, 1), weights

    def _mask(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Returns both masks as one, added to the scores ``[batch, heads, L, S]``, or ``None``."""
        batch, targets, sources = len(query), query.shape[1], key.shape[1]
        terms = []
        if attn_mask is not None:
            shapes = [(targets, sources), (batch * self.num_heads, targets, sources)]
            terms.append(_additive(attn_mask, "attn_mask", shapes, query.dtype))
            if attn_mask.dim() == 3:
                terms[0] = terms[0].unflatten(0, (batch, self.num_heads))
        if padding is not None:
            terms.append(_additive(padding, "key_padding_mask", [(batch, sources)], query.dtype)[:, None, None])
        if not terms:
            return None
        mask = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return F.pad(mask, (0, (self.bias_k is not None) + self.add_zero_attn))  # the added keys are never masked

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Splits what `nn.MultiheadAttention` keeps in one tensor."""
        for field in ("weight", "bias"):
            if f"{prefix}in_proj_{field}" in state_dict:
                parts = state_dict.pop(f"{prefix}in_proj_{field}").chunk(3)
                state_dict.update({f"{prefix}{n}.{field}": p for n, p in zip(PROJECTIONS, parts, strict=False)})
        for name in PROJECTIONS[:3]:
            if f"{prefix}{name}_weight" in state_dict:
                state_dict[f"{prefix}{name}.weight"] = state_dict.pop(f"{prefix}{name}_weight")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _thirds(packed: nn.Parameter, split: dict[Tensor, tuple[nn.Parameter, ...]]) -> tuple[nn.Parameter, ...]:
    if packed not in split:
        parts = packed.detach().chunk(3)
        split[packed] = tuple(nn.Parameter(part.clone(), requires_grad=packed.requires_grad) for part in parts)
    return split[packed]


def _additive(mask: Tensor, name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
    if tuple(mask.shape) not in shapes:
        raise BitLabError(f"{name} must have shape {' or '.join(map(str, shapes))}, not {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
    return mask.to(dtype)
