"""Residual networks for 32×32 images (He et al., arXiv:1512.03385, section 4.2): ResNet-20, -32, -56."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bitmodels.auto import register_model

_DEPTHS = (20, 32, 56)


@dataclass(frozen=True)
class BitResNet20Config:
    """Sizes of a residual network for small images: ResNet-20, unless ``depth`` says otherwise.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        depth: Layers with weights: 20, 32 or 56.
        width: Channels of the first stage; the others have 2 and 4 times as many.
    """

    in_channels: int = 3
    out_channels: int = 10
    depth: int = 20
    width: int = 16

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.in_channels, self.out_channels, self.width) < 1:
            raise ValueError("in_channels, out_channels and width must be at least 1")
        if self.depth not in _DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _DEPTHS))}, not {self.depth}")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: the identity, or a 1×1 convolution where the shape changes (option B)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, ``[batch, out_channels, height / stride, width / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


@register_model("resnet20", BitResNet20Config)
class ResNetCifar(nn.Module):
    """A 3×3 convolution, three stages of blocks at full, half and quarter size, global mean, a linear layer.

    Shape:
        Input ``[batch, in_channels, height, width]`` (32×32 in the paper), output ``[batch, out_channels]``.
    """

    def __init__(self, config: BitResNet20Config) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.in_channels, config.width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        channels = config.width
        for stage in range(3):
            for block in range((config.depth - 2) // 6):
                width = config.width * 2**stage
                self.stages.append(BasicBlock(channels, width, 2 if stage and not block else 1))
                channels = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, config.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.flatten(self.pool(self.stages(self.relu(self.bn(self.conv(x)))))))
