"""How modules of torch and of bitlayers become integer operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitcore.graph import GraphBuilder, Value
from bitlayers.activations import RPReLU, RSign
from bitlayers.folding import affine_of
from bitlayers.fusion import FusedNorm

Lowering = Callable[[GraphBuilder, Any, Value], Value]
LOWERINGS: dict[type[nn.Module], Lowering] = {}
_DEVIATIONS = 16  # batch norm's outputs are expected within so many standard deviations


def lowers(*kinds: type[nn.Module]) -> Callable[[Lowering], Lowering]:
    """Function decorator: registers how modules of some types become integer operations."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(kinds, function))
        return function

    return register


@lowers(nn.Identity, FusedNorm, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def _nothing(g: GraphBuilder, module: nn.Module, x: Value) -> Value:
    return x


class Clamp(nn.Module):
    """``torch.clamp`` with numbers; where the limits are inverted all is the upper one."""

    def __init__(self, min: float = -math.inf, max: float = math.inf) -> None:
        super().__init__()
        self.min, self.max = float(min), float(max)


@lowers(Clamp)
def _clamp(g: GraphBuilder, module: Clamp, x: Value) -> Value:
    return g.clip(x, module.min, module.max, lambda v: v.clamp(module.min, module.max))


@lowers(nn.Flatten)
def _flatten(g: GraphBuilder, module: nn.Flatten, x: Value) -> Value:
    if module.start_dim != 1 or module.end_dim not in (-1, len(x.shape)):
        raise g.error("only nn.Flatten() of everything but the batch can be exported")
    return g.flatten(x)


@lowers(nn.ReLU, nn.ReLU6, nn.Hardtanh)
def _clip(g: GraphBuilder, module: nn.Module, x: Value) -> Value:
    low = 0.0 if not isinstance(module, nn.Hardtanh) else module.min_val
    high = module.max_val if isinstance(module, nn.Hardtanh) else math.inf
    return g.clip(x, low, high, lambda v: v.clamp(low, None if high == math.inf else high))


@lowers(
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Softplus,
    nn.CELU, nn.SELU, nn.LogSigmoid,
)  # fmt: skip
def _pointwise(g: GraphBuilder, module: nn.Module, x: Value) -> Value:
    return g.pointwise(x, lambda v: module(v.clone()))  # which may work in place


class CalledBatchNorm(nn.BatchNorm1d):
    """``F.batch_norm`` by running statistics, of any shape."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


@lowers(nn.BatchNorm1d, nn.BatchNorm2d, CalledBatchNorm)
def _batch_norm(g: GraphBuilder, module: nn.BatchNorm1d, x: Value) -> Value:
    if module.running_mean is None or module.running_var is None:
        raise g.error("batch norm without running statistics; use track_running_stats=True")
    gain, offset = affine_of(module, module.running_mean.double(), module.running_var.double())
    mean = module.bias.double() if module.bias is not None else torch.zeros(1)
    deviation = module.weight.double() if module.weight is not None else torch.ones(1)
    span = float((mean.abs() + _DEVIATIONS * deviation.abs()).max())
    return g.affine(x, gain.numpy(), offset.numpy(), module, span)


@lowers(RSign)
def _shift(g: GraphBuilder, module: RSign, x: Value) -> Value:
    threshold = module.threshold.detach().double().numpy()
    return g.affine(x, np.ones_like(threshold), -threshold, module)


@lowers(RPReLU)
def _rprelu(g: GraphBuilder, module: RPReLU, x: Value) -> Value:
    shift_in, shift_out = (p.detach().double().numpy() for p in (module.shift_in, module.shift_out))
    one = np.ones_like(shift_in)
    shifted = g.affine(x, one, -shift_in, lambda v: v - _per_channel(module.shift_in, v))
    bent = _bend(g, shifted, module.slope)
    return g.affine(bent, one, shift_out, lambda v: v + _per_channel(module.shift_out, v))


@lowers(nn.PReLU)
def _prelu(g: GraphBuilder, module: nn.PReLU, x: Value) -> Value:
    return _bend(g, x, module.weight)


def _bend(g: GraphBuilder, x: Value, slope: Tensor) -> Value:
    """``max(x, 0) + slope * min(x, 0)``, on the grid of additions: slopes may differ by channel and have any sign."""
    above = g.clip(x, 0, math.inf, lambda v: v.clamp_min(0))
    below = g.clip(x, -math.inf, 0, lambda v: v.clamp_max(0))
    gain = slope.detach().double().numpy()
    return g.add(above, g.affine(below, gain, np.zeros(1), lambda v: v * _per_channel(slope, v)))


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


@lowers(nn.MaxPool2d)
def _max_pool(g: GraphBuilder, module: nn.MaxPool2d, x: Value) -> Value:
    if module.ceil_mode or module.dilation not in (1, (1, 1)) or module.return_indices:
        raise g.error("max pooling with ceil_mode, dilation or indices")
    return g.max_pool2d(x, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding))


@lowers(nn.AvgPool2d)
def _avg_pool(g: GraphBuilder, module: nn.AvgPool2d, x: Value) -> Value:
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    _require_map(g, x)
    if padding != (0, 0) and not module.count_include_pad and module.divisor_override is None:
        raise g.error("average pooling that divides by another number at the border; use count_include_pad=True")
    reach = zip(x.shape[1:], kernel, stride, padding, strict=True)
    if module.ceil_mode and any((n + 2 * p - k) % s for n, k, s, p in reach):
        raise g.error("average pooling with incomplete windows at the border; use ceil_mode=False, or another size")
    return g.avg_pool2d(x, kernel, stride, padding, module.divisor_override)


@lowers(nn.AdaptiveAvgPool2d)
def _adaptive_avg_pool(g: GraphBuilder, module: nn.AdaptiveAvgPool2d, x: Value) -> Value:
    _require_map(g, x)
    wanted = np.broadcast_to(np.array(module.output_size, dtype=object), (2,))
    out = [n if size is None else size for n, size in zip(x.shape[1:], wanted, strict=True)]
    if out == list(x.shape[1:]):
        return x
    if any(n % size for n, size in zip(x.shape[1:], out, strict=True)):
        raise g.error(f"average pooling from {x.shape[1:]} to {tuple(out)}, whose windows differ; use a divisor")
    kernel = _pair([n // size for n, size in zip(x.shape[1:], out, strict=True)])
    return g.avg_pool2d(x, kernel, kernel, (0, 0))


def _require_map(g: GraphBuilder, x: Value) -> None:
    if len(x.shape) != 3:
        raise g.error(f"pooling of a value of shape {x.shape}; it takes maps [channels, height, width]")


def _pair(value: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(value, (2,))
    return int(first), int(second)
