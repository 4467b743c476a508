"""How calls of functions and methods become integer operations."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.graph import GraphBuilder, Value
from bitexport.lowerings import CalledBatchNorm, Clamp


def _forms(*names: str) -> Iterator[Any]:
    """The functions of torch and the methods (by name) of these names, in place too."""
    for form in itertools.chain.from_iterable((name, f"{name}_") for name in names):
        yield from (getattr(owner, form) for owner in (torch, F) if hasattr(owner, form))
        if hasattr(Tensor, form):
            yield form


def _limit(value: float | None, default: float) -> float:
    if not isinstance(value, (int, float, type(None))):
        raise TypeError("limits must be numbers")
    return default if value is None else value


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module:
    if min is None and max is None:
        raise TypeError("it has no limit")
    return Clamp(_limit(min, -math.inf), _limit(max, math.inf))


def _clamp_min(min: float) -> nn.Module:
    return _clamp(min)


def _clamp_max(max: float) -> nn.Module:
    return _clamp(None, max)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training:
        raise TypeError("it drops values in eval mode, too; pass training=self.training")
    return nn.Identity()


def _max_pool(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:  # fmt: skip
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _mean(dim: int | Sequence[int] = (), keepdim: bool = False) -> nn.Module:
    dims = {d % 4 for d in ([dim] if isinstance(dim, int) else dim)}
    if dims != {2, 3}:
        raise TypeError("only the mean over height and width can be exported")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Identity() if keepdim else nn.Flatten())


def _batch_norm(
    running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise TypeError("it needs each batch's own statistics; pass running ones, and training=self.training")
    norm = CalledBatchNorm(len(running_mean), eps, affine=False).eval()
    norm.running_mean, norm.running_var = running_mean, running_var
    for name, parameter in (("weight", weight), ("bias", bias)):
        norm.register_parameter(name, None if parameter is None else nn.Parameter(parameter.detach()))
    return norm


MODULE_OF: dict[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys(_forms("relu"), nn.ReLU),
    **dict.fromkeys(_forms("relu6"), nn.ReLU6),
    **dict.fromkeys(_forms("hardtanh"), nn.Hardtanh),
    **dict.fromkeys(_forms("clamp", "clip"), _clamp),
    **dict.fromkeys(_forms("clamp_min"), _clamp_min),
    **dict.fromkeys(_forms("clamp_max"), _clamp_max),
    **dict.fromkeys(_forms("gelu"), nn.GELU),
    **dict.fromkeys(_forms("silu"), nn.SiLU),
    **dict.fromkeys(_forms("mish"), nn.Mish),
    **dict.fromkeys(_forms("hardswish"), nn.Hardswish),
    **dict.fromkeys(_forms("hardsigmoid"), nn.Hardsigmoid),
    **dict.fromkeys(_forms("leaky_relu"), nn.LeakyReLU),
    **dict.fromkeys(_forms("elu"), nn.ELU),
    **dict.fromkeys(_forms("celu"), nn.CELU),
    **dict.fromkeys(_forms("selu"), nn.SELU),
    **dict.fromkeys(_forms("softplus"), nn.Softplus),
    **dict.fromkeys(_forms("logsigmoid"), nn.LogSigmoid),
    **dict.fromkeys(_forms("sigmoid"), nn.Sigmoid),
    **dict.fromkeys(_forms("tanh"), nn.Tanh),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d), _dropout),
    **dict.fromkeys(("contiguous", *_forms("clone", "detach")), nn.Identity),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    **dict.fromkeys(_forms("mean"), _mean),
    F.batch_norm: _batch_norm,
}
"""Calls ``f(x, …)`` and methods ``x.f(…)``: the module of the same meaning, from the arguments behind the value."""


def _add(g: GraphBuilder, a: Any, b: Any, span: float) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        return g.add(a, b, span=span)
    return _affine(g, a, 1, b) if isinstance(a, Value) else _affine(g, b, 1, a)


def _subtract(g: GraphBuilder, a: Any, b: Any, span: float) -> Value:
    if not isinstance(b, Value):
        return _affine(g, a, 1, -_number(b))
    return _add(g, a, _affine(g, b, -1, 0), span)


def _multiply(g: GraphBuilder, a: Any, b: Any, span: float) -> Value:
    return _affine(g, a, b, 0) if isinstance(a, Value) else _affine(g, b, a, 0)


def _divide(g: GraphBuilder, a: Any, b: Any, span: float) -> Value:
    if not isinstance(a, Value):
        raise TypeError("only numbers can divide a value")
    divisor = _number(b)
    return g.affine(a, np.array([1 / divisor]), np.zeros(1), lambda v: v / divisor)


def _affine(g: GraphBuilder, x: Value, factor: Any, summand: Any) -> Value:
    factor, summand = _number(factor), _number(summand, zero=True)
    return g.affine(x, np.array([factor]), np.array([summand]), lambda v: v * factor + summand)


def _number(value: Any, zero: bool = False) -> float:
    """Returns a constant as a number: a tensor of one element is one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not (value or zero):
        raise TypeError("the other operand must be a number" + ("" if zero else " other than 0"))
    return float(value)


ARITHMETIC: dict[Any, Callable[..., Value]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _divide),
}
"""Sums and differences of two values, and arithmetic with a constant."""

NEGATIONS = frozenset({operator.neg, *_forms("neg", "negative")})
CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.concatenate})
