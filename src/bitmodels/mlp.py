"""Multi-layer perceptron: BitLab's MLP and BitNetMCU's fully connected networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

from torch import Tensor, nn

from bitmodels.auto import features, register_model


@dataclass(frozen=True)
class BitMLPConfig:
    """Sizes of a multi-layer perceptron.

    Attributes:
        in_channels: Features of a flattened input sample.
        out_channels: Outputs (classes).
        n_layers: Linear layers, the last one included; ignored when ``hidden_dims`` is given.
        hidden_dim: Width of every hidden layer; ignored when ``hidden_dims`` is given.
        dropout: Probability of dropping a hidden unit, 0 to 1.
        hidden_dims: Width of each hidden layer.
        bias: Whether the linear layers have biases.
        batch_norm: Whether batch norm stands behind each hidden linear layer.
    """

    in_channels: int
    out_channels: int
    n_layers: int = 3
    hidden_dim: int = 128
    dropout: float = 0.0
    hidden_dims: tuple[int, ...] | None = None
    bias: bool = True
    batch_norm: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        hidden = (self.hidden_dim,) if self.hidden_dims is None else self.hidden_dims
        if min(self.in_channels, self.out_channels, self.n_layers, *hidden) < 1:
            raise ValueError("in_channels, out_channels, n_layers and all hidden widths must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")

    @property
    def widths(self) -> Iterable[int]:
        """The widths of the hidden layers."""
        return self.hidden_dims if self.hidden_dims is not None else repeat(self.hidden_dim, self.n_layers - 1)


@register_model("mlp", BitMLPConfig, features)
class MLP(nn.Sequential):
    """Flatten, then linear layers with ReLU between them; batch norm and dropout where the config says so.

    Shape:
        Input ``[batch, ...]`` with ``in_channels`` values a sample, output ``[batch, out_channels]``.
    """

    def __init__(self, config: BitMLPConfig) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        width = config.in_channels
        for i, hidden in enumerate(config.widths, start=1):
            self.add_module(f"fc{i}", nn.Linear(width, hidden, config.bias and not config.batch_norm))
            if config.batch_norm:
                self.add_module(f"bn{i}", nn.BatchNorm1d(hidden))
            self.add_module(f"relu{i}", nn.ReLU())
            if config.dropout > 0:
                self.add_module(f"dropout{i}", nn.Dropout(config.dropout))
            width = hidden
        self.head = nn.Linear(width, config.out_channels, config.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Returns the logits."""
        return super().forward(input)
