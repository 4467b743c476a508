"""quantize(): any model becomes a quantized one and keeps its weights; overrides by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import FLOAT
from bitcore.presets import PRESETS, resolve
from bitlayers import (
    BitConv2d,
    BitLayer,
    BitLinear,
    convert_to_ternary,
    convert_to_ternary_p2,
    fuse_batchnorm,
    pack,
    quantize,
    train_fused,
)
from bitlayers.convert import convert
from bitlayers.packed_weight import PackedWeight

BITNET, W8A8 = PRESETS["bitnet"], PRESETS["w8a8"]


class Net(nn.Module):
    """Convolutions, a nested block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", groups=4), nn.ReLU(), nn.BatchNorm2d(4))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x)).flatten(1))


def configs(model: nn.Module) -> dict[str, BitQuantConfig | None]:
    """The config of every layer that has weights, None where it stayed float."""
    return {
        name: layer.quant_config if isinstance(layer, BitLayer) else None
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def first(config: BitQuantConfig) -> BitQuantConfig:
    """What the first layer gets."""
    return config.for_input()


@pytest.mark.parametrize("name", PRESETS)
def test_every_layer_is_replaced_and_keeps_its_parameters(name: str):
    model, config = Net(), PRESETS[name]
    kept = dict(model.named_parameters())
    x = torch.randn(2, 1, 8, 8)
    shape = model(x).shape
    assert quantize(model, name, inplace=True) is model
    rest = config.for_signed()  # batch norm or nothing stands in front
    assert configs(model) == {"stem": first(config), "block.0": rest, "head": rest}
    after = {n: p for n, p in model.named_parameters() if "quantizer" not in n}
    assert after.keys() == kept.keys() and all(after[n] is kept[n] for n in kept)
    signs = config.activation_dtype == "binary"  # the sign of what a ReLU passes would always be +1
    assert type(model.block[1]) is (nn.Hardtanh if signs else nn.ReLU) and type(model.block[2]) is nn.BatchNorm2d
    assert model(x).shape == shape
    assert pack(model, inplace=True) is model and not model.training
    assert model(x).shape == shape


def test_binary_activations_turn_relus_into_hardtanhs_and_say_so():
    model = Net()
    report = convert(model, "bnn")
    assert report.hardtanhs == ("block.1",) and "Hardtanh" in str(report)
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0])
    assert model.block[1](x).tolist() == [-1, -0.5, 0.5, 1]
    assert not convert(Net(), "w8a8").hardtanhs


def test_geometry_is_kept():
    model = quantize(Net(), "bitlab")
    plain = Net()
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            twin = model.get_submodule(name)
            assert isinstance(twin, type(layer)) and type(twin) is (
                BitConv2d if isinstance(layer, nn.Conv2d) else BitLinear
            )
            for field in layer.__constants__:
                assert getattr(twin, field) == getattr(layer, field), field
            assert (twin.bias is None) == (layer.bias is None)


def test_a_model_without_quantization_is_the_plain_one():
    model, x = Net().eval(), torch.randn(2, 1, 8, 8)
    expected = model(x)
    assert set(configs(quantize(model, None)).values()) == {None}
    assert torch.equal(model(x), expected)


def test_quantized_float_layers_compute_the_same():
    model, x = Net().eval(), torch.randn(2, 1, 8, 8)
    expected = model(x)
    model = quantize(model, BitQuantConfig(FLOAT))
    assert isinstance(model.head, BitLinear) and torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"head": None}, {"head": None}),
        ({"last": None}, {"head": None}),
        ({"first": "w8a8"}, {"stem": W8A8}),
        ({"first": W8A8, "last": W8A8}, {"stem": W8A8, "head": W8A8}),
        ({"block.*": "w8a8"}, {"block.0": W8A8}),
        ({"*": None}, {"stem": None, "block.0": None, "head": None}),
        ({"block.*": None, "*": "w8a8"}, {"stem": W8A8, "block.0": None, "head": W8A8}),  # the first match counts
        ({"[hs]*": {"weight_format": "int4"}}, dict.fromkeys(("stem", "head"), BITNET.replace(weight_format="int4"))),
        ({"head": {}}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_overrides(overrides: dict[str, Any], changed: dict[str, BitQuantConfig | None]):
    expected = dict.fromkeys(("stem", "block.0", "head"), BITNET) | changed
    assert configs(quantize(Net(), "bitnet", overrides)) == expected


def test_overrides_without_a_config_quantize_only_those_layers():
    assert configs(quantize(Net(), None, {"head": W8A8})) == {"stem": None, "block.0": None, "head": W8A8}
    changed = configs(quantize(Net(), None, {"head": {"weight_format": "int3"}}))
    assert changed["head"] == BitQuantConfig(weight_format="int3") and changed["stem"] is None


def test_only_the_first_layer_sees_the_input():
    config = BitQuantConfig(activation_dtype="uint4", activation_scale="tracked", input_dtype="uint8")
    found = configs(quantize(Net(), config))
    assert [c.activation_dtype for c in found.values() if c] == ["uint8", "int4", "int4"]
    found = configs(quantize(Net(), config, {"first": None}))  # a float first layer passes no codes on
    assert [c and c.activation_dtype for c in found.values()] == [None, "int4", "int4"]
    found = configs(quantize(Net(), config.replace(activation_dtype=FLOAT)))
    assert [c.activation_dtype for c in found.values() if c] == [FLOAT] * 3


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(5, 3), lambda: nn.Conv2d(2, 3, 1, bias=False)], ids=["linear", "conv"]
)
def test_a_bare_layer_is_a_model(make: Callable[[], nn.Linear | nn.Conv2d]):
    for quant, overrides in (("bitnet", None), (None, {"first": "w8a8"})):
        layer = make()
        weight, bias = layer.weight, layer.bias
        result = quantize(layer, quant, overrides, inplace=True)
        assert isinstance(result, BitLayer) and result.weight is weight and result.bias is bias
    assert not isinstance(quantize(make(), "bitnet", {"last": None}), BitLayer)


