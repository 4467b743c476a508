"""The integer graph of a model computes what the model computes with fake quantization."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph import Conv2d, Graph, Linear, Lookup, Requantize, Threshold, plan_memory
from bitcore.presets import PRESETS
from bitcore.quantizers import Quantizer
from bitexport import lower
from bitlayers.base import BitLayer
from bitlayers.convert import pack, quantize
from bitlayers.fusion import fuse_batchnorm, train_fused
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
    codes, read = hidden_codes(model, x), codes_read(graph, x)
    layer = list(read)[1]  # the first hidden one
    first = np.abs(read[layer].reshape(codes[layer].shape) - codes[layer])
    assert first.max() <= steps, f"{layer}: codes differ by {first.max()}"
    assert (first > 0).mean() <= share
    assert graph.output_scale is not None
    error = np.abs(got * graph.output_scale - real) / np.abs(real).max()
    assert error.max() <= 0.2 and (error > 0.05).mean() <= share
    assert (got.argmax(1) == real.argmax(1)).mean() >= 0.97
    return graph


def codes_read(graph: Graph, x: Tensor) -> dict[str, np.ndarray]:
    """The codes that each layer with weights reads in a graph, by the layer's name."""
    values = dict(graph.trace(graph.input.quantize(x)))
    return {node.name: values[node.inputs[0]] for node in graph.nodes if isinstance(node.op, (Linear, Conv2d))}


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
    read, codes = codes_read(graph, x), hidden_codes(model, x)
    assert list(read) == list(codes)
    assert len(read) > 2
    for name, got in read.items():
        assert np.array_equal(got.reshape(codes[name].shape), codes[name]), name


@pytest.mark.parametrize("activation", ["binary", "uint1", "uint2", "uint4", "2bitsym"])
@pytest.mark.parametrize("pool", [True, False])
def test_convolutions_with_thresholds_are_exact(activation: str, pool: bool) -> None:
    x = samples(CONV_SHAPE, 80)
    config = STATIC.replace(activation_dtype=activation, activation_scale_pow2=False, weight_scale_pow2=False)
    act = nn.Hardtanh if FORMATS[activation].signed else nn.ReLU
    for weight in ("ternary", "4bitsym", "binary"):
        config = config.replace(weight_format=weight)
        model = convolutional(config, bias=True, batch_norm=True, pool=pool, activation=act)
        train_a_little(model, x, negative_gammas=True)
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
        graph, got, real = run(train_a_little(model, x, negative_gammas=True), x)
        assert graph.output_scale is not None
        assert np.abs(got * graph.output_scale - real).max() <= graph.output_scale + 1e-6 * np.abs(real).max()


# ---- real-valued sums: residual connections and average pools ------------------------------------------------------


def no_multiplication(graph: Graph) -> bool:
    return graph.multiplications() == 0


class Block(nn.Module):
    """A residual block, written as torch code is."""

    def __init__(self, k: int, n: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm else nn.Identity
        self.conv1, self.bn1 = nn.Conv2d(k, n, 3, stride, 1, bias=not norm), make(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, 1, 1, bias=not norm), make(n)
        self.down = nn.Sequential(nn.Conv2d(k, n, 1, stride, bias=not norm), make(n)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return functional.relu(y)


class Residual(nn.Module):
    """Stem, blocks, mean over the map, classifier."""

    def __init__(self, norm: bool = True, blocks: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4) if norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(4, 4, norm=norm) for _ in range(blocks)), Block(4, 6, 2, norm))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn(self.stem(x))), 2)
        return self.head(self.blocks(x).mean((2, 3)))


MAPS = (2, 16, 16)


def test_a_residual_network_with_powers_of_two_is_the_models_to_the_bit() -> None:
    """What the streams hold fits 15 bits, so nothing is lost on the way, and shifts are all that is needed."""
    x = samples(MAPS, 40)
    config = STATIC.replace(weight_format="ternary", weight_scale="absmean", activation_dtype="uint5")
    graph = assert_equal(train_a_little(quantize(Residual(norm=False), config), x), x)
    assert no_multiplication(graph)
    kinds = [node.op.kind for node in graph.nodes]
    assert (kinds.count("add"), kinds.count("sumpool2d"), kinds.count("maxpool2d")) == (3, 1, 1)


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 7)])
def test_averages_of_any_window_need_no_multiplication(window: tuple[int, int]) -> None:
    """1/9 and 1/35 become thresholds, found in the model's own arithmetic."""
    model = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(2, 6, 3), act=nn.ReLU(), pool=nn.AvgPool2d(window), flat=nn.Flatten())
    )
    model.append(nn.Linear(model(torch.zeros(1, *MAPS)).shape[1], 5))
    x = samples(MAPS, 40)
    config = STATIC.replace(weight_format="ternary", weight_scale="absmean")
    graph = assert_equal(train_a_little(quantize(model, config), x), x)
    assert no_multiplication(graph)
    assert any(isinstance(node.op, Threshold) for node in graph.nodes) == (window != (1, 1))


