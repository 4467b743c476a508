"""Every kernel against plain int64 arithmetic, with ==, for every weight format it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, NumberFormat
from bitcore.kernels import Kernel, KernelRegistry
from bitcore.kernels.native import built_sets
from bitcore.quantizers import PackedTensor, QTensor

# Without those for other families of processors, which the tests of the Arm kernels run.
LINEAR = {  # those of float activations: test_real.py
    kernel.name: kernel
    for kernel in KernelRegistry.all()
    if kernel.op == "linear" and kernel.supports("ternary", "int8", "cpu") and kernel.isa in ("", *built_sets())
}
BYTES = {"int8": (torch.int8, -128, 127), "uint8": (torch.uint8, 0, 255)}
every_kernel = pytest.mark.parametrize("kernel", LINEAR.values(), ids=LINEAR)
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
every_input = pytest.mark.parametrize("activation", BYTES)


@pytest.fixture(autouse=True)
def _runs_here(request: pytest.FixtureRequest) -> None:
    kernel = request.node.callspec.params.get("kernel") if hasattr(request.node, "callspec") else None
    if isinstance(kernel, Kernel) and not kernel.available():
        pytest.skip(f"this machine cannot run {kernel.name}")


def pack(levels: Tensor, fmt: NumberFormat) -> PackedTensor:
    return QTensor(levels.float(), torch.ones(()), fmt).pack()


def random_levels(fmt: NumberFormat, *shape: int) -> Tensor:
    return torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), shape)]


def random_input(activation: str, *shape: int) -> Tensor:
    dtype, low, high = BYTES[activation]
    return torch.randint(low, high + 1, shape, dtype=dtype)


def check(kernel: Kernel, x: Tensor, levels: Tensor, fmt: NumberFormat) -> None:
    """The kernel gives int32 accumulators that equal numpy's int64 products."""
    weight = pack(levels, fmt)
    result = kernel(x, kernel.prepare(weight), weight)
    expected = x.numpy().astype(np.int64) @ levels.numpy().astype(np.int64).T
    assert result.dtype == torch.int32
    assert result.shape == expected.shape
    assert np.array_equal(result.numpy().astype(np.int64), expected)


def takes(kernel: Kernel, fmt: NumberFormat, activation: str) -> bool:
    return kernel.supports(fmt.name, activation, "cpu")


def test_every_registered_kernel_is_tested():
    assert {kernel.op for kernel in KernelRegistry.all()} <= {"linear", "conv2d"}, "write tests for the new operation"


@every_input
@every_format
def test_some_kernel_takes_every_format(fmt: NumberFormat, activation: str):
    assert any(takes(kernel, fmt, activation) and kernel.available() for kernel in LINEAR.values())


@every_input
@every_format
@every_kernel
def test_shapes_with_tails(kernel: Kernel, fmt: NumberFormat, activation: str):
    if not takes(kernel, fmt, activation):
        pytest.skip(f"{kernel.name} does not take {fmt.name}")
    for inputs in (0, 1, 7, 33, 64):
        for rows, outputs in ((0, 5), (1, 5), (3, 5), (3, 1), (3, 0)):
            check(kernel, random_input(activation, rows, inputs), random_levels(fmt, outputs, inputs), fmt)
    check(kernel, random_input(activation, 33), random_levels(fmt, 5, 33), fmt)
    check(kernel, random_input(activation, 2, 3, 33), random_levels(fmt, 5, 33), fmt)


@every_kernel
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_shape(kernel: Kernel, draw: st.DataObject):
    fmt, activation = FORMATS[draw.draw(st.sampled_from(list(FORMATS)))], draw.draw(st.sampled_from(list(BYTES)))
    rows, inputs, outputs = (draw.draw(st.integers(0, limit)) for limit in (5, 90, 9))
    torch.manual_seed(draw.draw(st.integers(0, 2**32)))
    if takes(kernel, fmt, activation):
        check(kernel, random_input(activation, rows, inputs), random_levels(fmt, outputs, inputs), fmt)


