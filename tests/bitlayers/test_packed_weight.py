"""Packed layers in other people's models: their weight is there to look at, files say what it is, and it comes back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import WEIGHT_GRANULARITIES, WEIGHT_SCALES, suits
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitlayers import (
    BitConv1d,
    BitConv2d,
    BitConvTranspose2d,
    BitEmbedding,
    BitLayer,
    BitLinear,
    BitTransposedLinear,
    pack,
    quantize,
    unpack,
)
from bitlayers.places import CONVERSIONS
from bitmodels import load_into, save_weights

Make = Callable[[int, Any], BitLayer]
# Of a row's values, in a shape of the kind's own.
LAYERS: dict[type[BitLayer], tuple[Make, Callable[[int], Tensor]]] = {
    BitLinear: (lambda n, q: BitLinear(n, 6, quant_config=q), lambda n: torch.randn(3, n)),
    BitTransposedLinear: (lambda n, q: BitTransposedLinear(n, 6, quant_config=q), lambda n: torch.randn(3, n)),
    BitConv1d: (lambda n, q: BitConv1d(1, 6, n, quant_config=q), lambda n: torch.randn(2, 1, n + 2)),
    BitConv2d: (lambda n, q: BitConv2d(1, 6, (1, n), quant_config=q), lambda n: torch.randn(2, 1, 3, n + 2)),
    BitConvTranspose2d: (lambda n, q: BitConvTranspose2d(n, 6, 1, quant_config=q), lambda n: torch.randn(2, n, 3, 3)),
    BitEmbedding: (lambda n, q: BitEmbedding(6, n, quant_config=q), lambda n: torch.arange(6)),
}


def every_pair(names: str, first: Iterable[Any], second: Iterable[Any]) -> pytest.MarkDecorator:
    """Every pair; but for some in which each of either is, they are slow."""
    first, second = list(first), list(second)
    count = min(len(first), len(second))
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(a, b, id=f"{_name(a)}-{_name(b)}", marks=() if (i - j) % count == 0 else pytest.mark.slow)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
        ],
    )


def _name(value: Any) -> str:
    return "-".join(map(_name, value)) if isinstance(value, tuple) else getattr(value, "__name__", str(value))


every_kind = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
every_format = pytest.mark.parametrize("fmt", FORMATS)


def packed(kind: type[BitLayer], config: Any, n: int = 9) -> tuple[BitLayer, Tensor]:
    make, inputs = LAYERS[kind]
    layer, x = make(n, config), inputs(n)
    with torch.no_grad():
        layer.train()(x)
    layer.eval().pack()
    return layer, x


def test_every_kind_of_layer_is_here():
    assert set(LAYERS) == set(CONVERSIONS.values())


# ---- what a file holds is what a layer takes -----------------------------------------------------------------------


@every_pair("kind, fmt", LAYERS, FORMATS)
def test_weights_of_other_shapes_are_refused_by_name(kind: type[BitLayer], fmt: str, tmp_path: Path):
    config, make = BitQuantConfig(weight_format=fmt), LAYERS[kind][0]
    layer, _ = packed(kind, config)
    source = nn.Sequential(layer)
    save_weights(source, tmp_path / "model.safetensors")
    packing = layer.packed_tensor().format.packing
    for n in (n for n in range(1, 14) if n != 9):
        other = nn.Sequential(make(n, config))
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(BitLabError, match=r"0\.packed_weight.*; the layer takes"):
            other.load_state_dict(source.state_dict())
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        if packing.row_bytes(n) == packing.row_bytes(9):
            with pytest.raises(BitLabError, match=r"layer '0': its shape is .*; the layer takes"):
                load_into(other, tmp_path / "model.safetensors")


@every_pair("kind, fmt", LAYERS, FORMATS)
def test_codes_of_other_formats_are_refused_by_name(kind: type[BitLayer], fmt: str):
    source = nn.Sequential(packed(kind, BitQuantConfig(weight_format=fmt))[0])
    for other in FORMATS:
        target = nn.Sequential(LAYERS[kind][0](9, BitQuantConfig(weight_format=other)))
        if other == fmt:
            target.load_state_dict(source.state_dict())
        else:
            with pytest.raises(BitLabError, match=rf"0\.packed_weight' is {fmt} .*; the layer takes {other} "):
                target.load_state_dict(source.state_dict())


def test_a_convolution_takes_no_kernel_of_as_many_bytes():
    config = BitQuantConfig(weight_format="int4")
    source = pack(BitConv2d(2, 4, 3, quant_config=config))
    with pytest.raises(BitLabError, match=r"int4 \[4, 2, 3, 3\]; the layer takes int4 \[4, 2, 2, 5\]"):
        BitConv2d(2, 4, (2, 5), quant_config=config).load_state_dict(source.state_dict())


@every_kind
def test_scales_of_other_granularities_are_refused_by_name(kind: type[BitLayer]):
    ways = [BitQuantConfig(weight_granularity=way, weight_group_size=4) for way in WEIGHT_GRANULARITIES]
    ways.append(ways[-1].replace(weight_group_size=3))  # of 9 values as many groups as of 4
    for there in ways:
        source = packed(kind, there)[0]
        for expected in ways:
            target = LAYERS[kind][0](9, expected)
            if there == expected:
                target.load_state_dict(source.state_dict())
            else:
                with pytest.raises(BitLabError, match=r"'(packed_weight|weight_scale)' is .*; the layer takes"):
                    target.load_state_dict(source.state_dict())


@every_format
def test_states_from_before_the_description_load(fmt: str):
    source, x = packed(BitLinear, BitQuantConfig(weight_format=fmt))
    state = {name: value for name, value in source.state_dict().items() if name != "packed_as"}
    for target in (LAYERS[BitLinear][0](9, source.quant_config), copy.deepcopy(source)):
        target.load_state_dict(state)
        assert torch.equal(target(x), source(x))
    with pytest.raises(BitLabError, match="comes without 'weight_scale'"):
        target.load_state_dict({"packed_weight": state["packed_weight"]}, strict=False)
    with pytest.raises(BitLabError, match=r"'packed_weight' is torch\.int64"):
        target.load_state_dict({**state, "packed_weight": state["packed_weight"].long()})


# ---- the weight is there to look at --------------------------------------------------------------------------------


@every_pair("kind, preset", LAYERS, ["bitnet", "w8a8", "ttq", "mcu-nf4"])
@torch.no_grad()
def test_a_packed_weight_looks_and_computes_like_one(kind: type[BitLayer], preset: str):
    make, inputs = LAYERS[kind]
    layer, x = make(9, preset), inputs(9)
    layer.train()(x)
    weight, shape = layer.unrows(layer.eval().quantized_weight().dequantize()), layer.weight.shape
    layer.pack()
    for some in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (some.weight.shape, some.weight.dtype, some.weight.device) == (shape, torch.float32, x.device)
        assert isinstance(some.weight, Tensor) and not some.weight.requires_grad
        assert torch.equal(some.weight, weight) and torch.equal(some.weight[0], weight[0])
        assert torch.equal(some.weight.flatten() @ weight.flatten(), weight.flatten() @ weight.flatten())
        assert "weight" not in some.state_dict() and "weight" not in dict(some.named_parameters())
    assert layer.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert layer.weight_scale is not None and layer.weight_scale.dtype == torch.float32
    assert torch.equal(layer.weight, weight.bfloat16())
    if kind is BitEmbedding:
        assert layer(x).dtype == torch.bfloat16


def test_a_packed_weight_is_not_written_to():
    weight = pack(BitLinear(8, 4)).weight
    for write in (
        lambda: weight.zero_(),
        lambda: weight.data.normal_(),
        lambda: nn.init.ones_(weight),
        lambda: weight.__setitem__(0, 1),
    ):
        with pytest.raises(BitLabError, match=r"cannot be written to; unpack\(model\)"):
            write()


@torch.no_grad()
def test_models_that_read_the_packed_weight_compile():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = quantize(nn.Linear(9, 6), "bitnet")

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.to(self.fc.weight.dtype)) + nn.functional.linear(x, self.fc.weight)

    model, x = pack(Reads()), torch.randn(3, 9)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def _counted(function: Callable[..., Tensor], calls: list[Any]) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return function(*arguments)

    return call


@every_pair("how, preset", product([BitLinear, BitConv2d], [torch.bfloat16, torch.float16]), PRESETS)
@torch.no_grad()
def test_half_precision_keeps_the_kernel_and_the_bits_of_eval(
    how: tuple[type[BitLayer], torch.dtype], preset: str, monkeypatch: pytest.MonkeyPatch
):
    kind, dtype = how
    make, inputs = LAYERS[kind]
    layer, x = make(9, preset), inputs(9)
    layer.train()(x)
    layer.to(dtype).eval()
    # Many values that lie next to ties of their levels.
    x = torch.cat([x, *(torch.randn_like(x) for _ in range(50))]).to(dtype)
    expected = layer(x)
    layer.pack()
    fused = layer._fused  # type: ignore[union-attr]
    assert fused is not None or layer.activation_quantizer is None
    calls: list[Any] = []
    if fused is not None:
        monkeypatch.setattr(type(fused), "__call__", _counted(type(fused).__call__, calls))
    assert expected.dtype == dtype and torch.equal(layer(x), expected)
    assert len(calls) == (fused is not None and PRESETS[preset].activation_scale != "learned_plus")
    if layer.bias is not None:
        layer.bias.add_(1)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x), layer(x)) and not torch.equal(layer(x), expected)


# ---- the way back --------------------------------------------------------------------------------------------------

CONFIGS = [
    BitQuantConfig(weight_format=fmt, weight_scale=scale, weight_granularity=granularity, weight_group_size=4)
    for fmt in FORMATS
    for scale in WEIGHT_SCALES
    for granularity in WEIGHT_GRANULARITIES
    if suits(scale, fmt) and (scale, granularity) != ("ttq", "per_group")
]


def check_unpack(layer: BitLayer, x: Tensor) -> None:
    with torch.no_grad():
        expected, codes = layer(x), layer.packed_tensor()
        data, scale = codes.data, codes.scale
    model = unpack(nn.Sequential(layer))
    again = model[0]
    assert layer.packed and isinstance(again, BitLayer) and not again.packed and again.weight.requires_grad
    with torch.no_grad():
        assert torch.equal(again(x), expected)
    found = again.packed_tensor()
    assert torch.equal(found.data, data) and torch.equal(found.scale, scale)
    restored = LAYERS[type(layer)][0](9, layer.quant_config)
    restored.load_state_dict(again.state_dict())
    assert torch.equal(restored.packed_tensor().data, data) and torch.equal(restored.packed_tensor().scale, scale)
    model.train()(x).sum().backward()
    assert again.weight.grad is not None


def test_unpacked_weights_are_quantized_to_the_same_codes():
    of_scalers = [next(config for config in CONFIGS if config.weight_scale == name) for name in WEIGHT_SCALES]
    some = [*CONFIGS[::19], *of_scalers]
    assert {config.weight_format for config in some} == set(FORMATS)
    assert {config.weight_scale for config in some} == set(WEIGHT_SCALES)
    assert {config.weight_granularity for config in some} == set(WEIGHT_GRANULARITIES)
    for i, config in enumerate(some):
        check_unpack(*packed(BitLinear, config.replace(weight_scale_pow2=i % 2 == 1)))


@pytest.mark.slow
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
def test_unpacked_weights_of_every_config_are_quantized_to_the_same_codes(fmt: str, pow2: bool):
    for config in CONFIGS:
        if config.weight_format == fmt:
            check_unpack(*packed(BitLinear, config.replace(weight_scale_pow2=pow2)))


@every_pair("kind, preset", LAYERS, PRESETS)
def test_unpacked_presets(kind: type[BitLayer], preset: str):
    check_unpack(*packed(kind, preset))


def test_scales_that_are_not_held_are_the_scalers():
    layer = packed(BitLinear, "bitlab")[0]
    before = layer.packed_tensor().scale
    assert not torch.equal(unpack(layer, hold_scales=False).packed_tensor().scale, before)  # type: ignore[operator]
    assert unpack(layer, inplace=True) is layer and not layer.packed


# ---- gradients -----------------------------------------------------------------------------------------------------


# torch.compile itself makes instances of autograd functions, and torch warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("kind", [BitLinear, BitConv2d], ids=lambda kind: kind.__name__)
def test_a_gradient_through_rounding_is_an_error(kind: type[BitLayer], packs: bool, compiled: bool):
    layer, x = packed(kind, "bitnet")
    model: Any = layer if packs else unpack(layer)
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    y = run(x.requires_grad_())
    assert torch.equal(y, model(x.detach()))
    with pytest.raises(BitLabError, match=r"unpack\(model\)"):
        y.sum().backward()


# ---- called as torch's ---------------------------------------------------------------------------------------------


@every_kind
@torch.no_grad()
def test_inputs_by_keyword_and_presets_by_name(kind: type[BitLayer]):
    layer, x = packed(kind, "bitnet")
    assert layer.quant_config.weight_format == PRESETS["bitnet"].weight_format
    assert torch.equal(layer(input=x), layer(x))
    with pytest.raises(BitLabError, match="unknown preset 'bitnett'; did you mean 'bitnet'"):
        LAYERS[kind][0](9, "bitnett")
    with pytest.raises(BitLabError, match=r"a BitQuantConfig or the name of a preset is needed, not 3"):
        LAYERS[kind][0](9, 3)
