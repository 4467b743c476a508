"""Shapes and arithmetic of the networks, against their papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitlayers import BitLayer
from bitlayers.activations import RPReLU, RSign
from bitmodels import AutoBitModel
from bitmodels.convnext import DropPath, GlobalResponseNorm


@pytest.mark.parametrize(
    ("name", "options", "size", "maps"),
    [
        ("resnet18", {}, 224, 7),
        ("resnet50", {"stem": "cifar"}, 32, 4),
        ("resnet20", {}, 32, 8),
        ("birealnet18", {"stem": "cifar"}, 30, 4),
        ("mobilenetv1", {}, 224, 7),
        ("mobilenetv1", {"stem": "cifar"}, 32, 4),
        ("mobilenetv2", {}, 224, 7),
        ("mobilenetv2", {"stem": "cifar", "width": 0.5}, 32, 4),
        ("convnextv2_atto", {}, 224, 7),
        ("convnextv2_atto", {"patch": 1}, 32, 4),
        ("netcnn", {"in_channels": 3}, 28, 4),
    ],
)
def test_maps_in_front_of_the_mean(name: str, options: dict[str, Any], size: int, maps: int):
    shapes = []
    with torch.device("meta"):
        model = AutoBitModel.from_name(name, None, **options)
        mean = next(module for module in model.modules() if isinstance(module, nn.AdaptiveAvgPool2d))
        mean.register_forward_hook(lambda _, x, __: shapes.append(tuple(x[0].shape[2:])))
        model.eval()(torch.zeros(1, 3, size, size))
    assert shapes == [(maps, maps)]


@pytest.mark.parametrize("name", ["alexnet", "vgg_small", "vgg16_bn"])
def test_max_pooling_stands_between_convolution_and_batch_norm(name: str):
    with torch.device("meta"):
        kinds = [type(m) for m in AutoBitModel.from_name(name, None).modules() if not list(m.children())]
    pools = [i for i, kind in enumerate(kinds) if kind is nn.MaxPool2d]
    assert pools
    for i in pools:
        assert kinds[i - 1 : i + 3] == [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU]


def test_mobilenets_widths_are_multiples_of_8():
    with torch.device("meta"):
        half, double = (AutoBitModel.from_name("mobilenetv2", None, width=width) for width in (0.35, 1.4))
    outputs = [m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d)]
    assert outputs[0] == 16 and outputs[-1] == 1280 and all(n % 8 == 0 for n in outputs)
    assert [m.out_channels for m in double.modules() if isinstance(m, nn.Conv2d)][-1] == 1792


def test_a_binary_network_of_a_paper():
    """Every 3×3 convolution between the ends has a shortcut of its own and binary weights; the rest has 8 bits."""
    model = AutoBitModel.from_name("reactnet20")
    layers = {name: m.quant_config for name, m in model.named_modules() if isinstance(m, BitLayer)}
    binary = [name for name, config in layers.items() if config.weight_format == "binary"]
    assert len(binary) == 18 and all(name.endswith(".conv") for name in binary)
    assert all(layers[name].activation_dtype == "binary" for name in binary)
    others = [config for name, config in layers.items() if name not in binary]
    assert len(others) == 4 and {c.weight_format for c in others} == {c.activation_dtype for c in others} == {"int8"}
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(RSign) == kinds.count(RPReLU) == 18


def test_global_response_norm():
    norm = GlobalResponseNorm(4)
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(norm(x), x)  # at the start
    with torch.no_grad():
        norm.gain.copy_(torch.randn(4))
        norm.offset.copy_(torch.randn(4))
    energy = torch.stack([torch.stack([x[n, :, :, c].norm() for c in range(4)]) for n in range(2)])
    relative = (energy / energy.mean(1, keepdim=True))[:, None, None, :]
    torch.testing.assert_close(norm(x), norm.gain * x * relative + norm.offset + x)


def test_drop_path():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    assert {round(v, 4) for v in y.unique().tolist()} == {0.0, round(4 / 3, 4)}
    assert all(len(sample.unique()) == 1 for sample in y[:20]) and abs(float(y.mean()) - 1) < 0.05
    assert torch.equal(drop.eval()(x), x) and torch.equal(DropPath(0.0)(x), x)
    rising = AutoBitModel.from_name("convnextv2_atto", None, blocks=[1, 2], widths=[4, 8], drop_path=0.2)
    found = [m.probability for m in rising.modules() if isinstance(m, DropPath)]
    assert found == pytest.approx([0.0, 0.1, 0.2])
