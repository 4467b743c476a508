"""Losses: classification, and what a student takes from a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, kl_div, log_softmax, normalize, smooth_l1_loss

from bitcore.errors import BitLabError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``[B, classes]`` and labels ``[B]`` to a scalar."""


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over samples and classes of ``max(0, 1 − t y)``; t is +1 for the label's class, else −1 (BBN)."""
    return _margins(logits, labels).mean()


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """As `hinge`, ``max(0, 1 − t y)²`` (BinaryConnect, arXiv:1511.00363, section 3.1)."""
    return _margins(logits, labels).square().mean()


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    targets = torch.full_like(logits, -1).scatter_(1, labels[:, None], 1)
    return (1 - targets * logits).clamp_min(0)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "hinge": hinge, "squared_hinge": squared_hinge}


def make_loss(name: str, label_smoothing: float = 0.0) -> Loss:
    """Returns the loss of a recipe.

    Raises:
        BitLabError: Label smoothing with a hinge loss.
    """
    if not label_smoothing:
        return LOSSES[name]
    if name != "cross_entropy":
        raise BitLabError(f"label_smoothing is defined for the loss cross_entropy; set it to 0 for {name}")
    return lambda logits, labels: cross_entropy(logits, labels, label_smoothing=label_smoothing)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))``, the mean over samples (Hinton et al., arXiv:1503.02531).

    T² keeps the gradient's size: ``d/d student = T (softmax(student / T) − softmax(teacher / T)) / B``.

    Args:
        student: Logits ``[B, classes]``.
        teacher: Logits ``[B, classes]``.
        temperature: T, positive.
    """
    p, q = (log_softmax(logits / temperature, 1) for logits in (teacher, student))
    return temperature**2 * kl_div(q, p, reduction="batchmean", log_target=True)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean smooth L1 distance of (projected) features to a teacher's (FitNets, arXiv:1412.6550, eq. 3, there L2).

    Args:
        student: ``[B, ...]``; of maps ``[B, C, H, W]`` the larger are averaged down to the size of the smaller.
        teacher: Likewise, with the same channels.
    """
    return smooth_l1_loss(*_same_size(student, teacher))


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean over samples of ‖Q(s)/‖Q(s)‖ − Q(t)/‖Q(t)‖‖²`` with maps ``Q = Σ over channels of x²`` (arXiv:1612.03928).

    Eq. 2 there, with the square of the norm, as in the authors' code: smooth where the maps are equal.

    Args:
        student: ``[B, C, H, W]``.
        teacher: Likewise; channels may differ, the larger maps are averaged down.
    """
    maps = [normalize(x.square().sum(1).flatten(1), dim=1) for x in _same_size(student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return adaptive_avg_pool2d(student, size), adaptive_avg_pool2d(teacher, size)
