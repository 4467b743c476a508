"""NetCNN: BitNetCNN's constructor and AutoBitModel build the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitcore import BitLabError
from bitcore.presets import PRESETS
from bitlayers import Bit, BitConv2d, BitLayer, BitLinear, convert_to_ternary_p2, pack
from bitmodels import AutoBitModel
from bitmodels.netcnn import InvertedResidual, NetCNN, NetCNNConfig

SMALL: dict[str, Any] = {"widths": (4, 6, 8, 10), "blocks": 2, "expand_ratio": 2}


def test_bitnetcnns_constructor():
    model = NetCNN(in_channels=1, num_classes=10, mod=Bit)
    twin = AutoBitModel.from_config(NetCNNConfig(), "bitnet-cnn")
    twin.load_state_dict(model.state_dict())
    layers = [module for module in model.modules() if isinstance(module, BitLayer)]
    assert {layer.quant_config for layer in layers} == {PRESETS["bitnet-cnn"]}
    assert [type(layer) for layer in layers] == [BitConv2d] * (1 + 3 * 3) + [BitLinear]
    assert not any(type(module) in (nn.Conv2d, nn.Linear) for module in model.modules())
    with torch.no_grad():
        x = torch.randn(2, 1, 28, 28)
        assert torch.equal(model.eval()(x), twin.eval()(x))


def test_sizes():
    model = NetCNN()
    assert type(model.head) is nn.Linear and type(model.stem[0]) is nn.Conv2d
    assert sum(p.numel() for p in model.parameters()) == 138_666
    shapes = []
    for module in (model.stem, *model.stages, model.head):
        module.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    model.eval()(torch.zeros(2, 1, 28, 28))
    assert shapes == [(2, 32, 28, 28), (2, 64, 14, 14), (2, 128, 7, 7), (2, 256, 4, 4), (2, 10)]
    assert NetCNN(3, 100, **SMALL)(torch.zeros(2, 3, 32, 17)).shape == (2, 100)


def test_the_input_is_added_where_shapes_agree():
    for arguments, residual in (((4, 4, 1, 2), True), ((4, 4, 2, 2), False), ((4, 6, 1, 2), False)):
        block = InvertedResidual(*arguments).eval()
        x = torch.randn(2, 4, 6, 6)
        assert block.residual is residual
        assert torch.equal(block(x), x + block.body(x) if residual else block.body(x))


def test_it_learns_and_becomes_ternary_with_shifts():
    model = NetCNN(1, 2, mod=Bit, dropout=0.0, **SMALL)
    x, labels = torch.randn(16, 1, 12, 12), torch.arange(16) % 2
    x[labels == 1, :, :6] += 2
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(pack(model)(x), expected)
        shifted = convert_to_ternary_p2(NetCNN(1, 2, mod=nn, **SMALL))
    for layer in shifted.modules():
        if isinstance(layer, BitLayer):
            assert bool((torch.frexp(layer.weight_scale).mantissa == 0.5).all())  # type: ignore[arg-type]
    assert shifted(x).shape == (16, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"widths": ()}, "at least 1"), ({"expand_ratio": 0}, "at least 1"), ({"dropout": 1.0}, "dropout")],
)
def test_impossible_sizes(options: dict[str, Any], message: str):
    with pytest.raises(BitLabError, match=f"model 'netcnn': .*{message}"):
        AutoBitModel.from_name("netcnn", **options)
