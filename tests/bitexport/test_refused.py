"""What cannot be exported is refused by an error that names the layer and the remedy."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.trace import LOWERINGS
from bitlayers.convert import quantize
from networks import CONV_SHAPE, convolutional, perceptron, train_a_little

DYNAMIC = PRESETS["mcu-4bitsym"]
STATIC = DYNAMIC.replace(activation_scale="tracked", activation_dtype="uint8")
FEW = STATIC.replace(activation_dtype="uint4")
SHAPE = (24,)


class Forward(nn.Module):
    """Two layers and a forward of one's own."""

    def __init__(self, forward: Callable[["Forward", Tensor], Tensor], k: int = 24) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(k, 24, bias=False), nn.Linear(24, 24, bias=False)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(x) + y


def sequence(*layers: nn.Module) -> nn.Module:
    return quantize(nn.Sequential(*layers), STATIC)


def with_bad(value: float, where: str) -> nn.Module:
    model = perceptron(FEW if where != "requantized bn1.weight" else STATIC, bias=True, batch_norm=True)
    where = where.split()[-1]
    owner, _, name = where.rpartition(".")
    with torch.no_grad():
        getattr(model.get_submodule(owner), name).fill_(value)
    return model


def wide(k: int) -> nn.Module:
    layer = quantize(nn.Linear(k, 2, bias=False), DYNAMIC.replace(weight_format="int8"))
    with torch.no_grad():
        layer.weight.fill_(1.0)  # type: ignore[union-attr]
    return nn.Sequential(layer)


def functional(x: Tensor) -> Tensor:
    return torch.relu(x)


