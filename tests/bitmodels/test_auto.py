"""AutoBitModel: any model with any preset, by config or by name."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
import torch
from torch import nn

from bitcore import BitLabError, BitQuantConfig
from bitlayers import BitLayer, BitLinear
from bitmodels import AutoBitModel, find_model, list_models
from bitmodels.auto import _FAMILIES
from bitmodels.mlp import BitMLPConfig
from zoo import NETWORKS, batch, tiny_options

SMALL = {name: tiny_options(name) for name in NETWORKS}
QUANTS = {"bnn": "bnn", "w8a8": "w8a8", "a config": BitQuantConfig("int3"), "full precision": None}


def test_families_and_variants_are_listed():
    assert list_models() == sorted(list_models()) and {*_FAMILIES, *SMALL} < set(list_models())


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
@pytest.mark.parametrize("name", SMALL)
def test_any_model_with_any_quantization(name: str, quant: BitQuantConfig | str | None):
    options, family = SMALL[name], find_model(name).family
    model = AutoBitModel.from_name(name, quant, **options)
    twin = AutoBitModel.from_config(family.config(**options), quant)
    assert isinstance(model.bit_model, dict)
    assert repr(model) == repr(twin) and {**model.bit_model, "name": family.name} == twin.bit_model
    twin.load_state_dict(model.state_dict())
    x, _ = batch(name)
    for training in (True, False):
        torch.manual_seed(1)
        y = model.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(twin.train(training)(x), y) and y.shape == (len(x), 3)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(isinstance(layer, BitLayer) == (quant is not None) for layer in layers) and layers


@pytest.mark.parametrize("name", SMALL)
def test_a_model_says_how_to_build_it_again(name: str):
    options = SMALL[name]
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
    model = AutoBitModel.from_name("mlp", **SMALL["mlp"])
    assert isinstance(model.head, BitLinear) and model.head.quant_config == BitQuantConfig()


def test_a_config_in_the_overrides_is_kept():
    config = BitQuantConfig("int5")
    model = AutoBitModel.from_name("mlp", None, {"head": config}, **SMALL["mlp"])
    assert model.bit_model["overrides"] == {"head": config.to_dict()}  # type: ignore[index]
    again = AutoBitModel.from_name("mlp", None, {"head": config.to_dict()}, **SMALL["mlp"])
    assert isinstance(again.head, BitLinear) and again.head.quant_config == config


@pytest.mark.parametrize("name", SMALL)
def test_unknown_names_are_answered_with_the_nearest(name: str):
    options = SMALL[name]
    with pytest.raises(BitLabError, match=f"unknown model '{name}p'; did you mean '{name}'"):
        AutoBitModel.from_name(f"{name}p", **options)
    for field in fields(find_model(name).family.config):
        with pytest.raises(BitLabError, match=f"unknown option of model '{name}' '{field.name}x'; did you mean"):
            AutoBitModel.from_name(name, None, None, **options, **{f"{field.name}x": 1})
    with pytest.raises(BitLabError, match="unknown preset 'bitnett'; did you mean 'bitnet'"):
        AutoBitModel.from_name(name, "bitnett", **options)
    with pytest.raises(BitLabError, match="matches no layer"):
        AutoBitModel.from_name(name, "bitnet", {"haed": None}, **options)


REQUIRED = [(n, f.name) for n, family in _FAMILIES.items() for f in fields(family.config) if f.default is MISSING]


@pytest.mark.parametrize(("name", "required"), REQUIRED)
def test_a_missing_option_is_named(name: str, required: str):
    options = SMALL[name]
    with pytest.raises(BitLabError, match=f"model '{name}': .*'{required}'"):
        AutoBitModel.from_name(name, **{k: v for k, v in options.items() if k != required})


@pytest.mark.parametrize("name", SMALL)
def test_options_of_other_types_are_named(name: str):
    wrong = {bool: "yes", int: True, float: "much", str: 3, tuple: 12}
    for field in fields(find_model(name).family.config):
        kind = type(field.default)
        for value in (wrong.get(kind, "x"), {}):
            with pytest.raises(BitLabError, match=f"option '{field.name}' of model '{name}' must be .*, not"):
                AutoBitModel.from_name(name, None, **{**SMALL[name], field.name: value})


def test_an_unknown_config_is_refused():
    @dataclass
    class BitMLPConfigs:
        in_channels: int = 3

    for config in (BitMLPConfigs(), {"in_channels": 3}, None):
        with pytest.raises(BitLabError, match="unknown model config"):
            AutoBitModel.from_config(config)
    assert isinstance(AutoBitModel.from_config(BitMLPConfig(4, 2)), nn.Module)
