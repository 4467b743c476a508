"""Quantizer = format + scale source + power-of-two rounding + gradient estimator."""

from __future__ import annotations

from torch import Tensor, nn

from bitcore.formats import NumberFormat
from bitcore.quantizers.estimators import Estimator, PowerOfTwo, nearest_power_of_two, ste
from bitcore.quantizers.ranges import ScaleSource
from bitcore.quantizers.tensors import QTensor


class Quantizer(nn.Module):
    """Quantizes a tensor: ``levels = format.nearest(x / scale)``, value ``levels * scale``.

    The value of `forward` is always ``quantize(x).dequantize()``; only its gradient is the estimator's.

    Args:
        fmt: The number format.
        source: Where the scale comes from.
        pow2: Round the scale to the nearest power of two (in the exponent).
        estimator: The backward pass of the rounding.
    """

    def __init__(self, fmt: NumberFormat, source: ScaleSource, pow2: bool = False, estimator: Estimator = ste) -> None:
        super().__init__()
        self.format, self.source, self.pow2, self.estimator = fmt, source, pow2, estimator

    def scale(self, x: Tensor) -> Tensor:
        """Returns the scale for ``x``: positive, broadcastable to it; at least float32."""
        x = x.float() if x.dtype.itemsize < 4 else x
        scale = self.source(x, self.format)
        if not self.pow2:
            return scale
        return PowerOfTwo.apply(scale) if scale.requires_grad else nearest_power_of_two(scale)  # type: ignore[return-value]

    def quantize(self, x: Tensor) -> QTensor:
        """Returns levels, scale and format of ``x`` (any shape; the levels carry no gradient)."""
        x = x.detach()
        scale = self.scale(x).detach()
        return QTensor(self.format.nearest(x / scale), scale, self.format)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns the fake-quantized ``x``, by a scale that `scale` gave for it before or by a new one."""
        scale = self.scale(x) if scale is None else scale
        return self.estimator(x / scale, self.format) * scale

    def extra_repr(self) -> str:
        """Names format, scale and estimator."""
        return f"{self.format.name}{', power-of-two scale' if self.pow2 else ''}, {self.estimator.__name__}"