@pytest.mark.parametrize("pattern", ["haed", "block", "bloc?", "block.0.weight", ""])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str):
    with pytest.raises(BitLabError, match=r"matches no layer; there are: stem, block\.0, head"):
        quantize(Net(), "bitnet", {pattern: None})


def test_unknown_names_are_refused_before_anything_changes():
    for quant, overrides, message in [
        ("bitnett", {}, "did you mean 'bitnet'"),
        ("bitnet", {"head": "w8a9"}, "did you mean 'w8a8'"),
        ("bitnet", {"head": {"weight_fromat": "int8"}}, "did you mean 'weight_format'"),
        ("bitnet", {"head": {"weight_format": "int9"}}, "unknown weight_format"),
    ]:
        model = Net()
        with pytest.raises(BitLabError, match=message):
            quantize(model, quant, overrides, inplace=True)
        assert set(configs(model).values()) == {None}, message


def test_first_and_last_in_a_model_without_layers():
    with pytest.raises(BitLabError, match="'first' matches no layer"):
        quantize(nn.ReLU(), None, {"first": "bitnet"})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mode_dtype_and_frozen_parameters_are_kept(training: bool, dtype: torch.dtype):
    model = Net().to(dtype).train(training)
    model.head.weight.requires_grad_(False)
    model = quantize(model, "bitnet")
    assert all(module.training is training for module in model.modules())
    assert not model.head.weight.requires_grad and model.head.bias.requires_grad
    assert model(torch.randn(2, 1, 8, 8, dtype=dtype)).dtype == dtype


def test_a_layer_used_in_two_places_is_replaced_in_both():
    shared = nn.Linear(5, 5)
    model = quantize(nn.Sequential(shared, nn.ReLU(), shared), "bitlab")
    assert isinstance(model[0], BitLinear) and model[2] is model[0]


@pytest.mark.parametrize("name", PRESETS)
def test_layers_that_are_quantized_get_the_new_config(name: str):
    """Of each preset as of each other, and the latent weights stay."""
    fresh = configs(quantize(Net(), name))
    for before in ("bitnet", "lsq-4", "mcu-4bitsym-static"):
        model = quantize(Net(), before)
        again = quantize(model, name)
        assert configs(again) == fresh
        assert torch.equal(again.head.weight, model.head.weight)
        assert configs(quantize(model, None)) == configs(model)  # asked to stay as they are
        changed = configs(quantize(model, None, {"head": name}))
        assert changed == configs(model) | {"head": PRESETS[name].for_signed()}


def test_layers_that_are_packed_are_refused_unless_they_stay_as_they_are():
    packed = pack(quantize(Net(), "bitnet"))
    assert configs(quantize(packed, "bitnet")) == configs(packed)
    with pytest.raises(BitLabError, match=r"layer 'stem' is packed .*; unpack\(model\) first"):
        quantize(packed, "w8a8")
    mixed = nn.Sequential(nn.Linear(3, 3), pack(quantize(nn.Linear(3, 3), "bitnet")))
    with pytest.raises(BitLabError, match="layer '1' is packed"):
        quantize(mixed, "w8a8", inplace=True)
    assert type(mixed[0]) is nn.Linear  # nothing has changed
    assert isinstance(quantize(mixed, "w8a8", {"1": None})[0], BitLinear)


