"""Static ranges: without data they refuse to run, calibration finds them, and no scale that is no number quantizes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitcore.config import DYNAMIC, FLOAT, WEIGHT_SCALES, BitQuantConfig, suits
from bitcore.errors import BitLabError
from bitcore.presets import PRESETS
from bitcore.quantizers import STATIC_RANGES
from bitcore.quantizers.ranges import Remembered
from bitexport import lower
from bitlayers import BitLayer, calibrate, pack, quantize
from bitlayers.places import CONVERSIONS
from bitlayers.shapes import for_shapes
from bittrain.data import Split, load_dataset
from networks import CONV_SHAPE, convolutional, perceptron

STATIC = {name: c for name, c in PRESETS.items() if c.activation_dtype != FLOAT and c.activation_scale != DYNAMIC}
REMEMBERED = [name for name, kind in STATIC_RANGES.items() if issubclass(kind, Remembered)]
BATCHES = [torch.randn(16, *CONV_SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(4)]
INT4 = BitQuantConfig(weight_format="int4", weight_scale="absmax", activation_dtype="uint4")


def network(config: BitQuantConfig) -> nn.Module:
    torch.manual_seed(0)
    return convolutional(config, batch_norm=True)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(call: Callable[[], object], layer: str, *words: str) -> None:
    with pytest.raises(BitLabError) as caught:
        call()
    message = str(caught.value)
    assert f"layer '{layer}'" in message
    assert all(word in message for word in words), message


# ---- without data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", STATIC)
def test_a_range_without_data_refuses_to_quantize(preset: str):
    model = nn.ModuleDict({"net": network(PRESETS[preset])})["net"].eval()
    for run in (
        lambda: model(BATCHES[0]),
        lambda: lower(model, CONV_SHAPE),
        lambda: pack(copy.deepcopy(model))(BATCHES[0]),
    ):
        refused(run, "conv0", "calibrate", "train")  # the input's range is never ±1
    model.train()(BATCHES[0])
    model.eval()(BATCHES[0])


@pytest.mark.parametrize("kind", [kind for kind in CONVERSIONS if isinstance(kind, type) and kind is not nn.Embedding])
def test_every_layer_refuses(kind: Any):
    layer = quantize(kind(4, 4, 1) if "Conv" in kind.__name__ else kind(4, 4), PRESETS["w8a8"])
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": layer})["inner"]).eval()
    x = torch.randn(2, 4, 4, 4) if "2d" in kind.__name__ else torch.randn(2, 4, 4)
    refused(lambda: model(x), "1", "calibrate")
    layer.train()(x)
    model.eval()(x)


def test_one_step_is_enough_and_a_loaded_range_counts():
    model = network(PRESETS["w8a8"])
    model.train()(BATCHES[0])
    other = network(PRESETS["w8a8"]).eval()
    refused(lambda: other(BATCHES[0]), "conv0")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(BATCHES[0]), model.eval()(BATCHES[0]))


def test_requantized_to_another_range_it_refuses_again():
    model = network(PRESETS["w8a8"])
    model.train()(BATCHES[0])
    model.eval()
    model.conv1.requantize(PRESETS["lsq-8"])  # type: ignore[operator, union-attr]
    refused(lambda: model(BATCHES[0]), "conv1", "calibrate")


def test_shapes_are_found_without_ranges():
    model = network(PRESETS["w8a8"]).train()
    model.norm0.eval()  # type: ignore[operator, union-attr]
    with for_shapes(model), torch.no_grad():
        assert model(BATCHES[0]).shape == (16, 5)
    assert model.training and model.conv0.training and not model.norm0.training  # type: ignore[union-attr]
    refused(lambda: model.eval()(BATCHES[0]), "conv0")


# ---- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", STATIC)
def test_every_preset_calibrates(preset: str):
    model = calibrate(network(PRESETS[preset]), BATCHES).eval()
    with torch.no_grad():
        expected = model(BATCHES[0])
        assert expected.isfinite().all()
        assert torch.equal(pack(copy.deepcopy(model))(BATCHES[0]), expected)


@pytest.mark.parametrize("scale", REMEMBERED)
@pytest.mark.parametrize("pow2", [False, True])
def test_calibrated_outputs_are_near_the_float_networks(scale: str, pow2: bool):
    config = PRESETS["w8a8"].replace(activation_scale=scale, activation_scale_pow2=pow2)
    torch.manual_seed(0)
    twin = convolutional(BitQuantConfig(weight_format=FLOAT), batch_norm=True)
    model = quantize(copy.deepcopy(twin), config)
    for name, layer in twin.named_modules():
        if isinstance(layer, BitLayer):
            model.get_submodule(name).requantize(config)  # type: ignore[operator]
    model, twin = calibrate(model, BATCHES).eval(), calibrate(twin, BATCHES).eval()
    with torch.no_grad():
        x = torch.cat(BATCHES)
        noise = (model(x) - twin(x)).square().mean() / twin(x).var()
    assert float(noise) < 0.01


def test_the_order_of_batches_makes_no_difference():
    for scale in REMEMBERED:
        config = INT4.replace(activation_scale=scale)
        found = [calibrate(network(config), batches) for batches in (BATCHES, BATCHES[::-1])]
        # batch norm's averages are float sums, in the order of the batches
        ranges = [{n: v for n, v in m.state_dict().items() if "quantizer" in n} for m in found]
        assert all(torch.equal(value, ranges[1][name]) for name, value in ranges[0].items())


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(PRESETS["w8a8"])

    def forward(self, pixels: Tensor, scale: float = 1.0) -> Tensor:
        return self.net(pixels * scale)


class Anything(Named):
    def forward(self, pixels: Tensor, **rest: Any) -> Tensor:
        assert "label" in rest
        return self.net(pixels)


def test_loaders_give_tensors_tuples_or_names():
    labels = torch.zeros(16)
    expected = state(calibrate(network(PRESETS["w8a8"]), BATCHES))

    def generated() -> Iterator[Tensor]:
        yield from BATCHES

    for batches in ([(x, labels) for x in BATCHES], [[x, labels, 3] for x in BATCHES], generated()):
        found = calibrate(network(PRESETS["w8a8"]), batches).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    for model in (Named(), Anything()):
        found = calibrate(model, [{"pixels": x, "label": labels} for x in BATCHES]).state_dict()
        assert all(torch.equal(value, found[f"net.{name}"]) for name, value in expected.items())
    found = calibrate(network(PRESETS["w8a8"]), [{"z": x} for x in BATCHES], run=lambda m, b: m(b["z"])).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("batches", "words"),
    [([], "no batches"), ([{"image": BATCHES[0]}], "the model takes input, a batch has image"), (["text"], "not str")],
)
def test_data_that_cannot_be_used_is_refused(batches: list[Any], words: str):
    with pytest.raises(BitLabError, match=words):
        calibrate(network(PRESETS["w8a8"]), batches)
    with pytest.raises(BitLabError, match="at least 1"):
        calibrate(network(PRESETS["w8a8"]), BATCHES, batches=0)


def test_values_that_are_no_numbers_and_packed_layers_are_refused_by_name():
    broken = BATCHES[1].clone()
    broken[3, 1, 2, 2] = math.nan
    refused(lambda: calibrate(network(PRESETS["w8a8"]), [BATCHES[0], broken]), "conv0", "calibration data")
    refused(lambda: calibrate(pack(network(PRESETS["w8a8"])), BATCHES), "conv0", "packed")


def test_only_so_many_batches_are_used():
    few = calibrate(network(PRESETS["w8a8"]), BATCHES, batches=2).state_dict()
    assert all(
        torch.equal(value, few[name])
        for name, value in calibrate(network(PRESETS["w8a8"]), BATCHES[:2]).state_dict().items()
    )


def test_a_copy_is_calibrated_unless_in_place_and_modes_stay():
    model = network(PRESETS["w8a8"]).train()
    before = state(model)
    assert calibrate(model, BATCHES) is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert calibrate(model, BATCHES, inplace=True) is model
    assert all(module.training for module in model.modules()) and model.norm0.momentum == 0.1  # type: ignore[union-attr]
    weights = [name for name in before if name.endswith(("weight", "bias"))]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in weights)


def test_what_is_frozen_stays():
    model = network(PRESETS["w8a8"]).train()
    model(BATCHES[0] * 3)
    model.norm0.eval()  # type: ignore[operator, union-attr]
    model.conv1.eval()  # type: ignore[operator, union-attr]
    before = state(model)
    calibrate(model, BATCHES, inplace=True)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("norm0", "conv1")) for name in changed)
    assert {"norm1.running_mean", "conv0.activation_quantizer.source.range"} <= changed


def test_a_layer_that_no_data_reaches_still_refuses():
    model = network(PRESETS["w8a8"])
    model.spare = quantize(nn.Linear(3, 3), PRESETS["w8a8"])
    calibrated = calibrate(model, BATCHES, run=lambda m, x: nn.Sequential(*list(m.children())[:-1])(x)).eval()
    refused(lambda: calibrated(BATCHES[0]), "spare", "calibrate")


def test_calibration_is_worth_as_much_as_the_trained_network():
    data = load_dataset("digits")
    train, test = data.train, data.test
    assert isinstance(train, Split) and isinstance(test, Split)
    images, labels = train.images.float() / 255, train.labels
    block = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*block, nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        rows = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()

    def accuracy(m: nn.Module) -> float:
        with torch.no_grad():
            return float((m.eval()(test.images.float() / 255).argmax(1) == test.labels).float().mean())

    twin = accuracy(model)
    assert twin > 0.85
    for preset in ("w8a8", "lsq-8", "lsq-4", "pact-sawb-8", "mcu-8bit-static", "mcu-4bitsym-static"):
        found = accuracy(calibrate(quantize(copy.deepcopy(model), preset), images.split(128)))
        assert found > twin - (0.04 if "4" in preset else 0.02), (preset, found, twin)


# ---- numbers that are none ----------------------------------------------------------------------------------------

SCALED = [
    pytest.param(scale, pow2, id=f"{scale}{'-pow2' if pow2 else ''}")
    for scale in WEIGHT_SCALES
    for pow2 in (False, True)
]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("scale", "pow2"), SCALED)
def test_weights_that_are_no_numbers_are_refused(scale: str, pow2: bool, bad: float):
    fmt = next(name for name in ("int4", "ternary", "binary") if suits(scale, name))
    config = PRESETS["w8a8"].replace(weight_format=fmt, weight_scale=scale, weight_scale_pow2=pow2)
    model = perceptron(config).train()
    model(torch.randn(8, 24))
    with torch.no_grad():
        model.fc1.weight[2, 3] = bad  # type: ignore[union-attr, index]
    model.eval()
    runs = [lambda: model(torch.randn(2, 24)), lambda: pack(copy.deepcopy(model)), lambda: lower(model, (24,))]
    for run in runs[: 2 if scale == "ttq" else 3]:  # no integer graph has ttq
        refused(run, "fc1", "diverged")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("scale", REMEMBERED)
def test_ranges_that_are_no_numbers_are_refused(scale: str, pow2: bool, bad: float):
    model = perceptron(PRESETS["w8a8"].replace(activation_scale=scale, activation_scale_pow2=pow2)).train()
    model(torch.randn(8, 24))
    source = model.fc1.activation_quantizer.source  # type: ignore[union-attr]
    names = [name for name, value in source.state_dict().items() if value.is_floating_point()]  # type: ignore[operator, union-attr]
    for name in names:
        broken = copy.deepcopy(model)
        broken.state_dict()[f"fc1.activation_quantizer.source.{name}"].fill_(bad)
        broken.eval()
        for run in (lambda m=broken: m(torch.randn(2, 24)), lambda m=broken: lower(m, (24,)), lambda m=broken: pack(m)):
            refused(run, "fc1", "diverged")


@pytest.mark.parametrize("scale", REMEMBERED)
def test_one_bad_batch_is_reported_once_by_name_and_forgotten(scale: str):
    models = [perceptron(PRESETS["w8a8"].replace(activation_scale=scale)).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    broken = torch.randn(8, 24)
    broken[0, 0] = math.inf
    models[1].fc0(broken)  # type: ignore[operator]
    batch = torch.zeros(8, 24)
    for batch in torch.randn(20, 8, 24):
        outputs = [model(batch) for model in models]
        assert torch.equal(*outputs)
    models[0].eval()
    with pytest.warns(UserWarning, match=r"layer 'fc0': 1 batches held .*NaN or infinite"):
        models[1].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(models[0].eval()(batch), models[1].eval()(batch))
