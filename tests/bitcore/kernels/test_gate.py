"""The gate: no call of anything native crashes or gives another value, whatever its arguments are."""

from __future__ import annotations

import ast
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import native_calls
import native_programs
from bitcore import BitLabError, BitQuantConfig
from bitcore.engine import Engine
from bitcore.engine.program import PROBLEMS, CPost, CStep, PostKind, StepKind
from bitcore.formats import FORMATS
from bitcore.kernels import machine
from bitcore.kernels.native import library
from bitcore.quantizers import QTensor
from bitlayers import BitConv2d, BitLinear, pack, quantize
from bitlayers.places import CONVERSIONS
from graphs import random_graph

pytestmark = pytest.mark.skipif(not hasattr(library(), "bit_engine_run"), reason="needs the native vector kernels")
ROOT = Path(__file__).parents[3]
CONFIG = BitQuantConfig("int4", weight_granularity="per_channel", activation_dtype="int8")
every_kind = pytest.mark.parametrize("kind", native_calls.LAYERS, ids=lambda kind: kind.__name__)


def packed(kind: Any, config: BitQuantConfig = CONFIG) -> nn.Module:
    layer = kind(*native_calls.LAYERS[kind][0], quant_config=config)
    layer.pack()
    return layer


def test_every_operator_and_every_kind_of_layer_is_called():
    ours = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("bitcore::")}
    only_raises = {"bitcore::no_gradient"}
    assert {f"bitcore::{name}" for name in native_calls.OPERATORS} == ours - only_raises
    assert set(CONVERSIONS.values()) == set(native_calls.LAYERS)


def test_random_calls_are_right_or_refused():
    complaints, refused = native_calls.calls(1000, seed=0)
    assert not complaints
    assert 300 < refused < 700


def test_random_lies_in_programs_are_refused_or_harmless():
    assert native_programs.lies(300, seed=0).startswith("300 lies")


@pytest.mark.slow
def test_a_hundred_thousand_calls_under_address_sanitizer(tmp_path: Path, require_tool: Callable[[str, str], str]):
    cmake, compiler = require_tool("cmake", "cmake"), require_tool("gcc", "gcc")
    options = [f"-DCMAKE_C_COMPILER={compiler}", "-DCMAKE_BUILD_TYPE=Release", "-DBITLAB_SANITIZE=address"]
    subprocess.run([cmake, "-S", ROOT, "-B", tmp_path / "_native", *options], check=True, capture_output=True)
    subprocess.run([cmake, "--build", tmp_path / "_native", "-j2"], check=True, capture_output=True)
    # The second, too, before torch loads it: the sanitizer looks once for the function that throws exceptions.
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip() for name in names]
    limits = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096"
    environment = {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": limits}
    command = [sys.executable, ROOT / "tests" / "native_calls.py", "100000", "1", tmp_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    assert "\n0 complaints" in f"\n{result.stdout}", result.stdout
    assert str(tmp_path) in result.stdout


# ---- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(activation_dtype="nf4"), BitQuantConfig()], ids=str)
@pytest.mark.parametrize("channels", [1, 7, 9, 512])
def test_a_convolution_takes_its_own_channels_and_no_others(channels: int, config: BitQuantConfig):
    layer = packed(BitConv2d, config)
    with pytest.raises((BitLabError, RuntimeError), match="channels|x must be"):
        layer(torch.randn(1, channels, 9, 9))


def test_a_wide_convolution_does_not_read_beyond_a_narrow_image():
    model = pack(quantize(nn.Sequential(nn.Conv2d(512, 8, 3)), "bitnet"))
    with pytest.raises((BitLabError, RuntimeError), match="channels|x must be"):
        model(torch.randn(1, 1, 64, 64))


@every_kind
def test_layers_refuse_an_input_that_is_elsewhere(kind: type[nn.Module]):
    layer, (_, shape) = packed(kind), native_calls.LAYERS[kind]
    with pytest.raises(BitLabError, match="the layer is on cpu, its input on meta"):
        layer(torch.zeros(shape, device="meta"))


@every_kind
def test_layers_on_meta_give_shapes(kind: type[nn.Module]):
    layer, (_, shape) = packed(kind), native_calls.LAYERS[kind]
    x = torch.zeros(shape, dtype=torch.int64 if CONVERSIONS[nn.Embedding] is kind else torch.float32)
    expected = layer(x)
    y = layer.to("meta")(x.to("meta"))
    assert y.is_meta and y.shape == expected.shape and y.dtype == expected.dtype


@every_kind
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64], ids=str)
def test_layers_refuse_numbers_that_are_not_real(kind: type[nn.Module], dtype: torch.dtype):
    layer, (_, shape) = packed(kind), native_calls.LAYERS[kind]
    if CONVERSIONS[nn.Embedding] is kind:
        pytest.skip("its input are integers")
    with pytest.raises(BitLabError, match=f"floating-point inputs, not {dtype}"):
        layer(torch.ones(shape, dtype=dtype))


