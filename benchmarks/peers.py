"""onnxruntime's int8 networks, as rivals: models built with onnx's helpers, run on a given number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_OPSET = helper.make_opsetid("", 17)


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Returns a session with all of onnxruntime's graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runner(model: onnx.ModelProto, x: np.ndarray, threads: int) -> Callable[[], Any]:
    """Returns a function that runs the model on ``x``."""
    run = session(model, threads)
    name = run.get_inputs()[0].name
    return lambda: run.run(None, {name: x})


def quantized_convolutions(channels: int, size: int, count: int) -> onnx.ModelProto:
    """``count`` 3×3 QLinearConv one behind the other: uint8 activations, int8 weights with a scale per channel."""
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.02),
        "z": np.uint8(0),
        "ws": np.full(channels, 0.01, np.float32),
        "wz": np.zeros(channels, np.int8),
        "b": np.zeros(channels, np.int32),
    }
    nodes = []
    for i in range(count):
        constants[f"w{i}"] = rng.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8)
        inputs = [f"x{i}", "s", "z", f"w{i}", "ws", "wz", "s", "z", "b"]
        nodes.append(helper.make_node("QLinearConv", inputs, [f"x{i + 1}"], pads=[1] * 4, kernel_shape=[3, 3]))
    shape = [1, channels, size, size]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, shape) for i in (0, count)]
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[_OPSET], ir_version=8)


class _Qdq:
    """A network under construction, every activation and weight quantized: QuantizeLinear, DequantizeLinear pairs."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def quantized(self, x: str, scale: float = 0.02) -> str:
        pair = [self.constant(np.array(scale, np.float32)), self.constant(np.array(0, np.uint8))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, *pair]), *pair])

    def weight(self, *shape: int) -> tuple[str, str]:
        """A weight (int8, a scale per channel) and a bias (int32)."""
        values = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        scales = np.full(shape[0], 0.3 / np.sqrt(np.prod(shape[1:])) / 127, np.float32)
        scale, zero = self.constant(scales), self.constant(np.zeros(shape[0], np.int8))
        weight = self.node("DequantizeLinear", [values, scale, zero], axis=0)
        pair = [self.constant(scales * np.float32(0.02)), self.constant(np.zeros(shape[0], np.int32))]
        bias = self.node("DequantizeLinear", [self.constant(np.zeros(shape[0], np.int32)), *pair], axis=0)
        return weight, bias

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int, relu: bool) -> str:
        pads = [kernel // 2] * 4
        inputs_ = [x, *self.weight(outputs, inputs, kernel, kernel)]
        y = self.node("Conv", inputs_, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        return self.quantized(self.node("Relu", [y]) if relu else y)


def quantized_resnet18(size: int = 224) -> onnx.ModelProto:
    """ResNet-18 in QDQ form, as quantizers of ONNX models write it: uint8 activations, int8 weights per channel."""
    g = _Qdq()
    x = g.conv(g.quantized("x"), 3, 64, 7, 2, relu=True)
    x = g.quantized(g.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    channels = 64
    for stage in range(4):
        for block in range(2):
            outputs, stride = 64 << stage, 2 if stage and not block else 1
            y = g.conv(x, channels, outputs, 3, stride, relu=True)
            y = g.conv(y, outputs, outputs, 3, 1, relu=False)
            if stride > 1:
                x = g.conv(x, channels, outputs, 1, stride, relu=False)
            x, channels = g.quantized(g.node("Relu", [g.node("Add", [x, y])])), outputs
    x = g.quantized(g.node("GlobalAveragePool", [x]))
    x = g.node("Flatten", [x])
    weight, bias = g.weight(1000, 512)
    y = g.quantized(g.node("Gemm", [x, weight, bias], transB=1))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size]),
        helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 1000]),
    ]
    graph = helper.make_graph(g.nodes, "resnet18", ends[:1], ends[1:], g.tensors)
    return helper.make_model(graph, opset_imports=[_OPSET], ir_version=8)
