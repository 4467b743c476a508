"""Quantizer = transform + scale source + power-of-two rounding + format + gradient estimator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bitcore.formats import NumberFormat, round_half_even
from bitcore.quantizers.estimators import Estimator, PowerOfTwo, Surrogate, nearest_power_of_two, open_ste, ste
from bitcore.quantizers.granularity import spread
from bitcore.quantizers.ranges import ScaleSource
from bitcore.quantizers.tensors import QTensor
from bitcore.quantizers.transforms import INVERSES, Transform, none


class Quantizer(nn.Module):
    """Quantizes a tensor: ``levels = format.nearest(x / step)``, value ``levels * scale``.

    The step is the scale but for methods with thresholds of their own (TWN, TTQ, Libra). An offset β of the source
    (LSQ+) becomes the integer ``shift = round(β / scale)``, which is added to every level. The value of `forward` is
    always ``quantize(x).dequantize()``; only its gradient is the estimator's. Stochastic rounding alone differs, in
    training mode: there `forward` draws the levels and `quantize` takes the nearest.

    Args:
        fmt: The number format.
        source: Where the scale comes from.
        pow2: Round the scale to the nearest power of two (in the exponent).
        estimator: The backward pass of the rounding.
        transform: What happens to ``x`` first.
        stochastic: In training, round up or down at random, so that the expected level is ``x / step`` (BNN,
            arXiv:1602.02830, eq. 2: +1 with probability ``clip((x + 1) / 2, 0, 1)``).

    Attributes:
        temperature: Of estimators that have one; callbacks set it.
    """

    def __init__(
        self,
        fmt: NumberFormat,
        source: ScaleSource,
        pow2: bool = False,
        estimator: Estimator = ste,
        transform: Transform = none,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        self.format, self.source, self.pow2 = fmt, source, pow2
        self.estimator, self.transform, self.stochastic = estimator, transform, stochastic
        self.temperature = 1.0

    def scale(self, x: Tensor) -> Tensor:
        """Returns the compact scale for ``x`` (see `Granularity`): positive; at least float32."""
        return self._scale(self.transform(x))

    @torch.no_grad()
    def quantize(self, x: Tensor) -> QTensor:
        """Returns levels, scale and format of ``x`` (any shape; the levels carry no gradient)."""
        x = self.transform(x.detach())
        scale = self._scale(x).detach()
        shift = self._shift(x, scale)
        levels = self.format.nearest(self._units(x, scale), shift)
        return QTensor(levels, scale, self.format, self.source.group, shift)

    def fake(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the fake-quantized ``x`` and the compact scale it was quantized by."""
        x = self.transform(x)
        scale = self._scale(x)
        with torch.no_grad():
            units, shift = self._units(x, scale), self._shift(x, scale)
            noisy = units + self._noise(units) if self.stochastic and self.training else units
            levels = self.format.nearest(noisy, shift)
        spread_scale = spread(scale, levels, self.source.group)
        value = (levels if shift is None else levels + shift) * spread_scale.detach()
        wanted = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
        if not wanted and forward_ad._current_level < 0:
            return value, scale
        with torch.no_grad():
            units = units if shift is None else units - shift
            slope = self.estimator(units, self.format, self.temperature)
            learns = scale.requires_grad or not wanted
            dscale = self.source.derivative(levels, units, slope, self.format) if learns else None
            gain = self.source.gain(levels, spread_scale)
            dx = slope if gain is None else gain if slope is None else slope * gain
        fake = Surrogate.apply(x, spread_scale, value, dx, dscale)
        offset = self.source.offset(x, self.format)
        if offset is not None:  # it moves what is clipped, nothing else
            fake = Surrogate.apply(fake, offset, value, None, (~open_ste(units, self.format)).to(value.dtype))
        return fake, scale  # type: ignore[return-value]

    @torch.no_grad()
    def recover(self, quantized: QTensor, dtype: torch.dtype) -> Tensor:
        """Returns values that are quantized to these levels and scales; the source keeps scales it would not choose.

        They are the levels times the scales, unless a transform comes before the rounding.

        Raises:
            ValueError: If no values that a transform gives are quantized so.
        """
        levels, scale = quantized.levels, quantized.scale
        step = spread(scale if scale.ndim <= levels.ndim else scale.mean(0), levels, quantized.group)
        x, divisor = INVERSES[self.transform](levels, step, self.format)
        x = x.to(dtype)
        if not self._gives(x, quantized):
            divisor = scale if divisor is None else divisor
            self.source.keep(scale, divisor.flatten(1).expand_as(scale) if quantized.group else divisor)
            if not self._gives(x, quantized):
                raise ValueError(f"of no weights '{self.transform.__name__}' gives these codes and scales")
        return x

    def _gives(self, x: Tensor, quantized: QTensor) -> bool:
        again = self.quantize(x)
        same = torch.equal(again.levels.to(quantized.levels.dtype), quantized.levels)
        return same and torch.equal(again.scale, quantized.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the fake-quantized ``x``."""
        return self.fake(x)[0]

    def _scale(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype.itemsize < 4 else x
        scale = self.source(x, self.format)
        if scale.dtype.itemsize < 4:
            scale = scale.float()
        if not self.pow2:
            return scale
        return PowerOfTwo.apply(scale) if scale.requires_grad else nearest_power_of_two(scale)  # type: ignore[return-value]

    def _units(self, x: Tensor, scale: Tensor) -> Tensor:
        x = x.float() if x.dtype.itemsize < 4 else x  # rounded once: to levels
        step = self.source.divisor(x, scale, self.format)
        return x / (spread(step, x, self.source.group) if self.source.group else step)

    def _shift(self, x: Tensor, scale: Tensor) -> Tensor | None:
        offset = self.source.offset(x, self.format)
        return None if offset is None else round_half_even(offset.detach() / scale)

    def _noise(self, units: Tensor) -> Tensor:
        return (torch.rand_like(units) - 0.5) * self.format.step

    def extra_repr(self) -> str:
        """Names format, scale and estimator."""
        extras = [f", of {self.transform.__name__}"] if self.transform is not none else []
        extras += [", power-of-two scale"] if self.pow2 else []
        extras += [", stochastic"] if self.stochastic else []
        return f"{self.format.name}{''.join(extras)}, {self.estimator.__name__}"
