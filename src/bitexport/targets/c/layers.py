"""The runtime's description of each layer, and the call that runs it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bitcore.formats import get_format
from bitcore.graph import (
    Add,
    Concat,
    Conv2d,
    Linear,
    Lookup,
    MaxPool2d,
    NormShift,
    Op,
    Requantize,
    SumPool2d,
    Threshold,
)
from bitcore.graph.ops import Ints
from bitcore.graph.types import IntTensor
from bitexport.targets.c.activation import Activations
from bitexport.targets.c.calls import Layer
from bitexport.targets.c.compact import channels_of
from bitexport.targets.c.compact_dense import Scale, weights_of
from bitexport.targets.c.constants import Constants
from bitexport.targets.c.packing import columns_of_layer, pack_columns
from bitexport.targets.c.plan import CPlan
from bitexport.targets.c.rows import BYTES, has_bias_and_shift, pack_weights, start_of, tables_of

_TYPES = {"int8": "BIT_INT8", "uint8": "BIT_UINT8", "int16": "BIT_INT16", "int32": "BIT_INT32"}
Fields = dict[str, object]
FUNCTIONS: dict[type[Op], str] = {
    Linear: "bit_dense",
    Conv2d: "bit_conv2d",
    MaxPool2d: "bit_max_pool2d",
    SumPool2d: "bit_sum_pool2d",
    NormShift: "bit_normshift",
    Concat: "bit_copy_channels",
    Requantize: "bit_map",
    Threshold: "bit_map",
    Lookup: "bit_map",
    Add: "bit_map",
}
"""What runs a call, by the operation that it begins with: these, and no other, are what C computes."""


@dataclass
class Layers:
    """Writes functions, descriptions and calls; constants are added on the way.

    Attributes:
        plan: The plan.
        constants: The network's constants.
        activations: Writes the functions of single values.
    """

    plan: CPlan
    constants: Constants
    activations: Activations

    def declare(self, layer: Layer) -> str:
        """Returns the C functions and descriptions of a layer, without comments."""
        op = layer.nodes[0].op
        if isinstance(op, NormShift):
            return ""
        if isinstance(op, Concat):
            return self.activations.function(layer) + "\n" + self._copies(layer)
        if isinstance(op, Linear) and layer.coding:
            return self._compact_dense(layer, op)
        if isinstance(op, Conv2d) and layer.rows:
            return _struct("BitRows", f"{self._label(layer)}_layer", self._rows(layer, op))
        if isinstance(op, (Linear, Conv2d)) and columns_of_layer(op) is None:
            kind, fields = "BitGrouped", self._grouped(layer, op)
        elif isinstance(op, Linear):
            kind, fields = "BitDense", self._dense(layer, op)
        elif isinstance(op, Conv2d):
            kind, fields = "BitConv2d", self._conv(layer, op)
            if "activate" not in fields:
                return _struct(kind, f"{self._label(layer)}_layer", fields)
        elif isinstance(op, (MaxPool2d, SumPool2d)):
            kind, fields = "BitPool", self._pool(layer, op)
        else:
            kind, fields = "BitMap", self._map(layer)
        return self.activations.function(layer) + "\n" + _struct(kind, f"{self._label(layer)}_layer", fields)

    def call(self, layer: Layer) -> list[str]:
        """Returns the statements that run a layer."""
        op, label = layer.nodes[0].op, self._label(layer)
        target = self._target(layer)
        if isinstance(op, NormShift):
            self.activations.files.add("bit_normshift.c")
            source = self.plan.types[layer.source]
            return [
                f"bit_normshift({self._source(layer.source)}, {_TYPES[source.storage]}, {target}, {source.size}, "
                f"{op.high}, {int(op.relu)});"
            ]
        if isinstance(op, Concat):
            self.activations.files.add("bit_copy.c")
            return [
                f"bit_copy_channels(&{label}_layer[{i}], {self._source(name)}, {target}, &buffers);"
                for i, name in enumerate(layer.reads[0])
            ]
        function = FUNCTIONS[type(op)]
        if layer.coding:
            function = "bit_compact_dense"
        elif isinstance(op, (Linear, Conv2d)) and columns_of_layer(op) is None:
            function = "bit_grouped_conv2d"
        elif layer.rows:
            function = "bit_conv2d_rows"
        self.activations.files.add(f"{function}.c")
        arguments = f"&{label}_layer, {self._source(layer.source)}, {target}"
        if not layer.rows:
            arguments += ", &buffers"
        if layer.scratch:
            arguments += f", (uint32_t *)(void *){self._arena(f'scratch of {layer.target}')}"
        return [f"{function}({arguments});"]

    # ---- places ------------------------------------------------------------------------------------------------------

    def _label(self, layer: Layer) -> str:
        return self.constants.labels[layer.nodes[0].name]

    def _arena(self, name: str) -> str:
        offset = self.plan.offset(name)
        return f"(arena + {offset})" if offset else "arena"

    def _source(self, name: str) -> str:
        return "buffers.input" if name == "input" else self._arena(name).strip("()")

    def _target(self, layer: Layer) -> str:
        return "(uint8_t *)output" if self.plan.gives_scores(layer) else self._arena(layer.target).strip("()")

    def _stored(self, layer: Layer) -> str:
        return "BIT_INT32" if self.plan.gives_scores(layer) else _TYPES[layer.type.storage]

    def _flip(self, layer: Layer) -> int:
        return 128 if self.plan.types[layer.source].storage == "int8" else 0

    # ---- descriptions ------------------------------------------------------------------------------------------------

    def _weights(self, layer: Layer, levels: Ints, op: Linear | Conv2d, function: str = "") -> Fields:
        """Packs levels ``[outputs, taps, inputs]``."""
        fmt, label, columns = get_format(op.format), self._label(layer), columns_of_layer(op)
        assert columns is not None
        function = function or columns.function
        self.activations.files.add(f"{function}.c")
        words, numbers = pack_columns(levels, fmt, layer.block)
        # Where one array is empty, the other one: C adds nothing to a null pointer, not even 0.
        word, byte = f"(const uint32_t *)(const void *){label}_weight_bytes", f"(const uint8_t *){label}_weight"
        if words:
            word = self.constants.add(f"{label}_weight", words, "uint32_t")
        if numbers:
            byte = self.constants.add(f"{label}_weight_bytes", numbers, "uint8_t")
        return {
            "columns": function,
            "codes": f"{{{word}, {byte}}}",
            "low": fmt.low if fmt.affine else 0,
            "step": fmt.step,
            "outputs": len(levels),
            "block": layer.block,
        }

    def _levels_in_memory_order(self, layer: Layer, op: Linear) -> Ints:
        order = self.activations.orders[layer.nodes[0].inputs[0]]
        return op.levels if order is None else op.levels[:, order]

    def _dense(self, layer: Layer, op: Linear) -> Fields:
        source = self.plan.types[layer.source]
        levels = self._levels_in_memory_order(layer, op)
        return {
            "weights": self._weights(layer, levels[:, None, :], op),
            "activate": f"{self._label(layer)}_value",
            "inputs": source.size,
            "flip": self._flip(layer),
            "result": self._stored(layer),
        }

    def _compact_dense(self, layer: Layer, op: Linear) -> str:
        """The description of a compact dense layer, behind the function of its results where it needs one."""
        label = self._label(layer)
        levels = self._levels_in_memory_order(layer, op)
        fields, arrays, files = weights_of(op, levels, layer.coding, layer.block)
        self.activations.files.update(files)
        scale, text = Scale.of(layer.nodes), ""
        if scale is None:
            text = self.activations.function(layer) + "\n"
            fields["activate"] = f"{label}_value"
        else:
            arrays |= scale.arrays()
            fields |= scale.fields()
        names = {what: self.constants.add(f"{label}_{what}", *array) for what, array in arrays.items()}
        names["codes"] = names.pop("weight")
        every = {**fields, **names, "flip": self._flip(layer), "result": self._stored(layer)}
        return text + _struct("BitCompactDense", f"{label}_layer", every)

    def _conv(self, layer: Layer, op: Conv2d) -> Fields:
        source = self.plan.types[layer.source]
        pairs, function = start_of(source, op.levels) == 0, ""
        if _has_ternary_rows(source, op):  # a row of three weights is one of one pixel with more channels
            levels = op.levels.transpose(0, 1, 3, 2).reshape(len(op.levels), -1, op.levels.shape[2], 1)
            op, function = replace(op, levels=levels, padding=(op.padding[0], 0)), "bit_columns_ternary3"
        window, result = self._window(source, op, layer.nodes[0].type), layer.type.shape
        levels = op.levels.reshape(*op.levels.shape[:2], -1).transpose(0, 2, 1)
        pool = layer.pool.op if layer.pool is not None else None
        kernel, stride = (pool.kernel, pool.stride) if isinstance(pool, MaxPool2d) else ((1, 1), (1, 1))
        pixel = source.shape[0] * source.item_bytes
        step = [a * b for a, b in zip(op.stride, stride, strict=True)]
        return {
            "weights": self._weights(layer, levels, op, function),
            **self._finish(layer),
            "window": window,
            "flip": self._flip(layer),
            "result": self._stored(layer),
            "pairs": int(pairs),
            "pooled": int(pool is not None),
            "rising": int(pool is not None and all(_rises(node.op) for node in layer.nodes[1:])),
            "pool_height": kernel[0],
            "pool_width": kernel[1],
            "height": result[1],
            "width": result[2],
            "step_height": step[0],
            "step_width": step[1],
            "step_row": step[0] * source.shape[2] * pixel,
            "step_pixel": step[1] * pixel,
        }

    def _finish(self, layer: Layer) -> Fields:
        """What makes results of a convolution's sums: a bias and a shift where that is all, a function elsewhere."""
        label, source = self._label(layer), self.plan.types[layer.source]
        if self.plan.gives_scores(layer) or not has_bias_and_shift(layer.nodes, source):
            self.activations.files.add("bit_finish_value.c")
            return {"finish": "bit_finish_value", "activate": f"{label}_value"}
        self.activations.files.add("bit_finish_shift.c")
        return {"finish": "bit_finish_shift", **self._bias_and_shift(layer)}

    def _bias_and_shift(self, layer: Layer, start: int = 0) -> Fields:
        label, source = self._label(layer), self.plan.types[layer.source]
        found = channels_of(layer.nodes, source, final=False)
        assert found is not None
        return {
            "bias": self.constants.add(f"{label}_bias", (found.offset - start).tolist(), "int16_t"),
            "shift": self.constants.add(f"{label}_shift", found.shift.tolist(), "uint8_t"),
            "high": found.high,
        }

    def _rows(self, layer: Layer, op: Conv2d) -> Fields:
        source = self.plan.types[layer.source]
        channels, height, width = source.shape
        start = start_of(source, op.levels) or 0
        fmt, bytewise = get_format(op.format), layer.rows == BYTES
        codes = pack_weights(op.levels, fmt, layer.block, layer.rows)
        add = "bit_rows_bytes" if bytewise else "bit_rows_packed"
        self.activations.files.add(f"{add}.c")
        return {
            "add": add,
            "codes": self.constants.add(f"{self._label(layer)}_weight", codes, "uint8_t" if bytewise else "uint16_t"),
            "code_bytes": 3 if bytewise else 2,
            "start": start + (start << 16) & 0xFFFFFFFF,
            **self._bias_and_shift(layer, start),
            "channels": channels,
            "outputs": len(op.levels),
            "block": layer.block,
            "height": height,
            "width": width,
            **tables_of(fmt),
            "flip": self._flip(layer),
            "pooled": int(layer.pool is not None),
        }

    def _window(self, source: IntTensor, op: Conv2d | MaxPool2d | SumPool2d, result: IntTensor) -> Fields:
        channels, height, width = source.shape
        pixel = channels * source.item_bytes
        row = width * pixel
        kernel = op.levels.shape[2:] if isinstance(op, Conv2d) else op.kernel
        dilation = op.dilation if isinstance(op, Conv2d) else (1, 1)
        return {
            "height": height,
            "width": width,
            "channels": channels,
            "kernel_height": kernel[0],
            "kernel_width": kernel[1],
            "padding_height": op.padding[0],
            "padding_width": op.padding[1],
            "stride_height": op.stride[0],
            "stride_width": op.stride[1],
            "dilation_height": dilation[0],
            "dilation_width": dilation[1],
            "first": -op.padding[0] * row - op.padding[1] * pixel,
            "stride_row": op.stride[0] * row,
            "stride_pixel": op.stride[1] * pixel,
            "dilated_row": dilation[0] * row,
            "dilated_pixel": dilation[1] * pixel,
            "result_height": result.shape[1],
            "result_width": result.shape[2],
        }

    def _grouped(self, layer: Layer, op: Linear | Conv2d) -> Fields:
        """Weights as they are: of groups, or of a format that is not taken in columns."""
        source, result = self.plan.types[layer.source], layer.nodes[0].type
        if isinstance(op, Linear):  # a convolution of a map of one pixel
            pixel = self._levels_in_memory_order(layer, op)[:, :, None, None]
            op = Conv2d(pixel, op.format, op.bias, (1, 1), (0, 0), (1, 1), 1)
            source, result = replace(source, shape=(source.size, 1, 1)), replace(result, shape=(result.size, 1, 1))
        levels = op.levels.transpose(0, 2, 3, 1).ravel()
        wide = levels.min() < -128 or levels.max() > 127
        name = self.constants.add(f"{self._label(layer)}_weight", levels.tolist(), "int16_t" if wide else "int8_t")
        return {
            "levels": name,
            "activate": f"{self._label(layer)}_value",
            "window": self._window(source, op, result),
            "groups": op.groups,
            "inputs": op.levels.shape[1],
            "outputs": len(op.levels) // op.groups,
            "wide": int(wide),
            "source": _TYPES[source.storage],
            "result": self._stored(layer),
        }

    def _pool(self, layer: Layer, op: MaxPool2d | SumPool2d) -> Fields:
        source = self.plan.types[layer.source]
        return {
            "activate": f"{self._label(layer)}_value",
            "window": self._window(source, op, layer.nodes[0].type),
            "source": _TYPES[source.storage],
            "result": self._stored(layer),
        }

    def _map(self, layer: Layer) -> Fields:
        source, shape = self.plan.types[layer.source], layer.type.shape
        return {
            "activate": f"{self._label(layer)}_value",
            "pixels": int(np.prod(shape[1:])),
            "channels": shape[0],
            "source": _TYPES[source.storage],
            "result": self._stored(layer),
        }

    def _copies(self, layer: Layer) -> str:
        """The descriptions of a concatenation: one copy for each operand."""
        shape, label = layer.type.shape, self._label(layer)
        pixels, first = int(np.prod(shape[1:])), 0
        rows = ""
        for name in layer.reads[0]:
            source = self.plan.types[name]
            channels = source.size // pixels
            values = [f"{label}_value", pixels, channels, first, shape[0], _TYPES[source.storage], self._stored(layer)]
            rows += f"    {{{', '.join(map(str, values))}}},\n"
            first += channels
        return f"static const BitCopy {label}_layer[{len(layer.reads[0])}] = {{\n{rows}}};\n"

    def reorder(self) -> tuple[str, str]:
        """Returns the constant and the statement that bring the last result into the order of the outputs."""
        order, last = self.plan.output_order, self.plan.layers[-1]
        if order is None:
            return "", ""
        name = self.constants.add("output_order", order.tolist())
        constant = self.constants.arrays[-1]
        value = (
            f"bit_load({self._arena(last.target)}, BIT_FLASH{constant.bits}(&{name}[i]), {_TYPES[last.type.storage]})"
        )
        loop = f"    for (uint32_t i = 0; i < {len(order)}; i++) {{\n        output[i] = {value};\n    }}\n"
        return constant.declaration() + "\n", loop


def _rises(op: Op) -> bool:
    """Whether a function of single values never falls."""
    if isinstance(op, Requantize):
        return bool((op.multiplier >= 0).all())
    return isinstance(op, Threshold) and bool((op.sign > 0).all())


def _has_ternary_rows(source: IntTensor, op: Conv2d) -> bool:
    """Whether bit_columns_ternary3 runs a convolution."""
    sideways = op.levels.shape[3], op.padding[1], op.stride[1], op.dilation[1]
    columns = columns_of_layer(op)
    ternary = columns is not None and columns.function == "bit_columns_ternary"
    return ternary and sideways == (3, 1, 1, 1) and source.low == 0


def _struct(kind: str, name: str, fields: Fields) -> str:
    """Returns the definition of a constant structure, a named field a line."""

    def body(values: Fields, indent: str) -> str:
        lines = ""
        for key, value in values.items():
            text = str(value)
            if isinstance(value, dict):
                text = f"\n{indent}    {{\n{body(value, indent + ' ' * 8)}{indent}    }}"
            lines += f"{indent}.{key} ={' ' if text[0] != chr(10) else ''}{text},\n"
        return lines

    return f"static const {kind} {name} = {{\n{body(fields, '    ')}}};\n"
