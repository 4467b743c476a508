"""Float activations: one order of sums on every instruction set, the same for packed and for unpacked weights."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.config import FLOAT
from bitcore.formats import FORMATS, NumberFormat
from bitcore.kernels import KernelRegistry, machine
from bitcore.kernels.native import ISA_VARIABLE, PORTABLE, library, usable_sets
from bitcore.kernels.real import FEW_ROWS, multiply_levels
from bitcore.quantizers import PackedTensor, QTensor
from bitlayers import BitConv2d, BitLinear

pytestmark = pytest.mark.skipif(not hasattr(library(), "bit_linear_real"), reason="needs the native vector kernels")


def in_order(x: Tensor, levels: Tensor) -> Tensor:
    """The definition: four sums of rounded products."""
    sums = torch.zeros(len(x), len(levels), 4)
    for k in range(x.shape[1]):
        sums[..., k % 4] += x[:, None, k] * levels[:, k]
    return (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])


def case(fmt: NumberFormat, rows: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor, PackedTensor]:
    levels = torch.from_numpy(np.random.default_rng(0).choice(fmt.levels, (outputs, inputs))).float()
    return torch.randn(rows, inputs), levels, QTensor(levels, torch.ones(()), fmt).pack()


@pytest.mark.parametrize("isa", [PORTABLE, *usable_sets()])
def test_every_format_in_the_one_order(isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ISA_VARIABLE, isa)
    for fmt in FORMATS.values():
        kernel = KernelRegistry.find("linear", fmt.name, FLOAT, "cpu")
        for rows, outputs, inputs in ((1, 70, 33), (7, 5, 7), (0, 3, 8), (2, 130, 100)):
            x, levels, weight = case(fmt, rows, outputs, inputs)
            prepared, expected = kernel.prepare(weight, FLOAT), in_order(x, levels)
            assert torch.equal(kernel(x, prepared, weight), expected)
            assert torch.equal(multiply_levels(x, levels), expected)
            assert torch.equal(machine.levels(prepared, fmt, (outputs, inputs)), levels)


def test_many_rows_are_torchs():
    for rows, dtype in ((FEW_ROWS + 1, torch.float32), (3, torch.float64)):
        x, levels, weight = case(FORMATS["ternary"], rows, 20, 33)
        x = x.to(dtype)
        y = torch.ops.bitcore.linear_real(x, machine.prepare(weight), "ternary", 20)
        assert torch.equal(y, x @ levels.to(dtype).T) and torch.equal(multiply_levels(x, levels), y)


def test_the_operators_are_sound():
    x, levels, weight = case(FORMATS["int4"], 3, 20, 33)
    x.requires_grad_()
    prepared = machine.prepare(weight)
    torch.library.opcheck(torch.ops.bitcore.linear_real, (x, prepared, "int4", 20))
    torch.library.opcheck(torch.ops.bitcore.linear_levels, (x, levels))
    torch.library.opcheck(torch.ops.bitcore.decode, (prepared, "int4", 20, 33))
    for y in (torch.ops.bitcore.linear_real(x, prepared, "int4", 20), multiply_levels(x, levels)):
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.ones_like(y) @ levels)


@torch.no_grad()
def test_layers_hold_the_weight_once_and_give_the_same_bits():
    """Packed is eval, few rows and many; a convolution is torch's, on levels that the machine's layout gives back."""
    config = BitQuantConfig("ternary", weight_granularity="per_channel")
    linear = BitLinear(100, 70, quant_config=config).eval()
    conv = BitConv2d(8, 20, 3, quant_config=config).eval()
    inputs = [torch.randn(n, 100) for n in (1, 5, FEW_ROWS + 1)] + [torch.randn(2, 3, 100)[:, ::2]]
    images = torch.randn(2, 8, 9, 9)
    expected, maps = [linear(x) for x in inputs], conv(images)
    linear.pack()
    conv.pack()
    for layer in (linear, conv):
        assert layer.machine_weight is not None and layer.packed_weight is not None
        assert layer.packed_weight.numel() == 0
    assert all(torch.equal(linear(x), y) for x, y in zip(inputs, expected, strict=True))
    assert torch.equal(conv(images), maps)
