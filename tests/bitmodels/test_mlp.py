"""The multi-layer perceptron: shapes, options, their checks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from bitcore import BitLabError
from bitmodels import AutoBitModel
from bitmodels.mlp import MLP, BitMLPConfig


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({}, [12, 128, 128, 5]),
        ({"n_layers": 1}, [12, 5]),
        ({"n_layers": 4, "hidden_dim": 7}, [12, 7, 7, 7, 5]),
        ({"hidden_dims": (9, 3)}, [12, 9, 3, 5]),
        ({"hidden_dims": (), "n_layers": 9}, [12, 5]),
    ],
    ids=str,
)
def test_widths(options: dict[str, Any], widths: list[int]):
    model = MLP(BitMLPConfig(12, 5, **options))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == list(pairwise(widths))
    for shape in ((3, 12), (3, 3, 4), (1, 3, 2, 2)):
        assert model.eval()(torch.randn(shape)).shape == (shape[0], 5)


def test_the_order_of_layers():
    model = MLP(BitMLPConfig(12, 5, hidden_dims=(9,), dropout=0.5, batch_norm=True))
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert isinstance(model.fc1, nn.Linear) and isinstance(model.head, nn.Linear)
    assert model.fc1.bias is None and model.head.bias is not None  # batch norm has its own offset
    assert isinstance(model.dropout1, nn.Dropout) and model.dropout1.p == 0.5
    plain = MLP(BitMLPConfig(12, 5, hidden_dims=(9,), bias=False))
    assert [type(m).__name__ for m in plain] == ["Flatten", "Linear", "ReLU", "Linear"]
    assert all(m.bias is None for m in plain.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize(
    "options",
    [
        {"in_channels": 0}, {"out_channels": -1}, {"n_layers": 0}, {"hidden_dim": 0}, {"hidden_dims": (3, 0)},
        {"dropout": 1.0}, {"dropout": -0.1}, {"in_channels": "many"}, {"dropout": "some"},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_sizes_are_refused(options: dict[str, Any]):
    with pytest.raises(BitLabError, match="model 'mlp'"):
        AutoBitModel.from_name("mlp", **{"in_channels": 12, "out_channels": 5, **options})


def test_lists_are_as_good_as_tuples():
    """As YAML and JSON give them."""
    model = AutoBitModel.from_name("mlp", in_channels=12, out_channels=5, hidden_dims=[9, 3])
    assert model.bit_model["options"]["hidden_dims"] == (9, 3)  # type: ignore[index]
