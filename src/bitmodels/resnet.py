"""Residual networks (He et al., arXiv:1512.03385), and their kin for binary weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitmodels.auto import register_model, register_variant
from bitmodels.birealnet import BiRealBlock, ReActBlock
from bitmodels.blocks import CIFAR, IMAGENET, check_stem, convolution, kaiming


@dataclass(frozen=True)
class BitResNetConfig:
    """Sizes of a residual network: ResNet-18, unless the options say otherwise.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        blocks: Residual blocks of each stage.
        block: ``"basic"``, ``"bottleneck"``, ``"bireal"`` (Bi-Real Net) or ``"reactnet"``.
        width: Channels of the first stage; every stage has twice as many as the one before.
        stem: ``"imagenet"`` (7×7 of stride 2, max pooling) or ``"cifar"`` (3×3 of stride 1).
    """

    in_channels: int = 3
    out_channels: int = 1000
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    block: str = "basic"
    width: int = 64
    stem: str = IMAGENET

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.blocks or min(self.in_channels, self.out_channels, self.width, *self.blocks) < 1:
            raise ValueError("in_channels, out_channels, width and blocks must be at least 1")
        if self.block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, not {self.block!r}")
        check_stem(self.stem)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: the identity, or a 1×1 convolution where the shape changes (option B).

    Args:
        in_channels: Input channels.
        channels: Output channels.
        stride: Of the first convolution.

    Shape:
        Input ``[batch, in_channels, h, w]``, output ``[batch, channels, ceil(h / stride), ceil(w / stride)]``.
    """

    expansion = 1
    preactivated = False

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the last to four times the channels, and a shortcut as in `BasicBlock`.

    The 3×3 convolution has the stride, as everybody has it since the paper.

    Args:
        in_channels: Input channels.
        channels: Channels of the 3×3 convolution; the output has four times as many.
        stride: Of the 3×3 convolution.

    Shape:
        Input ``[batch, in_channels, h, w]``, output ``[batch, 4 * channels, ceil(h / stride), ceil(w / stride)]``.
    """

    expansion = 4
    preactivated = False

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.body = nn.Sequential(
            *convolution(in_channels, channels, 1),
            *convolution(channels, channels, 3, stride),
            *convolution(channels, out_channels, 1, activation=None),
        )
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        return self.relu(self.body(x) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*convolution(in_channels, out_channels, 1, stride, activation=None))


BLOCKS: dict[str, Any] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "bireal": BiRealBlock,
    "reactnet": ReActBlock,
}


@register_model("resnet18", BitResNetConfig)
class ResNet(nn.Module):
    """A stem, stages of residual blocks (each halves the size and doubles the channels), global mean, a linear layer.

    Shape:
        Input ``[batch, in_channels, height, width]`` of any size, output ``[batch, out_channels]``.
    """

    def __init__(self, config: BitResNetConfig) -> None:
        super().__init__()
        block = BLOCKS[config.block]
        large = config.stem == IMAGENET
        width = config.width
        self.conv = nn.Conv2d(config.in_channels, width, *((7, 2, 3) if large else (3, 1, 1)), bias=False)
        self.preactivated = block.preactivated  # then signs follow, and pooling comes first (see `bitmodels.vgg.VGG`)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.Identity() if self.preactivated else nn.ReLU()
        self.shrink = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = nn.Sequential()
        channels = width
        for stage, count in enumerate(config.blocks):
            for i in range(count):
                self.stages.append(block(channels, width * 2**stage, 2 if stage and not i else 1))
                channels = block.expansion * width * 2**stage
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, config.out_channels)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.conv(x)
        x = self.bn(self.shrink(x)) if self.preactivated else self.shrink(self.relu(self.bn(x)))
        return self.head(self.flatten(self.pool(self.stages(x))))


_34: Any = {"blocks": (3, 4, 6, 3)}
_20: Any = {"blocks": (3, 3, 3), "width": 16, "stem": CIFAR, "out_channels": 10}  # section 4.2: for small images
register_variant("resnet34", "resnet18", **_34)
register_variant("resnet50", "resnet18", **_34, block="bottleneck")
register_variant("resnet20", "resnet18", **_20)
register_variant("resnet32", "resnet18", **{**_20, "blocks": (5, 5, 5)})
register_variant("resnet56", "resnet18", **{**_20, "blocks": (9, 9, 9)})
register_variant("resnet_binary", "resnet18", "bnn", {"head": "w8a8"}, stem=CIFAR, out_channels=10)

# Both papers keep the first and the last layer and the shortcuts in high precision.
_PRECISE = {"conv": "w8a8", "*.shortcut.*": "w8a8", "head": "w8a8"}
for _block in ("bireal", "reactnet"):
    _name = {"bireal": "birealnet"}.get(_block, _block)
    register_variant(f"{_name}18", "resnet18", "bireal", _PRECISE, block=_block)
    register_variant(f"{_name}34", "resnet18", "bireal", _PRECISE, block=_block, **_34)
    register_variant(f"{_name}20", "resnet18", "bireal", _PRECISE, block=_block, **_20)