NOTHING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no layers": (nn.ReLU, "it has no layers with weights"),
    "another layer": (lambda: nn.LSTM(3, 3), r"'' \(LSTM\): there is no bit layer for its type"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), r"'0' \(LazyLinear\): it has no weights yet"),
}


@pytest.mark.parametrize("convert_any", [lambda m: quantize(m, "bitnet"), convert_to_ternary, convert_to_ternary_p2])
@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_can_be_quantized_it_says_why(case: str, convert_any: Callable[[nn.Module], nn.Module]):
    make, reason = NOTHING[case]
    with pytest.raises(BitLabError, match=f"nothing in the model can be quantized: {reason}"):
        convert_any(make())


@pytest.mark.parametrize("convert_any", [lambda m: quantize(m, "bitnet"), convert_to_ternary, convert_to_ternary_p2])
def test_layers_that_stay_float_unasked_are_named_in_a_warning(convert_any: Callable[[Any], Any]):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.LSTM(3, 3))
    with pytest.warns(UserWarning, match=r"stay float: '2' \(LSTM\): there is no bit layer for its type$") as caught:
        model = convert_any(model)
    assert caught[0].filename == __file__
    assert [entry.names for entry in model.conversion_report.left] == [("2",)]
    quantize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "bitnet", {"1": None})  # asked for: no warning


# ---- copies ----------------------------------------------------------------------------------------------------------

CONVERSIONS_OF_MODELS: dict[str, Callable[..., Any]] = {
    "quantize": lambda m, **more: quantize(m, "bitnet", **more),
    "pack": pack,
    "fuse_batchnorm": fuse_batchnorm,
    "train_fused": train_fused,
    "convert_to_ternary": convert_to_ternary,
    "convert_to_ternary_p2": convert_to_ternary_p2,
}
every_conversion = pytest.mark.parametrize("name", CONVERSIONS_OF_MODELS)


def described(model: nn.Module) -> tuple[Any, ...]:
    """Everything of a model that a conversion may change."""
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    return modules, configs(model), sorted(vars(model)), {n: t.clone() for n, t in model.state_dict().items()}


def ready_for(name: str) -> Any:
    """A model for a conversion, with a tied weight, a buffer and a hook."""
    torch.manual_seed(3)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.ReLU(), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))
    model.register_buffer("offset", torch.ones(4))
    model.register_forward_hook(lambda module, x, y: torch.as_tensor(y) + module.get_buffer("offset")[:, None])
    return model if name == "quantize" or "ternary" in name else quantize(model, "bitnet")


@every_conversion
@torch.no_grad()
def test_conversions_return_a_copy_unless_they_work_in_place(name: str):
    convert_any = CONVERSIONS_OF_MODELS[name]
    model, x = ready_for(name), torch.randn(2, 4, 4)
    before = described(model)
    copied = convert_any(model)
    after = described(model)
    assert after[:3] == before[:3] and all(torch.equal(after[3][n], before[3][n]) for n in before[3])
    assert {id(t) for t in model.state_dict(keep_vars=True).values()}.isdisjoint(
        {id(t) for t in copied.state_dict(keep_vars=True).values()}
    )
    if not isinstance(copied[0].weight, PackedWeight):
        assert copied[0].weight is copied[1].weight
    assert convert_any(model, inplace=True) is model
    changed = described(model)
    assert changed[0] != before[0] or changed[1] != before[1]
    assert described(copied)[:3] == changed[:3]
    expected = model.eval()(x)
    assert torch.equal(copied.eval()(x), expected)  # the hook is there, and its buffer
    copied.offset += 1
    assert torch.equal(model(x), expected) and not torch.equal(copied(x), expected)  # and it is the copy's own


@every_conversion
def test_a_model_that_cannot_be_copied_says_so(name: str):
    model = ready_for(name)
    model.computed = model[0].weight * 2  # torch copies leaves only
    with pytest.raises(BitLabError, match=r"cannot be copied \([\s\S]*inplace=True"):
        CONVERSIONS_OF_MODELS[name](model)
    assert CONVERSIONS_OF_MODELS[name](model, inplace=True) is model


def test_subclasses_of_torchs_layers_are_left_alone():
    """They may do anything in forward; only exact types are known."""

    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.warns(UserWarning, match=r"'0' \(Doubled\): it is a subclass of Linear"):
        model = quantize(nn.Sequential(Doubled(3, 3), nn.Linear(3, 3)), "bitnet")
    assert type(model[0]) is Doubled and type(model[1]) is BitLinear


def test_resolve():
    assert resolve(None) is None and resolve(W8A8) is W8A8 and resolve("w8a8") is W8A8
