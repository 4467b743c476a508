"""NetCNN: BitNetCNN's small convolutional network of inverted residuals, for MNIST and CIFAR."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from bitmodels.auto import register_model
from bitmodels.blocks import convolution


@dataclass(frozen=True)
class NetCNNConfig:
    """Sizes of a NetCNN.

    Attributes:
        in_channels: Channels of the images.
        out_channels: Outputs (classes).
        widths: Channels behind the stem and behind each stage.
        blocks: Inverted residuals a stage; the first halves the resolution.
        expand_ratio: Hidden channels of an inverted residual, in units of its input channels.
        dropout: Probability of dropping a feature before the classifier, 0 to 1.
    """

    in_channels: int = 1
    out_channels: int = 10
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 1
    expand_ratio: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        sizes = (self.in_channels, self.out_channels, *self.widths, self.blocks, self.expand_ratio)
        if not self.widths or min(sizes) < 1:
            raise ValueError("in_channels, out_channels, widths, blocks and expand_ratio must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 (MobileNetV2, arXiv:1801.04381), each with batch norm; ReLU between.

    The input is added where the shapes agree. Nothing is expanded where ``expand_ratio`` is 1.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: Of the depthwise convolution.
        expand_ratio: Hidden channels in units of ``in_channels``.
        mod: Where the convolutions come from: `torch.nn`, or `bitlayers.Bit`.
        activation: The class of the activation functions.

    Shape:
        Input ``[batch, in_channels, h, w]``, output ``[batch, out_channels, ceil(h / stride), ceil(w / stride)]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: int,
        mod: Any = nn,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        expand = convolution(in_channels, hidden, 1, activation=activation, mod=mod) if expand_ratio > 1 else []
        self.body = nn.Sequential(
            *expand,
            *convolution(hidden, hidden, 3, stride, groups=hidden, activation=activation, mod=mod),
            *convolution(hidden, out_channels, 1, activation=None, mod=mod),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        return x + self.body(x) if self.residual else self.body(x)


class NetCNN(nn.Module):
    """A 3×3 stem, three stages of inverted residuals (32 → 64 → 128 → 256 channels), average pooling, a classifier.

    Args:
        in_channels: Channels of the images.
        num_classes: Outputs.
        mod: Where the weighted layers come from: `torch.nn` (float), or `bitlayers.Bit` (ternary, BitNetCNN's way).
        **options: The other fields of `NetCNNConfig`.

    Shape:
        Input ``[batch, in_channels, height, width]`` of any size, output ``[batch, num_classes]``.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, mod: Any = nn, **options: Any) -> None:
        super().__init__()
        config = NetCNNConfig(in_channels, num_classes, **options)
        first, last = config.widths[0], config.widths[-1]
        self.stem = nn.Sequential(*convolution(in_channels, first, 3, mod=mod))
        self.stages = nn.Sequential()
        for width_in, width_out in pairwise(config.widths):
            stage = nn.Sequential(InvertedResidual(width_in, width_out, 2, config.expand_ratio, mod))
            for _ in range(config.blocks - 1):
                stage.append(InvertedResidual(width_out, width_out, 1, config.expand_ratio, mod))
            self.stages.append(stage)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout))
        self.head = mod.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.pool(self.stages(self.stem(x))))


@register_model("netcnn", NetCNNConfig)
def _from_config(config: NetCNNConfig) -> NetCNN:
    options = {name: getattr(config, name) for name in ("widths", "blocks", "expand_ratio", "dropout")}
    return NetCNN(config.in_channels, config.out_channels, **options)
