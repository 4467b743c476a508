"""What cannot be exported is refused by an error that names the layer and the remedy."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.lowerings import LOWERINGS
from bitlayers import BitLinear
from bitlayers.convert import quantize
from networks import CONV_SHAPE, perceptron, with_ranges

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


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, (2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.a(x) + self.b(x)


def hooked(name: str) -> nn.Module:
    model = quantize(Forward(lambda m, x: m.fc2(m.fc1(x))), STATIC)
    model.get_submodule(name).register_forward_hook(lambda _module, _inputs, y: y.relu())
    return model


def replaced() -> nn.Module:
    model = quantize(Forward(lambda m, x: m.fc2(m.fc1(x))), STATIC)
    layer: nn.Module = model.get_submodule("fc1")
    forward = layer.forward
    layer.forward = lambda x: forward(x).relu()  # type: ignore[method-assign]
    return model


class Squared(BitLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def _assigns_data(model: Forward, x: Tensor) -> Tensor:
    h = model.fc1(x)
    h.data = h.relu()
    return model.fc2(h)


def _changes_part(model: Forward, x: Tensor) -> Tensor:
    h = model.fc1(x)
    h[:, :12] += 1
    return model.fc2(h)


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
        lambda: quantize(
            perceptron(DYNAMIC, activation=None), None, {"fc1": DYNAMIC.replace(activation_dtype="uint8").to_dict()}
        ),
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
        lambda: perceptron(STATIC, activation=nn.Softsign),
        SHAPE,
        "act0",
        "Softsign has no integer operation; use one that has, such as ReLU",
    ),
    "unsupported function": (
        lambda: quantize(Forward(lambda m, x: m.fc2(torch.exp(m.fc1(x)))), STATIC),
        SHAPE,
        "exp",
        "'exp' has no integer operation; use one that has, such as ReLU",
    ),
    "unsupported arguments of a function": (
        lambda: quantize(Forward(lambda m, x: m.fc2(m.fc1(x).clamp(wrong=1))), STATIC),  # type: ignore[call-overload]
        SHAPE,
        "clamp",
        "arguments that integer graphs do not know",
    ),
    "a mean over channels": (
        lambda: quantize(Forward(lambda m, x: m.fc2(m.fc1(x).mean(1))), STATIC),
        SHAPE,
        "mean",
        "only the mean over height and width",
    ),
    "layer norm": (
        lambda: sequence(nn.Linear(24, 9), nn.LayerNorm(9), nn.Linear(9, 3)),
        SHAPE,
        "1",
        "LayerNorm needs each sample's own statistics, in real numbers; use batch norm",
    ),
    "another activation function before a dynamic scale": (
        lambda: perceptron(DYNAMIC, activation=nn.GELU),
        SHAPE,
        "act0",
        "use a static one",
    ),
    "an activation function at the end": (
        lambda: sequence(nn.Linear(24, 3), nn.Sigmoid()),
        SHAPE,
        "output",
        "end in a linear layer",
    ),
    "residual behind a dynamic scale": (
        lambda: quantize(Forward(lambda m, x: m.fc2(x) + m.fc1(x)), DYNAMIC),
        SHAPE,
        "add",
        "use activation_scale=tracked or learned",
    ),
    "residual of the input": (
        lambda: quantize(Forward(lambda m, x: m.fc2(x) + x), STATIC),
        SHAPE,
        "add",
        "an addition of the unquantized input",
    ),
    "residual of other shapes": (
        lambda: quantize(Wide(), STATIC),
        CONV_SHAPE,
        "add",
        "of different shapes (3, 9, 8) and (3, 8, 8)",
    ),
    "a product of values": (
        lambda: quantize(Forward(lambda m, x: m.fc2(m.fc1(x) * m.fc1(x))), STATIC),
        SHAPE,
        "mul",
        "the other operand must be a number",
    ),
    "a factor of 0": (
        lambda: quantize(Forward(lambda m, x: m.fc2(m.fc1(x) * 0)), STATIC),
        SHAPE,
        "mul",
        "a number other than 0",
    ),
    "dropout in eval mode": (
        lambda: quantize(Forward(lambda m, x: m.fc2(nn.functional.dropout(m.fc1(x)))), STATIC),
        SHAPE,
        "dropout",
        "pass training=self.training",
    ),
    "a forward hook": (lambda: hooked("fc1"), SHAPE, "fc1", "remove them"),
    "a forward hook of the whole model": (lambda: hooked(""), SHAPE, "Forward", "remove them"),
    "a forward of the instance": (lambda: replaced(), SHAPE, "fc1", "was replaced on the instance"),
    "a bit layer's own forward": (lambda: nn.Sequential(Squared(24, 3)), SHAPE, "0", "a module around it"),
    "a part of a value": (
        lambda: quantize(Forward(lambda m, x: m.fc2(m.fc1(x)[:, :12])), STATIC),
        SHAPE,
        "getitem",
        "a part of a value",
    ),
    "a view of another batch": (
        lambda: quantize(Forward(lambda m, x: m.fc2(m.fc1(x).view(-1, 12))), STATIC),
        SHAPE,
        "view",
        "does not hold the 24 values of a sample",
    ),
    "an assignment of data": (lambda: quantize(Forward(_assigns_data), STATIC), SHAPE, "fc1", "make a new value"),
    "a change of a part": (lambda: quantize(Forward(_changes_part), STATIC), SHAPE, "iadd", "let it return a new"),
    "two inputs": (lambda: quantize(TwoInputs(), STATIC), SHAPE, "y", "only models of one input"),
    "two outputs": (
        lambda: quantize(Forward(lambda m, x: (m.fc1(x), m.fc2(x))), DYNAMIC),  # type: ignore[arg-type, return-value]
        SHAPE,
        "output",
        "only models of one output",
    ),
    "two quantizations of the input": (
        lambda: quantize(Forward(lambda m, x: m.fc2(x) + m.fc1(x)), STATIC, {"fc2": DYNAMIC}),
        SHAPE,
        "fc1",
        "in two different ways",
    ),
    "no layer": (lambda: nn.Sequential(nn.Flatten()), SHAPE, "output", "end in a linear layer"),
    "activation on the input": (lambda: sequence(nn.ReLU(), nn.Linear(24, 3)), SHAPE, "0", "unquantized input"),
    "batch norm on the input": (
        lambda: sequence(nn.BatchNorm1d(24), nn.Linear(24, 3)),
        SHAPE,
        "0",
        "on the unquantized",
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
    "pooling with ceil_mode": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "ceil_mode",
    ),
    "other pooling": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.LPPool2d(2, 2), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "LPPool2d has no integer operation",
    ),
    "averages of the input": (
        lambda: sequence(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)),
        CONV_SHAPE,
        "0",
        "unquantized input",
    ),
    "averages that leave out the padding": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "use count_include_pad=True",
    ),
    "averages of incomplete windows": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "ceil_mode=False",
    ),
    "averages of windows that differ": (
        lambda: sequence(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        CONV_SHAPE,
        "1",
        "from (9, 8) to (4, 4), whose windows differ",
    ),
    "averages of no map": (
        lambda: sequence(nn.Linear(24, 3), nn.AvgPool2d(2)),
        SHAPE,
        "1",
        "it takes maps",
    ),
    "averages of 9 before a dynamic scale": (
        lambda: quantize(
            nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(18, 3, bias=False)),
            DYNAMIC,
        ),
        CONV_SHAPE,
        "3",
        "the window of an average pooling",
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


@pytest.mark.filterwarnings("ignore:the model's code cannot be followed")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_layer_and_remedy(case: str) -> None:
    model, shape, layer, words = REFUSED[case]
    with pytest.raises(BitLabError) as caught:
        lower(with_ranges(model()).eval(), shape)
    message = str(caught.value)
    assert f"layer '{layer}'" in message
    assert words in message
    assert "\n" not in message


def test_control_flow_on_values_is_refused() -> None:
    branching = Forward(lambda m, x: m.fc1(x) if x.sum() > 0 else m.fc2(x))
    model = quantize(branching, STATIC, example_input=torch.zeros(1, *SHAPE))
    with pytest.raises(BitLabError, match="cannot be traced"):
        lower(model, SHAPE)


def test_the_document_names_all_that_lowers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "numbers.md").read_text()
    missing = [
        kind.__name__ for kind in LOWERINGS if kind.__module__.startswith("torch") and f"`{kind.__name__}`" not in text
    ]
    assert not missing


def test_the_remedy_comes_first_and_the_message_is_short() -> None:
    with pytest.raises(BitLabError) as caught:
        lower(nn.Sequential(nn.Softmax(1)), SHAPE)
    assert len(str(caught.value)) < 200
