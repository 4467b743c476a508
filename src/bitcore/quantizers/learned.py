"""Learned scales: LSQ, LSQ+, PACT, TTQ."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.formats import NumberFormat
from bitcore.quantizers.estimators import GradientScale, masked
from bitcore.quantizers.granularity import Granularity, sample
from bitcore.quantizers.ranges import Remembered, ScaleSource, least_error
from bitcore.quantizers.scalers import TTQ_THRESHOLD, shifted_mse, twn_survivors

_SMALLEST = 1e-12
_SAMPLE = 2**13  # values of a batch that LSQ+'s starting point looks at


class Parametric(Remembered):
    """A scale that is a parameter, initialized from the first finite batch or, for a weight, from the weight.

    Args:
        weight_shape: The weight's shape; ``None`` for activations, which have one scale.
        granularity: Of the weight's scales.
    """

    def __init__(self, weight_shape: Sequence[int] | None = None, granularity: Granularity | None = None) -> None:
        super().__init__()
        self.granularity = granularity or Granularity()
        self.group = self.granularity.group
        self.of_weight = weight_shape is not None
        self._ready = False
        self._create([] if weight_shape is None else list(weight_shape))

    @abstractmethod
    def _create(self, weight_shape: list[int]) -> None:
        """Creates the parameter."""

    @abstractmethod
    def initial(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the value of the parameter to start from."""

    def _current(self, parameter: Tensor, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the parameter, initialized. A weight's that never trained is computed anew: eval changes nothing."""
        if self._ready or not x.numel() or not (self.training or self.of_weight):
            return parameter
        with torch.no_grad():
            first = self.initial(x.detach(), fmt).to(parameter.dtype)
            if not self.training:
                return torch.where(self.batches == 0, first, parameter)
            parameter.copy_(torch.where(self.batches == 0, first, parameter))
            self._count(torch.stack(torch.aminmax(x.detach())).abs().amax())
        self._ready = torch.compiler.is_compiling() or bool(self.batches)  # else the next batch starts it
        return parameter

    def problem(self) -> str:
        """As in `Remembered`; a weight's scale that never trained is computed from the weight."""
        return ScaleSource.problem(self) if self.of_weight else super().problem()

    @torch.no_grad()
    def _set(self, parameter: Tensor, found: Tensor) -> None:
        parameter.copy_(found.clamp_min(_SMALLEST))
        self.batches.fill_(1)
        self._ready = True

    def shape(self, weight_shape: Sequence[int]) -> list[int]:  # noqa: D102
        return list(next(self.parameters()).shape)  # of a weight's source there is one

    @torch.no_grad()
    def keep(self, scale: Tensor, divisor: Tensor) -> None:  # noqa: D102
        for parameter in self.parameters():
            parameter.data = scale.clone()  # in the scale's own dtype: it is not to be rounded
        self.batches.fill_(1)
        self._ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.batches)


