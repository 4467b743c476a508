"""The snippet of BitNetCNN's README, line by line; only the module is called otherwise here."""

# ruff: noqa: I001  (imports in the order of the README)

from __future__ import annotations

import torch


def test_using_models_in_your_code():
    from bitmodels.netcnn import NetCNN
    from bitlab import Bit, convert_to_ternary

    model = NetCNN(in_channels=1, num_classes=10, mod=Bit)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    ternary_model = convert_to_ternary(model)

    from bitlab import convert_to_ternary_p2

    ternary_p2_model = convert_to_ternary_p2(model)

    x = torch.randn(2, 1, 28, 28)
    scales = []
    for converted in (ternary_model, ternary_p2_model):
        assert converted(x).shape == (2, 10)
        assert not converted.training
        scales.append(torch.cat([t.flatten() for n, t in converted.state_dict().items() if n.endswith("weight_scale")]))
    powers = [torch.frexp(scale).mantissa == 0.5 for scale in scales]
    assert not powers[0].all()
    assert powers[1].all()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