def test_values_without_a_dimension_are_refused():
    with pytest.raises(BitLabError, match="takes 20 features"):
        packed(BitLinear)(torch.tensor(1.0))


@torch.no_grad()
def test_a_negated_view_counts_as_what_it_shows():
    """Its memory holds the other sign."""
    for kind in (BitLinear, BitConv2d):
        layer, x = packed(kind), torch.randn(native_calls.LAYERS[kind][1])
        negated = torch._neg_view(x)  # pyright: ignore[reportPrivateImportUsage]
        assert torch.equal(layer(negated), layer(-x))


# ---- operators ----------------------------------------------------------------------------------------------------


def weight_of(name: str, outputs: int, inputs: int, level: int) -> Tensor:
    levels = torch.full((outputs, inputs), level)
    return machine.prepare(QTensor(levels.float(), torch.ones(()), FORMATS[name]).pack())


def test_a_weight_whose_header_lies_is_refused():
    """Whatever word of it is another, beside the values' own."""
    weight, x = weight_of("int4", 70, 33, 3), torch.ones(2, 33, dtype=torch.int8)
    expected = torch.ops.bitcore.linear_simd(x, weight, 70)
    words = weight[:120].view(torch.int32)
    for i in range(16):  # magic, layout, sizes, offsets
        for lie in (0, -1, 1, 2**30, int(words[i]) + 1):
            broken = weight.clone()
            broken[:120].view(torch.int32)[i] = lie
            if torch.equal(broken, weight):
                continue
            with pytest.raises(BitLabError, match="no weight of this shape"):
                torch.ops.bitcore.linear_simd(x, broken, 70)
    for broken in (weight[:-1], weight[:100], weight[:0], torch.cat([weight, weight[:1]])):
        for call in (
            lambda w: torch.ops.bitcore.linear_simd(x, w, 70),
            lambda w: torch.ops.bitcore.linear_real(x.float(), w, "int4", 70),
            lambda w: torch.ops.bitcore.decode(w, "int4", 70, 33),
            lambda w: machine.unprepare(w, FORMATS["int4"], (70, 33)),
        ):
            with pytest.raises(BitLabError, match="no weight of this shape"):
                call(broken)
    assert torch.equal(torch.ops.bitcore.linear_simd(x, weight, 70), expected)


