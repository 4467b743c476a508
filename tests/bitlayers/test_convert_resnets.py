"""Residual networks as torchvision and timm write them: functional calls, ``x + identity``, nested downsampling."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.presets import PRESETS
from bitlayers import BitLayer, BitLinear, pack
from bitlayers.convert import convert


class Block(nn.Module):
    """A basic block; a module serves both activations, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A small one, with functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 2)
        x = F.adaptive_avg_pool2d(self.layer2(self.layer1(x)), 1)
        return self.fc(torch.flatten(x, 1))


def resnet18() -> nn.Module:
    """Torchvision's, where it is installed."""
    return pytest.importorskip("torchvision", exc_type=ImportError).models.resnet18(num_classes=5)


def timms(name: str) -> nn.Module:
    """One of timm's, where it is installed."""
    return pytest.importorskip("timm", exc_type=ImportError).create_model(name, num_classes=5)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "by hand": (ResNet, 8),
    "torchvision resnet18": (resnet18, 32),
    "timm resnet18": (lambda: timms("resnet18"), 32),
    "timm mobilenetv3": (lambda: timms("mobilenetv3_small_050"), 32),
}


@pytest.mark.parametrize("preset", ["bitnet-cnn", "w8a8", "lsq-plus-4"])
@pytest.mark.parametrize("name", MODELS)
def test_residual_networks(name: str, preset: str):
    make, size = MODELS[name]
    model = make()
    names = [n for n, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    report = convert(model, preset)
    assert [n for n, m in model.named_modules() if isinstance(m, BitLayer)] == names
    assert len(report.converted) == len(names) and not report.left
    x = torch.randn(4, 3, size, size)
    for _ in range(2):
        model.train()(x).square().mean().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(pack(copy.deepcopy(model))(x), expected)


def test_the_report_says_where_signed_formats_meet_a_relu():
    """Behind ReLU, pooling and flattening between; not at the input, not behind a sum, not of unsigned formats."""
    report = convert(ResNet(), "w8a8")
    first = ("layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1")
    assert set(report.half_used) == {*first, "layer2.0.conv2", "layer2.0.downsample.0", "fc"}
    assert "never negative, in signed formats (choose uint ones): inputs of layer1.0.conv1, " in str(report)
    unsigned = convert(ResNet(), PRESETS["w8a8"].replace(activation_dtype="uint8"), {"fc": "w8a8"})
    assert unsigned.half_used == ("fc",)
    for preset in ("bitnet", "lsq-4", "bnn", "bitlab"):  # dynamic, unsigned, signs, float
        assert not convert(ResNet(), preset).half_used
    negative = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1))
    assert not convert(negative, "w8a8").half_used


def test_a_model_that_cannot_be_followed_has_no_such_report():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.relu()) if x.sum() > 0 else self.fc(-x)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Branching())
    report = convert(model, "w8a8")
    assert not report.half_used and isinstance(model.get_submodule("2.fc"), BitLinear)
