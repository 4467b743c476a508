"""Bit, the factory of layers; conversion to ternary networks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.presets import PRESETS
from bitlayers import (
    Bit,
    BitConv2d,
    BitFactory,
    BitLayer,
    BitLinear,
    convert_to_ternary,
    convert_to_ternary_p2,
    pack,
    quantize,
)
from bitlayers.places import CONVERSIONS

TYPES = [kind for kind in CONVERSIONS if isinstance(kind, type)]
ARGUMENTS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Linear: (4, 3),
    nn.Conv1d: (4, 3, 2),
    nn.Conv2d: (4, 3, 2),
    nn.ConvTranspose2d: (4, 3, 2),
    nn.Embedding: (4, 3),
}


@pytest.mark.parametrize("kind", TYPES, ids=lambda k: k.__name__)
def test_the_factory_makes_every_layer(kind: type[nn.Module]):
    layer = getattr(Bit, kind.__name__)(*ARGUMENTS[kind])
    assert type(layer) is CONVERSIONS[kind]
    assert layer.quant_config == PRESETS["bitnet-cnn"]
    plain = kind(*ARGUMENTS[kind])
    assert {n: p.shape for n, p in layer.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


def test_other_presets_and_names():
    assert isinstance(Bit.Conv2d(3, 8, 3, stride=2, bias=False), BitConv2d)
    assert Bit("w8a8").Linear(2, 2).quant_config == PRESETS["w8a8"]
    assert Bit(weight_scale="absmean").quant == PRESETS["bitnet-cnn"].replace(weight_scale="absmean")
    assert Bit(BitQuantConfig("int4"), estimator="clipped_ste").quant == BitQuantConfig("int4", estimator="clipped_ste")
    projection = Bit.MultiheadAttention(4, 2).q_proj
    assert isinstance(projection, BitLayer) and projection.quant_config == PRESETS["bitnet-cnn"]
    assert copy.deepcopy(Bit) == pickle.loads(pickle.dumps(Bit)) == BitFactory()
    assert not hasattr(Bit, "Linaer")
    with pytest.raises(AttributeError, match="did you mean 'Linear'"):
        Bit.Linaer  # noqa: B018
    with pytest.raises(BitLabError, match="unknown preset"):
        Bit("bitnett")


class Net(nn.Module):
    """A float layer and two bit layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3)
        self.mean = Bit(weight_scale="absmean", weight_granularity="per_tensor").Conv2d(5, 4, 3)
        self.head = Bit("w8a8").Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mean(self.conv(x).relu()).relu().amax((2, 3)))


def power_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale).mantissa == 0.5).all())


def layers(model: nn.Module) -> list[BitLayer]:
    return [module for module in model.modules() if isinstance(module, BitLayer)]


@pytest.mark.parametrize("scale_op", ["median", "mean"])
@pytest.mark.parametrize("convert", [convert_to_ternary, convert_to_ternary_p2])
@torch.no_grad()
def test_every_layer_becomes_ternary(convert: Callable[..., nn.Module], scale_op: str):
    model, x = Net(), torch.randn(2, 2, 8, 8)
    model(x)
    tracked, weight = copy.deepcopy(model.head.activation_quantizer), model.conv.weight.detach().clone()
    model = convert(model, scale_op)
    assert len(layers(model)) == 3 and all(layer.packed and not layer.training for layer in layers(model))
    for layer in layers(model):
        assert set(layer.qweight.unique().tolist()) <= {-1, 0, 1}
    conv, mean, head = layers(model)
    absolute = weight.abs().flatten(1)
    scale = absolute.mean(1) if scale_op == "mean" else absolute.median(1).values
    exponent = torch.log2(conv.weight_scale.flatten() / scale)  # type: ignore[union-attr]
    if convert is convert_to_ternary_p2:
        assert all(power_of_two(layer.weight_scale) for layer in layers(model))  # type: ignore[arg-type]
        assert float(exponent.abs().max()) <= 0.5
    else:
        assert torch.equal(conv.weight_scale.flatten(), scale)  # type: ignore[union-attr]
        assert not power_of_two(conv.weight_scale)  # type: ignore[arg-type]
    assert mean.quant_config.weight_granularity == "per_tensor"  # it was ternary already, and keeps its scaler
    assert mean.quant_config.weight_scale == "absmean"
    assert head.quant_config.weight_granularity == "per_channel" and head.quant_config.activation_dtype == "int8"
    assert head.activation_quantizer is not None and tracked is not None
    assert torch.equal(head.activation_quantizer.source.range, tracked.source.range)  # type: ignore[arg-type]
    assert model(x).shape == (2, 3)


@torch.no_grad()
def test_learned_scales_survive_the_rounding_to_powers_of_two():
    model = nn.Sequential(BitLinear(6, 4, quant_config=BitQuantConfig(weight_scale="learned")))
    model(torch.randn(3, 6))
    before = {n: t.clone() for n, t in model.state_dict().items() if "quantizer" in n}
    model = convert_to_ternary_p2(model)
    after = model.state_dict()
    assert before and all(torch.equal(after[n], t) for n, t in before.items())
    assert power_of_two(layers(model)[0].weight_scale)  # type: ignore[arg-type]


def test_packed_layers():
    packed = pack(quantize(nn.Sequential(nn.Linear(4, 3)), "bitnet-cnn"))
    assert convert_to_ternary(packed, inplace=True) is packed
    with pytest.raises(BitLabError, match="layer '0' is packed and has no float weights to quantize anew"):
        convert_to_ternary_p2(packed)
    with pytest.raises(BitLabError, match="layer '0' is packed"):
        convert_to_ternary(pack(quantize(nn.Sequential(nn.Linear(4, 3)), "w8a8")))


def test_an_unknown_scale_op():
    with pytest.raises(BitLabError, match="did you mean 'median'"):
        convert_to_ternary(nn.Linear(2, 2), "medain")
