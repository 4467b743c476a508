"""MobileNetV1 (Howard et al., arXiv:1704.04861) and MobileNetV2 (Sandler et al., arXiv:1801.04381)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bitmodels.auto import register_model
from bitmodels.blocks import CIFAR, IMAGENET, check_stem, convolution, kaiming
from bitmodels.netcnn import InvertedResidual

Stages = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class BitMobileNetV1Config:
    """Sizes of a MobileNetV1.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        width: Multiplier of all channels (rounded to multiples of 8).
        stem: ``"imagenet"``, or ``"cifar"``: the first two strides are 1, so that 32×32 images become 4×4 maps.
        dropout: Probability of dropping a feature before the classifier, 0 to 1.
        stages: Channels, blocks and first stride of each stage (the paper's table 1).
    """

    in_channels: int = 3
    out_channels: int = 1000
    width: float = 1.0
    stem: str = IMAGENET
    dropout: float = 0.0
    stages: Stages = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check(self, "channels, blocks and stride", 3)


@dataclass(frozen=True)
class BitMobileNetV2Config:
    """Sizes of a MobileNetV2.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        width: Multiplier of all channels (rounded to multiples of 8).
        stem: As in `BitMobileNetV1Config`.
        dropout: Probability of dropping a feature before the classifier, 0 to 1.
        stages: Expansion, channels, blocks and first stride of each stage (the paper's table 2).
        last: Channels of the last convolution; a ``width`` below 1 does not apply to them.
    """

    in_channels: int = 3
    out_channels: int = 1000
    width: float = 1.0
    stem: str = IMAGENET
    dropout: float = 0.0
    stages: Stages = (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )
    last: int = 1280

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check(self, "expansion, channels, blocks and stride", 4)
        if self.last < 1:
            raise ValueError("last must be at least 1")


Config = BitMobileNetV1Config | BitMobileNetV2Config


def _check(config: Config, what: str, numbers: int) -> None:
    if min(config.in_channels, config.out_channels) < 1 or not config.width > 0:
        raise ValueError("in_channels and out_channels must be at least 1, and width greater than 0")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not {config.dropout}")
    check_stem(config.stem)
    if not config.stages or any(len(stage) != numbers or min(stage) < 1 for stage in config.stages):
        raise ValueError(f"stages are {what}, each at least 1")


def _scaled(channels: int, width: float) -> int:
    """Returns ``width`` times a number of channels: a multiple of 8 that is at least nine tenths of it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _strides(config: Config) -> list[int]:
    """The strides of stem and stages. For small images the first two of 2 become 1."""
    strides = [2, *(stage[-1] for stage in config.stages)]
    first = [i for i, stride in enumerate(strides) if stride == 2][:2] if config.stem == CIFAR else []
    return [1 if i in first else stride for i, stride in enumerate(strides)]


class _MobileNet(nn.Module):
    """Features, global mean, dropout, a linear layer.

    Shape:
        Input ``[batch, in_channels, height, width]`` of any size, output ``[batch, out_channels]``.
    """

    def __init__(self, features: nn.Sequential, channels: int, config: Config) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout))
        self.head = nn.Linear(channels, config.out_channels)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.pool(self.features(x)))


@register_model("mobilenetv1", BitMobileNetV1Config)
class MobileNetV1(_MobileNet):
    """A 3×3 stem and 13 depthwise separable convolutions: 3×3 by channel, then 1×1; batch norm and ReLU behind each."""

    def __init__(self, config: BitMobileNetV1Config) -> None:
        first, *strides = _strides(config)
        channels = _scaled(32, config.width)
        features = nn.Sequential(nn.Sequential(*convolution(config.in_channels, channels, 3, first)))
        for (count, blocks, _), stride in zip(config.stages, strides, strict=True):
            width = _scaled(count, config.width)
            for i in range(blocks):
                depthwise = convolution(channels, channels, 3, 1 if i else stride, groups=channels)
                features.append(nn.Sequential(*depthwise, *convolution(channels, width, 1)))
                channels = width
        super().__init__(features, channels, config)


@register_model("mobilenetv2", BitMobileNetV2Config)
class MobileNetV2(_MobileNet):
    """A 3×3 stem, 17 inverted residuals and a 1×1 convolution; ReLU6 between, nothing behind the bottlenecks."""

    def __init__(self, config: BitMobileNetV2Config) -> None:
        first, *strides = _strides(config)
        relu = nn.ReLU6
        channels = _scaled(32, config.width)
        features = nn.Sequential(nn.Sequential(*convolution(config.in_channels, channels, 3, first, activation=relu)))
        for (expansion, count, blocks, _), stride in zip(config.stages, strides, strict=True):
            width = _scaled(count, config.width)
            for i in range(blocks):
                block = InvertedResidual(channels, width, 1 if i else stride, expansion, activation=relu)
                features.append(block)
                channels = width
        last = _scaled(config.last, max(1.0, config.width))
        features.append(nn.Sequential(*convolution(channels, last, 1, activation=relu)))
        super().__init__(features, last, config)
