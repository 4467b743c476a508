"""AutoBitModel: any model with any preset, by config or by name."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
import torch
from torch import nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.presets import PRESETS
from bitlayers import BitLayer, BitLinear
from bitmodels import AutoBitModel, list_models
from bitmodels.auto import _FAMILIES
from bitmodels.mlp import BitMLPConfig

# The smallest options of each family, and a batch of its inputs.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"in_channels": 16, "out_channels": 3, "hidden_dim": 8}, (2, 1, 4, 4)),
    "netcnn": ({"out_channels": 3, "widths": (4, 6, 8), "blocks": 2, "expand_ratio": 2}, (2, 1, 8, 8)),
    "resnet20": ({"out_channels": 3, "width": 2}, (2, 3, 8, 8)),
}
QUANTS = {**{name: name for name in PRESETS}, "a config": BitQuantConfig("int3"), "full precision": None}


def test_every_model_is_tested_here():
    assert set(list_models()) == set(SMALL) and list_models() == sorted(_FAMILIES)


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
@pytest.mark.parametrize("name", SMALL)
def test_any_model_with_any_quantization(name: str, quant: BitQuantConfig | str | None):
    options, shape = SMALL[name]
    model = AutoBitModel.from_name(name, quant, **options)
    twin = AutoBitModel.from_config(_FAMILIES[name].config(**options), quant)
    assert repr(model) == repr(twin) and model.bit_model == twin.bit_model
    twin.load_state_dict(model.state_dict())
    x = torch.randn(shape)
    for training in (True, False):
        torch.manual_seed(1)
        y = model.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(twin.train(training)(x), y) and y.shape == (2, 3)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(isinstance(layer, BitLayer) == (quant is not None) for layer in layers) and layers


@pytest.mark.parametrize("name", SMALL)
def test_a_model_says_how_to_build_it_again(name: str):
    options, _ = SMALL[name]
    overrides: dict[str, Any] = {"last": None, "first": "w8a8", "*": {"weight_format": "int3"}}
    model = AutoBitModel.from_name(name, "bitnet", overrides, **options)
    assert isinstance(model.bit_model, dict)
    told = json.loads(json.dumps(model.bit_model))
    again = AutoBitModel.from_name(
        told["name"], BitQuantConfig.from_dict(told["quant"]), told["overrides"], **told["options"]
    )
    assert repr(again) == repr(model)
    assert AutoBitModel.from_name(name, None, **options).bit_model["quant"] is None  # type: ignore[index]


def test_the_default_is_ternary():
    model = AutoBitModel.from_name("mlp", **SMALL["mlp"][0])
    assert isinstance(model.head, BitLinear) and model.head.quant_config == BitQuantConfig()


def test_a_config_in_the_overrides_is_kept():
    config = BitQuantConfig("int5")
    model = AutoBitModel.from_name("mlp", None, {"head": config}, **SMALL["mlp"][0])
    assert model.bit_model["overrides"] == {"head": config.to_dict()}  # type: ignore[index]
    again = AutoBitModel.from_name("mlp", None, {"head": config.to_dict()}, **SMALL["mlp"][0])
    assert isinstance(again.head, BitLinear) and again.head.quant_config == config


@pytest.mark.parametrize("name", SMALL)
def test_unknown_names_are_answered_with_the_nearest(name: str):
    options, _ = SMALL[name]
    with pytest.raises(BitLabError, match=f"unknown model '{name}p'; did you mean '{name}'"):
        AutoBitModel.from_name(f"{name}p", **options)
    for field in fields(_FAMILIES[name].config):
        with pytest.raises(BitLabError, match=f"unknown option of model '{name}' '{field.name}x'; did you mean"):
            AutoBitModel.from_name(name, None, None, **options, **{f"{field.name}x": 1})
    with pytest.raises(BitLabError, match="unknown preset 'bitnett'; did you mean 'bitnet'"):
        AutoBitModel.from_name(name, "bitnett", **options)
    with pytest.raises(BitLabError, match="matches no layer"):
        AutoBitModel.from_name(name, "bitnet", {"haed": None}, **options)


REQUIRED = [(n, f.name) for n, family in _FAMILIES.items() for f in fields(family.config) if f.default is MISSING]


@pytest.mark.parametrize(("name", "required"), REQUIRED)
def test_a_missing_option_is_named(name: str, required: str):
    options, _ = SMALL[name]
    with pytest.raises(BitLabError, match=f"model '{name}': .*'{required}'"):
        AutoBitModel.from_name(name, **{k: v for k, v in options.items() if k != required})


def test_an_unknown_config_is_refused():
    @dataclass
    class BitMLPConfigs:
        in_channels: int = 3

    for config in (BitMLPConfigs(), {"in_channels": 3}, None):
        with pytest.raises(BitLabError, match="unknown model config"):
            AutoBitModel.from_config(config)
    assert isinstance(AutoBitModel.from_config(BitMLPConfig(4, 2)), nn.Module)
