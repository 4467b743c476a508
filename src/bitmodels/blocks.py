"""What several families share: convolution with batch norm, the classifier of the older nets, starting weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

IMAGENET, CIFAR = "imagenet", "cifar"
STEMS = (IMAGENET, CIFAR)


def check_stem(stem: str) -> None:
    """Raises a `ValueError` unless there is such a stem."""
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, not {stem!r}")


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
    mod: Any = nn,
) -> list[nn.Module]:
    """Returns a convolution, its batch norm and its activation function.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Its size, odd; maps are padded so that stride 1 keeps their size.
        stride: The stride.
        groups: Groups of channels.
        activation: The class of the activation function; ``None`` for none.
        mod: Where the convolution comes from: `torch.nn`, or `bitlayers.Bit`.
    """
    layers = [
        mod.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return layers if activation is None else [*layers, activation()]


class ConvClassifier(nn.Module):
    """Convolutional features, then linear layers: the shape of AlexNet and VGG.

    Where ``norm`` is set, batch norm stands behind every hidden linear layer, which then has no bias. ``head_norm``
    stands for a batch norm of the logits, which tames the large ones of a binary head (BNN, arXiv:1602.02830).

    Args:
        features: From the image to maps.
        width: Values that these maps hold for one image.
        hidden_dims: Widths of the hidden linear layers.
        out_channels: Outputs (classes).
        dropout: Probability of dropping an input of a hidden linear layer.
        norm: Whether hidden linear layers have batch norm.
        head_norm: Whether the logits have.
    """

    def __init__(
        self,
        features: nn.Sequential,
        width: int,
        hidden_dims: Sequence[int],
        out_channels: int,
        dropout: float,
        norm: bool,
        head_norm: bool,
    ) -> None:
        super().__init__()
        self.features = features
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential()
        for hidden in hidden_dims:
            if dropout > 0:
                self.hidden.append(nn.Dropout(dropout))
            self.hidden.append(nn.Linear(width, hidden, bias=not norm))
            if norm:
                self.hidden.append(nn.BatchNorm1d(hidden))
            self.hidden.append(nn.ReLU())
            width = hidden
        self.head = nn.Linear(width, out_channels, bias=not head_norm)
        self.norm = nn.BatchNorm1d(out_channels) if head_norm else nn.Identity()
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, ``[batch, out_channels]``."""
        return self.norm(self.head(self.hidden(self.flatten(self.features(x)))))


def kaiming(model: nn.Module) -> None:
    """Draws convolutions' weights as He et al. (arXiv:1502.01852, by fan-out), linear layers' with deviation 0.01.

    Biases start at 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