@pytest.mark.parametrize("preset", ["w8a8", "pact-sawb-4", "mcu-ternary-static", "mcu-8bit-static", "lsq-3"])
@pytest.mark.parametrize("norm", [True, False])
def test_residual_networks_are_close(preset: str, norm: bool) -> None:
    x = samples(MAPS, 60).clamp(-3, 3)
    model = train_a_little(quantize(Residual(norm), preset), x, 5, negative_gammas=norm)
    graph, got, real = run(model, x)
    assert graph.output_scale is not None
    error = np.abs(got * graph.output_scale - real) / np.abs(real).max()
    assert error.mean() <= 0.02
    assert error.max() <= 0.3
    maps = [node for node in graph.nodes if len(node.type.shape) == 3 and node.type.size > 6]
    stored = {step.target for step in plan_memory(graph).steps}
    assert all(node.type.item_bytes < 4 for node in maps if node.name in stored), "no map is kept in int32"


def test_the_deviation_on_a_grid_is_bounded_as_documented() -> None:
    """A value on its grid is off by at most one step; a sum by at most one for each operand."""
    x = samples(MAPS, 60).clamp(-3, 3)
    model = train_a_little(quantize(Residual(blocks=1), PRESETS["w8a8"]), x, 5)
    graph = lower(model, MAPS)
    values = dict(graph.trace(graph.input.quantize(x)))
    with torch.no_grad():
        stem = functional.max_pool2d(functional.relu(model.bn(model.stem(x))), 2).numpy()  # type: ignore[operator]
    [pool] = [node for node in graph.nodes if node.op.kind == "maxpool2d"]
    step = stem.max() / values[pool.name].max()
    step = 2.0 ** round(math.log2(step))
    assert stem.max() / step > 2**9, "fine, though 16 deviations have to fit"
    assert np.abs(values[pool.name] * step - stem).max() <= step


def test_a_shared_input_is_quantized_once_for_equal_quantizers() -> None:
    x = samples(MAPS, 40)
    model = train_a_little(quantize(Residual(blocks=0), "w8a8"), x)
    graph = lower(model, MAPS)
    read = {node.name: node.inputs for node in graph.nodes}
    assert read["blocks.0.conv1"] == read["blocks.0.down.0"]
    model.blocks[0].conv1.activation_quantizer.source.range.mul_(2)  # type: ignore[index, union-attr, operator]
    graph = lower(model, MAPS)
    read = {node.name: node.inputs for node in graph.nodes}
    assert read["blocks.0.conv1"] != read["blocks.0.down.0"]
    kinds = {node.name: node for node in graph.nodes}
    shared = {kinds[read[name][0]].inputs for name in ("blocks.0.conv1", "blocks.0.down.0")}
    assert len(shared) == 1, "both read one map, in int16"
    assert kinds[shared.pop()[0]].type.storage == "int16"


