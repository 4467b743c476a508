"""BitConv2d against a convolution written out in int64: groups, stride, padding, dilation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bitcore import BitQuantConfig
from bitlayers import BitConv2d

GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "rectangular": {"kernel_size": (1, 5), "padding": (0, 2)},
    "strided": {"kernel_size": 3, "stride": (2, 3), "padding": (2, 1)},
    "dilated": {"kernel_size": (3, 2), "dilation": (2, 3), "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "depthwise, multiplied": {"kernel_size": 3, "groups": 4, "out_channels": 8},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "same, dilated": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular", "stride": 2},
}
PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
CONFIGS = {
    "dynamic": BitQuantConfig(activation_dtype="int8", activation_granularity="per_token"),
    "tracked": BitQuantConfig("4bitsym", "octav", "per_channel", activation_dtype="uint8", activation_scale="tracked"),
}


def convolution(x: NDArray[np.int64], w: NDArray[np.int64], layer: BitConv2d) -> NDArray[np.int64]:
    """The definition: for every output the sum over its window."""
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        edges = [(n // 2, n - n // 2) for n in total]
    elif layer.padding == "valid":
        edges = [(0, 0), (0, 0)]
    else:
        edges = [(int(p), int(p)) for p in layer.padding]
    x = np.pad(x, [(0, 0), (0, 0), *edges], mode=PAD[layer.padding_mode])  # type: ignore[call-overload]
    (sy, sx), (dy, dx), (ky, kx) = layer.stride, layer.dilation, layer.kernel_size
    height, width = (x.shape[2] - dy * (ky - 1) - 1) // sy + 1, (x.shape[3] - dx * (kx - 1) - 1) // sx + 1
    outputs, inputs = w.shape[0] // layer.groups, w.shape[1]
    y = np.zeros((len(x), w.shape[0], height, width), dtype=np.int64)
    for n in range(w.shape[0]):
        first = n // outputs * inputs
        for i in range(height):
            for j in range(width):
                window = x[:, first : first + inputs, i * sy :: dy, j * sx :: dx][:, :, :ky, :kx]
                y[:, n, i, j] = (window * w[n]).sum(axis=(1, 2, 3))
    return y


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@torch.no_grad()
def test_eval_and_packed_are_the_definition(geometry: dict[str, Any], config: BitQuantConfig, bias: bool):
    layer = BitConv2d(4, **{"out_channels": 4, **geometry}, bias=bias, quant_config=config)
    plain = nn.Conv2d(4, **{"out_channels": 4, **geometry}, bias=bias)
    x = torch.randn(2, 4, 8, 9)
    assert layer.train()(x).shape == plain(x).shape
    layer.eval()
    assert layer.activation_quantizer is not None
    codes = layer.activation_quantizer.quantize(x)
    levels, weight = (t.integers().numpy().astype(np.int64) for t in (codes, layer.quantized_weight()))
    accumulator = convolution(levels, weight, layer)
    scale = (codes.scale * layer.quantized_weight().scale.flatten().reshape(-1, 1, 1)).numpy()
    b = np.zeros(1, np.float32) if layer.bias is None else layer.bias.numpy()
    if config.activation_scale == "tracked":
        steps = np.round(b.astype(np.float64) / scale.ravel()).astype(np.int64)
        expected = (accumulator + steps.reshape(-1, 1, 1)).astype(np.float32) * scale
    else:
        expected = accumulator.astype(np.float32) * scale + b.reshape(-1, 1, 1)
    for _ in ("eval", "packed"):
        assert np.array_equal(layer(x).numpy(), expected)
        layer.pack()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@torch.no_grad()
def test_float_weights_are_torchs_convolution(geometry: dict[str, Any]):
    plain = nn.Conv2d(4, **{"out_channels": 4, **geometry})
    layer = BitConv2d(4, **{"out_channels": 4, **geometry}, quant_config=BitQuantConfig("float32"))
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 8, 9)
    for training in (True, False):
        assert torch.equal(layer.train(training)(x), plain(x))


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's own, from switching oneDNN off
@pytest.mark.parametrize("batch", [1, 16, 17])
@pytest.mark.parametrize("mkldnn", [True, False])
@torch.no_grad()
def test_integer_sums_are_exact_whichever_library_torch_uses(batch: int, mkldnn: bool):
    """Fast convolution algorithms (Winograd, FFT) round; eval must not depend on the one that torch picks."""
    config = BitQuantConfig("8bit", "absmax", activation_dtype="int8", activation_granularity="per_token")
    layer = BitConv2d(16, 16, 3, padding=1, bias=False, quant_config=config).eval()
    x = torch.randn(batch, 16, 12, 12)
    assert layer.activation_quantizer is not None
    codes = layer.activation_quantizer.quantize(x)
    exact = layer.operate(codes.levels.double(), layer.qweight.double())
    with torch.backends.mkldnn.flags(enabled=mkldnn):
        accumulator = layer.accumulate(codes, layer.quantized_weight())
    assert torch.equal(accumulator.double(), exact)


@torch.no_grad()
def test_sums_beyond_float32_are_exact():
    """Above 2^24 float32 skips integers; such layers sum in float64."""
    config = BitQuantConfig("8bit", "absmax", activation_dtype="int8", activation_granularity="per_token")
    layer = BitConv2d(256, 2, 5, bias=False, quant_config=config).eval()
    layer.weight.fill_(1.0)
    x = torch.rand(1, 256, 5, 5) + 0.5
    assert layer.activation_quantizer is not None
    codes = layer.activation_quantizer.quantize(x)
    exact = int((codes.levels.to(torch.int64) * 127).sum())
    assert exact > 2**24
    accumulator = layer.accumulate(codes, layer.quantized_weight())
    assert accumulator.dtype == torch.float64 and accumulator.flatten().tolist() == [exact, exact]


@torch.no_grad()
def test_one_sample_needs_no_batch_dimension():
    for config in CONFIGS.values():
        layer = BitConv2d(4, 6, 3, padding=1, quant_config=config)
        x = torch.randn(1, 4, 8, 9)
        layer.train()(x)
        layer.eval()
        assert torch.equal(layer(x[0]), layer(x)[0])


def test_the_weight_is_initialized_as_torchs():
    torch.manual_seed(3)
    plain = nn.Conv2d(4, 6, 3)
    torch.manual_seed(3)
    layer = BitConv2d(4, 6, 3)
    assert torch.equal(layer.weight, plain.weight) and layer.bias is not None and plain.bias is not None
    assert torch.equal(layer.bias, plain.bias)
    assert math.prod(layer.weight_shape) == plain.weight.numel()
