"""Operators whose result has no gradient say so when it is asked for, and not before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.kernels.linear import OPERATORS

_MESSAGE = (
    "a bit layer in eval mode, or a packed one, rounds its input and passes no gradient on: train() the model "
    "(a packed one after unpack(model)), or run it in torch.no_grad()"
)


def _no_gradient(gradient: Tensor, like: Tensor) -> Tensor:
    raise BitLabError(_MESSAGE)


def _shape(gradient: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like)


# An operator, because torch.compile traces the backward pass of whatever it compiles, asked for or not. It takes the
# gradient, or the compiler would run it in the forward pass.
OPERATORS.define("no_gradient(Tensor gradient, Tensor like) -> Tensor")
OPERATORS.impl("no_gradient", _no_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("bitcore::no_gradient", _shape, lib=OPERATORS)


class _Refused(torch.autograd.Function):
    """The identity in ``y``; the gradient of ``x`` is an error."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        """Returns ``y``."""
        ctx.save_for_backward(x)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Raises an error, when it runs."""
        return gradient, torch.ops.bitcore.no_gradient(gradient, ctx.saved_tensors[0])


def refuse_gradient(y: Tensor, x: Tensor) -> Tensor:
    """Returns ``y``, computed from ``x`` by rounding: whoever asks for the gradient of ``x`` gets an error."""
    return _Refused.apply(y, x)  # type: ignore[return-value]


def refuse(operator: str) -> None:
    """Gives an operator of ours, whose first argument is the input, such a gradient."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.count = len(inputs)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.bitcore.no_gradient(gradient, ctx.saved_tensors[0]), *[None] * (ctx.count - 1)

    torch.library.register_autograd(f"bitcore::{operator}", backward, setup_context=keep, lib=OPERATORS)
