"""From layers to integers: values that know how a real number is read from them, and their requantization.

While a model is lowered, batch norm, ReLU and the scales of weights and activations are not operations: they
accumulate in a `Value` and fold into one Requantize, Threshold, Lookup or NormShift where the next layer quantizes.
Real-valued sums (residual connections, average pools) need integers of one common unit: there a value is brought to a
grid of at most 16 bits (`GraphBuilder.materialize`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bitcore.formats import NumberFormat, round_half_even
from bitcore.graph.fixed_point import (
    OUTPUT_BITS,
    Reals,
    is_power_of_two,
    power_of_two_above,
)
from bitcore.graph.graph import Graph, InputSpec
from bitcore.graph.grids import GridBuilder
from bitcore.graph.nodes import INPUT, OUTPUT
from bitcore.graph.ops import (
    Conv2d,
    Flatten,
    Ints,
    Linear,
    MaxPool2d,
    NormShift,
    Op,
    SumPool2d,
)
from bitcore.graph.passes import bring_together, eliminate_dead
from bitcore.graph.thresholds import find_thresholds
from bitcore.graph.types import INT32, narrow
from bitcore.graph.values import Function, Value
from bitcore.quantizers import SCALERS, FromValues, Quantizer

_THRESHOLD_LEVELS = 16  # formats up to 4 bits become thresholds: exact, and no multiplication
_OUTPUT = 2**30  # of outputs whose channels have scales of their own

Pair = tuple[int, int]


class GraphBuilder(GridBuilder):
    """Collects nodes while the layers of a model lower themselves.

    Args:
        input_shape: One sample's shape.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self._input_shape = input_shape

    def source(self) -> Value:
        """Returns the model's real-valued input."""
        return Value.of_input(self._input_shape)

    # ---- from real values to codes -------------------------------------------------------------------------------

    def quantize(self, x: Value, quantizer: Quantizer | None) -> Value:
        """Lowers a layer's activation quantizer: returns the value as codes of its format.

        Raises:
            BitLabError: If integers cannot do what the quantizer does; the message says what to change.
        """
        if quantizer is None:
            raise self.error("its input stays float32; choose an activation_dtype such as int8 to export it")
        if x.node is None:
            return self._quantize_input(x, quantizer)
        if isinstance(quantizer.source, FromValues):
            return self._normshift(x, quantizer)
        scale, shift = self._static_grid(quantizer)
        if x.relative:
            raise self.error("a static activation range behind a dynamic one; use the same activation_scale throughout")
        fmt, name = quantizer.format, f"{self.layer}.input"
        if fmt.step == 0:
            raise self.error(f"activations of {fmt.name} are unevenly spaced; use an integer format")
        if x.function is not None:
            return self._lookup(x, lambda real: quantizer.quantize(real).shifted(), scale, name)
        if len(fmt.levels) <= _THRESHOLD_LEVELS or self._wants_thresholds(x, fmt, scale):
            return self._append(x, name, find_thresholds(x, quantizer, shift), scale)
        if fmt.step != 1:
            raise self.error(f"activations of {fmt.name} have too many unevenly spaced levels; use an integer format")
        low, high = (_round_to_int(limit / scale, fmt, shift) for limit in (x.low, x.high))
        return self._append(x, name, self._requantize(x, scale, low, high), scale)

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
            scale, shift = self._static_grid(quantizer)
            if shift:
                raise self.error("an activation offset at the network's input; use activation_scale=learned there")
            spec = InputSpec(self._input_shape, fmt.name, scale)
        if self._input not in (None, spec):
            raise self.error("the network's input is quantized in two different ways; give both layers one config")
        self._input = spec
        scale = spec.scale if spec.scale is not None else 1.0
        value = Value.of_codes(INPUT, spec.type, scale, spec.scale is None, INPUT)
        if x.type.shape == spec.shape:
            return value
        node = self._add(self._free(f"{self.layer}.flat"), Flatten(), INPUT, scale=spec.scale)
        return replace(value, node=node.name, type=node.type)

    def _static_grid(self, quantizer: Quantizer) -> tuple[float, int]:
        """Returns the scale of a static range, and by how much its levels are shifted (LSQ+)."""
        codes, fmt = quantizer.quantize(torch.zeros(0)), quantizer.format
        scale, shift = float(codes.scale), 0.0 if codes.shift is None else float(codes.shift)
        if not math.isfinite(scale + shift):
            raise self.error(f"its activation scale is {scale}; the training diverged, lower the learning rate")
        low, high = int(fmt.low + shift), int(fmt.high + shift)
        if shift and narrow((1,), low, high).bytes != 1:
            raise self.error(
                f"its offset makes levels {low}…{high} of {fmt.name}, which are no bytes; use an activation_dtype "
                "of fewer bits, such as uint7, or activation_scale=learned"
            )
        return scale, int(shift)

    def _wants_thresholds(self, x: Value, fmt: NumberFormat, scale: float) -> bool:
        """Whether only an average over a window of 49, say, asks for a multiplication: 255 thresholds do it too."""
        pooled = x.node in self._nodes and isinstance(self._nodes[x.node].op, SumPool2d)
        alone = x.scale.size == 1 and x.offset.size == 1 and not is_power_of_two(x.scale / scale)
        free = not any(node.op.multiplications(node.type) for node in self._nodes.values())
        return pooled and alone and free and fmt.step == 1 and is_power_of_two(scale)

    def _normshift(self, x: Value, quantizer: Quantizer) -> Value:
        """Dynamic power-of-two quantization of whole samples is a shift by the sample's own maximum."""
        fmt, source = quantizer.format, quantizer.source
        assert isinstance(source, FromValues)
        if source.scaler is not SCALERS["absmax_pow2"]:
            raise self.error("a dynamic activation scale that is no power of two; set activation_scale_pow2=True")
        if source.trailing is None:
            raise self.error("its activation scale depends on the whole batch; use activation_granularity=per_token")
        x = self._resolved(x)
        if source.trailing != len(x.type.shape):
            raise self.error("it has several tokens a sample; integer graphs shift whole samples")
        if np.any(x.offset != 0):
            raise self.error("a bias or batch norm before a dynamic activation scale; use bias=False or a static range")
        if np.any(x.scale != x.scale[0]) or x.scale[0] <= 0:
            raise self.error("per-channel scales before a dynamic activation scale; use weight_granularity=per_tensor")
        if not is_power_of_two(x.scale):
            raise self.error(
                "a weight scale, or the window of an average pooling, that is no power of two before a dynamic "
                "activation scale; set weight_scale_pow2=True, use windows such as 4×4"
            )
        if x.low not in (0, -math.inf) or x.high != math.inf or x.function is not None:
            raise self.error("only ReLU may stand before a dynamic activation scale")
        if fmt.step != 1:
            raise self.error(f"dynamic activations of {fmt.name}; use an integer format such as int8 or uint8")
        if not fmt.signed and x.low != 0:
            raise self.error(f"dynamic activations of {fmt.name} without a ReLU; put a ReLU before it or use int8")
        node = self._add(self._free(f"{self.layer}.input"), NormShift(fmt.high, x.low == 0), x.node)
        return Value.of_codes(node.name, node.type, 1.0, True, x.layer)

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
        node = self._add(self._free(self.layer), op, x.node)
        codes = Value.of_codes(node.name, node.type, 1.0, x.relative, self.layer)
        return replace(codes, scale=scale, real=real)

    def max_pool2d(self, x: Value, kernel: Pair, stride: Pair, padding: Pair) -> Value:
        """Adds a pooling. It waits for the next quantization, whose results are fewer bytes and in the same order."""
        if x.node is None:
            raise self.error("max pooling of the unquantized input; put a bit layer before it")
        return self._postpone(self.materialize(x) if x.function is not None else x, MaxPool2d(kernel, stride, padding))

    def avg_pool2d(self, x: Value, kernel: Pair, stride: Pair, padding: Pair, divisor: int | None = None) -> Value:
        """Adds an average pooling: sums of windows, to be read by a scale that holds the division.

        Args:
            x: The value ``[c, h, w]``.
            kernel: The window; stride and padding as in torch, padded zeros count.
            stride: Vertical, horizontal.
            padding: Likewise, on both sides.
            divisor: What sums are divided by, if not by the window's size.
        """
        grid = self.materialize(x)
        divisor = math.prod(kernel) if divisor is None else divisor
        node = self._add(self._free(self.layer), SumPool2d(kernel, stride, padding), grid.node)
        step = float(grid.scale[0])
        value = Value.of_codes(node.name, node.type, step / divisor, x.relative, self.layer)
        return replace(value, span=x.largest, real=lambda sums: sums * torch.tensor(step) / divisor)

    def flatten(self, x: Value) -> Value:
        """Adds a flattening to one vector, behind the next quantization."""
        if x.node is None:
            return replace(x, type=replace(x.type, shape=(x.type.size,)))
        return x if len(x.shape) == 1 else self._postpone(x, Flatten())

    def _postpone(self, x: Value, op: Op) -> Value:
        return replace(x, pending=(*x.pending, (self.layer, op)))

    def _resolved(self, x: Value) -> Value:
        """Returns the value with nothing pending. Pools run on the integers where all scales are positive."""
        if x.function is not None or (any(isinstance(op, MaxPool2d) for _, op in x.pending) and np.any(x.scale <= 0)):
            return self.materialize(x)
        for name, op in x.pending:
            node = self._add(self._free(name), op, x.node)
            if isinstance(op, Flatten):
                x = x.flattened()
            x = replace(x, node=node.name, type=node.type)
        return replace(x, pending=())

    def affine(self, x: Value, gain: Reals, offset: Reals, real: Function, span: float = math.inf) -> Value:
        """Folds ``gain * x + offset`` per channel (batch norm) into the value.

        Args:
            x: The value.
            gain: Per channel.
            offset: Per channel.
            real: The same in the model's own arithmetic.
            span: The largest magnitude that is to be expected of the results; ``inf`` if unknown.
        """
        if x.node is None:
            raise self.error("batch norm on the unquantized input; put it behind a linear layer")
        if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
            raise self.error("its statistics or weights are NaN or infinite; the training diverged")
        factor = gain.size == offset.size == 1 and gain[0] > 0  # which keeps order and sign
        if x.relative and not (factor and offset[0] == 0):
            raise self.error("batch norm behind a dynamic activation scale; use activation_scale=tracked or learned")
        if x.function is not None or not (factor or (x.low == -math.inf and x.high == math.inf)):
            x = self.materialize(x)
        pools = any(isinstance(op, MaxPool2d) for _, op in x.pending)
        if any(isinstance(op, Flatten) for _, op in x.pending) or (pools and np.any(gain <= 0)):
            x = self._resolved(x)
        if span == math.inf:
            span = x.largest * float(np.abs(gain).max()) + float(np.abs(offset).max())
        if factor:
            low, high = (limit * float(gain[0]) + float(offset[0]) for limit in (x.low, x.high))
            x = replace(x, low=low, high=high)
        changes = {"scale": x.scale * gain, "offset": x.offset * gain + offset, "span": span, "layer": self.layer}
        return x.then(real, **changes)

    def clip(self, x: Value, low: float, high: float, real: Function) -> Value:
        """Folds a clip (ReLU, ReLU6, Hardtanh) into the value."""
        if x.node is None:
            raise self.error("an activation function on the unquantized input")
        if x.function is not None:
            return self.pointwise(x, real)
        limits = {"low": min(max(x.low, low), high), "high": max(min(x.high, high), low)}
        return x.then(real, **limits, layer=self.layer)

    def pointwise(self, x: Value, function: Function) -> Value:
        """Folds any function of single real values into the value: a table, where the next layer quantizes."""
        if x.node is None:
            raise self.error("an activation function on the unquantized input")
        if x.relative:
            raise self.error(
                "an activation function other than ReLU behind a dynamic activation scale; use a static one"
            )
        if any(isinstance(op, MaxPool2d) for _, op in x.pending):
            x = self._resolved(x)
        inner = x.function
        both = function if inner is None else lambda real: function(inner(real))
        return x.then(function, function=both, layer=self.layer)

    # ---- the end -------------------------------------------------------------------------------------------------

    def finish(self, x: Value, info: dict[str, Any]) -> Graph:
        """Returns the graph whose output is ``x``, as int32 on one common grid so that outputs can be compared."""
        self.layer = OUTPUT
        if x.node is None or self._input is None or len(x.shape) != 1:
            raise self.error("the model must end in a linear layer with one vector of outputs a sample")
        if x.function is not None:
            raise self.error("the model must end in a linear layer, not in an activation function other than a clip")
        x = self._resolved(x)
        scale, name = float(x.scale[0]), x.node
        if np.any(x.scale != scale) or scale <= 0 or np.any(x.offset != 0) or x.low != -math.inf or x.high != math.inf:
            ends = np.abs(x.scale) * x.type.largest + np.abs(x.offset)
            scale = max(power_of_two_above(float(ends.max()) / _OUTPUT), x.resolution)
            low, high = (int(np.clip(v / scale, *INT32)) for v in (x.low, x.high))
            name = self._add(OUTPUT, self._requantize(x, scale, low, high, OUTPUT_BITS), x.node).name
        nodes = list(self._nodes.values())
        last = next(i for i, node in enumerate(nodes) if node.name == name)  # what follows has no reader
        graph = Graph(self._input, tuple(nodes[: last + 1]), None if x.relative else scale, info)
        return bring_together(eliminate_dead(graph))


def _round_to_int(limit: float, fmt: NumberFormat, shift: int) -> int:
    """Rounds a clip limit, in units of the scale, as the quantizer does; infinite limits are the (shifted) format's."""
    return int(round_half_even(torch.tensor(limit, dtype=torch.float64)).clamp(fmt.low + shift, fmt.high + shift))
