# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportArgumentType=false
"""Which layers read the input, which come last, and where inputs can be negative: by the code, and by an example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore import BitLabError, BitQuantConfig
from bitcore.presets import PRESETS
from bitlayers import BitLayer, RPReLU, RSign, quantize
from bitlayers.convert import convert, convert_layers
from bitmodels import AutoBitModel
from bitmodels.netcnn import InvertedResidual


class Layers(nn.Module):
    """Layers ``a`` to ``f`` for vectors of 8, registered in that order."""

    def __init__(self, **more: nn.Module) -> None:
        super().__init__()
        for name in "abcdef":
            self.add_module(name, nn.Linear(8, 8))
        for name, module in more.items():
            self.add_module(name, module)
        self.register_buffer("mean", torch.full((8,), 0.5))


def net(forward: Callable[..., Any], **more: nn.Module) -> Any:
    """A model of these layers with that forward."""
    return type("Net", (Layers,), {"forward": forward})(**more)


def head_first(m: Any, x: Tensor) -> Tensor:
    return m.a(m.b(m.c(x).relu()).relu())


def residual(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    h = (h + m.b(h)).relu()  # never negative
    h = h + m.c(h)  # nothing behind the sum
    return m.d(h) + m.e(h.abs())


def two_towers(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.c(torch.cat([m.d(m.b(x).relu()), m.e(m.a(y).relu())], 1).relu()[:, ::2])


def inception(m: Any, x: Tensor) -> Tensor:
    pooled = F.avg_pool1d(x, 3, 1, 1)
    return m.b(torch.cat([m.c(x).relu(), m.d(m.a(x).sigmoid()).relu(), m.e(pooled)], 1)[:, :8])


def normalized(m: Any, x: Tensor) -> Tensor:
    return m.a(torch.relu(m.b(((x - m.mean) / 0.2).flatten(1))))


def bypass(m: Any, x: Tensor) -> Tensor:
    """The picture itself goes to the second layer too, beside features, but of a sum it is only a part."""
    h = m.b(x).relu()
    return m.a(torch.cat([h, x], 1)[:, 8:]) + m.c(h + x)


def functional(m: Any, x: Tensor) -> Tensor:
    h = F.relu6(m.a(x))
    h = F.dropout(F.softmax(m.b(h), -1), 0.1)
    h = F.max_pool1d(F.hardtanh(m.c(h), 0, 1), 1)
    h = torch.clamp(m.d(h.reshape(-1, 8)), min=0.0)
    return m.f(F.leaky_relu(m.e(h)))


def inplace(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h.relu_()  # nothing takes its result
    h = m.b(h)
    F.relu(h, inplace=True)
    g = m.c(h)
    m.act(g)
    g = m.d(g)
    g.clamp_(0)
    g.sub_(1)
    return m.e(g)


def aliases(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).abs()
    view = h.view(-1, 8)
    h -= 1  # the view with it
    return m.b(view) + m.c(h)


def residual_in_place(m: Any, x: Tensor) -> Tensor:
    """As torchvision writes it: blocks of ``relu(inplace)``, ``out += identity``, ``relu(inplace)``."""
    out = m.act(m.a(x))
    for first, second in ((m.b, m.c), (m.d, m.e)):
        identity = out
        out = m.act(first(out))
        out = second(out)
        out += identity
        out = m.act(out)
    return m.f(torch.flatten(out, 1))


def dense_in_place(m: Any, x: Tensor) -> Tensor:
    features = [m.a(x)]
    for layer in (m.b, m.c):
        h = torch.cat(features, 1)
        features.append(layer(m.act(h)[:, -8:]))
    return m.d(torch.cat(features, 1)[:, :8]) + m.e(F.relu(torch.cat(features, 1), inplace=True)[:, :8])


def heads_by_views(m: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    q, k, v = (layer(x).view(b, t, 2, 4).transpose(1, 2) for layer in (m.a, m.b, m.c))
    weights = q @ k.transpose(-2, -1)
    weights /= 2
    h = m.d((weights.softmax(-1) @ v).transpose(1, 2).reshape(b, t, 8))
    h += x
    h = m.e(h).relu_()
    return m.f(h.reshape(b * t, 8)).view(b, t, 8)


def parts(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).abs()
    copied, half = h[:, [0, 1, 2, 3, 4, 5, 6, 7]], h[:, :4]
    half -= 1
    g = m.b(x).abs()
    g[:, 0] = -1
    return m.c(copied) + m.d(h) + m.e(g)


def twice(m: Any, x: Tensor) -> Tensor:
    """One layer reads the input and what a ReLU leaves, another what is never and what can be negative."""
    h = m.a(m.a(x).relu()).relu()
    return m.c(h) + m.c(m.d(h))


def activation(module: nn.Module) -> Callable[..., nn.Module]:
    return lambda: net(lambda m, x: m.c(m.act(m.b(m.act(m.a(x))))), act=module)


def attention(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    return m.b(m.attend(h, h, value=m.c(h))[0].relu())


SEQUENCE = (2, 5, 8)
PICTURE = (2, 3, 8, 8)
# Of each shape of model: how it is made, the shapes of its inputs, the layers that read the input, those that come
# last, and those whose inputs are never negative.
SHAPES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], str, str, str]] = {
    "plain": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Sigmoid()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2)),
        ),
        [PICTURE],
        "0",
        "9",
        "4 9",
    ),
    "residual": (lambda: net(residual), [(4, 8)], "a", "d e", "b c e"),
    "head first": (lambda: net(head_first), [(4, 8)], "c", "a", "a b"),
    "two towers": (lambda: net(two_towers), [(4, 8), (4, 8)], "a b", "c", "c d e"),
    "inception stem": (lambda: net(inception), [(4, 8)], "a c e", "b", "d"),
    "a normalized picture": (lambda: net(normalized), [(4, 8)], "b", "a", "a"),
    "the picture beside features": (lambda: net(bypass), [(4, 8)], "a b", "a c", ""),
    "functional": (lambda: net(functional), [(4, 8)], "a", "f", "b c d e"),
    "in place": (lambda: net(inplace, act=nn.ReLU(inplace=True)), [(4, 8)], "a", "e", "b c d"),
    "aliases": (lambda: net(aliases), [(4, 8)], "a", "b c", ""),
    "residual, in place": (lambda: net(residual_in_place, act=nn.ReLU(True)), [(4, 8)], "a", "f", "b c d e f"),
    "dense, in place": (lambda: net(dense_in_place, act=nn.ReLU(True)), [(4, 8)], "a", "d e", "b c e"),
    "heads by views": (lambda: net(heads_by_views), [SEQUENCE], "a b c", "f", "f"),
    "parts": (lambda: net(parts), [(4, 8)], "a b", "c d e", "c"),
    "one layer, several places": (lambda: net(twice), [(4, 8)], "a", "c", "d"),
    "GELU": (activation(nn.GELU()), [(4, 8)], "a", "c", ""),
    "hard-swish": (activation(nn.Hardswish()), [(4, 8)], "a", "c", ""),
    "hard-swish, in place": (activation(nn.Hardswish(inplace=True)), [(4, 8)], "a", "c", ""),
    "PReLU": (activation(nn.PReLU()), [(4, 8)], "a", "c", ""),
    "ReActNet's": (activation(nn.Sequential(RPReLU(8), RSign(8))), [(4, 8)], "a", "c", ""),
    "layer norm": (activation(nn.Sequential(nn.ReLU(), nn.LayerNorm(8))), [(4, 8)], "a", "c", ""),
    "attention": (
        lambda: net(attention, attend=nn.MultiheadAttention(8, 2, batch_first=True)),
        [SEQUENCE],
        "a",
        "b",
        "b c attend.q_proj attend.k_proj",
    ),
    "bare attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        [SEQUENCE] * 3,
        "q_proj k_proj v_proj",
        "out_proj",
        "",
    ),
    "an encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        [SEQUENCE],
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.out_proj linear2",
        "linear2",
    ),
    "linear bottlenecks": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU6(), *(InvertedResidual(4, 4, 1, 2) for _ in range(2)), nn.Conv2d(4, 2, 1)
        ),
        [PICTURE],
        "0",
        "4",
        "2.body.0 2.body.3 2.body.6 3.body.3 3.body.6",
    ),
    "a bare layer": (lambda: nn.Linear(8, 8), [(4, 8)], "", "", ""),
}
LAYERLESS = {"a bare layer": {""}}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def layers(model: nn.Module) -> dict[str, BitLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLayer)}


def expected(shape: str, name: str, config: BitQuantConfig) -> BitQuantConfig:
    _, _, reading, _, never = SHAPES[shape]
    if name in (LAYERLESS.get(shape) or reading.split()):
        return config.for_input()
    return config if name in never.split() else config.for_signed()


def called(shape: str) -> set[str]:
    """The layers that the model calls, with what they read if it is negative somewhere."""
    make, sizes, *_ = SHAPES[shape]
    model = make().eval()
    met: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda *_, name=name: met.add(name))
    model(*(torch.randn(size) for size in sizes))
    return met


@pytest.mark.parametrize("by", ["code", "example"])
@every_shape
def test_every_preset_gets_the_formats_that_fit_what_flows(shape: str, by: str):
    make, sizes, *_ = SHAPES[shape]
    model, examples = make(), tuple(torch.randn(size) for size in sizes)
    unmet = (
        set() if "attention" in shape or "encoder" in shape else set(layers(quantize(model, "bitlab"))) - called(shape)
    )
    for preset, config in PRESETS.items():
        bit = quantize(model, preset, example_input=examples if by == "example" else None)
        for name, layer in layers(bit).items():
            if name not in unmet:
                assert layer.quant_config == expected(shape, name, config), (preset, name)
        report = bit.conversion_report
        changed = {n for n in layers(bit) if expected(shape, n, config) == config.for_signed() != config} - unmet
        reading = {n for n in layers(bit) if expected(shape, n, config) == config.for_input()}
        assert changed - reading <= set(report.signed) <= changed | unmet, preset
        assert not report.clipped and not report.guessed
        assert ("so in signed formats" in str(report)) == bool(report.signed)


@pytest.mark.parametrize("preset", ["lsq-4", "pact-sawb-4", "dorefa-4", "mcu-4bitsym-static"])
@every_shape
def test_nothing_negative_is_lost_and_training_works(shape: str, preset: str):
    """Of what a layer reads, negative values stay negative in its quantizer, as far as its range goes."""
    make, sizes, *_ = SHAPES[shape]
    model = quantize(make(), preset)
    examples = tuple(torch.randn(size) for size in sizes)
    out = model.train()(*examples)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    lost: list[str] = []

    def look(layer: Any, args: Any, name: str) -> None:
        x = args[0].detach()
        y = layer.activation_quantizer(x)
        if bool((x.min() < 0) & (y.min() >= 0)) and float(x.min()) < -float(x.abs().max()) / 2:
            lost.append(name)

    for name, layer in layers(model).items():
        layer.register_forward_pre_hook(lambda m, args, name=name: look(m, args, name))
    model.eval()(*examples)
    assert not lost


def test_a_learned_offset_reaches_what_is_negative():
    config = PRESETS["lsq-plus-4"]
    assert config.for_signed() == config
    layer = quantize(SHAPES["layer norm"][0](), config).b
    assert layer.quant_config.activation_dtype == "uint4"
    x = torch.randn(64, 8)
    layer(x)
    y = layer.activation_quantizer(x).detach()
    assert float(y.min()) < -1 and float(y.max()) > 1


@pytest.mark.parametrize("by", ["code", "example"])
@every_shape
def test_first_and_last_follow_the_data(shape: str, by: str):
    make, sizes, reading, last, _ = SHAPES[shape]
    example = tuple(torch.randn(size) for size in sizes) if by == "example" else None
    first = {"weight_format": "int5", "weight_scale": "absmax"}
    model = convert_and_get(make(), {"first": first}, example)
    assert {n for n, w in model.items() if w == "int5"} == (LAYERLESS.get(shape) or set(reading.split()))
    model = convert_and_get(make(), {"last": first}, example)
    assert {n for n, w in model.items() if w == "int5"} == (LAYERLESS.get(shape) or set(last.split()))


def convert_and_get(model: nn.Module, overrides: Any, example: Any) -> dict[str, str]:
    convert(model, "bitnet", overrides, example_input=example)
    return {name: layer.quant_config.weight_format for name, layer in layers(model).items()}


def test_an_override_that_names_the_format_is_taken_at_its_word_and_reported():
    overrides = {"b": {"activation_dtype": "uint4"}, "c": "lsq-2"}
    model = quantize(net(lambda m, x: m.c(m.b(m.a(x)))), "lsq-4", overrides)
    assert model.b.quant_config.activation_dtype == "uint4" and model.c.quant_config.activation_dtype == "int2"
    report = model.conversion_report
    assert report.clipped == ("b",) and "in unsigned formats (choose int ones): inputs of b" in str(report)


def test_layers_that_are_given_their_configs_are_reported_too():
    config = PRESETS["lsq-4"]
    report = convert_layers(net(lambda m, x: m.c(m.b(m.a(x)).relu())), dict.fromkeys("abc", config))
    assert report.clipped == ("a", "b") and not report.signed and not report.half_used


def test_signs_turn_relus_to_hardtanhs_whose_results_can_be_negative():
    relu = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for example in (None, torch.randn(2, 8)):
        for quant, dtype in (("bnn", "int4"), ("twn", "uint4")):
            model = quantize(relu, quant, {"4": "lsq-4"}, example_input=example)
            assert model[4].quant_config.activation_dtype == dtype
    ternary = BitQuantConfig(activation_dtype="uint1", activation_scale="tracked")
    model = quantize(nn.Sequential(nn.Linear(8, 8), *relu), ternary, {"5": "lsq-4"})  # one becomes binary, then all do
    dtypes = [layer.quant_config.activation_dtype for layer in layers(model).values()]
    assert dtypes == ["int8", "binary", "binary", "int4"]


class Branching(nn.Module):
    """No torch.fx follows it. The head is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem, self.unused = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        h = self.stem(x if scale is None else x * scale)
        return self.head(h.relu() if h.sum() > -1e9 else h)


