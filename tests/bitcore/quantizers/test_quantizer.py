"""The promise of quantizers: the value of fake quantization is the dequantized code, in every combination."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import Tensor

from bitcore import BitLabError
from bitcore.config import (
    ACTIVATION_GRANULARITIES,
    DYNAMIC,
    WEIGHT_GRANULARITIES,
    WEIGHT_SCALES,
    BitQuantConfig,
    suits,
)
from bitcore.formats import FORMATS
from bitcore.quantizers import ESTIMATORS, STATIC_RANGES, TRANSFORMS, Quantizer, Tracked

every_format = pytest.mark.parametrize("name", FORMATS)
BOOLS = (False, True)


def tensors() -> dict[str, Tensor]:
    """Two-dimensional inputs, ordinary and not."""
    normal = torch.randn(5, 33)
    mixed = normal.clone()
    mixed[1], mixed[2], mixed[3] = 0, 1e-38, 0.7
    return {
        "normal": normal,
        "a channel of zeros, of tiny, of equal values": mixed,
        "zeros": torch.zeros(3, 7),
        "equal": torch.full((3, 7), -1.7),
        "tiny": torch.randn(3, 7) * 1e-38,
        "huge": torch.randn(3, 7) * 1e36,
        "one value": torch.randn(1, 1),
        "empty": torch.zeros(0, 7),
        "empty rows": torch.zeros(3, 0),
    }


def check(quantizer: Quantizer, x: Tensor, label: str) -> None:
    """Fake quantization, levels and scale agree bit for bit, and the scale is usable."""
    twin = copy.deepcopy(quantizer) if quantizer.training else quantizer  # in training a call may change the state
    fake, codes = quantizer(x).detach(), twin.quantize(x)
    assert torch.equal(fake, codes.dequantize()), label
    assert fake.shape == x.shape and fake.dtype == x.dtype, label
    assert bool((codes.scale > 0).all()) and bool(torch.isfinite(codes.scale).all()), label
    assert not codes.scale.requires_grad and not codes.levels.requires_grad
    assert torch.equal(codes.integers().to(x.dtype), codes.levels), label
    assert codes.shift is None or float(codes.shift) == round(float(codes.shift)), label
    assert torch.equal(codes.format.decode(codes.codes()).to(x.dtype), codes.levels), label
    if quantizer.pow2:
        assert bool((torch.frexp(codes.scale).mantissa == 0.5).all()), label


@pytest.mark.parametrize("scale", WEIGHT_SCALES)
@every_format
def test_weights(name: str, scale: str):
    if not suits(scale, name):
        with pytest.raises(BitLabError, match=f"weight_scale '{scale}' is not defined for {name}; use "):
            BitQuantConfig(name, scale)
        return
    for granularity, pow2 in product(WEIGHT_GRANULARITIES, BOOLS):
        if scale == "ttq" and granularity == "per_group":
            continue
        config = BitQuantConfig(name, scale, granularity, pow2, weight_group_size=5)
        for label, x in tensors().items() if not pow2 else [("normal", torch.randn(5, 33))]:
            quantizer = config.weight_quantizer(x.shape)
            assert quantizer is not None and quantizer.format is FORMATS[name]
            for training in (False, True):
                check(quantizer.train(training), x, f"{config} {label} {training}")
        quantizer = config.weight_quantizer((5, 33))
        assert quantizer is not None
        shape = {"per_tensor": (), "per_channel": (5, 1), "per_group": (5, 7)}[granularity]
        expected = (2, *(shape or (1, 1))) if scale == "ttq" else shape
        assert quantizer.scale(torch.randn(5, 33)).shape == expected


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@every_format
def test_estimators_and_transforms_change_no_value_of_their_own(name: str, estimator: str, transform: str):
    if not suits(estimator, name):
        with pytest.raises(BitLabError, match=f"estimator '{estimator}' is not defined for {name}; use binary"):
            BitQuantConfig(name, estimator=estimator)
        return
    config = BitQuantConfig(name, "absmax", "per_channel", estimator=estimator, weight_transform=transform)
    for label, x in tensors().items():
        quantizer = config.weight_quantizer(x.shape)
        assert quantizer is not None and quantizer.estimator is ESTIMATORS[estimator]
        check(quantizer, x, f"{config} {label}")
        check(quantizer, x.clone().requires_grad_(), f"{config} {label} with a gradient")


@every_format
def test_activations(name: str):
    kinds = [(granularity, DYNAMIC) for granularity in ACTIVATION_GRANULARITIES]
    kinds += [("per_tensor", source) for source in STATIC_RANGES]
    for (granularity, source), pow2 in product(kinds, BOOLS):
        config = BitQuantConfig(
            activation_dtype=name,
            activation_granularity=granularity,
            activation_scale=source,
            activation_scale_pow2=pow2,
        )
        quantizer = config.activation_quantizer(1)
        assert quantizer is not None and quantizer.source.static == (source != DYNAMIC)
        for training in (True, False):
            quantizer.train(training)
            for label, x in tensors().items() if not pow2 else [("normal", torch.randn(5, 33))]:
                check(quantizer, x, f"{config} {label}")
        per_token = granularity == "per_token" and source == DYNAMIC
        assert quantizer.scale(torch.randn(2, 5, 33)).shape == ((2, 5, 1) if per_token else ())


@every_format
def test_samples_of_a_convolution_have_scales_of_their_own(name: str):
    quantizer = BitQuantConfig(activation_dtype=name, activation_granularity="per_token").activation_quantizer(3)
    assert quantizer is not None
    x = torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 10, 0, 1e-3]).reshape(4, 1, 1, 1)
    check(quantizer, x, name)
    assert quantizer.scale(x).shape == (4, 1, 1, 1)
    for i in range(4):
        assert torch.equal(quantizer(x)[i], quantizer(x[i : i + 1])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@every_format
def test_other_float_dtypes(name: str, dtype: torch.dtype):
    for granularity in WEIGHT_GRANULARITIES:
        quantizer = BitQuantConfig(name, weight_granularity=granularity).weight_quantizer((5, 33))
        assert quantizer is not None
        x = torch.randn(5, 33, dtype=dtype)
        codes = quantizer.quantize(x)
        assert torch.equal(quantizer(x), codes.dequantize())
        assert codes.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(FORMATS[name].decode(codes.codes()).to(codes.levels.dtype), codes.levels)


@every_format
def test_values_are_divided_by_the_scale(name: str):
    """Not multiplied by its reciprocal: the two differ, on ties above all."""
    quantizer = BitQuantConfig(name, "absmax").weight_quantizer((5, 33))
    assert quantizer is not None
    scale = torch.rand(200, 1) + 0.1
    fmt = FORMATS[name]
    x = (torch.randint(fmt.low, fmt.high, (200, 20)) + 0.5) * scale
    codes = quantizer.quantize(x)
    assert torch.equal(codes.levels, fmt.nearest(x / codes.scale))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@every_format
def test_gradients_reach_the_values(name: str, estimator: str):
    if not suits(estimator, name):
        return
    quantizer = BitQuantConfig(name, "absmax", estimator=estimator).weight_quantizer((5, 33))
    assert quantizer is not None
    quantizer.temperature = 2.0
    x = torch.randn(5, 33, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn_like(x)
    quantizer(x).backward(incoming)
    assert x.grad is not None
    factor = ESTIMATORS[estimator](x.detach() / quantizer.scale(x.detach()), FORMATS[name], 2.0)
    expected = incoming if factor is None else incoming * factor
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=0)


def test_fake_gives_the_scale_and_sees_the_batch_once():
    quantizer = Quantizer(FORMATS["int8"], Tracked()).train()
    x = torch.randn(4, 4)
    value, scale = quantizer.fake(x)
    assert torch.equal(value, FORMATS["int8"].nearest(x / scale) * scale)
    source = quantizer.source
    assert isinstance(source, Tracked) and int(source.batches) == 1


def test_nan_stays_nan_and_cannot_be_packed():
    for name in FORMATS:
        quantizer = BitQuantConfig(name, "absmax").weight_quantizer((5, 33))
        assert quantizer is not None
        codes = quantizer.quantize(torch.tensor([[1.0, math.nan]]))
        assert bool(codes.dequantize()[0, 1].isnan())
        with pytest.raises(ValueError, match=name):
            codes.pack()
