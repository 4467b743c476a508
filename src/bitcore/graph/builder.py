"""From layers to integers: values that know how a real number is read from them, and their requantization.

While a model is lowered, batch norm, ReLU and the scales of weights and activations are not operations: they
accumulate in a `Value` and fold into one Requantize, Threshold or NormShift where the next layer quantizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.formats import NumberFormat, round_half_even
from bitcore.graph.graph import Graph, InputSpec, Node
from bitcore.graph.ops import Conv2d, Flatten, Ints, Linear, MaxPool2d, NormShift, Op, Requantize, Threshold
from bitcore.graph.types import INT32, IntTensor
from bitcore.quantizers import SCALERS, FromValues, Quantizer

Reals = NDArray[np.float64]
Function = Callable[[Tensor], Tensor]
_THRESHOLD_LEVELS = 16  # formats up to 4 bits become thresholds: exact, and no multiplication
_MULTIPLIER_BITS = 30
_ONE = np.ones(1)
_ZERO = np.zeros(1)


@dataclass(frozen=True)
class Value:
    """A tensor of the model while it is lowered: ``real = clip(scale * integer + offset, low, high)``.

    Attributes:
        node: The node that holds the integers; ``None`` for the model's real-valued input.
        type: Their type.
        scale: Per channel or shared, float64; may be negative behind a batch norm.
        offset: Per channel or shared, float64.
        low: Lower clip (0 behind a ReLU), in real units.
        high: Upper clip.
        relative: Whether `scale` holds only up to an unknown positive factor of each sample.
        real: The model's own float32 arithmetic from accumulators ``[n, channels, ...]`` to real values.
    """

    node: str | None
    type: IntTensor
    scale: Reals
    offset: Reals
    low: float
    high: float
    relative: bool
    real: Function

    def then(self, function: Function, **changes: Any) -> Value:
        """Returns the value behind an elementwise function, whose effect on the affine form is in ``changes``."""
        inner = self.real
        return replace(self, real=lambda x: function(inner(x)), **changes)


class GraphBuilder:
    """Collects nodes while the layers of a model lower themselves.

    Args:
        input_shape: One sample's shape.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.layer = "input"  # the layer being lowered: it names nodes and errors
        self._nodes: dict[str, Node] = {}
        self._input: InputSpec | None = None
        self._input_shape = input_shape

    def source(self) -> Value:
        """Returns the model's real-valued input."""
        return Value(None, IntTensor(self._input_shape, 0, 0), _ONE, _ZERO, -math.inf, math.inf, False, lambda x: x)

    def error(self, message: str) -> BitLabError:
        """Returns an error that names the layer being lowered."""
        return BitLabError(f"layer '{self.layer}': {message}")

    # ---- from real values to codes -------------------------------------------------------------------------------

    def quantize(self, x: Value, quantizer: Quantizer | None) -> Value:
        """Lowers a layer's activation quantizer: returns the value as codes of its format.

        Raises:
            BitLabError: If integers cannot do what the quantizer does; the message says what to change.
        """
        if quantizer is None:
            raise self.error("its input stays float32; choose an activation_dtype such as int8 to export it")
        fmt = quantizer.format
        if x.node is None:
            return self._quantize_input(x, quantizer)
        if isinstance(quantizer.source, FromValues):
            return self._normshift(x, quantizer)
        scale = self._static_scale(quantizer)
        if x.relative:
            raise self.error("a static activation range behind a dynamic one; use the same activation_scale throughout")
        name = f"{self.layer}.input"
        op = self._threshold(x, quantizer) if len(fmt.levels) <= _THRESHOLD_LEVELS else self._requantize(x, fmt, scale)
        node = self._add(name, op, x.node)
        return self._codes(node, np.array([scale]), relative=False)

    def _quantize_input(self, x: Value, quantizer: Quantizer) -> Value:
        """The first layer's quantizer becomes the graph's input specification."""
        source, fmt = quantizer.source, quantizer.format
        if isinstance(source, FromValues):
            if source.trailing is None:
                raise self.error(
                    "its activation scale depends on the whole batch; use activation_granularity=per_token"
                )
            scaler = next(name for name, function in SCALERS.items() if function is source.scaler)
            spec = InputSpec(self._input_shape, fmt.name, None, scaler)
        else:
            spec = InputSpec(self._input_shape, fmt.name, self._static_scale(quantizer))
        if self._input not in (None, spec):
            raise self.error("the network's input is quantized in two different ways; give both layers one config")
        self._input = spec
        scale = np.array([spec.scale if spec.scale is not None else 1.0])
        value = self._codes(Node("input", Flatten(), (), spec.type), scale, relative=spec.scale is None)
        return value if x.type.shape == spec.shape else self.flatten(value, f"{self.layer}.flat")

    def _static_scale(self, quantizer: Quantizer) -> float:
        scale = float(quantizer.scale(torch.zeros(0)))
        if not math.isfinite(scale):
            raise self.error(f"its activation scale is {scale}; the training diverged, lower the learning rate")
        return scale

    def _codes(self, node: Node, scale: Reals, relative: bool) -> Value:
        step = float(scale[0])
        return Value(
            node.name, node.type, scale, _ZERO, -math.inf, math.inf, relative, lambda c: c * torch.tensor(step)
        )

    def _requantize(self, x: Value, fmt: NumberFormat, scale: float) -> Requantize:
        """Folds scale, offset and clip into multiplier, bias and shift. Powers of two give shifts alone."""
        if fmt.step != 1:
            raise self.error(f"activations of {fmt.name} have too many unevenly spaced levels; use an integer format")
        low, high = (_round_to_int(limit / scale, fmt) for limit in (x.low, x.high))
        return Requantize(*self._rescale(x, scale), low=low, high=high)

    def _rescale(self, x: Value, scale: float) -> tuple[Ints, ...]:
        """Returns the multiplier, bias and shift from the integers of ``x`` to multiples of ``scale``."""
        ratio = x.scale / scale
        problem = "its requantization leaves 62 bits; the scales of weights and activations differ too much"
        if np.abs(ratio).max() >= 2**31:
            raise self.error(problem)
        multiplier, shift = _fixed_point(ratio)
        bias = np.round(x.offset / scale * np.exp2(shift))
        largest = max(abs(x.type.low), abs(x.type.high))
        if int(np.abs(multiplier).max()) * largest + float(np.abs(bias).max()) >= 2**62:
            raise self.error(problem)
        return _shared(multiplier, bias.astype(np.int64), shift)

    def _threshold(self, x: Value, quantizer: Quantizer) -> Threshold:
        """Finds, by bisection over the accumulator in the model's own float arithmetic, where each level begins."""
        fmt = quantizer.format
        if fmt.step == 0:
            raise self.error(f"activations of {fmt.name} are unevenly spaced; use an integer format")
        channels = x.type.shape[0] if x.scale.size > 1 or x.offset.size > 1 else 1
        ordered = torch.tensor(sorted(fmt.levels)[1:], dtype=torch.float64)
        falling = np.broadcast_to(x.scale < 0, (channels,))
        sign = torch.from_numpy(np.where(falling, -1, 1))
        ones = [1] * (len(x.type.shape) - 1)

        def levels(accumulator: Tensor) -> Tensor:  # [channels, thresholds] of sign * accumulator -> levels
            signed = (accumulator * sign[:, None]).T.float()
            if channels == 1:  # the function is shared, but the model's modules may want all channels
                signed = signed.expand(-1, x.type.shape[0])
            real = x.real(signed.reshape(*signed.shape, *ones))
            return quantizer.quantize(real).levels.flatten(1)[:, :channels].T.double()

        limit = max(abs(x.type.low), abs(x.type.high)) + 1
        below = torch.full((channels, len(ordered)), -limit, dtype=torch.int64)
        above = torch.full_like(below, limit)
        while int((above - below).max()) > 1:
            middle = (above + below) // 2
            reached = levels(middle) >= ordered
            above, below = torch.where(reached, middle, above), torch.where(reached, below, middle)
        # An answer at a limit means "always" or "never" within the accumulator's range.
        return Threshold(above.numpy(), *_shared(sign.numpy()), low=fmt.low, step=fmt.step)

    def _normshift(self, x: Value, quantizer: Quantizer) -> Value:
        """Dynamic power-of-two quantization of whole samples is a shift by the sample's own maximum."""
        fmt, source = quantizer.format, quantizer.source
        assert isinstance(source, FromValues)
        if source.scaler is not SCALERS["absmax_pow2"]:
            raise self.error("a dynamic activation scale that is no power of two; set activation_scale_pow2=True")
        if source.trailing is None:
            raise self.error("its activation scale depends on the whole batch; use activation_granularity=per_token")
        if source.trailing != len(x.type.shape):
            raise self.error("it has several tokens a sample; integer graphs shift whole samples")
        if np.any(x.offset != 0):
            raise self.error("a bias or batch norm before a dynamic activation scale; use bias=False or a static range")
        if np.any(x.scale != x.scale[0]) or x.scale[0] <= 0:
            raise self.error("per-channel scales before a dynamic activation scale; use weight_granularity=per_tensor")
        if math.frexp(float(x.scale[0]))[0] != 0.5:
            raise self.error("a weight scale that is no power of two before a dynamic one; set weight_scale_pow2=True")
        if x.low not in (0, -math.inf) or x.high != math.inf:
            raise self.error("only ReLU may stand before a dynamic activation scale")
        if fmt.step != 1:
            raise self.error(f"dynamic activations of {fmt.name}; use an integer format such as int8 or uint8")
        if not fmt.signed and x.low != 0:
            raise self.error(f"dynamic activations of {fmt.name} without a ReLU; put a ReLU before it or use int8")
        node = self._add(f"{self.layer}.input", NormShift(fmt.high, x.low == 0), x.node)
        return self._codes(node, _ONE, relative=True)

    # ---- operations ----------------------------------------------------------------------------------------------

    def linear(self, x: Value, levels: Ints, format_name: str, bias: Ints, scale: Reals, real: Function) -> Value:
        """Adds a matrix product of codes.

        Args:
            x: Codes (from `quantize`).
            levels: Weight levels ``[n, k]``.
            format_name: Their format.
            bias: On the accumulator's grid, ``[n]`` or ``[1]``.
            scale: The accumulator's scale, per channel or shared.
            real: The layer's float arithmetic from accumulators (with bias) to real values.
        """
        if x.type.shape != (levels.shape[1],):
            raise self.error(f"it takes {levels.shape[1]} features, its input has shape {x.type.shape}")
        return self._accumulate(Linear(levels, format_name, bias), x, scale, real)

    def conv2d(self, x: Value, op: Conv2d, scale: Reals, real: Function) -> Value:
        """Adds a convolution of codes ``[c, h, w]`` (arguments as in `linear`)."""
        return self._accumulate(op, x, scale, real)

    def _accumulate(self, op: Op, x: Value, scale: Reals, real: Function) -> Value:
        node = self._add(self.layer, op, x.node)
        return Value(node.name, node.type, scale, _ZERO, -math.inf, math.inf, x.relative, real)

    def max_pool2d(self, x: Value, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Value:
        """Adds a pooling; it may run on the integers because rising functions keep the order."""
        if x.node is None or np.any(x.scale <= 0):
            raise self.error("max pooling of the unquantized input, or behind a batch norm of negative weight")
        node = self._add(self.layer, MaxPool2d(kernel, stride, padding), x.node)
        return replace(x, node=node.name, type=node.type)

    def flatten(self, x: Value, name: str | None = None) -> Value:
        """Adds a flattening to one vector; parameters per channel become parameters per element."""
        if x.node is None:
            return replace(x, type=IntTensor((x.type.size,), 0, 0))
        if len(x.type.shape) == 1:
            return x
        shape, inner = x.type.shape, x.real
        repeat = x.type.size // shape[0]
        node = self._add(name or self.layer, Flatten(), x.node)
        return replace(
            x,
            node=node.name,
            type=node.type,
            scale=np.repeat(x.scale, repeat) if x.scale.size > 1 else x.scale,
            offset=np.repeat(x.offset, repeat) if x.offset.size > 1 else x.offset,
            real=lambda v: inner(v.unflatten(1, shape)).flatten(1),
        )

    def affine(self, x: Value, gain: Reals, offset: Reals, real: Function) -> Value:
        """Folds ``gain * x + offset`` per channel (batch norm) into the value."""
        if x.node is None or x.low != -math.inf or x.high != math.inf:
            raise self.error("batch norm behind an activation function or on the input; put it behind a linear layer")
        if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
            raise self.error("its statistics or weights are NaN or infinite; the training diverged")
        if x.relative:
            raise self.error("batch norm behind a dynamic activation scale; use activation_scale=tracked or learned")
        return x.then(real, scale=x.scale * gain, offset=x.offset * gain + offset)

    def clip(self, x: Value, low: float, high: float, real: Function) -> Value:
        """Folds a clip (ReLU, ReLU6, Hardtanh) into the value."""
        if x.node is None:
            raise self.error("an activation function on the unquantized input")
        return x.then(real, low=min(max(x.low, low), high), high=max(min(x.high, high), low))

    # ---- the end -------------------------------------------------------------------------------------------------

    def finish(self, x: Value, info: dict[str, Any]) -> Graph:
        """Returns the graph whose output is ``x``, as int32 on one common grid so that outputs can be compared."""
        self.layer = "output"
        if x.node is None or self._input is None or len(x.type.shape) != 1:
            raise self.error("the model must end in a linear layer with one vector of outputs a sample")
        if np.any(x.scale <= 0):
            raise self.error("its outputs have negative scales; end the model in a linear layer")
        scale = float(x.scale.max())
        if np.any(x.scale != scale) or np.any(x.offset != 0) or x.low != -math.inf or x.high != math.inf:
            largest = float((np.abs(x.scale) * max(-x.type.low, x.type.high) + np.abs(x.offset)).max())
            scale = max(scale, largest / 2**29) if np.all(x.scale == scale) else largest / 2**29
            low, high = (int(np.clip(v / scale, *INT32)) for v in (x.low, x.high))
            self._add("output", Requantize(*self._rescale(x, scale), low=low, high=high), x.node)
        graph = Graph(self._input, tuple(self._nodes.values()), None if x.relative else scale, info)
        return eliminate_dead(graph)

    def _add(self, name: str, op: Op, source: str | None) -> Node:
        if source is None:
            raise self.error("its input was never quantized")
        if name in self._nodes:
            raise self.error("it is used twice; give each use a layer of its own")
        kind = self._nodes[source].type if source != "input" else self._input.type if self._input else None
        assert kind is not None
        try:
            node = Node(name, op, (source,), op.infer(kind))
        except BitLabError as error:
            raise self.error(str(error)) from error
        self._nodes[name] = node
        return node


def eliminate_dead(graph: Graph) -> Graph:
    """Returns the graph without the nodes that the output does not need."""
    needed = {graph.output.name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.name in needed))