class Learned(Parametric):
    """A learned step (LSQ, arXiv:1902.08153).

    Starts from ``2 * mean|x| / sqrt(high)``. The value's derivative by the step is ``level − x/step`` strictly inside
    the range and the outer level from there on (eq. 3); the gradient is scaled by ``1 / sqrt(n * high)`` (section 2.2),
    where n is the number of a sample's values, or of the weights that share the step. The paper's estimator (eq. 5) is
    ``open_ste``.
    """

    def _create(self, weight_shape: list[int]) -> None:
        self.step = nn.Parameter(torch.ones(self.granularity.shape(weight_shape)))

    def initial(self, x: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        mean = self.granularity.each(lambda rows: rows.abs().mean(1, keepdim=True), x)
        return (2 * mean / math.sqrt(fmt.high)).clamp_min(1e-8)

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the step."""
        step = self._current(self.step, x, fmt)
        return self._scaled(step, x, fmt).abs().clamp_min(_SMALLEST)

    def _scaled(self, parameter: Tensor, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the parameter; its gradient will be scaled."""
        if not (parameter.requires_grad and torch.is_grad_enabled()):
            return parameter
        shares = parameter.numel() if self.of_weight else x.shape[0] if x.ndim else 1
        count = x.numel() / max(1, shares)
        return GradientScale.apply(parameter, 1 / math.sqrt(max(1, count) * fmt.high))  # type: ignore[return-value]

    def calibrate(self, values: Tensor, fmt: NumberFormat, pow2: bool) -> None:
        """Takes the step of the least squared error."""
        self._set(self.step, least_error(values, fmt, pow2))

    @torch.no_grad()
    def reformat(self, old: NumberFormat, new: NumberFormat) -> None:  # noqa: D102
        self.step.mul_(old.high / new.high)


class LearnedPlus(Learned):
    """LSQ+'s learned step and, for activations, its learned offset β (arXiv:2004.09576).

    Levels are shifted by the integer ``z = round(β / step)``: ``value = step * (clip(round(x/step) − z) + z)``. The
    window of levels moves, the grid of values does not, so that integer layers stay exact and a padded zero adds
    nothing. With the rounding of z passed straight through, the gradients are the paper's (eq. 4 and 5), of its
    ``x − β``: by the step ``level − (x/step − z)`` inside the range, else the outer level; by β 0 inside, else 1. Both
    are scaled as in LSQ. Weights have no offset, as in the paper.

    Weights start from ``max(|mean − 3 std|, |mean + 3 std|) / (high + 1)`` (section 4.2, where ``high + 1`` is
    2^(b−1)), activations from the step and the offset with the least squared error on the first batch (eq. 6).
    """

    beta: nn.Parameter | None

    def _create(self, weight_shape: list[int]) -> None:
        super()._create(weight_shape)
        self.register_parameter("beta", None if self.of_weight else nn.Parameter(torch.zeros(())))

    def initial(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns the step to start from, and sets the offset."""

        def three_deviations(rows: Tensor) -> Tensor:
            return rows.mean(1, keepdim=True).abs() + 3 * rows.std(1, correction=0, keepdim=True)

        if self.beta is None:
            return (self.granularity.each(three_deviations, x) / (fmt.high + 1)).clamp_min(1e-8)
        step, shift = shifted_mse(sample(x, _SAMPLE), fmt)
        self.beta.copy_(torch.where(self.batches == 0, step * shift, self.beta))
        return step

    @torch.no_grad()
    def calibrate(self, values: Tensor, fmt: NumberFormat, pow2: bool) -> None:
        """Takes the step and the offset of the least squared error."""
        assert self.beta is not None
        step, shift = shifted_mse(values, fmt, pow2)
        self._set(self.step, step)
        self.beta.copy_(step * shift)

    def offset(self, x: Tensor, fmt: NumberFormat) -> Tensor | None:  # noqa: D102
        return None if self.beta is None else self._scaled(self.beta, x, fmt)


class Pact(Parametric):
    """PACT's learned clip α (arXiv:1805.06085): scale ``α / high``.

    The value's derivative by α is 1 where ``x >= α`` (−1 below −α in signed formats) and 0 elsewhere (eq. 3). α starts
    from the first batch's largest |x|, so nothing is clipped at first; the penalty ``λ α²`` of the loss
    (`pact_penalty`) pulls it down. Its estimator is ``half_open_ste``.
    """

    def _create(self, weight_shape: list[int]) -> None:
        self.alpha = nn.Parameter(torch.ones(()))

    def initial(self, x: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        return x.abs().amax().clamp_min(1e-6)

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns ``α / high`` (shape ``[]``)."""
        return self._current(self.alpha, x, fmt).abs().clamp_min(_SMALLEST) / fmt.high

    def calibrate(self, values: Tensor, fmt: NumberFormat, pow2: bool) -> None:
        """Takes the clip of the least squared error."""
        self._set(self.alpha, least_error(values, fmt, pow2) * fmt.high)

    def derivative(self, levels: Tensor, units: Tensor, slope: Tensor | None, fmt: NumberFormat) -> Tensor:  # noqa: D102
        return levels if slope is None else masked(levels, ~slope.bool())


def pact_penalty(model: nn.Module) -> Tensor:
    """Returns PACT's penalty, the sum of α² over a model; add it, times λ, to the loss. 0 without PACT layers."""
    squares = [module.alpha.square() for module in model.modules() if isinstance(module, Pact)]
    return torch.stack(squares).sum() if squares else torch.zeros(())


class Ttq(Parametric):
    """Trained ternary quantization (arXiv:1612.01064): two learned scales, Wp of +1 and Wn of −1.

    Threshold ``0.05 * max|w|`` (eq. 6; a weight on it becomes 0). Gradients (eq. 7 and 8): Wp gets the sum over +1
    weights, Wn minus the sum over −1 weights (the paper leaves out the sign of ``−Wn``); a latent weight's is
    multiplied by Wp, 1 or Wn where the level is +1, 0 or −1. Both scales start from the survivors' mean |w|.
    """

    def _create(self, weight_shape: list[int]) -> None:
        shape = self.granularity.shape(weight_shape) or [1] * len(weight_shape)
        self.scales = nn.Parameter(torch.ones([2, *shape]))

    def initial(self, x: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        def survivors(rows: Tensor) -> Tensor:
            return twn_survivors(rows, TTQ_THRESHOLD * rows.abs().amax(1, keepdim=True))

        mean = self.granularity.each(survivors, x).reshape(self.scales.shape[1:])
        mean = torch.where(mean > 0, mean, torch.ones_like(mean))
        return torch.stack([mean, mean])

    def forward(self, x: Tensor, fmt: NumberFormat) -> Tensor:
        """Returns both scales, ``[2, ...]``: above and below 0."""
        return self._current(self.scales, x, fmt).abs().clamp_min(_SMALLEST)

    def divisor(self, x: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:  # noqa: D102
        if not x.numel():
            return x.new_ones(())
        largest = self.granularity.each(lambda rows: rows.abs().amax(1, keepdim=True), x.detach())
        return (2 * TTQ_THRESHOLD * largest).clamp_min(1e-30)

    def gain(self, levels: Tensor, scale: Tensor) -> Tensor:  # noqa: D102
        return torch.where(levels == 0, torch.ones_like(scale), scale)

    def derivative(self, levels: Tensor, units: Tensor, slope: Tensor | None, fmt: NumberFormat) -> Tensor:  # noqa: D102
        return levels


LEARNED_WEIGHT_SCALES: dict[str, type[Parametric]] = {"learned": Learned, "learned_plus": LearnedPlus, "ttq": Ttq}
