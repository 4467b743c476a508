"""Clipping of latent weights."""

from __future__ import annotations

import torch
from torch import nn

from bitlayers.base import BitLayer


@torch.no_grad()
def clip_latent_weights(model: nn.Module) -> int:
    """Clips, in place, the latent weights to [−1, 1] in every layer whose config says ``weight_clip``.

    Call it after every optimizer step (BNN, arXiv:1602.02830). Beyond ±1 the clipped straight-through gradient of a
    weight is 0: without the clip it could never come back.

    Returns:
        The number of layers that were clipped.
    """
    count = 0
    for layer in model.modules():
        if isinstance(layer, BitLayer) and layer.quant_config.weight_clip and not layer.packed:
            layer.weight.clamp_(-1, 1)
            count += 1
    return count
