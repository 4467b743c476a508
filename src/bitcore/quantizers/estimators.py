"""Gradient estimators: how the gradient passes the rounding, which has none of its own.

The value of a fake-quantized tensor is always ``levels * scale``. An estimator gives the derivative that takes the
place of the rounding's: for values in units of the step a factor for each incoming gradient (``None`` means 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitcore.formats import NumberFormat
from bitcore.quantizers.scalers import nearest_power_of_two

Estimator = Callable[[Tensor, NumberFormat, float], Tensor | None]


def ste(x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> Tensor | None:
    """Straight-through (Bengio et al., arXiv:1308.3432): the gradient passes unchanged."""
    return None


def clipped_ste(x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> Tensor:
    """Clipped straight-through (BNN, arXiv:1602.02830): passes where ``low <= x <= high``, zero beyond."""
    return (x >= fmt.low) & (x <= fmt.high)


def open_ste(x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> Tensor:
    """LSQ's (arXiv:1902.08153, eq. 5): passes where ``low < x < high``."""
    return (x > fmt.low) & (x < fmt.high)


def half_open_ste(x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> Tensor:
    """PACT's (arXiv:1805.06085, eq. 2 and 3): passes where ``low <= x < high``; from ``high`` on it is the clip's."""
    return (x >= fmt.low) & (x < fmt.high)


def approx_sign(x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> Tensor:
    """Bi-Real Net's piecewise quadratic sign (arXiv:1808.00278, eq. 7): ``max(0, 2 − 2|x|)``. For binary."""
    return (2 - 2 * x.abs()).clamp_min(0)


def ede(x: Tensor, fmt: NumberFormat, temperature: float = 1.0) -> Tensor:
    """IR-Net's error decay estimator (arXiv:1909.10788, eq. 9): ``k t (1 − tanh²(t x))``, ``k = max(1/t, 1)``.

    For binary. ``t`` is the quantizer's ``temperature``; a callback raises it from 0.1 to 10 (`ede_temperature`).
    """
    return max(1 / temperature, 1) * temperature * (1 - torch.tanh(temperature * x) ** 2)


ESTIMATORS: dict[str, Estimator] = {
    f.__name__: f for f in (ste, clipped_ste, open_ste, half_open_ste, approx_sign, ede)
}


def ede_temperature(progress: float, low: float = 0.1, high: float = 10.0) -> float:
    """Returns IR-Net's temperature ``low * (high / low)**progress`` (eq. 10) for a share of the training, 0 to 1."""
    return low * (high / low) ** progress


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Returns finite ``x`` where the mask is true and 0 elsewhere.

    A product with the mask's bytes: on a CPU ``torch.where`` takes four to twelve times as long where a mask has no
    pattern, and a product with booleans converts them first.
    """
    return x * mask.view(torch.int8)


class _Function(torch.autograd.Function):
    """A function that `torch.func`'s grad and vmap take, and that costs no more than any other where there are none.

    It has no ``jvp``: torch's compiler takes no function that has one.
    """

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Tensor:
        """As torch's, which would look up the signature of ``forward`` at every call."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # pyright: ignore[reportAttributeAccessIssue]


class Surrogate(_Function):
    """A value whose derivatives with respect to ``x`` and ``scale`` are given.

    Differentiable in ``x`` and in ``scale`` (broadcastable to ``x``); gradients are ``grad * dx`` (``dx`` may be a
    mask) and ``grad * dscale``, the latter summed to the scale's shape. ``dx=None`` means 1, ``dscale=None`` none.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, value: Tensor, dx: Tensor | None, dscale: Tensor | None) -> Tensor:
        """Returns ``value``."""
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the derivatives."""
        _, scale, _, dx, dscale = inputs
        ctx.shape = scale.shape
        ctx.save_for_backward(dx, dscale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiplies the gradient by the derivatives."""
        dx, dscale = ctx.saved_tensors
        to_scale = None if dscale is None else (grad * dscale).sum_to_size(ctx.shape)
        if dx is None or not ctx.needs_input_grad[0]:
            return grad, to_scale, None, None, None
        return masked(grad, dx) if dx.dtype == torch.bool else grad * dx, to_scale, None, None, None


class GradientScale(_Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        """Returns ``x``."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the factor."""
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Multiplies the gradient."""
        return grad * ctx.factor, None


class PowerOfTwo(_Function):
    """`nearest_power_of_two` with a straight-through gradient."""

    @staticmethod
    def forward(scale: Tensor) -> Tensor:
        """Rounds ``scale``."""
        return nearest_power_of_two(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Passes the gradient unchanged."""
        return grad
