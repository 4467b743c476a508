"""VGG (Simonyan and Zisserman, arXiv:1409.1556): VGG-16 with batch norm, and VGG-small, the binary nets' for CIFAR."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bitmodels.auto import register_model, register_variant, square_images
from bitmodels.blocks import ConvClassifier, convolution

POOL = "pool"


@dataclass(frozen=True)
class BitVGGConfig:
    """Layers of a VGG network: VGG-small (arXiv:1603.05279, arXiv:1909.10788), unless the options say otherwise.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        image_size: Height and width of the image.
        features: The layers up to the classifier: a number is a 3×3 convolution to that many channels, ``"pool"`` a 2×2
            max pooling (behind a convolution).
        hidden_dims: Widths of the hidden linear layers; BNN (arXiv:1602.02830) has two of 1024.
        hidden_norm: Whether batch norm stands behind each hidden linear layer.
        head_norm: Whether batch norm stands behind the last one.
        dropout: Probability of dropping an input of a hidden linear layer, 0 to 1.
    """

    in_channels: int = 3
    out_channels: int = 10
    image_size: int = 32
    features: tuple[int | str, ...] = (128, 128, POOL, 256, 256, POOL, 512, 512, POOL)
    hidden_dims: tuple[int, ...] = ()
    hidden_norm: bool = True
    head_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.in_channels, self.out_channels, self.image_size, *self.hidden_dims) < 1:
            raise ValueError("in_channels, out_channels, image_size and all hidden widths must be at least 1")
        if not self.features or self.features[0] == POOL:
            raise ValueError("features must begin with a convolution")
        for feature in self.features:
            if feature != POOL and not (type(feature) is int and feature > 0):
                raise ValueError(f"features are numbers of channels and '{POOL}', not {feature!r}")
        if self.size < 1:
            raise ValueError(f"features leave nothing of an image of {self.image_size}×{self.image_size}; pool less")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")

    @property
    def size(self) -> int:
        """Height and width behind the features."""
        return self.image_size // 2 ** self.features.count(POOL)


@register_model("vgg_small", BitVGGConfig, square_images)
class VGG(ConvClassifier):
    """Convolutions, max pooling in front of batch norm, ReLU; then linear layers.

    Pooling comes before batch norm because the largest of signs is nearly always +1 (arXiv:1603.05279, section 3.2);
    where the norm's weights are positive, it makes no difference to real values.

    Shape:
        Input ``[batch, in_channels, image_size, image_size]``, output ``[batch, out_channels]``.
    """

    def __init__(self, config: BitVGGConfig) -> None:
        features = nn.Sequential()
        channels = config.in_channels
        for feature, following in zip(config.features, (*config.features[1:], ""), strict=True):
            if feature == POOL:
                continue
            layers = convolution(channels, int(feature), 3)
            if following == POOL:
                layers.insert(1, nn.MaxPool2d(2))
            features.append(nn.Sequential(*layers))
            channels = int(feature)
        super().__init__(
            features,
            channels * config.size**2,
            config.hidden_dims,
            config.out_channels,
            config.dropout,
            config.hidden_norm,
            config.head_norm,
        )


_VGG16 = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL)
register_variant(
    "vgg16_bn",
    "vgg_small",
    out_channels=1000,
    image_size=224,
    features=_VGG16,
    hidden_dims=(4096, 4096),
    hidden_norm=False,
    dropout=0.5,
)
for _classes in (10, 100):
    register_variant(
        f"vgg_cifar{_classes}_binary",
        "vgg_small",
        "bnn",
        out_channels=_classes,
        hidden_dims=(1024, 1024),
        head_norm=True,
    )
