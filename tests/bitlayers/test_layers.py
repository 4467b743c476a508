"""What all bit layers share: their three states, states on disk, gradients, errors. Every preset, every layer."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import ACTIVATION_GRANULARITIES, DYNAMIC, FLOAT
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitcore.quantizers import STATIC_RANGES
from bitlayers import BitConv2d, BitLayer, BitLinear, pack

Make = Callable[[BitQuantConfig, bool], BitLayer]
LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (lambda config, bias: BitLinear(33, 7, bias, config), (3, 33)),
    "linear of tokens": (lambda config, bias: BitLinear(33, 7, bias, config), (2, 3, 33)),
    "conv": (lambda config, bias: BitConv2d(4, 6, 3, 2, 1, groups=2, bias=bias, quant_config=config), (2, 4, 9, 7)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_preset = pytest.mark.parametrize("preset", PRESETS)
every_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def make(kind: str, config: BitQuantConfig | str, bias: bool = True, trained: bool = True) -> tuple[BitLayer, Tensor]:
    """A layer that saw two batches, and an input for it."""
    build, shape = LAYERS[kind]
    layer = build(PRESETS[config] if isinstance(config, str) else config, bias)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(shape)
    if trained:
        for factor in (1, 2):
            layer.train()(x * factor)
    return layer.eval(), x


def in_integers(layer: BitLayer, x: Tensor) -> NDArray[np.float32]:
    """What eval computes, written out: products of int64 levels, then the scales in float32."""
    weight = layer.quantized_weight()
    assert layer.activation_quantizer is not None
    codes = layer.activation_quantizer.quantize(x)
    levels = codes.format.decode(codes.codes()).to(torch.int64)
    levels = levels if codes.shift is None else levels + codes.shift.to(torch.int64)
    accumulator = layer.operate(levels.double(), layer.qweight.to(torch.int64).double()).to(torch.int64)
    channels = (-1,) + (1,) * (layer.token_dims - 1)
    weight_scale = weight.scale.flatten().reshape(channels) if weight.scale.ndim else weight.scale
    scale = (codes.scale * weight_scale).detach()
    if layer.bias is None:
        return (accumulator.float() * scale).numpy()
    bias = layer.bias.detach()
    if layer.activation_quantizer.source.static:
        steps = np.round(bias.double().numpy() / scale.flatten().double().numpy()).astype(np.int64)
        return ((accumulator + torch.from_numpy(steps).reshape(channels)).float() * scale).numpy()
    return (accumulator.float() * scale + bias.reshape(channels)).numpy()


@every_bias
@every_preset
@every_layer
@torch.no_grad()
def test_train_eval_and_packed(kind: str, preset: str, bias: bool):
    layer, x = make(kind, preset, bias)
    config = layer.quant_config
    result = layer(x)
    assert result.dtype == torch.float32
    if layer.activation_quantizer is not None:
        assert np.array_equal(result.numpy(), in_integers(layer, x))
    if config.activation_dtype == FLOAT or config.activation_scale == DYNAMIC:
        torch.testing.assert_close(layer.train()(x), result, rtol=1e-4, atol=1e-4)
        layer.eval()
    levels = layer.qweight
    layer.pack()
    for training in (False, True):  # a packed layer can only evaluate, and its range stays as it is
        assert torch.equal(layer.train(training)(x), result) and not layer.training
    assert layer.packed and torch.equal(layer.qweight, levels)
    layer.pack()  # again: nothing happens
    assert torch.equal(layer(x), result)


@pytest.mark.parametrize("activation", FORMATS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@torch.no_grad()
def test_every_activation_setting(kind: str, activation: str):
    """Dynamic, tracked and learned scales, of every format; also where levels do not fit a byte."""
    settings = [(DYNAMIC, g) for g in ACTIVATION_GRANULARITIES] + [(s, "per_tensor") for s in STATIC_RANGES]
    for (scale, granularity), pow2, weight in product(settings, (False, True), ("ternary", "nf4")):
        config = BitQuantConfig(
            weight_format=weight,
            activation_dtype=activation,
            activation_granularity=granularity,
            activation_scale=scale,
            activation_scale_pow2=pow2,
        )
        layer, x = make(kind, config)
        result = layer(x)
        assert np.array_equal(result.numpy(), in_integers(layer, x)), config
        layer.pack()
        assert torch.equal(layer(x), result), config


@every_preset
@every_layer
@torch.no_grad()
def test_static_ranges_train_as_they_evaluate(kind: str, preset: str):
    """Fake quantization is the integer result up to float32 rounding, the rounded bias included."""
    layer, x = make(kind, preset)
    if layer.activation_quantizer is None or not layer.activation_quantizer.source.static:
        return
    if PRESETS[preset].weight_rounding == "stochastic":
        return  # it trains on other weights on purpose
    layer.train()
    layer.activation_quantizer.eval()  # keep the range as it is
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.eval()  # no stochastic rounding
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", STATIC_RANGES)
@every_layer
def test_a_training_step_counts_as_one_batch(kind: str, scale: str):
    config = BitQuantConfig(activation_dtype="int8", activation_scale=scale)
    layer, x = make(kind, config, trained=False)
    layer.train()(x)
    assert layer.activation_quantizer is not None
    if not hasattr(layer.activation_quantizer.source, "batches"):
        return  # it does not look at batches
    assert int(layer.activation_quantizer.source.batches) == 1  # type: ignore[arg-type]


@every_preset
@every_layer
def test_qweight_holds_the_formats_levels(kind: str, preset: str):
    layer, _ = make(kind, preset, trained=False)
    fmt = FORMATS[PRESETS[preset].weight_format]
    assert layer.qweight.dtype == fmt.level_dtype and layer.qweight.shape == layer.weight_shape
    assert set(layer.qweight.unique().tolist()) <= set(fmt.levels)
    weight = layer.quantized_weight()
    assert layer.weight_quantizer is not None
    assert torch.equal(weight.dequantize(), layer.weight_quantizer(layer.weight).detach())


def test_bitlabs_example():
    config = BitQuantConfig(
        activation_dtype="int8", activation_granularity="per_tensor", weight_granularity="per_tensor"
    )
    layer = BitLinear(512, 256, quant_config=config).eval()
    assert layer.qweight.dtype == torch.int8 and layer.qweight.unique().tolist() == [-1, 0, 1]


@every_bias
@every_preset
@every_layer
def test_gradients_reach_every_parameter(kind: str, preset: str, bias: bool):
    layer, x = make(kind, preset, bias, trained=False)
    x[0] *= 20  # far enough out to reach what learns a range from clipped values
    x.requires_grad_()
    layer.train()(x).square().sum().backward()
    for name, gradient in [("input", x.grad), *((n, p.grad) for n, p in layer.named_parameters())]:
        assert gradient is not None, name
        clips_nothing = name.endswith("alpha")  # PACT's clip starts at the first batch's largest value
        assert bool(torch.isfinite(gradient).all()) and (clips_nothing or bool((gradient != 0).any())), name


@every_layer
def test_training_lowers_a_loss(kind: str):
    layer, x = make(kind, "bitnet", trained=False)
    layer.train()
    target = torch.randn_like(layer(x)).detach()
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 0.7


@every_preset
@every_layer
def test_pack_frees_the_float_weight(kind: str, preset: str):
    layer, _ = make(kind, preset, trained=False)
    size = math.prod(layer.weight_shape)
    layer.pack()
    assert "weight" not in dict(layer.named_parameters())
    held = [*layer.parameters(), *layer.buffers()]
    assert all(t.numel() < size for t in held if t.is_floating_point())
    fmt = FORMATS[PRESETS[preset].weight_format]
    stored = layer.weight_shape[0] * fmt.packing.row_bytes(size // layer.weight_shape[0])
    assert layer.state_dict()["packed_weight"].numel() == stored
    assert layer.packed_weight is not None
    assert layer.packed_weight.numel() == (stored if layer.machine_weight is None else 0), "the weight is held twice"


@every_preset
@every_layer
@torch.no_grad()
def test_state_dicts(kind: str, preset: str):
    """Latent to latent, packed to fresh, packed to packed, latent to packed: the same outputs bit for bit."""
    layer, x = make(kind, preset)
    expected, latent = layer(x), copy.deepcopy(layer.state_dict())
    layer.pack()
    packed = copy.deepcopy(layer.state_dict())
    assert "packed_weight" not in latent and "weight" not in packed
    fresh, _ = make(kind, preset, trained=False)
    for first, second in product((None, latent, packed), (latent, packed)):
        fresh, _ = make(kind, preset, trained=False)
        for state in (first, second):
            if state is not None:
                buffer = io.BytesIO()
                torch.save(state, buffer)
                buffer.seek(0)
                fresh.load_state_dict(torch.load(buffer, weights_only=True))
        assert fresh.packed == (second is packed)
        assert torch.equal(fresh(x), expected)
        assert all(torch.equal(value, second[name]) for name, value in fresh.state_dict().items())
    fresh.load_state_dict(latent)
    assert isinstance(fresh.weight, nn.Parameter) and fresh.train().training
    fresh(x)


@every_preset
def test_another_layers_state_is_refused(preset: str):
    for wrong in (BitLinear(33, 5), BitLinear(5, 7), BitConv2d(4, 6, 3)):
        for packed in (False, True):
            other = copy.deepcopy(wrong)
            if packed:
                other.pack()
            layer = BitLinear(33, 7, quant_config=PRESETS[preset])
            with pytest.raises(BitLabError if packed else RuntimeError, match="the layer takes|size mismatch"):
                layer.load_state_dict(other.state_dict())


def test_a_float_layer_takes_no_packed_state():
    packed = BitLinear(33, 7)
    packed.pack()
    with pytest.raises(RuntimeError, match="packed_weight"):
        BitLinear(33, 7, quant_config=BitQuantConfig(FLOAT)).load_state_dict(packed.state_dict())


@every_preset
@every_layer
@torch.no_grad()
def test_copies_and_pickles(kind: str, preset: str):
    layer, x = make(kind, preset)
    expected = layer(x)
    for state in ("eval", "packed"):
        if state == "packed":
            layer.pack()
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), expected)
            assert "latent" in repr(twin) if state == "eval" else "packed" in repr(twin)
    assert PRESETS[preset].weight_format in repr(layer)


def test_a_deep_copy_is_independent():
    layer, x = make("linear", "bitnet")
    twin, expected = copy.deepcopy(layer), layer(x)
    with torch.no_grad():
        twin.weight.neg_()
    twin.pack()
    assert torch.equal(layer(x), expected) and not layer.packed


@every_preset
@every_layer
def test_mixed_precision(kind: str, preset: str):
    """Forward and backward run under autocast; integer results do not depend on it."""
    layer, x = make(kind, preset)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer.train()(x).float().square().sum().backward()
        assert layer.weight.grad is not None and bool(torch.isfinite(layer.weight.grad).all())
    layer, x = make(kind, preset)
    expected = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        lower = layer(x)
        if layer.activation_quantizer is not None:
            assert torch.equal(lower, expected)
        layer.pack()
        assert torch.equal(layer(x), lower)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@every_layer
@torch.no_grad()
def test_other_dtypes(kind: str, dtype: torch.dtype):
    for preset in ("bitlab", "bitnet", "w8a8"):
        layer, x = make(kind, preset)
        layer, x = layer.to(dtype), x.to(dtype)
        result = layer(x)
        assert result.dtype == dtype
        layer.pack()
        assert torch.equal(layer(x), result)


@every_preset
@every_layer
@torch.no_grad()
def test_empty_batches(kind: str, preset: str):
    layer, x = make(kind, preset)
    for state in ("train", "eval", "packed"):
        layer.train(state == "train")
        if state == "packed":
            layer.pack()
        assert layer(x[:0]).shape == (0, *layer.eval()(x).shape[1:])


@every_preset
@every_layer
@torch.no_grad()
def test_zeros_stay_finite(kind: str, preset: str):
    layer, x = make(kind, preset)
    assert bool(torch.isfinite(layer(torch.zeros_like(x))).all())
    layer.weight.zero_()
    assert bool(torch.isfinite(layer(x)).all())


@every_preset
@every_layer
@torch.no_grad()
def test_samples_do_not_influence_each_other_per_token(kind: str, preset: str):
    layer, x = make(kind, preset)
    if PRESETS[preset].activation_granularity != "per_token":
        return
    together = layer(x)
    for i in range(len(x)):
        assert torch.equal(layer(x[i : i + 1])[0], together[i])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_preset
def test_weights_that_are_no_numbers_are_refused_by_name(preset: str, value: float):
    model = nn.ModuleDict({"good": make("linear", preset)[0], "bad": nn.Sequential(make("conv", preset)[0])})
    broken = model.get_submodule("bad.0")
    assert isinstance(broken, BitLayer)
    with torch.no_grad():
        broken.weight[0, 0, 0, 0] = value
    for packing in (broken.pack, broken.packed_tensor):
        with pytest.raises(BitLabError, match="NaN or infinite"):
            packing()
    assert not broken.packed
    with pytest.raises(BitLabError, match="layer 'bad.0': its weights are NaN"):
        pack(model)


def test_float_weights_have_no_levels():
    for activation in (FLOAT, "int8"):
        layer = BitLinear(33, 7, quant_config=BitQuantConfig(FLOAT, activation_dtype=activation)).eval()
        x = torch.randn(3, 33)
        expected = layer(x)
        assert layer.weight_quantizer is None
        if activation == FLOAT:
            assert torch.equal(expected, nn.functional.linear(x, layer.weight, layer.bias))
        layer.pack()  # nothing to pack
        assert not layer.packed and torch.equal(layer(x), expected)
        with pytest.raises(BitLabError, match="float32"):
            layer.quantized_weight()


@pytest.mark.parametrize("features", [32, 34, 1000])
@every_preset
def test_inputs_of_the_wrong_size_are_refused(preset: str, features: int):
    """Also where the packed rows would take the same bytes."""
    layer, _ = make("linear", preset)
    x = torch.randn(3, features)
    own = f"takes 33 features, its input has {features}"
    torchs = rf"shapes cannot be multiplied|x must be .* \[\.\.\., 33\] on cpu, not float32 \[3, {features}\]"
    with pytest.raises((BitLabError, RuntimeError), match=torchs):
        layer(x)
    layer.pack()
    with pytest.raises((BitLabError, RuntimeError), match=own if layer.packed_tensor().uniform else torchs):
        layer(x)


@torch.no_grad()
def test_sums_beyond_int32_do_not_wrap():
    """70,000 products of 8-bit levels: kernels of int32 sums stand back."""
    config = BitQuantConfig("8bit", "absmax", activation_dtype="uint8", activation_scale="unit")
    layer = BitLinear(70_000, 2, False, config).eval()
    layer.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 70_000))
    x = torch.ones(1, 70_000)
    expected = layer(x)
    torch.testing.assert_close(expected, torch.tensor([[-70_000.0, 70_000.0]]))
    layer.pack()
    assert torch.equal(layer(x), expected)


def test_the_default_is_ternary_weights_and_float_activations():
    for layer in (BitLinear(5, 3), BitConv2d(5, 3, 1)):
        assert layer.quant_config == BitQuantConfig() and layer.quant_config.weight_format == "ternary"
        assert layer.activation_quantizer is None


def test_a_mixin_alone_has_no_operation():
    with pytest.raises(TypeError, match="defines no operation"):
        BitLayer().operate(torch.zeros(1), torch.zeros(1))
