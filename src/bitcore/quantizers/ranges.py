"""Where a quantizer's scale comes from: the values themselves, tracked statistics, or a constant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.formats import NumberFormat
from bitcore.quantizers.estimators import masked, open_ste
from bitcore.quantizers.granularity import Granularity, sample
from bitcore.quantizers.passes import Passes
from bitcore.quantizers.scalers import STEPS, Scaler, absmax, mse, mse_pow2, percentile

_SAMPLE = 2**16  # values of a batch that tracked percentiles and errors look at
_SMALLEST = 1e-12  # of ranges: of a batch of zeros too, they are positive
UNSEEN = "its activation range has seen no data: calibrate the model (bitlayers.calibrate), or train it"
DIVERGED = "its scale is no positive number; the training diverged: lower the learning rate"


class ScaleSource(nn.Module, ABC):
    """Gives the scale of a tensor: positive and compact (see `Granularity`).

    Attributes:
        static: Whether the scale in eval mode is a constant of the model.
        group: As in `Granularity`.
    """

    static = True
    group = 0

    @abstractmethod
    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the scale for ``x``."""

    def shape(self, weight_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the scale of a weight of that shape."""
        raise NotImplementedError

    def divisor(self, x: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns, in the scale's shape, what values are divided by before they are rounded: mostly the scale."""
        return scale

    def offset(self, x: Tensor, fmt: NumberFormat) -> Tensor | None:
        """Returns the real number (shape ``[]``) that the range of ``x`` is moved by, ``None`` for 0: `LearnedPlus`."""
        return None

    def gain(self, levels: Tensor, scale: Tensor) -> Tensor | None:
        """Returns the factor, beside the estimator's, of the gradient to the values; ``None`` for 1."""
        return None

    def calibrate(self, values: Tensor, fmt: NumberFormat, pow2: bool) -> None:
        """Sets the range from data, without training; nothing to do where none is remembered.

        Args:
            values: A sample of what will be quantized, ``[n]``, finite.
            fmt: The format.
            pow2: Whether the scale becomes a power of two.
        """
        return

    def problem(self) -> str:
        """Returns why the source cannot quantize in eval mode; empty if it can."""
        state = [t for t in (*self.parameters(), *self.buffers()) if not t.is_meta]
        return "" if all(bool(t.isfinite().all()) for t in state) else DIVERGED

    def reformat(self, old: NumberFormat, new: NumberFormat) -> None:
        """Keeps the range when the format changes; nothing to do where a range, and not a step, is remembered."""
        return

    def keep(self, scale: Tensor, divisor: Tensor) -> None:
        """Makes this the scale from now on; a learned one goes on learning.

        Args:
            scale: The scale, compact.
            divisor: What values are to be divided by, where the method allows another than its own.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Lets the values choose a scale again that was kept; nothing to do where a scale is learned."""
        return

    def derivative(self, levels: Tensor, units: Tensor, slope: Tensor | None, fmt: NumberFormat) -> Tensor:
        """Returns the derivative of the value by the scale, for learned scales: LSQ's (see `Learned`).

        Args:
            levels: The levels.
            units: The values in units of the step.
            slope: The estimator's factor.
            fmt: The format.
        """
        return levels - masked(units, open_ste(units, fmt))


class FromValues(ScaleSource):
    """The scale is computed from the values at every call; no gradient flows through it.

    Args:
        scaler: Values ``[groups, n]`` to scales ``[groups, 1]``.
        trailing: How many trailing dimensions share a scale; ``None`` for all of them (per tensor).
        group: Values of a row that share a scale; 0 for no groups.
    """

    static = False
    held_scale: Tensor | None
    held_divisor: Tensor | None

    def __init__(self, scaler: Scaler, trailing: int | None, group: int = 0) -> None:
        super().__init__()
        self.scaler, self.trailing, self.group = scaler, trailing, group
        self.granularity = Granularity(trailing, group)
        self.register_buffer("held_scale", None)
        self.register_buffer("held_divisor", None)

    def shape(self, weight_shape: Sequence[int]) -> list[int]:  # noqa: D102
        return self.granularity.shape(weight_shape)

    def hold(self, x: Tensor, fmt: NumberFormat) -> None:
        """Makes the scale that ``x`` has now the scale of all values to come."""
        scale = self(x, fmt)
        self.held_scale, self.held_divisor = scale, self.divisor(x, scale, fmt).clone()

    def keep(self, scale: Tensor, divisor: Tensor) -> None:  # noqa: D102
        self.held_scale, self.held_divisor = scale.clone(), divisor.clone()

    def release(self) -> None:  # noqa: D102
        self.held_scale = self.held_divisor = None

    @property
    def largest_value(self) -> bool:
        """Whether the scale is ``max|x| / high`` of the values at hand."""
        return self.scaler is absmax and not self.held

    @property
    def held(self) -> bool:
        """Whether the scale is a constant (see `hold`)."""
        return self.held_scale is not None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("held_scale", "held_divisor"):
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns compact scales; 1 where there is no finite positive one."""
        return self._each(self.scaler, x, fmt) if self.held_scale is None else self.held_scale

    @torch.no_grad()
    def divisor(self, x: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        if self.held_divisor is not None:
            return self.held_divisor
        if self.scaler not in STEPS:
            return scale
        return self._each(STEPS[self.scaler].step, x, fmt)

    def gain(self, levels: Tensor, scale: Tensor) -> Tensor | None:  # noqa: D102
        return scale if self.scaler in STEPS and STEPS[self.scaler].chained else None

    def _each(self, scaler: Scaler, x: Tensor, fmt: NumberFormat) -> Tensor:
        if x.numel() == 0:
            return x.new_ones(self.granularity.shape(x.shape) if self.group else ())
        scale = self.granularity.each(lambda rows: scaler(rows, fmt), x.detach())
        return torch.where((scale > 1e-30) & torch.isfinite(scale), scale, torch.ones_like(scale))


class Unit(ScaleSource):
    """The constant range ±1: scale ``1 / high``. Sign activations (binary), DoReFa's clip to 0 … 1."""

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns ``1 / high`` (shape ``[]``)."""
        return x.new_full((), 1 / fmt.high)


class Remembered(ScaleSource):
    """A scale that training or calibration finds, and eval mode uses as it is.

    Attributes:
        batches: How many batches it has seen. One with a value that is NaN or infinite does not count.
        left_out: How many such batches there were since someone asked (`take_left_out`).
    """

    batches: Tensor
    left_out: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("left_out", torch.zeros((), dtype=torch.int64), persistent=False)

    def take_left_out(self) -> int:
        """Returns how many batches did not enter because they were not finite, and counts anew."""
        if self.left_out.is_meta or not (count := int(self.left_out)):
            return 0
        self.left_out.zero_()
        return count

    def problem(self) -> str:  # noqa: D102
        unseen = not self.batches.is_meta and not bool(self.batches)
        return UNSEEN if unseen else super().problem()

    def _count(self, largest: Tensor) -> Tensor:
        """Counts a batch by its largest magnitude (NaN if a value is); returns whether all of it is finite."""
        finite = largest < torch.inf
        self.batches.add_(finite)
        self.left_out.add_(~finite)
        return finite


class Tracked(Remembered):
    """Static range: a moving average of each training batch's largest |x|, then frozen in eval mode.

    The newest batch's share is ``max(momentum, 1 / batches)``: the first ones are averaged evenly, so that a short
    training does not keep the range that the untrained network had. In a recomputation (activation checkpointing) the
    scale is the one that these values had before, and the range stays.

    Args:
        momentum: The share of the newest batch.
    """

    range: Tensor

    def __init__(self, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("range", torch.ones(()))
        self._passes = Passes()

    def observe(self, x: Tensor, largest: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the range of one batch (shape ``[]``).

        Args:
            x: The values.
            largest: Their largest magnitude.
            fmt: The format.
        """
        return largest

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the scale ``range / high`` (shape ``[]``), after updating the range in training mode."""
        if not (self.training and x.numel()):
            return self.range / fmt.high
        with torch.no_grad():
            low, high = torch.aminmax(x.detach())
            largest = torch.maximum(-low, high)
            return self._passes.once((low, high), lambda: self._update(x.detach(), largest, fmt))

    def _update(self, x: Tensor, largest: Tensor, fmt: NumberFormat) -> Tensor:
        found = self.observe(x, largest, fmt).to(self.range.dtype).clamp_min(_SMALLEST)
        finite = self._count(largest)
        share = self.batches.clamp_min(1).reciprocal().clamp_min(self.momentum)
        self.range.lerp_(torch.where(finite, found, self.range), share)
        return self.range / fmt.high

    def problem(self) -> str:  # noqa: D102
        zero = not self.range.is_meta and not bool(self.range > 0)  # NaN too
        return super().problem() or (DIVERGED if zero else "")

    @torch.no_grad()
    def calibrate(self, values: Tensor, fmt: NumberFormat, pow2: bool) -> None:
        """Takes the range of the least squared error."""
        self._set(least_error(values, fmt, pow2) * fmt.high)

    def _set(self, found: Tensor) -> None:
        self.range.copy_(found.clamp_min(_SMALLEST))
        self.batches.fill_(1)


class TrackedPercentile(Tracked):
    """As `Tracked`, of the 99.9th percentile of |x|, which outliers do not move (McKinstry et al., arXiv:1809.04191).

    Of batches beyond 65536 values an evenly spaced sample is looked at.
    """

    def observe(self, x: Tensor, largest: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        return percentile(sample(x, _SAMPLE)[None], fmt).reshape(()) * fmt.high

    @torch.no_grad()
    def calibrate(self, values: Tensor, fmt: NumberFormat, pow2: bool) -> None:
        """Takes the percentile of all values."""
        self._set(percentile(values[None], fmt).reshape(()) * fmt.high)


class TrackedMse(Tracked):
    """As `Tracked`, of the range with the least squared quantization error (see the scaler `mse`).

    Of batches beyond 65536 values an evenly spaced sample is looked at.
    """

    def observe(self, x: Tensor, largest: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        return mse(sample(x, _SAMPLE)[None], fmt).reshape(()) * fmt.high


def least_error(values: Tensor, fmt: NumberFormat, pow2: bool) -> Tensor:
    """Returns the scale (shape ``[]``) of values ``[n]`` with the least squared error, if asked among powers of two."""
    return (mse_pow2 if pow2 else mse)(values[None], fmt).reshape(())
