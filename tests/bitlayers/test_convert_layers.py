"""Every layer that conversion knows: the same object and parameters, the same float outputs, eval equal to packed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import DYNAMIC, FLOAT
from bitcore.presets import PRESETS
from bitexport import lower
from bitlayers import BitConv1d, BitConvTranspose2d, BitEmbedding, BitLayer, BitLinear, BitTransposedLinear, quantize
from bitlayers.packed_weight import PackedWeight
from bitlayers.places import CONVERSIONS


class Conv1D(nn.Module):
    """What transformers calls so, for tests without it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 4), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"

Make = Callable[[], nn.Module]
LAYERS: dict[type[nn.Module] | str, tuple[Make, Callable[[], Tensor]]] = {
    nn.Linear: (lambda: nn.Linear(33, 7), lambda: torch.randn(2, 3, 33)),
    nn.Conv1d: (
        lambda: nn.Conv1d(4, 6, 3, 2, 2, 2, 2, padding_mode="reflect"),
        lambda: torch.randn(2, 4, 11),
    ),
    nn.Conv2d: (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), lambda: torch.randn(2, 4, 7, 5)),
    nn.ConvTranspose2d: (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2, dilation=2),
        lambda: torch.randn(2, 4, 5, 4),
    ),
    nn.Embedding: (lambda: nn.Embedding(11, 33), lambda: torch.randint(11, (2, 5))),
    "transformers.pytorch_utils.Conv1D": (lambda: Conv1D(6, 33), lambda: torch.randn(2, 3, 33)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda k: k if isinstance(k, str) else k.__name__)


def test_every_conversion_is_tested_here():
    assert LAYERS.keys() == CONVERSIONS.keys()


def converted(kind: Any, config: BitQuantConfig | str) -> tuple[BitLayer, Tensor]:
    make, draw = LAYERS[kind]
    layer = make()
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        nn.init.normal_(bias)
    layer = quantize(layer, config)
    assert isinstance(layer, BitLayer) and type(layer) is CONVERSIONS[kind]
    return layer, draw()


@every_layer
def test_the_object_and_its_parameters_stay(kind: Any):
    make, _ = LAYERS[kind]
    layer = make()
    before, state = dict(layer.named_parameters()), set(layer.state_dict())
    assert quantize(layer, "bitnet-cnn", inplace=True) is layer
    after = dict(layer.named_parameters())
    assert after.keys() == before.keys() and all(after[n] is before[n] for n in before)
    assert set(layer.state_dict()) == state


@every_layer
@torch.no_grad()
def test_without_quantization_the_outputs_are_the_same(kind: Any):
    make, draw = LAYERS[kind]
    layer, x = make(), draw()
    expected = layer(x)
    layer = quantize(layer, BitQuantConfig(FLOAT))
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
@every_layer
def test_train_eval_and_packed(kind: Any, preset: str):
    layer, x = converted(kind, preset)
    y = layer.train()(x)
    y.square().sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None and bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())
    with torch.no_grad():
        expected = layer.eval()(x)
        config = layer.quant_config
        fixed = config.weight_rounding == "nearest" and config.activation_scale == DYNAMIC
        if fixed:
            torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-4)
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        layer.pack()
        assert isinstance(layer.weight, PackedWeight) and torch.equal(layer(x), expected)
        fresh, _ = converted(kind, preset)
        fresh.eval().load_state_dict(layer.state_dict())
        assert fresh.packed and torch.equal(fresh(x), expected)
        fresh.load_state_dict(state)  # back to latent weights
        assert not fresh.packed and torch.equal(fresh(x), expected)


@every_layer
@torch.no_grad()
def test_scales_per_channel_are_per_output(kind: Any):
    """A channel that is scaled by 16 has a scale 16 times as large and the same codes."""
    layer, _ = converted(kind, "bitnet-cnn")
    before = layer.quantized_weight()
    layer.weight.copy_(layer.unrows(torch.cat([layer.rows(layer.weight)[:1] * 16, layer.rows(layer.weight)[1:]])))
    after = layer.quantized_weight()
    assert torch.equal(after.levels, before.levels)
    factors = (after.scale / before.scale).flatten()
    assert factors.tolist() == [16] + [1] * (len(before.levels) - 1)


