"""Presets and the errors for unknown names."""

from __future__ import annotations

import pytest

from bitcore import BitLabError, get_preset
from bitcore.errors import unknown
from bitcore.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_name(name: str):
    assert get_preset(name) is PRESETS[name]
    with pytest.raises(BitLabError, match=f"unknown preset '{name}x'; did you mean '{name}'"):
        get_preset(f"{name}x")


def test_no_two_presets_are_equal():
    assert len(set(PRESETS.values())) == len(PRESETS)


def test_microcontroller_presets_need_no_multiplication():
    for name, config in PRESETS.items():
        if name.startswith("mcu-"):
            assert config.weight_scale_pow2 and config.activation_scale_pow2, name
            assert config.weight_granularity == "per_tensor", name


def test_the_error_for_an_unknown_name_says_what_is_known():
    message = str(unknown("dataset", "mnits", ["mnist", "digits"]))
    assert message == "unknown dataset 'mnits'; did you mean 'mnist'? Known: digits, mnist"
    assert str(unknown("dataset", "zzz", ["mnist", "digits"])) == "unknown dataset 'zzz'. Known: digits, mnist"
    assert "None" in str(unknown("dataset", None, ["mnist"]))
