"""Where a quantizer's scale comes from: the values themselves, tracked statistics, or a learned parameter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.formats import NumberFormat
from bitcore.quantizers.estimators import GradientScale
from bitcore.quantizers.scalers import Scaler


class ScaleSource(nn.Module, ABC):
    """Gives the scale of a tensor: positive, broadcastable to it.

    Attributes:
        static: Whether the scale in eval mode is a constant of the model.
    """

    static = True

    @abstractmethod
    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the scale for ``x``."""


class FromValues(ScaleSource):
    """The scale is computed from the values at every call; no gradient flows through it.

    Args:
        scaler: Values ``[groups, n]`` to scales ``[groups, 1]``.
        trailing: How many trailing dimensions share a scale; ``None`` for all of them (per tensor).
    """

    static = False

    def __init__(self, scaler: Scaler, trailing: int | None) -> None:
        super().__init__()
        self.scaler, self.trailing = scaler, trailing

    @torch.no_grad()
    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns scales of shape ``x.shape[:-trailing] + (1,) * trailing``, or ``[]`` per tensor."""
        if x.numel() == 0:
            return x.new_ones(())
        kept = [] if self.trailing is None else list(x.shape[: x.ndim - self.trailing])
        scale = self.scaler(x.detach().reshape(math.prod(kept), -1), fmt)
        scale = torch.where((scale > 1e-30) & torch.isfinite(scale), scale, torch.ones_like(scale))
        return scale.reshape(kept + [1] * (self.trailing or 0))


class Tracked(ScaleSource):
    """Static range: an exponential moving average of each training batch's largest |x|, then frozen in eval mode.

    Before the first training batch the range is 1.

    Args:
        momentum: The share of the newest batch.
    """

    range: Tensor
    batches: Tensor

    def __init__(self, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("range", torch.ones(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the scale ``range / high`` (shape ``[]``), after updating the range in training mode."""
        if self.training and x.numel():
            with torch.no_grad():
                largest = x.detach().abs().amax().to(self.range.dtype).clamp_min(1e-12)
                weight = torch.where(self.batches == 0, 1.0, self.momentum)
                self.range.lerp_(largest, weight)
                self.batches.add_(1)
        return self.range / fmt.high


class Learned(ScaleSource):
    """A learned step (LSQ, arXiv:1902.08153).

    Initialized from the first training batch to ``2 * mean|x| / sqrt(high)``; its gradient is scaled by
    ``1 / sqrt(n * high)`` where n is the number of values of a sample.
    """

    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._ready = False

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the step (shape ``[]``)."""
        if self.training and not self._ready and x.numel():
            with torch.no_grad():
                first = 2 * x.detach().abs().mean() / math.sqrt(fmt.high)
                self.step.copy_(torch.where(self.batches == 0, first.clamp_min(1e-8), self.step))
                self.batches.add_(1)
            self._ready = True
        per_sample = max(1, x[0].numel() if x.ndim and x.shape[0] else 1)
        step: Tensor = GradientScale.apply(self.step, 1 / math.sqrt(per_sample * fmt.high))  # type: ignore[assignment]
        return step.abs().clamp_min(1e-12)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.batches)


STATIC_RANGES: dict[str, type[ScaleSource]] = {"tracked": Tracked, "learned": Learned}