def test_no_address_outlives_its_tensor():
    """Whose address is taken has a name: of a value between two calls, Python frees the memory before the second."""
    for path in (*(ROOT / "src/bitcore/kernels").glob("*.py"), *(ROOT / "src/bitcore/engine").glob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name == "data_ptr":
                assert isinstance(call.func, ast.Attribute)
                tensor = call.func.value
            elif name in ("address", "memory_of", "program") and call.args:
                tensor = call.args[0]
            else:
                continue
            assert not isinstance(tensor, ast.Call), f"{path.name}:{call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("operator", ["linear_simd", "linear_real", "decode", "conv2d_packed"])
def test_weights_with_gaps_are_right(operator: str):
    """Every second byte of memory: what the kernel reads is a copy."""
    x, weight, rest = torch.ones(2, 33), weight_of("int4", 70, 33, 3), ("int4", 70)
    if operator == "conv2d_packed":
        layer = packed(BitConv2d)
        assert isinstance(layer, BitConv2d) and layer.tiles is not None and layer._geometry is not None
        x, weight, rest = torch.ones(1, 8, 9, 7).to(torch.int8), layer.tiles, ("int4", "int8", *layer._geometry)
    elif operator == "linear_simd":
        x, rest = x.to(torch.int8), (70,)
    arguments = (weight, "int4", 70, 33) if operator == "decode" else (x, weight, *rest)
    spaced = torch.stack([weight, weight], 1)[:, 0]
    call = getattr(torch.ops.bitcore, operator)
    assert torch.equal(call(*(spaced if a is weight else a for a in arguments)), call(*arguments))


def test_memory_that_was_freed_is_refused():
    x, weight = torch.ones(2, 33), weight_of("int4", 70, 33, 3)
    x.untyped_storage().resize_(0)
    with pytest.raises(BitLabError, match="no values in this machine's memory"):
        torch.ops.bitcore.linear_real(x, weight, "int4", 70)
    weight.untyped_storage().resize_(0)
    with pytest.raises(BitLabError, match="has no memory"):
        torch.ops.bitcore.decode(weight, "int4", 70, 33)


@pytest.mark.parametrize("operator", ["linear_simd", "linear_portable", "linear_torch"])
def test_sums_beyond_int32_are_refused_and_large_ones_right(operator: str):
    """The same number of inputs fits where the values are smaller."""
    inputs, top = 140_000, FORMATS["8bit"].low
    packed_weight = QTensor(torch.full((1, inputs), float(top)), torch.ones(()), FORMATS["8bit"]).pack()
    simd = operator == "linear_simd"
    arguments = (machine.prepare(packed_weight), 1) if simd else (packed_weight.data, "8bit")
    call = getattr(torch.ops.bitcore, operator)
    with pytest.raises(BitLabError, match="leave int32"):
        call(torch.full((1, inputs), -128, dtype=torch.int8), *arguments)
    assert call(torch.full((1, inputs), -119, dtype=torch.int8), *arguments).item() == inputs * 119 * 128


def test_tiles_of_another_convolution_are_refused():
    layer = packed(BitConv2d)
    assert isinstance(layer, BitConv2d) and layer.tiles is not None and layer._geometry is not None
    x, g = torch.ones(1, 8, 9, 7, dtype=torch.int8), layer._geometry
    assert torch.ops.bitcore.conv2d_packed(x, layer.tiles, "int4", "int8", *g).shape == (1, 20, 7, 5)
    for formats, other in (
        (("4bitsym", "int8"), g),
        (("int4", "uint8"), g),
        (("int4", "int8"), g._replace(padding=(1, 1))),
    ):
        with pytest.raises(BitLabError, match="made for another convolution"):
            torch.ops.bitcore.conv2d_packed(x, layer.tiles, *formats, *other)


# ---- programs -----------------------------------------------------------------------------------------------------


def test_a_program_that_lies_is_refused_by_step():
    engine = Engine(random_graph(np.random.default_rng(0), ["conv2d"], (4, 8, 8), "int8", ["ternary"], "linear"))
    steps: Any = engine._program.steps
    index = next(i for i, step in enumerate(engine.steps) if step["kind"] in ("product", "depthwise"))
    for name, value, problem in (
        ("source", 99, "reads what no step"),
        ("height", 1000, "kernel, stride"),
        ("block_count", 0, "blocks of channels"),
        ("constant_count", 0, "weights are shorter"),
        ("kind", 10, "no such step"),
    ):
        was = getattr(steps[index], name)
        setattr(steps[index], name, value)
        with pytest.raises(BitLabError, match=rf"step {index} \(\w+\): .*{problem}"):
            engine._verify(engine._native)  # type: ignore[arg-type]
        setattr(steps[index], name, was)
    engine._verify(engine._native)  # type: ignore[arg-type]


def test_steps_of_another_kind_are_refused_or_harmless():
    """The kind decides which arrays are read; those of another kind may not be there."""
    for seed in range(6):
        engine = Engine(random_graph(np.random.default_rng(seed)))
        for record in native_programs.records(engine):
            if not isinstance(record, CStep | CPost):
                continue
            was, kinds = record.kind, StepKind if isinstance(record, CStep) else PostKind
            for kind in kinds:
                record.kind = kind
                if native_programs.verdict(engine) == 0:
                    native_programs.run(engine)
            record.kind = was
            assert native_programs.verdict(engine) == 0


def test_every_problem_has_words():
    header = (ROOT / "src/bitcore/kernels/csrc/simd/bit_engine.h").read_text()
    problems = header.split("enum bit_problem {")[1].split("}")[0]
    assert problems.count("BIT_") == len(PROBLEMS)


def test_a_number_beyond_its_field_is_refused_not_cut():
    for name, value in (("height", 2**31), ("units", 2**63), ("kernel", (1, 2**31))):
        with pytest.raises((BitLabError, OverflowError), match="beyond|large"):
            setattr(CStep(), name, value)
    assert ctypes.c_int32(2**32 + 1).value == 1  # what ctypes does
