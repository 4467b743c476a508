"""The integer graph of a model computes what the model computes with fake quantization."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph import Graph, Requantize, Threshold
from bitcore.presets import PRESETS
from bitcore.quantizers import Quantizer
from bitexport import lower
from bitlayers.base import BitLayer
from bitlayers.convert import pack, quantize
from bitmodels import AutoBitModel
from networks import CONV_SHAPE, convolutional, perceptron, train_a_little

SHAPE = (2, 3, 4)
WEIGHTS = sorted(FORMATS)
DYNAMIC = PRESETS["mcu-4bitsym"]
STATIC = DYNAMIC.replace(activation_scale="tracked", activation_dtype="uint8")
FEW_LEVELS = [name for name, fmt in FORMATS.items() if fmt.step and len(fmt.levels) <= 16]


def samples(shape: Sequence[int], n: int = 200) -> Tensor:
    """Random samples, with zeros, tiny, huge and constant ones among them."""
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(7))
    x[0], x[1], x[2], x[3] = 0, x[1] * 1e-6, x[2] * 100, 1
    return x


def run(model: nn.Module, x: Tensor) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Returns the graph of a model, its outputs and the model's own, as float64."""
    graph = lower(model, tuple(x.shape[1:]))
    with torch.no_grad():
        real = model(x).double().numpy()
    return graph, graph.run(graph.input.quantize(x)), real


def assert_equal(model: nn.Module, x: Tensor) -> Graph:
    """Every output, dequantized, is the model's: not one difference."""
    graph, got, real = run(model, x)
    if graph.output_scale is not None:
        values = (
            (torch.from_numpy(got).float() * torch.tensor(graph.output_scale, dtype=torch.float32)).double().numpy()
        )
    else:  # the scale of each sample is an unknown power of two
        rows, best = np.arange(len(got)), np.abs(got).argmax(1)
        largest = np.where(got[rows, best] == 0, 1, got[rows, best])
        scale = np.where(real[rows, best] == 0, 1, real[rows, best] / largest)
        assert np.array_equal(np.frexp(scale)[0], np.full(len(got), 0.5)), "a positive power of two"
        values = got * scale[:, None]
    different = np.flatnonzero((values != real).any(1))
    assert not len(different), (
        f"{len(different)} samples differ, first {different[0]}: {values[different[0]]}, {real[different[0]]}"
    )
    assert np.array_equal(got.argmax(1), real.argmax(1))
    return graph


def assert_close(model: nn.Module, x: Tensor, steps: float = 1, share: float = 0.02) -> Graph:
    """Where a multiplier rounds, codes differ by one now and then, and outputs by little."""
    graph, got, real = run(model, x)
    codes = hidden_codes(model, x)
    values = dict(graph.trace(graph.input.quantize(x)))
    layers = [name for name in codes if f"{name}.input" in values]
    assert layers, "a hidden layer"
    first = np.abs(values[f"{layers[0]}.input"] - codes[layers[0]])
    assert first.max() <= steps, f"{layers[0]}: codes differ by {first.max()}"
    assert (first > 0).mean() <= share
    assert graph.output_scale is not None
    span = np.abs(real).max()
    assert np.abs(got * graph.output_scale - real).max() <= 0.05 * span
    assert (got.argmax(1) == real.argmax(1)).mean() >= 0.97
    return graph


