"""The kernel registry: what it picks."""

from __future__ import annotations

import pytest
import torch

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import FLOAT
from bitcore.formats import FORMATS
from bitcore.kernels import KernelRegistry
from bitcore.kernels.registry import takes_bytes
from bitcore.presets import PRESETS

KERNELS = {kernel.name: kernel for kernel in KernelRegistry.all()}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_found_by_its_name(name: str):
    assert KernelRegistry.get_kernel_by_name(name) is KERNELS[name]
    with pytest.raises(BitLabError, match=f"did you mean '{name}'"):
        KernelRegistry.get_kernel_by_name(f"{name}x")


def test_available_kernels_are_those_that_say_so():
    assert KernelRegistry.list_available_kernels() == [name for name, k in KERNELS.items() if k.available()]


@pytest.mark.parametrize("weight", FORMATS)
def test_the_best_fitting_kernel_is_picked(weight: str):
    for activation in (FLOAT, *FORMATS):
        found = KernelRegistry.find("linear", weight, activation, "cpu")
        fitting = [k for k in KERNELS.values() if k.available() and k.supports(weight, activation, "cpu")]
        assert found in fitting
        assert found.priority == max(k.priority for k in fitting)
        config = BitQuantConfig(weight_format=weight, activation_dtype=activation)
        assert KernelRegistry.get_kernel_for_config(config) is found


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_kernel(name: str):
    kernel = KernelRegistry.get_kernel_for_config(PRESETS[name])
    assert kernel.available() and isinstance(kernel.has_cpp_backend, bool)


def test_an_operation_without_kernel_is_refused():
    with pytest.raises(BitLabError, match="no kernel for sorting of ternary weights and int8 activations"):
        KernelRegistry.find("sorting", "ternary", "int8", "cpu")


@pytest.mark.parametrize("name", FORMATS)
def test_which_activations_fit_a_byte(name: str):
    assert takes_bytes(name) == (FORMATS[name].level_dtype in (torch.int8, torch.uint8))


def test_float_activations_are_no_bytes():
    assert not takes_bytes(FLOAT)