def test_code_that_cannot_be_followed_is_guessed_and_said_so():
    with pytest.warns(UserWarning, match=r"cannot be followed \(.*\): 'head' was registered first .* example_input"):
        model = quantize(Branching(), "lsq-4")
    dtypes = [layer.quant_config.activation_dtype for layer in layers(model).values()]
    assert dtypes == ["int8", "int4", "int4"] and model.conversion_report.guessed in str(model.conversion_report)
    quantize(Branching(), "w8a8")  # nothing depends on it: no warning


@pytest.mark.parametrize(
    "example", [torch.randn(2, 8), (torch.randn(2, 8),), {"x": torch.randn(2, 8), "scale": torch.ones(8)}]
)
def test_an_example_is_exact_and_leaves_the_model_alone(example: Any):
    model = Branching()
    model.stem.eval()
    state = copy.deepcopy(model.state_dict())
    quantize(model, "lsq-4", example_input=example, inplace=True)
    assert [layer.quant_config.activation_dtype for layer in layers(model).values()] == ["uint4", "int8", "int4"]
    assert not model.conversion_report.guessed  # type: ignore[union-attr]
    assert model.training and not model.stem.training and not model.stem._forward_hooks and not model._forward_hooks
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_an_example_that_does_not_fit_is_refused_and_nothing_has_changed():
    model = Branching()
    with pytest.raises(BitLabError, match="cannot be called with example_input: .*shapes cannot be multiplied"):
        quantize(model, "lsq-4", example_input=torch.randn(2, 7), inplace=True)
    assert not layers(model) and not model.stem._forward_pre_hooks


def test_models_of_the_zoo_are_followed():
    model = AutoBitModel.from_name("mobilenetv2", "lsq-4", width=0.1, stages=((1, 8, 1, 1), (2, 8, 2, 2)), last=16)
    dtypes = {name: layer.quant_config.activation_dtype for name, layer in layers(model).items()}
    signed = {name for name, dtype in dtypes.items() if dtype == "int4"}
    assert dtypes["features.0.0"] == "int8"
    assert signed == {"features.2.body.0", "features.3.body.0", "features.4.0"}
