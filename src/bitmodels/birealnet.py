"""Residual blocks made for binary weights and activations: Bi-Real Net and ReActNet (`bitmodels.resnet` has the nets).

Bi-Real Net (arXiv:1808.00278): a shortcut around every single convolution carries real values past the signs; where
the shape changes, it is average pooling and a 1×1 convolution. ReActNet (arXiv:2003.03488) learns the thresholds of the
signs and the shape of what follows them.
"""

from __future__ import annotations

from torch import Tensor, nn

from bitlayers.activations import RPReLU, RSign
from bitmodels.blocks import convolution


class BiRealUnit(nn.Module):
    """One 3×3 convolution and a shortcut around it.

    ``BN(conv(ReLU(x))) + shortcut(x)``. With binary activations the ReLU becomes a Hardtanh (`bitlayers.convert`), and
    the convolution's input quantizer takes the sign. With ``learned`` it is
    ``RPReLU(BN(conv(RSign(x))) + shortcut(x))``.

    Args:
        in_channels: Input channels.
        channels: Output channels.
        stride: Of the convolution.
        learned: Whether thresholds and activation functions are ReActNet's, learned.

    Shape:
        Input ``[batch, in_channels, h, w]``, output ``[batch, channels, ceil(h / stride), ceil(w / stride)]``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, learned: bool) -> None:
        super().__init__()
        self.activation = RSign(in_channels) if learned else nn.ReLU()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if in_channels != channels:
            self.shortcut.extend(convolution(in_channels, channels, 1, activation=None))
        self.output = RPReLU(channels) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Applies the unit."""
        return self.output(self.bn(self.conv(self.activation(x))) + self.shortcut(x))


class BiRealBlock(nn.Sequential):
    """Two units, which stand for the two convolutions of a `bitmodels.resnet.BasicBlock`.

    Args:
        in_channels: Input channels.
        channels: Output channels.
        stride: Of the first unit.
        learned: As in `BiRealUnit`.
    """

    expansion = 1
    preactivated = True

    def __init__(self, in_channels: int, channels: int, stride: int, learned: bool = False) -> None:
        super().__init__(BiRealUnit(in_channels, channels, stride, learned), BiRealUnit(channels, channels, 1, learned))


class ReActBlock(BiRealBlock):
    """The same with ReActNet's thresholds and activation functions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride, learned=True)
