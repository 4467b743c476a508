"""The vector kernels as layers use them: every instruction set, whole layers, threads, memory, what goes wrong."""

from __future__ import annotations

import copy
import io
import os
import platform
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bitcore import BitLabError, BitQuantConfig
from bitcore.formats import FORMATS
from bitcore.kernels import KernelRegistry, machine
from bitcore.kernels.native import ISA_VARIABLE, built_sets, usable_sets
from bitcore.kernels.simd import quantizes
from bitcore.quantizers import QTensor
from bitlayers import BitLinear
from threads import results_in_threads

SETS = built_sets()
every_set = pytest.mark.parametrize("isa", SETS)
# One way of each kind to scale activations.
SCALES = [
    {"activation_granularity": "per_token"},
    {"activation_granularity": "per_tensor"},
    {"activation_granularity": "per_token", "activation_scale_pow2": True},
    {"activation_scale": "tracked"},
]


@pytest.fixture
def forced(isa: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if isa not in usable_sets():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv(ISA_VARIABLE, isa)
    return isa


def layer_of(weight: str, activation: str, inputs: int = 100, outputs: int = 70, **options: object) -> BitLinear:
    granularity = {"weight_granularity": "per_channel", "activation_dtype": activation, **options}
    layer = BitLinear(inputs, outputs, quant_config=BitQuantConfig(weight_format=weight, **granularity))  # type: ignore[arg-type]
    layer.train()(torch.randn(4, inputs))
    return layer.eval()


@torch.no_grad()
def same_bits(layer: BitLinear, *inputs: Tensor) -> None:
    """Packed, the layer gives what torch gives; NaN is NaN."""
    expected = [layer(x) for x in inputs]
    layer.pack()
    assert layer.machine_weight is not None and layer._fused is not None
    for x, y in zip(inputs, expected, strict=True):
        result = layer(x)
        assert result.dtype == y.dtype and result.shape == y.shape
        assert torch.equal(result.nan_to_num(12345.0), y.nan_to_num(12345.0))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("weight", FORMATS)
@every_set
def test_whole_layers_of_every_weight_format(weight: str):
    for rows in (1, 3, 9):
        same_bits(layer_of(weight, "int8", **SCALES[rows % 4]), torch.randn(rows, 100))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("activation", [name for name, fmt in FORMATS.items() if quantizes(fmt)])
@every_set
def test_whole_layers_of_every_activation_format(activation: str):
    ties = torch.arange(-300, 300).reshape(6, 100) * 0.5
    zeros, tiny = torch.zeros(2, 100), torch.full((1, 100), -1e-44)
    broken = torch.randn(4, 100)
    broken[0, 3], broken[1, 5], broken[2, 7] = torch.nan, torch.inf, -torch.inf
    for options in SCALES:
        for weight in ("ternary", "binary"):
            same_bits(layer_of(weight, activation, **options), ties, zeros, tiny, broken, torch.randn(2, 3, 100))


@pytest.mark.usefixtures("forced")
@every_set
def test_strided_empty_and_half_inputs(isa: str):
    x = torch.randn(8, 200)
    same_bits(layer_of("ternary", "int8"), x[:, ::2], x[:0, :100], x[::3, 50:150], x[0, :100], x[:, :100].half())


@every_set
def test_the_operators_are_sound(isa: str):
    layer = layer_of("ternary", "int8")
    layer.pack()
    bias, x = layer.bias, torch.randn(3, 100)
    assert bias is not None
    arguments = (x, layer.machine_weight, 70, "int8", False, None, layer.weight_scale, bias.detach(), False)
    torch.library.opcheck(torch.ops.bitcore.linear_simd_float.default, arguments)


def test_threads_give_the_same_bits():
    layer, x = layer_of("int4", "int8", 300, 500), torch.randn(20, 300)
    layer.pack()
    expected = layer(x)
    assert all(torch.equal(y, expected) for y in results_in_threads(layer, x, 50))


def test_next_to_operators_of_torch_the_bits_are_the_same():
    """Whether its threads take part, or those of the pool."""
    layer, x, threads = layer_of("int4", "int8", 300, 500), torch.randn(20, 300), torch.get_num_threads()
    layer.pack()
    expected = layer(x)
    torch.set_num_threads(2)
    try:
        for _ in range(50):
            torch.ones(2**17).relu()
            assert torch.equal(layer(x), expected) and torch.equal(layer(x), expected)
    finally:
        torch.set_num_threads(threads)


CORES = """
import os, time, torch
from bitcore import BitQuantConfig
from bitcore.kernels import simd
from bitlayers import BitLinear

simd._SPLIT = 0  # small jobs are split, too
layer = BitLinear(100, 500, quant_config=BitQuantConfig(activation_dtype="int8"))
layer.pack()
cores, x = os.sched_getaffinity(0), torch.randn(2, 100)
first = min(cores)
torch.set_num_threads(2)
for _ in range(300):
    os.sched_setaffinity(0, {first})  # and whatever thread it starts
    layer(x)
    time.sleep(0.02)  # the pool's thread falls asleep there, on a loaded machine, too
    os.sched_setaffinity(0, cores)
    layer(x)
    allowed = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
    if cores - {first} in allowed:
        print("moved")
        break
"""


def test_a_thread_that_sleeps_on_the_callers_core_wakes_up_on_another():
    if platform.libc_ver()[0] != "glibc" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this needs two cores, and glibc")
    result = subprocess.run([sys.executable, "-c", CORES], capture_output=True, text=True, check=True)
    assert result.stdout == "moved\n"


@pytest.mark.parametrize("isa", ["portable", *SETS])
def test_an_instruction_set_is_forced(isa: str, monkeypatch: pytest.MonkeyPatch):
    if isa != "portable" and isa not in usable_sets():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv(ISA_VARIABLE, isa)
    kernel = KernelRegistry.find("linear", "ternary", "int8", "cpu")
    assert kernel.isa == ("" if isa == "portable" else isa) and kernel.has_cpp_backend


def test_an_instruction_set_that_is_missing_gives_one_warning(monkeypatch: pytest.MonkeyPatch):
    best = KernelRegistry.find("linear", "ternary", "int8", "cpu")
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.warns(RuntimeWarning, match="sse9: this machine has no such kernels") as warned:
        assert KernelRegistry.find("linear", "ternary", "int8", "cpu") is best
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KernelRegistry.find("linear", "nf4", "int8", "cpu").isa == best.isa


def test_ternary_weights_in_dram_take_less(monkeypatch: pytest.MonkeyPatch):
    if "avx512" not in usable_sets():
        pytest.skip("the other kernels are faster on 2 bits")
    sizes = {}
    for cache in (2**30, 0):
        monkeypatch.setattr(machine, "last_level_cache", lambda cache=cache: cache)
        layer = BitLinear(1600, 960, bias=False, quant_config=BitQuantConfig(activation_dtype="int8")).eval()
        same_bits(layer, torch.randn(1, 1600), torch.randn(40, 1600))
        assert layer.machine_weight is not None
        sizes[cache] = 8 * layer.machine_weight.numel() / layer.weight_shape[0] / layer.weight_shape[1]
    assert sizes[2**30] == pytest.approx(2, abs=0.1) and sizes[0] == pytest.approx(1.6, abs=0.05)


@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_come_back(name: str):
    fmt = FORMATS[name]
    for outputs, inputs in ((1, 1), (70, 33), (130, 0), (3, 100), (66, 513)):
        levels = torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), (outputs, inputs))]
        packed = QTensor(levels.float(), torch.ones(()), fmt).pack()
        for signs, dense in ((False, False), (True, False), (False, True)):
            prepared = machine.prepare(packed, signs, dense)
            assert torch.equal(machine.unprepare(prepared, fmt, packed.shape), packed.data)
            assert torch.equal(machine.levels(prepared, fmt, (outputs, inputs)), levels.float())


