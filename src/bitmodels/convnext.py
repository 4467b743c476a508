"""ConvNeXt V2 (Woo et al., arXiv:2301.00808): atto, femto, pico, nano, tiny, base."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, pairwise

import torch
from torch import Tensor, nn

from bitmodels.auto import register_model, register_variant


@dataclass(frozen=True)
class BitConvNeXtV2Config:
    """Sizes of a ConvNeXt V2: atto, unless ``blocks`` and ``widths`` say otherwise.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Outputs (classes).
        blocks: Blocks of each stage.
        widths: Channels of each stage.
        patch: Size and stride of the stem's convolution: 4 for large images, 1 or 2 for 32×32.
        drop_path: Probability of dropping the last block's branch; it rises linearly from 0 at the first block.
    """

    in_channels: int = 3
    out_channels: int = 1000
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    widths: tuple[int, ...] = (40, 80, 160, 320)
    patch: int = 4
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.widths or len(self.blocks) != len(self.widths):
            raise ValueError("blocks and widths must name the same stages, at least one")
        if min(self.in_channels, self.out_channels, self.patch, *self.blocks, *self.widths) < 1:
            raise ValueError("in_channels, out_channels, patch, blocks and widths must be at least 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), not {self.drop_path}")


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[batch, channels, height, width]``."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalized maps."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Global response normalization, the paper's eq. 1 to 3: ``gain * (x * n) + offset + x``.

    ``n`` is the channel's L2 norm over the map, divided by the mean of these norms over the channels.

    Args:
        channels: Channels of the input, its last dimension.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the responses; input and output ``[batch, height, width, channels]``."""
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gain * (x * (norms / (norms.mean(-1, keepdim=True) + 1e-6))) + self.offset + x


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382): in training, drops whole samples and scales up the others.

    Args:
        probability: Of a sample being dropped.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` with some samples set to 0."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        shape = (len(x), *[1] * (x.ndim - 1))
        return x * torch.bernoulli(torch.full(shape, keep, dtype=x.dtype, device=x.device)) / keep


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, layer norm, four times the channels, GELU, `GlobalResponseNorm`, back; the input is added.

    Args:
        channels: Input and output channels.
        drop_path: Probability of dropping the branch.

    Shape:
        Input and output ``[batch, channels, height, width]``.
    """

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.activation = nn.GELU()
        self.response = GlobalResponseNorm(4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(self.response(self.activation(self.expand(y))))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


@register_model("convnextv2_atto", BitConvNeXtV2Config)
class ConvNeXtV2(nn.Module):
    """A patch stem, stages of blocks, 2×2 convolutions of stride 2 between, global mean, layer norm, a linear layer.

    Shape:
        Input ``[batch, in_channels, height, width]``, of multiples of ``patch * 2**(stages - 1)``; output
        ``[batch, out_channels]``.
    """

    def __init__(self, config: BitConvNeXtV2Config) -> None:
        super().__init__()
        first, last = config.widths[0], config.widths[-1]
        stem = nn.Conv2d(config.in_channels, first, config.patch, config.patch)
        self.stem = nn.Sequential(stem, ChannelNorm(first, eps=1e-6))
        last_block = max(1, sum(config.blocks) - 1)
        probabilities = (config.drop_path * i / last_block for i in count())
        self.stages = nn.Sequential()
        for stage, (width_in, width) in enumerate(pairwise((first, *config.widths))):
            if stage:
                halve = nn.Conv2d(width_in, width, 2, 2)
                self.stages.append(nn.Sequential(ChannelNorm(width_in, eps=1e-6), halve))
            for _ in range(config.blocks[stage]):
                self.stages.append(ConvNeXtBlock(width, next(probabilities)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(last, eps=1e-6))
        self.head = nn.Linear(last, config.out_channels)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.pool(self.stages(self.stem(x))))


register_variant("convnextv2_femto", "convnextv2_atto", widths=(48, 96, 192, 384))
register_variant("convnextv2_pico", "convnextv2_atto", widths=(64, 128, 256, 512))
register_variant("convnextv2_nano", "convnextv2_atto", blocks=(2, 2, 8, 2), widths=(80, 160, 320, 640))
register_variant("convnextv2_tiny", "convnextv2_atto", blocks=(3, 3, 9, 3), widths=(96, 192, 384, 768))
register_variant("convnextv2_base", "convnextv2_atto", blocks=(3, 3, 27, 3), widths=(128, 256, 512, 1024))
