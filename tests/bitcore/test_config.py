"""BitQuantConfig: names, their checks, and the quantizers they stand for."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from itertools import product
from typing import Any

import pytest

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import (
    ACTIVATION_GRANULARITIES,
    DYNAMIC,
    FLOAT,
    ONLY_FOR,
    ROUNDINGS,
    WEIGHT_GRANULARITIES,
    WEIGHT_SCALES,
    suits,
)
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitcore.quantizers import ESTIMATORS, SCALERS, STATIC_RANGES, TRANSFORMS, FromValues

VALID: dict[str, tuple[Any, ...]] = {
    "weight_format": (FLOAT, *FORMATS),
    "weight_scale": tuple(name for name in WEIGHT_SCALES if suits(name, "ternary")),
    "weight_granularity": WEIGHT_GRANULARITIES,
    "weight_scale_pow2": (False, True),
    "activation_dtype": (FLOAT, *FORMATS),
    "activation_granularity": ACTIVATION_GRANULARITIES,
    "activation_scale": (DYNAMIC, *STATIC_RANGES),
    "activation_scale_pow2": (False, True),
    "input_dtype": (FLOAT, *(name for name, fmt in FORMATS.items() if fmt.bits >= 8)),
    "estimator": tuple(name for name in ESTIMATORS if suits(name, "ternary")),
    "activation_estimator": tuple(ESTIMATORS),
    "weight_transform": tuple(TRANSFORMS),
    "weight_rounding": ROUNDINGS,
    "weight_group_size": (1, 64, 1000),
    "weight_clip": (False, True),
}
NAMES = {field: values for field, values in VALID.items() if isinstance(values[0], str)}


build: Any = BitQuantConfig  # for options whose types are wrong on purpose


def misspelled(name: str) -> str:
    """The name with its last character doubled."""
    return name + name[-1]


def test_every_field_is_tested_here():
    assert set(VALID) == {f.name for f in fields(BitQuantConfig)}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in VALID.items() for v in values])
def test_every_valid_value_survives_a_dictionary(field: str, value: Any):
    config = BitQuantConfig(**{field: value})
    assert getattr(config, field) == value
    stored = config.to_dict()
    assert set(stored) == set(VALID)
    assert BitQuantConfig.from_dict(json.loads(json.dumps(stored))) == config
    assert BitQuantConfig.from_dict({field: value}) == config == BitQuantConfig().replace(**{field: value})


@pytest.mark.parametrize("field", NAMES)
def test_an_unknown_name_is_answered_with_the_nearest(field: str):
    for value in NAMES[field]:
        wrong = misspelled(str(value))
        with pytest.raises(BitLabError) as raised:
            build(**{field: wrong})
        message = str(raised.value)
        assert f"unknown {field} '{wrong}'; did you mean '{value}'?" in message
        assert all(str(name) in message for name in VALID[field] if field != "input_dtype")


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("value", [None, 3, "", "Ternary "])
def test_what_is_no_name_is_refused(field: str, value: object):
    with pytest.raises(BitLabError, match=f"unknown {field}"):
        build(**{field: value})


def test_an_unknown_option_is_answered_with_the_nearest():
    for replace in (BitQuantConfig().replace, lambda **o: BitQuantConfig.from_dict(o)):
        with pytest.raises(
            BitLabError, match="unknown quantization option 'weight_fromat'; did you mean 'weight_format'"
        ):
            replace(weight_fromat="int4")


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.bits < 8])
def test_an_input_below_8_bits_is_refused(name: str):
    with pytest.raises(BitLabError, match=f"input_dtype '{name}' is below 8 bits"):
        BitQuantConfig(input_dtype=name)


def test_per_channel_activations_are_bitlabs_word_for_per_token():
    config = BitQuantConfig(activation_granularity="per_channel")
    assert config.activation_granularity == "per_token"
    assert config == BitQuantConfig(activation_granularity="per_token")


def test_a_config_is_frozen_and_hashable():
    config = BitQuantConfig()
    with pytest.raises(FrozenInstanceError):
        config.weight_format = "int8"  # type: ignore[misc]
    assert len({config, BitQuantConfig(), config.replace(weight_format="int8")}) == 2


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_dictionary(name: str):
    assert BitQuantConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_float32_means_no_quantizer():
    config = BitQuantConfig(weight_format=FLOAT, activation_dtype=FLOAT)
    assert config.weight_quantizer((3, 3)) is None and config.activation_quantizer(1) is None


@pytest.mark.parametrize("ndim", [2, 4])
def test_weight_quantizers(ndim: int):
    settings = product(FORMATS, SCALERS, WEIGHT_GRANULARITIES, (False, True), ESTIMATORS)
    for name, scale, granularity, pow2, estimator in settings:
        if not (suits(scale, name) and suits(estimator, name)):
            continue
        quantizer = BitQuantConfig(name, scale, granularity, pow2, estimator=estimator).weight_quantizer([3] * ndim)
        assert quantizer is not None and isinstance(quantizer.source, FromValues)
        assert quantizer.source.group == (64 if granularity == "per_group" else 0)
        assert quantizer.format is FORMATS[name] and quantizer.pow2 is pow2
        assert quantizer.estimator is ESTIMATORS[estimator]
        assert quantizer.source.trailing == (ndim - 1 if granularity == "per_channel" else None)
        # A range from the largest value must stay uncut when its scale becomes a power of two.
        expected = "absmax_pow2" if scale == "absmax" and pow2 else scale
        assert quantizer.source.scaler is SCALERS[expected]


@pytest.mark.parametrize("trailing", [1, 3])
def test_activation_quantizers(trailing: int):
    for name, granularity, source, pow2 in product(
        FORMATS, ACTIVATION_GRANULARITIES, VALID["activation_scale"], (False, True)
    ):
        config = BitQuantConfig(
            activation_dtype=name,
            activation_granularity=granularity,
            activation_scale=str(source),
            activation_scale_pow2=pow2,
        )
        quantizer = config.activation_quantizer(trailing)
        assert quantizer is not None and quantizer.format is FORMATS[name] and quantizer.pow2 is pow2
        if isinstance(quantizer.source, FromValues):
            assert source == DYNAMIC and quantizer.estimator is ESTIMATORS["ste"]
            assert quantizer.source.trailing == (trailing if granularity == "per_token" else None)
            assert quantizer.source.scaler is SCALERS["absmax_pow2" if pow2 else "absmax"]
        else:
            assert isinstance(quantizer.source, STATIC_RANGES[str(source)])
            assert quantizer.estimator is ESTIMATORS["half_open_ste" if source == "pact" else "clipped_ste"]


def test_every_restriction_names_the_formats():
    fields_of = {"stochastic": "weight_rounding", "approx_sign": "estimator", "ede": "estimator"}
    for method, formats in ONLY_FOR.items():
        field = fields_of.get(method, "weight_scale")
        for name in FORMATS:
            if name in formats:
                assert getattr(build(name, **{field: method}), field) == method
            else:
                with pytest.raises(
                    BitLabError, match=f"{field} '{method}' is not defined for {name}; use {formats[0]}"
                ):
                    build(name, **{field: method})
        assert build(FLOAT, **{field: method}).weight_quantizer((3, 3)) is None


@pytest.mark.parametrize("size", [0, -1, 1.5, "8"])
def test_a_group_has_a_size(size: Any):
    with pytest.raises(BitLabError, match="weight_group_size must be a whole number from 1"):
        build(weight_group_size=size)


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_layers_input_is_never_below_8_bits(name: str):
    config = PRESETS[name].for_input()
    quantizer = config.activation_quantizer(3)
    assert config.for_input() == config
    if quantizer is None:
        assert PRESETS[name].activation_dtype == FLOAT
    else:
        assert quantizer.format.bits == 8 and config.activation_scale not in ("unit", "pact", "learned_plus")