def _fixed_point(ratio: Reals) -> tuple[Ints, Ints]:
    """Returns ``multiplier, shift`` with ``multiplier / 2**shift`` next to each ratio; 1 for powers of two up to 1."""
    mantissa, exponent = np.frexp(ratio)
    power = np.abs(mantissa) == 0.5
    if np.all(power & (mantissa > 0)):
        exponent = np.maximum(exponent.astype(np.int64) - 1, -62)  # beyond 62 bits every accumulator becomes 0 anyway
        return np.left_shift(1, np.maximum(exponent, 0)), np.maximum(-exponent, 0)
    multiplier = np.round(mantissa * 2**_MULTIPLIER_BITS).astype(np.int64)
    shift = (_MULTIPLIER_BITS - exponent).astype(np.int64)
    # Tiny ratios: the shift stays within 62, and the multiplier loses the bits that could never count.
    excess = np.maximum(shift - 62, 0)
    return multiplier >> np.minimum(excess, 62), shift - excess


def _shared(*arrays: Ints) -> tuple[Ints, ...]:
    """Shortens arrays of one repeated value to length 1."""
    return tuple(a[:1].astype(np.int64) if np.all(a == a[0]) else a.astype(np.int64) for a in arrays)


def _round_to_int(limit: float, fmt: NumberFormat) -> int:
    """Rounds a clip limit, in units of the scale, as the quantizer does; infinite limits are the format's."""
    return int(round_half_even(torch.tensor(limit, dtype=torch.float64)).clamp(fmt.low, fmt.high))