def sizes(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=40)
@given(
    groups=st.integers(1, 3),
    channels=sizes(1, 3),
    kernel=sizes(1, 3),
    stride=sizes(1, 3),
    padding=sizes(0, 1),
    dilation=sizes(1, 2),
    extra=sizes(0, 2),
    granularity=st.sampled_from(["per_tensor", "per_channel"]),
    seed=st.integers(0, 9),
)
@torch.no_grad()
def test_transposed_convolutions_in_integers(
    groups: int, channels: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, extra: Any, granularity: str,
    seed: int,
):  # fmt: skip
    """Eval is torch's operation on integers in float64, then one scale a channel; it is what training computes."""
    torch.manual_seed(seed)
    extra = tuple(min(e, max(s, d) - 1) for e, s, d in zip(extra, stride, dilation, strict=True))
    config = BitQuantConfig(
        "int4", "absmax", granularity, activation_dtype="int8", activation_granularity="per_token"
    )  # fmt: skip
    arguments = (channels[0] * groups, channels[1] * groups, kernel, stride, padding, extra, groups)
    layer = BitConvTranspose2d(*arguments, dilation=dilation, quant_config=config)
    x = torch.randn(2, channels[0] * groups, 4, 5)
    assert layer.activation_quantizer is not None and layer.bias is not None
    assert torch.equal(layer.unrows(layer.rows(layer.weight)), layer.weight)
    codes, weight = layer.activation_quantizer.quantize(x), layer.quantized_weight()
    assert weight.levels.shape == (channels[1] * groups, channels[0], *kernel)
    sums = nn.functional.conv_transpose2d(
        codes.levels.double(), layer.unrows(weight.levels).double(), None, stride, padding, extra, groups, dilation
    )
    scale = weight.scale if weight.scale.ndim == 0 else weight.scale.reshape(-1, 1, 1)
    expected = sums.float() * (codes.scale * scale) + layer.bias.reshape(-1, 1, 1)
    assert torch.equal(layer.eval()(x), expected)
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_transposed_convolutions_take_an_output_size():
    plain = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)
    x = torch.randn(1, 3, 4, 4)
    expected = plain(x, output_size=[8, 7])
    layer = quantize(plain, BitQuantConfig(FLOAT))
    assert isinstance(layer, BitConvTranspose2d)
    torch.testing.assert_close(layer(x, output_size=[8, 7]), expected)
    assert layer(x).shape == (1, 2, 7, 7) and layer.output_padding == (0, 0)
    with pytest.raises(ValueError, match="output size"):
        layer(x, output_size=[20, 20])
    assert layer.output_padding == (0, 0)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@torch.no_grad()
def test_conv1d_pads_as_torch_does(mode: Any):
    layer = nn.Conv1d(2, 4, 3, padding=2, dilation=2, groups=2, padding_mode=mode)
    bit = BitConv1d(2, 4, 3, padding=2, dilation=2, groups=2, padding_mode=mode, quant_config=PRESETS["bitnet"])
    layer.weight.copy_(bit.quantized_weight().dequantize())
    layer.bias.copy_(bit.bias)  # type: ignore[union-attr, arg-type]
    x = torch.randint(-127, 128, (3, 2, 9)).float()
    x[:, 0, 0] = 127  # so that every sample's scale is 1
    torch.testing.assert_close(bit.eval()(x), layer(x), rtol=1e-5, atol=1e-4)


def test_embeddings_keep_their_padding_vector():
    layer = BitEmbedding(5, 8, padding_idx=2)
    index = torch.tensor([[2, 0], [4, 2]])
    y = layer(index)
    assert bool((y[0, 0] == 0).all()) and bool((y[1, 1] == 0).all())
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum(1).bool().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("index", [5, -1])
def test_embeddings_refuse_indices_beyond(index: int):
    layer = BitEmbedding(5, 8).eval()
    for _ in range(2):
        with pytest.raises(IndexError):
            layer(torch.tensor([[0, index]]))
        layer.pack()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@every_layer
def test_other_dtypes(kind: Any, dtype: torch.dtype):
    make, draw = LAYERS[kind]
    layer, x = make().to(dtype), draw()
    x = x.to(dtype) if x.is_floating_point() else x
    layer = quantize(layer, "bitnet")
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    with torch.no_grad():
        expected = layer.eval()(x)
        assert isinstance(layer, BitLayer)
        layer.pack()
        assert expected.dtype == dtype and torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose2d], ids=lambda k: k.__name__)
def test_layers_without_an_integer_operation_are_refused_by_name(kind: Any):
    layer, x = converted(kind, "mcu-ternary-static")
    layer(x)
    with pytest.raises(BitLabError, match=f"'up': {type(layer).__name__} has no integer operation"):
        lower(nn.Sequential(OrderedDict(up=layer)), tuple(x.shape[1:]))


def test_a_transposed_linear_is_a_linear():
    config = PRESETS["bitnet-cnn"]
    one, other = BitTransposedLinear(7, 3, quant_config=config), BitLinear(7, 3, quant_config=config)
    with torch.no_grad():
        other.weight.copy_(one.weight.T)
        other.bias.copy_(one.bias)  # type: ignore[union-attr, arg-type]
        x = torch.randn(4, 7)
        assert torch.equal(one.eval()(x), other.eval()(x))
    assert one.weight.shape == (7, 3) and "in_features=7, out_features=3" in repr(one)
