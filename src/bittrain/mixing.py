"""Batches whose images are mixed in pairs: mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bittrain.losses import Loss
from bittrain.seeds import derive


@dataclass(frozen=True)
class Mixed:
    """A batch of mixed images.

    Attributes:
        images: ``[B, C, H, W]``.
        labels: The classes of the larger parts, ``[B]``.
        others: The classes of the smaller parts, ``[B]``.
        share: The larger parts' share, 1/2 to 1.
    """

    images: Tensor
    labels: Tensor
    others: Tensor
    share: float

    def loss(self, loss: Loss, logits: Tensor) -> Tensor:
        """Returns the loss of both labels, ``share`` of the first one's and the rest of the other's."""
        return self.share * loss(logits, self.labels) + (1 - self.share) * loss(logits, self.others)


def mix(images: Tensor, labels: Tensor, mixup: float, cutmix: float, seed: int) -> Mixed:
    """Mixes each image with another one of the batch; where both ways are on, a batch takes either at even odds.

    mixup: ``share · x + (1 − share) · x[other]``. CutMix: a box of ``x[other]``, somewhere in x, whose area is the
    other share (before what lies outside is cut off). The share is drawn from Beta(a, a), one for the batch.

    Args:
        images: ``[B, C, H, W]``; left as they are.
        labels: ``[B]``.
        mixup: a of mixup; 0 for none.
        cutmix: a of CutMix; 0 for none.
        seed: The result is a function of this, the same on every device.
    """
    if not mixup and not cutmix:
        return Mixed(images, labels, labels, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "mix"))
        cut = bool(cutmix) and (not mixup or torch.rand(()).item() < 0.5)
        a = torch.tensor(cutmix if cut else mixup)
        share = torch.distributions.Beta(a, a).sample().item()
        share = max(share, 1 - share)
        order = torch.randperm(len(labels)).to(labels.device)
        place = torch.rand(2).tolist()
    partners, others = images[order], labels[order]
    if not cut:
        return Mixed(images.lerp(partners, 1 - share), labels, others, share)
    height, width = images.shape[-2:]
    rows, columns = (_span(size, (1 - share) ** 0.5, at) for size, at in zip((height, width), place, strict=True))
    mixed = images.clone()
    mixed[..., rows, columns] = partners[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixed(mixed, labels, others, 1 - area / (height * width))


def _span(size: int, share: float, at: float) -> slice:
    """A box's extent along one side: its centre is anywhere, what is outside is cut off."""
    centre, half = at * size, share * size / 2
    return slice(max(0, round(centre - half)), min(size, round(centre + half)))