@pytest.mark.parametrize("fuse", [True, False])
def test_concatenations(fuse: bool) -> None:
    class Fire(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, padding=1)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.squeeze(x))
            x = torch.cat([self.a(x), self.b(x)], 1).relu()
            return self.head(functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))

    x = samples(MAPS, 40)
    config = STATIC if fuse else STATIC.replace(weight_scale_pow2=False, activation_scale_pow2=False)
    model = train_a_little(quantize(Fire(), config), x)
    graph = assert_equal(model, x) if fuse else assert_close(model, x)
    assert [node.op.kind for node in graph.nodes].count("concat") == 1


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.Mish])
@pytest.mark.parametrize("pow2", [True, False])
def test_any_activation_function_is_a_table(activation: type[nn.Module], pow2: bool) -> None:
    """Codes differ by what half a step of the 256 points makes: they also span the tail of negative values."""
    x = samples(SHAPE).clamp(-3, 3)
    config = STATIC.replace(activation_dtype="int8", activation_scale_pow2=pow2, weight_scale_pow2=pow2)
    model = train_a_little(perceptron(config, bias=True, activation=activation), x)
    graph, got, real = run(model, x)
    codes, read = hidden_codes(model, x), codes_read(graph, x)
    first = np.abs(read["fc1"] - codes["fc1"])
    assert first.max() <= (4 if pow2 else 2)
    assert first.mean() <= 1
    assert graph.output_scale is not None
    assert np.abs(got * graph.output_scale - real).mean() <= 0.02 * np.abs(real).max()
    lookups = [node for node in graph.nodes if isinstance(node.op, Lookup)]
    assert len(lookups) == 2
    assert no_multiplication(graph) == pow2


def test_functions_and_methods_are_the_modules_of_the_same_meaning() -> None:
    class Calls(nn.Module):
        def __init__(self, calls: bool) -> None:
            super().__init__()
            self.calls = calls
            self.a, self.b, self.c = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 1)
            self.head = nn.Linear(12, 5)
            self.relu, self.six, self.tanh = nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 2)
            self.maximum, self.mean, self.last = nn.MaxPool2d(2), nn.AvgPool2d((2, 3), 2), nn.AdaptiveAvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            if self.calls:
                x = functional.max_pool2d(self.a(x).relu(), 2)
                x = functional.avg_pool2d(functional.relu6(self.b(x)), (2, 3), stride=2)
                x = functional.adaptive_avg_pool2d(self.c(x).clamp(-2, max=2), 2)
                return self.head(functional.dropout(x, 0.5, training=self.training).flatten(1))
            x = self.maximum(self.relu(self.a(x)))
            x = self.mean(self.six(self.b(x)))
            return self.head(torch.flatten(self.last(self.tanh(self.c(x))), start_dim=1))

    shape = (2, 16, 24)
    x = samples(shape, 40)
    model = train_a_little(quantize(Calls(True), STATIC), x)
    twin = quantize(Calls(False), STATIC).eval()
    twin.load_state_dict(model.state_dict())
    one, two = lower(model, shape), lower(twin, shape)
    assert [node.op.kind for node in one.nodes] == [node.op.kind for node in two.nodes]
    codes = one.input.quantize(x)
    assert np.array_equal(one.run(codes), two.run(codes))


def test_batch_norm_behind_an_activation_function() -> None:
    x = samples(SHAPE).clamp(-3, 3)
    layers = (nn.Flatten(), nn.Linear(24, 13), nn.ReLU(), nn.BatchNorm1d(13), nn.Linear(13, 9), nn.Linear(9, 5))
    assert_close(train_a_little(quantize(nn.Sequential(*layers), "w8a8"), x), x)


@pytest.mark.parametrize("name", ["netcnn", "resnet20", "birealnet20", "reactnet20"])
def test_networks_of_the_zoo(name: str) -> None:
    options: dict = {"widths": (4, 8, 8, 8), "blocks": 2} if name == "netcnn" else {"width": 4}
    x = samples((1 if name == "netcnn" else 3, 16, 16), 6).clamp(-3, 3)
    model = AutoBitModel.from_name(name, "pact-sawb-4", **options)
    graph, got, real = run(train_a_little(model, x, 2), x)
    assert graph.output_scale is not None
    assert np.abs(got * graph.output_scale - real).mean() <= 0.05 * np.abs(real).max()


def test_netcnn_with_fused_batch_norm_and_powers_of_two_needs_no_multiplication() -> None:
    """Batch norm fused in training, power-of-two scales: depthwise, residual, pooled; all in shifts, to the bit."""
    config = PRESETS["bitnet-cnn-p2"].replace(
        activation_dtype="int8", activation_scale="tracked", activation_scale_pow2=True
    )
    for size in (28, 24):  # windows of 4×4 and of 3×3
        x = samples((1, size, size), 20).clamp(-3, 3)
        model = AutoBitModel.from_name("netcnn", config, widths=(4, 8, 8, 12), blocks=2, in_channels=1)
        model = train_fused(model)
        graph = assert_equal(fuse_batchnorm(train_a_little(model, x)), x)
        assert no_multiplication(graph)


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