def hidden_codes(model: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """The codes of each layer's input, by the layer's name."""
    codes: dict[str, np.ndarray] = {}

    def keep(name: str, quantizer: Quantizer | None) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        assert quantizer is not None

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            codes[name] = quantizer.quantize(inputs[0]).levels.numpy().astype(np.int64)

        return hook

    handles = [
        layer.register_forward_pre_hook(keep(name, layer.activation_quantizer))
        for name, layer in model.named_modules()
        if isinstance(layer, BitLayer)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return codes


# ---- exact: scales of powers of two -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_weight_format_with_dynamic_ranges(weight: str) -> None:
    x = samples(SHAPE)
    for activation in ("int8", "uint8"):
        config = DYNAMIC.replace(weight_format=weight, activation_dtype=activation)
        graph = assert_equal(train_a_little(perceptron(config), x), x)
        assert [n.op.kind for n in graph.nodes] == ["flatten", "linear", "normshift", "linear", "normshift", "linear"]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_weight_format_with_static_ranges(weight: str) -> None:
    x = samples(SHAPE)
    for bias, activation in ((True, nn.ReLU), (False, nn.ReLU6), (True, nn.Hardtanh)):
        signed = activation is nn.Hardtanh
        config = STATIC.replace(weight_format=weight, activation_dtype="int8" if signed else "uint8")
        graph = assert_equal(train_a_little(perceptron(config, bias=bias, activation=activation), x), x)
        folds = [node.op for node in graph.nodes if isinstance(node.op, Requantize)]
        assert len(folds) == 2
        assert all(op.shifts_only for op in folds if np.all(op.shift > 0)), "no multiplication"


@pytest.mark.parametrize("activation", [n for n, f in FORMATS.items() if f.step == 1 and f.bits > 1])
def test_every_activation_format_with_power_of_two_scales(activation: str) -> None:
    x = samples(SHAPE)
    assert_equal(train_a_little(perceptron(DYNAMIC.replace(activation_dtype=activation)), x), x)
    assert_equal(train_a_little(perceptron(STATIC.replace(activation_dtype=activation), bias=True), x), x)


def refused(model: nn.Module) -> str | None:
    try:
        lower(model, SHAPE)
    except BitLabError as error:
        return str(error)
    return None


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_exported_or_refused_by_name(preset: str) -> None:
    x = samples(SHAPE)
    config = PRESETS[preset]
    model = train_a_little(perceptron(config), x)
    refusal = refused(model)
    if refusal is not None:
        assert "layer 'fc" in refusal
        assert not preset.startswith("mcu"), refusal
        return
    if preset.startswith("mcu"):
        assert_equal(model, x)
        assert_equal(train_a_little(convolutional(config), samples(CONV_SHAPE)), samples(CONV_SHAPE, 60))
    else:
        assert_close(model, x)


def test_presets_that_export() -> None:
    """Guards the test above: there is something to compare."""
    assert sum(name.startswith("mcu") for name in PRESETS) >= 9
    lower(train_a_little(perceptron(PRESETS["w8a8"]), samples(SHAPE)), SHAPE)


def test_the_zoos_perceptron() -> None:
    options = {"in_channels": 24, "out_channels": 5, "hidden_dims": (11, 9), "dropout": 0.1}
    x = samples(SHAPE)
    assert_equal(train_a_little(AutoBitModel.from_name("mlp", DYNAMIC, bias=False, **options), x), x)
    few = STATIC.replace(activation_dtype="uint4", activation_scale_pow2=False, weight_scale_pow2=False)
    assert_equal(train_a_little(AutoBitModel.from_name("mlp", few, batch_norm=True, **options), x), x)


def test_a_single_layer_may_have_any_dynamic_scale() -> None:
    x = samples(SHAPE)
    graph, got, real = run(train_a_little(perceptron(PRESETS["bitnet"], widths=(24, 5)), x), x)
    assert graph.output_scale is None
    assert np.array_equal(got.argmax(1), real.argmax(1))
    ratio = real[got != 0] / got[got != 0]
    assert (ratio > 0).all()


# ---- exact: thresholds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", FEW_LEVELS)
@pytest.mark.parametrize("pow2", [False, True])
def test_thresholds_are_exact(activation: str, pow2: bool) -> None:
    """Batch norm, negative weights of it, biases, any scales: thresholds are found in the model's own arithmetic."""
    x = samples(SHAPE)
    for scale, granularity, batch_norm in (
        ("tracked", "per_tensor", True),
        ("learned", "per_channel", True),
        ("tracked", "per_channel", False),
    ):
        config = STATIC.replace(
            activation_dtype=activation,
            activation_scale=scale,
            activation_scale_pow2=pow2,
            weight_scale_pow2=pow2,
            weight_granularity=granularity,
        )
        model = perceptron(config, bias=True, batch_norm=batch_norm, activation=nn.ReLU if batch_norm else nn.Hardtanh)
        train_a_little(model, x, negative_gammas=True)
        graph = lower(model, SHAPE)
        folds = [node.op for node in graph.nodes if isinstance(node.op, Threshold)]
        assert len(folds) == 2
        assert not batch_norm or all((op.sign < 0).any() and (op.sign > 0).any() for op in folds)
        check_codes(model, graph, x)
        if granularity == "per_tensor":
            assert_equal(model, x)


def check_codes(model: nn.Module, graph: Graph, x: Tensor) -> None:
    """Every activation of every layer equals the model's."""
    values = dict(graph.trace(graph.input.quantize(x)))
    compared = 0
    for name, codes in hidden_codes(model, x).items():
        if f"{name}.input" in values:
            got = values[f"{name}.input"]
            assert np.array_equal(got.reshape(codes.shape), codes), name
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("activation", ["binary", "uint1", "uint2", "uint4", "2bitsym"])
@pytest.mark.parametrize("pool", [True, False])
def test_convolutions_with_thresholds_are_exact(activation: str, pool: bool) -> None:
    x = samples(CONV_SHAPE, 80)
    config = STATIC.replace(activation_dtype=activation, activation_scale_pow2=False, weight_scale_pow2=False)
    act = nn.Hardtanh if FORMATS[activation].signed else nn.ReLU
    for weight in ("ternary", "4bitsym", "binary"):
        config = config.replace(weight_format=weight)
        model = convolutional(config, bias=True, batch_norm=True, pool=pool, activation=act)
        train_a_little(model, x, negative_gammas=not pool)
        graph = assert_equal(model, x)
        kinds = [node.op.kind for node in graph.nodes]
        assert kinds.count("threshold") == 3 and kinds.count("conv2d") == 3
        assert ("maxpool2d" in kinds) == pool
        check_codes(model, graph, x)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_convolutions_of_every_weight_format_are_exact(weight: str) -> None:
    x = samples(CONV_SHAPE, 60)
    assert_equal(train_a_little(convolutional(DYNAMIC.replace(weight_format=weight)), x, steps=2), x)
    assert_equal(train_a_little(convolutional(STATIC.replace(weight_format=weight), bias=True), x, steps=2), x)


# ---- close: scales of any value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
def test_any_scales_are_close(weight: str) -> None:
    x = samples(SHAPE)
    for granularity in ("per_tensor", "per_channel"):
        config = STATIC.replace(
            weight_format=weight, weight_scale_pow2=False, activation_scale_pow2=False, weight_granularity=granularity
        )
        assert_close(train_a_little(perceptron(config, bias=True), x), x)


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("activation", ["int8", "uint8", "uint5", "int6"])
def test_batch_norm_before_many_levels_is_close(activation: str, pow2: bool) -> None:
    x = samples(SHAPE)
    config = STATIC.replace(activation_dtype=activation, activation_scale_pow2=pow2, weight_scale_pow2=pow2)
    model = perceptron(config, batch_norm=True, activation=nn.ReLU if activation.startswith("u") else None)
    assert_close(train_a_little(model, x, negative_gammas=True), x)


def test_convolutions_of_any_scales_are_close() -> None:
    x = samples(CONV_SHAPE, 100)
    for config in (PRESETS["w8a8"], STATIC.replace(activation_scale_pow2=False)):
        assert_close(train_a_little(convolutional(config, batch_norm=True), x), x)


def test_outputs_of_channels_with_their_own_scales_are_comparable() -> None:
    """They come on one grid: within half a step of the model's."""
    x = samples(SHAPE)
    config = STATIC.replace(weight_granularity="per_channel", activation_dtype="uint4", weight_scale_pow2=False)
    model = train_a_little(perceptron(config, bias=True), x)
    graph, got, real = run(model, x)
    assert graph.output.op.kind == "requantize"
    assert graph.output_scale is not None
    assert (np.abs(got * graph.output_scale - real) <= graph.output_scale + 2e-7 * np.abs(real)).all()
    assert np.array_equal(got.argmax(1), real.argmax(1))


def test_outputs_of_channels_with_their_own_scales_are_comparable_within_a_sample() -> None:
    x = samples(SHAPE)
    config = PRESETS["bitnet"].replace(weight_granularity="per_channel")
    graph, got, real = run(train_a_little(perceptron(config, widths=(24, 5)), x, 9), x)
    assert graph.output.op.kind == "requantize"
    assert graph.output_scale is None
    factor = np.abs(real).max(1, keepdims=True) / np.maximum(np.abs(got).max(1, keepdims=True), 1)
    assert np.abs(got * factor - real).max() <= 1e-6 * np.abs(real).max()
    assert np.array_equal(got.argmax(1), real.argmax(1))


def test_a_model_may_end_in_batch_norm_or_relu() -> None:
    x = samples(SHAPE)
    for last in (nn.BatchNorm1d(5), nn.ReLU(), nn.ReLU6()):
        config = STATIC.replace(activation_dtype="uint4")
        model = nn.Sequential(perceptron(config), last)
        graph, got, real = run(train_a_little(model, x), x)
        assert graph.output_scale is not None
        assert np.abs(got * graph.output_scale - real).max() <= graph.output_scale + 1e-6 * np.abs(real).max()


# ---- what tracing leaves alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [DYNAMIC, STATIC, STATIC.replace(activation_dtype="uint2")])
def test_packed_models_give_the_same_graph(config: BitQuantConfig) -> None:
    x = samples(SHAPE)
    model = train_a_little(perceptron(config), x)
    packed = pack(copy.deepcopy(model))
    one, two = lower(model, SHAPE), lower(packed, SHAPE)
    codes = one.input.quantize(x)
    assert np.array_equal(one.run(codes), two.run(codes))
    assert one.input == two.input


def test_lowering_leaves_the_model_as_it_was() -> None:
    x = samples(SHAPE)
    for training in (True, False):
        model = train_a_little(perceptron(STATIC, batch_norm=True), x).train(training)
        before = copy.deepcopy(model.state_dict())
        lower(model, SHAPE)
        assert model.training is training
        assert all(m.training is training for m in model.modules())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_forward_may_flatten_by_function_and_layers_may_nest() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Sequential(nn.Linear(24, 6, bias=False), nn.ReLU(), nn.Dropout(0.5))])
            self.head = nn.Linear(6, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body[0](torch.flatten(x, 1)))

    x = samples(SHAPE)
    graph = assert_equal(train_a_little(quantize(Net(), DYNAMIC), x), x)
    assert [node.name for node in graph.nodes][1:] == ["body.0.0", "head.input", "head"]


def test_a_layer_alone_is_a_model() -> None:
    layer = quantize(nn.Linear(5, 3, bias=False), DYNAMIC)
    assert_equal(train_a_little(layer, samples((5,))), samples((5,)))


def test_info_travels_along() -> None:
    assert lower(perceptron(DYNAMIC), SHAPE, {"dataset": "none"}).info == {"dataset": "none"}