@torch.no_grad()
def test_a_layer_copies_moves_and_pickles():
    layer, x = layer_of("ternary", "int8"), torch.randn(3, 100)
    layer.pack()
    expected = layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert "machine_weight" not in layer.state_dict()
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False), copy.deepcopy(layer).float()):
        assert other.machine_weight is not None and torch.equal(other(x), expected)
    assert copy.deepcopy(layer).to("meta").machine_weight is None
    layer.bias = torch.nn.Parameter(torch.zeros(70))
    other = layer_of("ternary", "int8")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), expected)


@torch.no_grad()
def test_what_watches_operators_sees_them():
    layer, x = layer_of("ternary", "int8"), torch.randn(3, 100)
    layer.pack()
    traced = make_fx(layer)(x)
    assert "linear_simd_float" in str(traced.graph)
    assert torch.equal(traced(x), layer(x))


def test_wrong_weights_are_refused():
    layer = layer_of("ternary", "int8")
    layer.pack()
    assert layer.machine_weight is not None
    x = torch.zeros(2, 100, dtype=torch.int8)
    broken = layer.machine_weight.clone()
    broken[0] ^= 1
    for weight, outputs in ((layer.machine_weight, 71), (broken, 70)):
        with pytest.raises(BitLabError, match="no weight of this shape"):
            torch.ops.bitcore.linear_simd(x, weight, outputs)
    with pytest.raises(BitLabError, match="int8 or uint8"):
        torch.ops.bitcore.linear_simd(x.float(), layer.machine_weight, 70)
    with pytest.raises(BitLabError, match="no sse9 kernels"):
        torch.ops.bitcore.linear_simd(x, layer.machine_weight, 70, "sse9")
    with pytest.raises(BitLabError, match="takes 100 features"):
        layer(torch.zeros(2, 99))


MEMORY = """
import torch
from bitcore import BitQuantConfig
from bitlayers import BitLinear

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

torch.set_num_threads(1)
config = BitQuantConfig(activation_dtype="int8", activation_granularity="per_token")
x = torch.randn(1, 4096)
def build():
    layer = BitLinear(4096, 4096, bias=False, quant_config=config)
    layer.pack()
    layer(x)
    return layer
kept = build()  # what the libraries take once is not the layer's
before = resident()
layers = [build() for _ in range(4)]
print((resident() - before) / len(layers))
"""


def test_a_packed_layer_holds_its_weights_once():
    """4096 × 4096 ternary weights: 4.19 MB at 2 bits, in all that is resident; float32 would take 67."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the resident set is read from /proc")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert 3e6 < float(result.stdout) <= 4.3e6
