"""BitLayer: what every quantized layer shares. It trains on latent float weights, evaluates on codes, ships packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import get_format, round_half_even
from bitcore.graph import GraphBuilder, Value
from bitcore.quantizers import PackedTensor, QTensor

_EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here, so float sums of levels below it are exact


class BitLayer(nn.Module):
    """Mixin in front of a torch layer (`nn.Linear`, `nn.Conv2d`).

    Three states:

    - train: ``op(fake_quantize(x), fake_quantize(weight)) + bias``; gradients by the estimators.
    - eval: the same on integer levels, ``op(x levels, weight levels) * (x scale * weight scale) + bias``. The integer
      sums are exact, so the result does not depend on the machine. No gradients.
    - packed (after `pack`): as eval, bit for bit; only the packed codes are kept and the float weights are freed.

    With a static activation range the bias is rounded to the accumulator's grid (``x scale * weight scale``, the
    int32 bias of integer inference), in training too.
    """

    token_dims: int  # dimensions of one token or sample at the input
    weight: Tensor
    bias: Tensor | None

    def _init_quantization(self, config: BitQuantConfig | None) -> None:
        """Creates the quantizers; call after the torch layer's ``__init__``."""
        self.quant_config = config if config is not None else BitQuantConfig()
        self.weight_shape = tuple(self.weight.shape)
        self.weight_quantizer = self.quant_config.weight_quantizer(len(self.weight_shape))
        self.activation_quantizer = self.quant_config.activation_quantizer(self.token_dims)
        self.register_buffer("packed_weight", None)
        self.register_buffer("weight_scale", None)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Applies the layer's linear operation (the torch layer's own)."""
        raise TypeError(f"{type(self).__name__} defines no operation")

    @property
    def packed(self) -> bool:
        """Whether only packed codes are held."""
        return self.packed_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (shapes as in the torch layer)."""
        if self.training and not self.packed:
            return self._forward_fake(x)
        return self._forward_levels(x)

    def _forward_fake(self, x: Tensor) -> Tensor:
        weight, bias, weight_scale = self.weight, self.bias, None
        if self.weight_quantizer is not None:
            weight_scale = self.weight_quantizer.scale(weight)
            weight = self.weight_quantizer(weight, weight_scale)
        if self.activation_quantizer is not None:
            x_scale = self.activation_quantizer.scale(x)  # once: a tracked range takes every call for a batch
            if bias is not None and self.activation_quantizer.source.static and weight_scale is not None:
                bias = self._bias_on_grid((x_scale * self._per_channel(weight_scale)).detach())
            x = self.activation_quantizer(x, x_scale)
        return self.operate(x, weight, bias)

    def _forward_levels(self, x: Tensor) -> Tensor:
        if self.weight_quantizer is None:
            x = x if self.activation_quantizer is None else self.activation_quantizer.quantize(x).dequantize()
            return self.operate(x, self.weight, self.bias)
        weight = self.packed_tensor() if self.packed else self.quantized_weight()
        weight_scale = self._per_channel(weight.scale)
        if self.activation_quantizer is None:
            return self._add_bias(self.accumulate(x, weight) * weight_scale).to(x.dtype)
        codes = self.activation_quantizer.quantize(x)
        return self.dequantize(self.accumulate(codes, weight), codes.scale * weight_scale).to(x.dtype)

    def accumulate(self, x: QTensor | Tensor, weight: QTensor | PackedTensor) -> Tensor:
        """Returns sums of products of weight levels and ``x``: exact integers (in any dtype) where ``x`` is levels."""
        if isinstance(weight, PackedTensor):
            weight = weight.unpack()
        if isinstance(x, Tensor):
            return self.operate(x, weight.levels.to(x.dtype))
        fan_in = weight.levels[0].numel()
        largest = max(-x.format.low, x.format.high) * max(-weight.format.low, weight.format.high)
        dtype = torch.float32 if fan_in * largest < _EXACT_FLOAT32 else torch.float64
        with torch.autocast(x.levels.device.type, enabled=False):
            return self.operate(x.levels.to(dtype), weight.levels.to(dtype))

    def dequantize(self, accumulator: Tensor, scale: Tensor) -> Tensor:
        """Turns accumulators without bias into real outputs."""
        if self.bias is None or self.activation_quantizer is None or not self.activation_quantizer.source.static:
            return self._add_bias(accumulator.to(scale.dtype) * scale)
        with_bias = accumulator.double() + self._channels(self.integer_bias(scale))
        return with_bias.to(scale.dtype) * scale

    def integer_bias(self, scale: Tensor) -> Tensor:
        """Returns the bias ``[channels]`` on the accumulator's grid, as integers in float64."""
        assert self.bias is not None
        return round_half_even(self.bias.detach().double() / scale.flatten().double())

    def _bias_on_grid(self, scale: Tensor) -> Tensor:
        assert self.bias is not None
        rounded = (self.integer_bias(scale) * scale.flatten().double()).to(self.bias.dtype)
        return self.bias + (rounded - self.bias).detach()

    def _add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self._channels(self.bias)

    def _channels(self, x: Tensor) -> Tensor:
        """Shapes ``[channels]`` so that it broadcasts along the channel dimension of the output."""
        return x.reshape(-1, *[1] * (self.token_dims - 1))

    def _per_channel(self, scale: Tensor) -> Tensor:
        """Shapes the weight's scale likewise."""
        return scale if scale.numel() == 1 and scale.ndim == 0 else self._channels(scale.flatten())

    def quantized_weight(self) -> QTensor:
        """Returns the weight's levels and scale.

        Raises:
            BitLabError: If the weights are float32.
        """
        if self.weight_quantizer is None:
            raise BitLabError("this layer's weights are float32: it has no quantized weight")
        if self.packed:
            return self.packed_tensor().unpack()
        return self.weight_quantizer.quantize(self.weight)

    def packed_tensor(self) -> PackedTensor:
        """Returns the packed weight, packing it when the layer is not packed.

        Raises:
            BitLabError: If the weights are float32, NaN or infinite.
        """
        if self.packed_weight is not None and self.weight_scale is not None:
            fmt = get_format(self.quant_config.weight_format)
            return PackedTensor(self.packed_weight, self.weight_scale, self.weight_shape, fmt)
        if not torch.isfinite(self.weight).all():
            raise BitLabError("its weights are NaN or infinite; the training diverged, lower the learning rate")
        return self.quantized_weight().pack()

    @property
    def qweight(self) -> Tensor:
        """The quantized weight as integer levels: int8 wherever the format fits it (fp130 is int16)."""
        return self.quantized_weight().integers()

    def pack(self) -> None:
        """Replaces the latent float weight by packed codes and scale; the layer can then only evaluate.

        Raises:
            BitLabError: If the weights are NaN.
        """
        if self.packed or self.weight_quantizer is None:
            return
        packed = self.packed_tensor()
        self._hold(packed.data, packed.scale)

    def _hold(self, data: Tensor, scale: Tensor) -> None:
        self.packed_weight, self.weight_scale = data, scale
        self.register_parameter("weight", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes on the state, packed or not, of the dictionary it loads."""
        if f"{prefix}packed_weight" in state_dict and not self.packed and self.weight_quantizer is not None:
            # Of the layer's own shapes, so that torch refuses to fill them with another layer's.
            zeros = torch.zeros_like(self.weight)
            row_bytes = self.weight_quantizer.format.packing.row_bytes(zeros[:1].numel())
            data = torch.zeros(len(zeros), row_bytes, dtype=torch.uint8, device=zeros.device)
            self._hold(data, self.weight_quantizer.scale(zeros).detach())
        elif f"{prefix}weight" in state_dict and self.packed:
            assert self.weight_scale is not None
            self.weight = nn.Parameter(torch.empty(self.weight_shape, device=self.weight_scale.device))
            self.packed_weight = self.weight_scale = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def lower(self, g: GraphBuilder, x: Value) -> Value:
        """Adds the layer to an integer graph.

        Raises:
            BitLabError: If the layer's weights or inputs are float32, or integers cannot express it.
        """
        if self.weight_quantizer is None:
            raise g.error("its weights are float32; give it a weight_format to export it")
        codes = g.quantize(x, self.activation_quantizer)
        try:
            weight = self.packed_tensor().unpack()
        except BitLabError as error:
            raise g.error(str(error)) from error
        weight_scale = weight.scale.detach()
        scale = torch.tensor(codes.scale, dtype=weight_scale.dtype) * self._per_channel(weight_scale)
        bias = np.zeros(1, dtype=np.int64)
        if self.bias is not None:
            if codes.relative:
                raise g.error("a bias behind a dynamic activation scale; use bias=False or activation_scale=tracked")
            exact = self.integer_bias(scale).numpy()
            if not np.all(np.abs(exact) < 2**31):  # NaN is refused too
                raise g.error(
                    "its bias is NaN, or beyond int32 in units of the accumulator: the training diverged, "
                    "or the layer's input is always 0"
                )
            bias = exact.astype(np.int64)
        levels = weight.levels.numpy().astype(np.int64)
        factor = scale.flatten().double().numpy()
        return self.add_to_graph(g, codes, levels, bias, factor, lambda a: a * scale)

    def add_to_graph(self, *args: Any) -> Value:
        """Adds the layer's own operation (see `lower`)."""
        raise TypeError(f"{type(self).__name__} has no integer operation")

    def extra_repr(self) -> str:
        """Adds the formats to torch's description."""
        c = self.quant_config
        state = "packed" if self.packed else "latent"
        return f"{super().extra_repr()}, weight={c.weight_format}, activation={c.activation_dtype}, {state}"
