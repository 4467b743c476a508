"""What `bitlab bench` compares with: torch, onnxruntime and ggml, each where it is installed.

A rival gives, for ``rows`` inputs and a weight of ``outputs × inputs``, a function that computes one product from
float32 to float32, the quantization of its input included.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch

Run = Callable[[], object]
GGML_VARIABLE = (
    "BITLAB_GGML"  # a folder with libggml-base.so and libggml-cpu.so, where llama-cpp-python is not installed
)


def torch_float(rows: int, outputs: int, inputs: int, threads: int) -> Run:
    """Torch's float32 matrix product."""
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    return lambda: torch.nn.functional.linear(x, weight)


def torch_int8(rows: int, outputs: int, inputs: int, threads: int) -> Run | None:
    """Torch's dynamically quantized int8 product, of oneDNN."""
    if "onednn" not in torch.backends.quantized.supported_engines:
        return None
    torch.backends.quantized.engine = "onednn"
    x = torch.randn(rows, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch means to drop its quantized tensors
        weight = torch.quantize_per_tensor(torch.randn(outputs, inputs), 0.02, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    return lambda: torch.ops.quantized.linear_dynamic(x, packed, False)


def onnx_int8(rows: int, outputs: int, inputs: int, threads: int) -> Run | None:
    """onnxruntime: DynamicQuantizeLinear, MatMulInteger, scale."""
    weight = np.random.default_rng(0).integers(-127, 128, (inputs, outputs), dtype=np.int8)
    nodes = [
        ("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], {}),
        ("MatMulInteger", ["q", "weight", "zero"], ["sums"], {}),
        ("Cast", ["sums"], ["reals"], {"to": 1}),
        ("Mul", ["reals", "scale"], ["y"], {}),
    ]
    return _onnx(nodes, {"weight": weight}, rows, outputs, inputs, threads)


def onnx_bits(bits: int) -> Callable[[int, int, int, int], Run | None]:
    """onnxruntime: MatMulNBits with int8 arithmetic, blocks of 32 weights that share a scale."""

    def rival(rows: int, outputs: int, inputs: int, threads: int) -> Run | None:
        if inputs % 32:
            return None
        draw = np.random.default_rng(0)
        weight = draw.integers(0, 256, (outputs, inputs // 32, 4 * bits), dtype=np.uint8)
        scales = np.ones((outputs, inputs // 32), dtype=np.float32)
        options = {"K": inputs, "N": outputs, "bits": bits, "block_size": 32, "accuracy_level": 4}
        nodes = [("MatMulNBits", ["x", "weight", "scales"], ["y"], {**options, "domain": "com.microsoft"})]
        return _onnx(nodes, {"weight": weight, "scales": scales}, rows, outputs, inputs, threads)

    return rival


def _onnx(
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]],
    weights: dict[str, np.ndarray],
    rows: int,
    outputs: int,
    inputs: int,
    threads: int,
) -> Run | None:
    if util.find_spec("onnxruntime") is None or util.find_spec("onnx") is None:
        return None
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **options) for op, ins, outs, options in nodes],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outputs])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception:  # of onnxruntime's own kinds: this version has no such kernel
        return None
    feed = {"x": np.random.default_rng(1).standard_normal((rows, inputs), dtype=np.float32)}
    return lambda: session.run(None, feed)


def ggml_ternary(rows: int, outputs: int, inputs: int, threads: int) -> Run | None:
    """Ggml's TQ2_0 (2.06 bits a weight), as in llama.cpp; from llama-cpp-python or the folder ``BITLAB_GGML``."""
    folder, found = os.environ.get(GGML_VARIABLE), util.find_spec("llama_cpp")
    if not folder and (found is None or found.origin is None):
        return None
    where = Path(folder) if folder else Path(str(found and found.origin)).parent / "lib"
    if not (where / "libggml-cpu.so").exists() or inputs % 256:
        return None
    base = ctypes.CDLL(str(where / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(where / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
    pointer = ctypes.c_void_p
    for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph", "ggml_get_data"):
        getattr(base, name).restype = pointer
    base.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    base.ggml_mul_mat.argtypes, base.ggml_new_graph.argtypes = [pointer] * 3, [pointer]
    base.ggml_build_forward_expand.argtypes, base.ggml_get_data.argtypes = [pointer] * 2, [pointer]
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]

    class _Parameters(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("buffer", pointer), ("no_alloc", ctypes.c_bool))

    cpu.ggml_cpu_init()
    base.ggml_init.argtypes = [_Parameters]
    memory = 2**30 + 4 * rows * (inputs + outputs)  # each run takes some for its work; pages count when touched
    context = base.ggml_init(_Parameters(memory, None, False))
    tq2_0, f32 = 35, 0
    weight = base.ggml_new_tensor_2d(context, tq2_0, inputs, outputs)
    ctypes.memset(base.ggml_get_data(weight), 0x24, outputs * inputs // 256 * 66)
    x = base.ggml_new_tensor_2d(context, f32, inputs, rows)
    values = np.random.default_rng(0).standard_normal((rows, inputs), dtype=np.float32)
    ctypes.memmove(base.ggml_get_data(x), values.ctypes.data, values.nbytes)
    graph = base.ggml_new_graph(context)
    base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, weight, x))
    return lambda: cpu.ggml_graph_compute_with_ctx(context, graph, threads)


FLOAT, GGML, ONEDNN = "torch float32", "ggml TQ2_0", "torch int8 (oneDNN)"
RIVALS: dict[str, Callable[[int, int, int, int], Run | None]] = {
    FLOAT: torch_float,
    ONEDNN: torch_int8,
    "onnxruntime int8": onnx_int8,
    "onnxruntime 4 bits": onnx_bits(4),
    "onnxruntime 2 bits": onnx_bits(2),
    GGML: ggml_ternary,
}
