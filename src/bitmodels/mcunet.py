"""Small convolutional networks for microcontrollers: plain, depthwise and pooling layers from a short list."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bitmodels.auto import register_model, square_images

POOL = "pool"
DEPTHWISE = "depthwise"


@dataclass(frozen=True)
class BitMCUNetConfig:
    """Layers of a convolutional network for a microcontroller.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        image_size: Height and width of the image.
        features: The layers up to the classifier: a number is a 3×3 convolution to that many channels, ``"depthwise"``
            a 3×3 convolution of each channel by itself, ``"pool"`` a 2×2 max pooling. BitNetMCU's network is
            ``(64, "depthwise", "pool", "depthwise", "pool")`` without padding, and ``hidden_dims`` of 96, 64.
        hidden_dims: Widths of the hidden linear layers.
        padding: Whether convolutions keep the size of their maps.
    """

    in_channels: int = 1
    out_channels: int = 10
    image_size: int = 16
    features: tuple[int | str, ...] = (24, POOL, 32, POOL, 48, 64, POOL)
    hidden_dims: tuple[int, ...] = ()
    padding: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.in_channels, self.out_channels, self.image_size, *self.hidden_dims) < 1:
            raise ValueError("in_channels, out_channels, image_size and all hidden widths must be at least 1")
        for feature in self.features:
            if feature not in (POOL, DEPTHWISE) and not (type(feature) is int and feature > 0):
                raise ValueError(f"features are numbers of channels, '{POOL}' and '{DEPTHWISE}', not {feature!r}")
        if self.size < 1:
            raise ValueError(f"features leave nothing of an image of {self.image_size}×{self.image_size}; pool less")

    @property
    def size(self) -> int:
        """Height and width behind the features."""
        size = self.image_size
        for feature in self.features:
            size = size // 2 if feature == POOL else size if self.padding else size - 2
        return size


@register_model("mcunet", BitMCUNetConfig, square_images)
class MCUNet(nn.Sequential):
    """The features, then linear layers; batch norm and ReLU behind every convolution and hidden linear layer.

    Shape:
        Input ``[batch, in_channels, image_size, image_size]``, output ``[batch, out_channels]``.
    """

    def __init__(self, config: BitMCUNetConfig) -> None:
        super().__init__()
        channels = config.in_channels
        for i, feature in enumerate(config.features, start=1):
            if feature == POOL:
                self.add_module(f"pool{i}", nn.MaxPool2d(2))
                continue
            width, groups = (channels, channels) if feature == DEPTHWISE else (int(feature), 1)
            convolution = nn.Conv2d(channels, width, 3, padding=int(config.padding), groups=groups, bias=False)
            self.add_module(f"conv{i}", convolution)
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.add_module(f"relu{i}", nn.ReLU())
            channels = width
        self.flatten = nn.Flatten()
        width = channels * config.size**2
        for i, hidden in enumerate(config.hidden_dims, start=len(config.features) + 1):
            self.add_module(f"fc{i}", nn.Linear(width, hidden, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm1d(hidden))
            self.add_module(f"relu{i}", nn.ReLU())
            width = hidden
        self.head = nn.Linear(width, config.out_channels)

    def forward(self, input: Tensor) -> Tensor:
        """Returns the logits."""
        return super().forward(input)
