"""AlexNet in one column (Krizhevsky, arXiv:1404.5997) with batch norm, the one that binary nets are compared on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bitmodels.auto import register_model, register_variant, square_images
from bitmodels.blocks import CIFAR, IMAGENET, ConvClassifier, check_stem

# Channels, kernel, and whether 3×3 max pooling of stride 2 follows.
_LAYERS = ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))


@dataclass(frozen=True)
class BitAlexNetConfig:
    """Sizes of an AlexNet.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        image_size: Height and width of the image.
        width: Multiplier of the convolutions' channels.
        hidden_dims: Widths of the hidden linear layers.
        stem: ``"imagenet"`` (11×11 of stride 4) or ``"cifar"`` (3×3 of stride 1).
        head_norm: Whether batch norm stands behind the last linear layer.
        dropout: Probability of dropping an input of a hidden linear layer, 0 to 1.
    """

    in_channels: int = 3
    out_channels: int = 1000
    image_size: int = 224
    width: float = 1.0
    hidden_dims: tuple[int, ...] = (4096, 4096)
    stem: str = IMAGENET
    head_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.in_channels, self.out_channels, self.image_size, *self.hidden_dims) < 1 or not self.width > 0:
            raise ValueError("all sizes must be at least 1, and width greater than 0")
        check_stem(self.stem)
        if self.size < 1:
            images = f"images of {self.image_size}×{self.image_size}"
            raise ValueError(f"{images} are too small for stem '{self.stem}'; take larger ones, or stem 'cifar'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")

    @property
    def size(self) -> int:
        """Height and width behind the convolutions: 6 of 224 with the stem of ImageNet, 3 of 32 with that of CIFAR."""
        size = self.image_size if self.stem == CIFAR else (self.image_size - 7) // 4 + 1
        for _, _, pool in _LAYERS:
            size = (size - 3) // 2 + 1 if pool else size
        return size


@register_model("alexnet", BitAlexNetConfig, square_images)
class AlexNet(ConvClassifier):
    """Five convolutions with max pooling in front of batch norm (see `bitmodels.vgg.VGG`), three linear layers.

    Shape:
        Input ``[batch, in_channels, image_size, image_size]``, output ``[batch, out_channels]``.
    """

    def __init__(self, config: BitAlexNetConfig) -> None:
        features = nn.Sequential()
        channels = config.in_channels
        for i, (count, kernel, pool) in enumerate(_LAYERS):
            stride, padding = 1, kernel // 2
            if i == 0:
                kernel, stride, padding = (3, 1, 1) if config.stem == CIFAR else (kernel, 4, 2)
            width = max(1, round(count * config.width))
            layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, stride, padding, bias=False)]
            if pool:
                layers.append(nn.MaxPool2d(3, 2))
            features.append(nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        super().__init__(
            features,
            channels * config.size**2,
            config.hidden_dims,
            config.out_channels,
            config.dropout,
            norm=True,
            head_norm=config.head_norm,
        )


register_variant("alexnet_binary", "alexnet", "bnn", head_norm=True)
