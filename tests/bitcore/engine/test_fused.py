"""Packed convolutions from float to float in one call: the bits, and the memory layout, of unpacked evaluation."""

import pytest
import torch
from torch import Tensor

from bitcore import BitLabError, BitQuantConfig
from bitcore.engine.fused import FusedConv2d
from bitcore.formats import FORMATS
from bitcore.kernels.native import ISA_VARIABLE, PORTABLE, library, usable_sets
from bitcore.kernels.simd import quantizes
from bitlayers import BitConv2d
from threads import results_in_threads

pytestmark = pytest.mark.skipif(not hasattr(library(), "bit_conv2d_float"), reason="needs the native vector kernels")
every_set = pytest.mark.parametrize("isa", [PORTABLE, *usable_sets()])
# One way of each kind to scale activations.
SCALES = (
    {"activation_granularity": "per_token"},
    {"activation_granularity": "per_tensor"},
    {"activation_granularity": "per_token", "activation_scale_pow2": True},
    {"activation_scale": "tracked"},
)
SHAPES = (  # few channels, read in rows; more than a block of outputs; groups, which share blocks; depthwise
    {"in_channels": 3, "out_channels": 10, "kernel_size": 3, "padding": 1},
    {"in_channels": 37, "out_channels": 70, "kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2)},
    {"in_channels": 6, "out_channels": 18, "kernel_size": 3, "groups": 3, "padding": (0, 2)},
    {"in_channels": 20, "out_channels": 20, "kernel_size": 3, "groups": 20, "padding": 1, "stride": 2},
)


def layer_of(weight: str, activation: str, shape: dict, scale: dict, bias: bool = True) -> BitConv2d:
    config = BitQuantConfig(weight, weight_granularity="per_channel", activation_dtype=activation, **scale)
    layer = BitConv2d(**shape, bias=bias, quant_config=config)
    layer.train()(torch.randn(2, shape["in_channels"], 9, 8))
    return layer.eval()


def images(channels: int) -> list[Tensor]:
    """Both memory layouts, every other row and column of them, ties, no sample, values that are no numbers."""
    x = torch.randn(3, channels, 9, 16)
    last = x.contiguous(memory_format=torch.channels_last)
    ties = torch.arange(-60, 84).reshape(1, 1, 9, 16).expand(1, channels, 9, 16) * 0.5
    broken = torch.randn(3, channels, 7, 7)
    broken[0, 0, 0, 0], broken[1, -1, 3, 4], broken[1, 0, 6, 6] = torch.inf, torch.nan, -torch.inf
    return [x, last, x[..., ::2], last[..., ::2], last[:, :, 1:], ties.contiguous(), x[:0], x[:1] * 1e-44, broken]


@torch.no_grad()
def same_bits(layer: BitConv2d) -> None:
    inputs = images(layer.in_channels)
    expected = [layer(x) for x in inputs]
    layer.pack()
    assert isinstance(layer._fused, FusedConv2d)
    for x, y in zip(inputs, expected, strict=True):
        result = layer(x)
        assert torch.equal(result.nan_to_num(12345.0), y.nan_to_num(12345.0))
        assert result.stride() == y.stride() and result.dtype == y.dtype


@every_set
def test_every_weight_format(isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ISA_VARIABLE, isa)
    for i, weight in enumerate(FORMATS):
        same_bits(layer_of(weight, "int8", SHAPES[i % 4], SCALES[i // 4 % 4]))


@every_set
def test_every_activation_format(isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ISA_VARIABLE, isa)
    for i, fmt in enumerate(fmt for fmt in FORMATS.values() if quantizes(fmt)):
        for j, scale in enumerate(SCALES):
            same_bits(layer_of("binary" if i % 2 else "ternary", fmt.name, SHAPES[(i + j) % 4], scale, bias=j % 3 > 0))


def test_signs_as_bits():
    for scale in SCALES:
        same_bits(layer_of("binary", "binary", SHAPES[1], scale))


def operands(scale: Tensor | None, per_tensor: bool) -> tuple[object, ...]:
    layer = layer_of("ternary", "int8", SHAPES[0], SCALES[0])
    layer.pack()
    assert layer.bias is not None and layer._geometry is not None
    fixed = ("ternary", "int8", *layer._geometry, per_tensor, scale, layer.weight_scale, layer.bias.detach(), False)
    return (torch.randn(2, 3, 9, 7), layer.tiles, *fixed)


def test_the_operator_is_well_formed():
    for scale, per_tensor in ((None, False), (None, True), (torch.ones(2, 1, 1, 1), False), (torch.ones(()), False)):
        arguments = operands(scale, per_tensor)
        torch.library.opcheck(torch.ops.bitcore.conv2d_float, arguments)
        last = arguments[0].contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]
        torch.library.opcheck(torch.ops.bitcore.conv2d_float, (last, *arguments[1:]))


def test_what_does_not_fit_is_refused():
    arguments = operands(None, False)
    with pytest.raises(BitLabError, match="3 scales for 2 samples"):
        torch.ops.bitcore.conv2d_float(*operands(torch.ones(3), False))
    for x in (torch.randn(2, 4, 9, 7), torch.randn(2, 3, 9, 7).double(), torch.randn(3, 9, 7)):
        with pytest.raises(BitLabError, match="x must be float32"):
            torch.ops.bitcore.conv2d_float(x, *arguments[1:])
    with pytest.raises(BitLabError, match="smaller than the kernel"):
        torch.ops.bitcore.conv2d_float(torch.randn(2, 3, 0, 7), *arguments[1:])


@torch.no_grad()
def test_threads_and_other_inputs_give_the_same_bits():
    """From several threads, on several; and one sample without its dimension, and float64, which torch computes."""
    layer = layer_of("int4", "uint8", SHAPES[1], SCALES[0])
    x = torch.randn(4, 37, 21, 20)
    others = [x[0], x.double()]
    expected, alone = layer(x), [layer(other) for other in others]
    layer.pack()
    assert all(torch.equal(layer(other), y) for other, y in zip(others, alone, strict=True))
    assert all(torch.equal(y, expected) for y in results_in_threads(layer, x, 20))


@torch.no_grad()
def test_another_default_dtype_changes_nothing():
    layer, x = layer_of("ternary", "int8", SHAPES[0], SCALES[0]), torch.randn(2, 3, 8, 8)
    x[0, 0, 0, 0] = torch.nan
    expected = layer(x)
    layer.pack()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(layer(x).nan_to_num(1e6), expected.nan_to_num(1e6))
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_a_changed_bias_and_a_changed_scale_count():
    layer, x = layer_of("ternary", "int8", SHAPES[0], SCALES[3]), torch.randn(2, 3, 8, 8)
    layer.pack()
    layer(x)
    layer.bias, layer.weight_scale = torch.nn.Parameter(torch.randn(10)), layer.weight_scale * 2  # type: ignore[operator]
    again = layer_of("ternary", "int8", SHAPES[0], SCALES[3])
    again.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), again(x))
