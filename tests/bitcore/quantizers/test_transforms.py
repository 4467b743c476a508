"""Transforms of latent weights: finite and right for every floating-point type, whatever the weights are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitcore.quantizers import TRANSFORMS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HUGE = 1e18
"""The largest magnitude that is documented."""


def reference(name: str, weight: Tensor) -> Tensor:
    """The formulas in float64; a channel of equal weights, and a weight of zeros, become zeros."""
    w = weight.double()
    if name == "none":
        return w
    if name == "tanh":
        squashed = torch.tanh(w)
        return squashed / (squashed.abs().max() or 1)
    rows = w.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    deviation = centred.pow(2).mean(1, keepdim=True).sqrt()
    constant = (rows == rows[:, :1]).all(1, keepdim=True)
    return torch.where(constant, 0.0, centred / deviation.where(deviation > 0, 1)).view_as(w)


def weights(kind: str, dtype: torch.dtype) -> Tensor:
    """Weights ``[6, 3, 3, 3]`` of a magnitude."""
    info = torch.finfo(dtype)
    normal = torch.randn(6, 3, 3, 3, dtype=torch.float64).clamp(-3, 3)
    largest = min(info.max, HUGE)
    made = {
        "zero": torch.zeros_like(normal),
        "constant": torch.full_like(normal, 0.1),
        "constant channels": torch.tensor([0.1, 1 / 3, -0.7, 1e3, 0.0, 3e4]).view(-1, 1, 1, 1).expand_as(normal),
        "one constant channel": torch.cat([normal[:5], torch.full_like(normal[5:], 0.3)]),
        "usual": normal * 0.05,
        "offset": normal * 0.01 + 1,
        "huge": normal / 3 * largest,
        "tiny": normal * max(info.tiny, 1e-18),
        "subnormal": (normal * info.tiny / 8) if dtype == torch.float16 else normal * 1e-17,
    }
    return made[kind].to(dtype)


KINDS = (
    "zero",
    "constant",
    "constant channels",
    "one constant channel",
    "usual",
    "offset",
    "huge",
    "tiny",
    "subnormal",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_and_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype, kind: str) -> None:
    weight = weights(kind, dtype).requires_grad_()
    got = TRANSFORMS[name](weight)
    assert got.dtype == dtype
    assert got.shape == weight.shape
    step = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    torch.testing.assert_close(
        got.double(), reference(name, weight.detach()), rtol=8 * step, atol=64 * step if name != "none" else 0
    )
    if name != "none":
        got.float().sum().backward()
        assert weight.grad is not None
        assert not weight.grad.isnan().any()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_ordinary_float32_weights_are_what_they_were(name: str) -> None:
    """Guards against weights are exact no-ops: published networks keep their bits."""
    weight = torch.randn(8, 27) * 0.1
    rows = weight - weight.mean(1, keepdim=True)
    squashed = torch.tanh(weight)
    want = {
        "none": weight,
        "standardize": rows / rows.std(1, correction=0, keepdim=True),
        "tanh": squashed / squashed.abs().max(),
    }
    assert torch.equal(TRANSFORMS[name](weight), want[name])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_weights(name: str) -> None:
    assert TRANSFORMS[name](torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, math.pi, 1e-30, -7e17])
def test_equal_weights_become_zeros_and_can_leave_them(value: float) -> None:
    for length in (2, 3, 9, 27, 100, 300, 4608):
        weight = torch.full((2, length), value, requires_grad=True)
        standardized = TRANSFORMS["standardize"](weight)
        assert float(standardized.detach().abs().max()) <= 4 * torch.finfo(torch.float32).eps * abs(value)
        incoming = torch.randn(2, length)
        standardized.backward(incoming)
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, incoming - incoming.mean(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_weights_of_zero_can_leave_tanh() -> None:
    weight = torch.zeros(2, 5, requires_grad=True)
    incoming = torch.randn(2, 5)
    TRANSFORMS["tanh"](weight).backward(incoming)
    assert weight.grad is not None
    assert torch.equal(weight.grad, incoming)