Model = Callable[[], nn.Module]
# name: (model, input shape, layer named in the error, words of the remedy or the reason)
REFUSED: dict[str, tuple[Model, tuple[int, ...], str, str]] = {
    "float layer": (
        lambda: quantize(perceptron(DYNAMIC), DYNAMIC) and nn.Sequential(nn.Linear(24, 3)),
        SHAPE,
        "0",
        "float Linear; give it a preset",
    ),
    "float head": (
        lambda: quantize(nn.Sequential(nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3)), STATIC, {"last": None}),
        SHAPE,
        "2",
        "float Linear; give it a preset",
    ),
    "float convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3)), CONV_SHAPE, "0", "float Conv2d"),
    "float weights": (lambda: perceptron(DYNAMIC.replace(weight_format="float32")), SHAPE, "fc0", "weight_format"),
    "float input": (lambda: perceptron(DYNAMIC.replace(input_dtype="float32")), SHAPE, "fc0", "activation_dtype"),
    "float activations": (
        lambda: perceptron(DYNAMIC.replace(activation_dtype="float32", input_dtype="int8")),
        SHAPE,
        "fc0",
        "activation_dtype such as int8",
    ),
    "bias behind a dynamic scale": (lambda: perceptron(DYNAMIC, bias=True), SHAPE, "fc0", "use bias=False"),
    "batch norm behind a dynamic scale": (
        lambda: perceptron(DYNAMIC, batch_norm=True),
        SHAPE,
        "bn0",
        "activation_scale=tracked or learned",
    ),
    "scale of the whole batch": (
        lambda: perceptron(DYNAMIC.replace(activation_granularity="per_tensor")),
        SHAPE,
        "fc0",
        "activation_granularity=per_token",
    ),
    "dynamic scale of any value": (lambda: perceptron(PRESETS["bitnet"]), SHAPE, "fc1", "activation_scale_pow2=True"),
    "weight scale of any value before a dynamic one": (
        lambda: perceptron(DYNAMIC.replace(weight_scale_pow2=False)),
        SHAPE,
        "fc1",
        "weight_scale_pow2=True",
    ),
    "channels' scales before a dynamic one": (
        lambda: perceptron(DYNAMIC.replace(weight_granularity="per_channel", weight_scale_pow2=False)),
        SHAPE,
        "fc1",
        "weight_granularity=per_tensor",
    ),
    "unsigned dynamic scale without ReLU": (
        lambda: perceptron(DYNAMIC.replace(activation_dtype="uint8"), activation=None),
        SHAPE,
        "fc1",
        "ReLU",
    ),
    "ReLU6 before a dynamic scale": (lambda: perceptron(DYNAMIC, activation=nn.ReLU6), SHAPE, "fc1", "only ReLU"),
    "odd levels from a dynamic scale": (
        lambda: perceptron(DYNAMIC.replace(activation_dtype="4bitsym")),
        SHAPE,
        "fc1",
        "integer format such as int8",
    ),
    "static behind dynamic": (
        lambda: quantize(
            nn.Sequential(nn.Linear(24, 9, bias=False), nn.Linear(9, 3, bias=False)), DYNAMIC, {"last": STATIC}
        ),
        SHAPE,
        "1",
        "the same activation_scale throughout",
    ),
    "uneven activations": (
        lambda: perceptron(STATIC.replace(activation_dtype="fp130")),
        SHAPE,
        "fc1",
        "use an integer format",
    ),
    "many odd activations": (
        lambda: perceptron(STATIC.replace(activation_dtype="5bitsym")),
        SHAPE,
        "fc1",
        "use an integer format",
    ),
    "unsupported module": (
        lambda: perceptron(STATIC, activation=nn.GELU),
        SHAPE,
        "act0",
        "GELU has no integer operation; there are: bit layers",
    ),
    "functional operation": (
        lambda: quantize(Forward(lambda m, x: m.fc2(functional(m.fc1(x)))), STATIC),
        SHAPE,
        "relu",
        "write it as a module",
    ),
    "residual": (lambda: quantize(Forward(lambda m, x: m.fc2(x) + m.fc1(x)), DYNAMIC), SHAPE, "add", "module"),
    "a layer used twice": (
        lambda: quantize(Forward(lambda m, x: m.fc1(m.fc1(x))), STATIC),
        SHAPE,
        "fc1",
        "give each use a layer of its own",
    ),
    "two inputs": (lambda: quantize(TwoInputs(), STATIC), SHAPE, "y", "only models of one input"),
    "two outputs": (
        lambda: quantize(Forward(lambda m, x: (m.fc1(x), m.fc2(x))), DYNAMIC),  # type: ignore[arg-type, return-value]
        SHAPE,
        "output",
        "only models of one output",
    ),
    "two quantizations of the input": (
        lambda: quantize(Forward(lambda m, x: (m.fc2(x), m.fc1(x))[1]), STATIC, {"fc2": DYNAMIC}),
        SHAPE,
        "fc1",
        "in two different ways",
    ),
    "no layer": (lambda: nn.Sequential(nn.Flatten()), SHAPE, "output", "end in a linear layer"),
    "activation on the input": (lambda: sequence(nn.ReLU(), nn.Linear(24, 3)), SHAPE, "0", "unquantized input"),
    "batch norm on the input": (lambda: sequence(nn.BatchNorm1d(24), nn.Linear(24, 3)), SHAPE, "0", "on the input"),
    "batch norm behind ReLU": (
        lambda: sequence(nn.Linear(24, 9), nn.ReLU(), nn.BatchNorm1d(9), nn.Linear(9, 3)),
        SHAPE,
        "2",
        "put it behind a linear layer",
    ),
    "batch norm without statistics": (
        lambda: sequence(nn.Linear(24, 9), nn.BatchNorm1d(9, track_running_stats=False), nn.Linear(9, 3)),
        SHAPE,
        "1",
        "track_running_stats=True",
    ),
    "pooling of the input": (
        lambda: sequence(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)),
        CONV_SHAPE,
        "0",
        "unquantized input",
    ),
    "pooling behind a falling batch norm": (
        lambda: train_a_little(
            convolutional(FEW, batch_norm=True), torch.randn(8, *CONV_SHAPE), 1, negative_gammas=True
        ),
        CONV_SHAPE,
        "pool0",
        "negative weight",
    ),
    "pooling with ceil_mode": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "ceil_mode",
    ),
    "other pooling": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.AvgPool2d(2), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "AvgPool2d has no integer operation",
    ),
    "flattening of the batch": (
        lambda: sequence(nn.Flatten(0), nn.Linear(24, 3)),
        SHAPE,
        "0",
        "everything but the batch",
    ),
    "reflecting padding": (
        lambda: sequence(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
        CONV_SHAPE,
        "0",
        "padding_mode",
    ),
    "padding of one side": (
        lambda: sequence(nn.Conv2d(2, 3, 2, padding="same"), nn.Flatten()),
        CONV_SHAPE,
        "0",
        "use an odd kernel",
    ),
    "an image as output": (lambda: sequence(nn.Conv2d(2, 3, 3)), CONV_SHAPE, "output", "one vector of outputs"),
    "several tokens": (lambda: perceptron(DYNAMIC).fc0, (7, 24), "0", ""),  # type: ignore[dict-item, return-value]
    "the wrong input shape": (lambda: perceptron(DYNAMIC), (25,), "fc0", "takes 24 features"),
    "an accumulator beyond int32": (lambda: wide(140_000), (140_000,), "0", "beyond int32: use fewer inputs"),
    "falling outputs": (
        lambda: train_a_little(
            sequence(nn.Linear(24, 3), nn.BatchNorm1d(3)), torch.randn(8, 24), 1, negative_gammas=True
        ),
        SHAPE,
        "output",
        "end the model in a linear layer",
    ),
    **{
        f"{value} in {where}": (lambda value=value, where=where: with_bad(value, where), SHAPE, layer, reason)
        for value in (math.nan, math.inf)
        for where, layer, reason in (
            ("fc0.weight", "fc0", "diverged"),
            ("fc2.weight", "fc2", "diverged"),
            ("fc0.bias", "fc0", "bias is NaN"),
            ("fc2.bias", "fc2", "bias is NaN"),
            ("bn1.weight", "bn1", "diverged"),
            ("requantized bn1.weight", "bn1", "diverged"),
            ("bn1.bias", "bn1", "diverged"),
            ("bn1.running_mean", "bn1", "diverged"),
        )
    },
    **{
        f"{value} as range": (
            lambda value=value: with_range(STATIC.replace(activation_scale_pow2=False), value),
            SHAPE,
            "fc1",
            "diverged" if value != 1e-30 else "differ too much",
        )
        for value in (math.nan, math.inf, 1e-30)
    },
    "power-of-two scales too far apart": (lambda: with_range(STATIC, 1e-30), SHAPE, "fc1", "differ too much"),
}


def with_range(config: object, value: float) -> nn.Module:
    model = perceptron(config)  # type: ignore[arg-type]
    model.get_submodule("fc1").activation_quantizer.source.range.fill_(value)  # type: ignore[operator, union-attr]
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_layer_and_remedy(case: str) -> None:
    model, shape, layer, words = REFUSED[case]
    with pytest.raises(BitLabError) as caught:
        lower(model().eval(), shape)
    message = str(caught.value)
    assert f"layer '{layer}'" in message
    assert words in message
    assert "\n" not in message


def test_control_flow_on_values_is_refused() -> None:
    model = quantize(Forward(lambda m, x: m.fc1(x) if x.sum() > 0 else m.fc2(x)), STATIC)
    with pytest.raises(BitLabError, match="cannot be traced"):
        lower(model, SHAPE)


def test_modules_that_lower_are_named_in_the_error() -> None:
    with pytest.raises(BitLabError) as caught:
        lower(nn.Sequential(nn.Softmax(1)), SHAPE)
    assert all(kind.__name__ in str(caught.value) for kind in LOWERINGS)