@every_input
@every_format
@every_kernel
def test_extreme_values(kernel: Kernel, fmt: NumberFormat, activation: str):
    if not takes(kernel, fmt, activation):
        pytest.skip(f"{kernel.name} does not take {fmt.name}")
    dtype, low, high = BYTES[activation]
    for inputs in (33, 1024):
        x = torch.tensor([[low], [high], [0]], dtype=dtype).expand(3, inputs)
        levels = torch.tensor([[fmt.low], [fmt.high], [fmt.levels[0]]]).expand(3, inputs)
        check(kernel, x, levels, fmt)
        alternating = levels.clone()
        alternating[:, ::2] = fmt.low
        check(kernel, x, alternating, fmt)


@every_input
@every_kernel
def test_strided_inputs(kernel: Kernel, activation: str):
    fmt = FORMATS["ternary"]
    levels = random_levels(fmt, 5, 33)
    x = random_input(activation, 33, 6)
    check(kernel, x.T, levels, fmt)
    check(kernel, random_input(activation, 8, 66)[::2, 1::2], levels, fmt)
    check(kernel, random_input(activation, 1, 33).expand(4, 33), levels, fmt)
    check(kernel, random_input(activation, 9, 40)[1:, 3:36], levels, fmt)


@every_format
@every_kernel
def test_strided_weights(kernel: Kernel, fmt: NumberFormat):
    """A packed weight may be a slice of a file."""
    levels = random_levels(fmt, 4, 33)
    weight, x = pack(levels, fmt), random_input("int8", 3, 33)
    wide = torch.nn.functional.pad(weight.data, (3, 2))[:, 3:-2]
    sliced = PackedTensor(wide, weight.scale, weight.shape, fmt)
    assert torch.equal(kernel(x, kernel.prepare(sliced), sliced), kernel(x, kernel.prepare(weight), weight))


@every_format
@every_kernel
def test_weights_of_another_size_are_refused(kernel: Kernel, fmt: NumberFormat):
    """A kernel must not read beyond its rows."""
    weight = pack(random_levels(fmt, 5, 64), fmt)
    for features in (0, 1, 32, 1000):
        with pytest.raises(BitLabError, match="the bytes are no weight|weight must be"):
            kernel(random_input("int8", 2, features), kernel.prepare(weight), weight)


@every_kernel
def test_an_operator_is_sound(kernel: Kernel):
    """Schema, shape function and tracing, as torch itself checks custom operators."""
    weight = pack(random_levels(FORMATS["ternary"], 5, 33), FORMATS["ternary"])
    prepared = kernel.prepare(weight)
    for x in (random_input("int8", 3, 33), random_input("uint8", 2, 1, 33)):
        if kernel.rearranges:
            torch.library.opcheck(torch.ops.bitcore.linear_simd.default, (x, prepared, 5, kernel.isa))
        else:
            names = {"PortableLinear": "linear_portable", "TorchLinear": "linear_torch"}
            torch.library.opcheck(getattr(torch.ops.bitcore, names[kernel.name]).default, (x, prepared, "ternary"))


def test_the_portable_operator_refuses_other_dtypes():
    if not LINEAR["PortableLinear"].available():
        pytest.skip("the native library is not built")
    weight = pack(random_levels(FORMATS["ternary"], 5, 33), FORMATS["ternary"]).data
    for x in (torch.randn(3, 33), torch.zeros(3, 33, dtype=torch.int32)):
        with pytest.raises(BitLabError, match="int8 or uint8"):
            torch.ops.bitcore.linear_portable(x, weight, "ternary")


@pytest.mark.slow
@every_input
@every_format
@every_kernel
def test_every_length(kernel: Kernel, fmt: NumberFormat, activation: str):
    for inputs in range(300):
        check(kernel, random_input(activation, 2, inputs), random_levels(fmt, 3, inputs), fmt)
