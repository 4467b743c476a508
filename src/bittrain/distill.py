"""Distillation: a student learns from the labels and from a teacher's logits and features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError, unknown
from bitlayers.shapes import for_shapes
from bittrain.losses import attention_transfer, distillation, hint


class Distiller(nn.Module):
    """``(1 − alpha) task + alpha KL + hint_weight Σ hints + attention_weight Σ attention`` (see `bittrain.losses`).

    The teacher runs in eval mode without gradients, and is no part of the module's state. Where a hint layer's student
    features have other channels than the teacher's, a learned linear projection (1×1 convolution) stands between.

    Args:
        teacher: Takes the student's input.
        temperature: Of the logits.
        alpha: Share of the teacher's logits in the loss.
        hint_weight: Weight of the features' smooth L1 distance.
        attention_weight: Weight of the attention maps' distance.
        layers: Names of the layers whose outputs are compared, ``"student"`` or ``"student:teacher"``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        alpha: float = 0.5,
        hint_weight: float = 0.0,
        attention_weight: float = 0.0,
        layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._teacher = (teacher.eval(),)  # in a tuple: not registered
        self.temperature, self.alpha = temperature, alpha
        self.hint_weight, self.attention_weight = hint_weight, attention_weight
        halves = [text.partition(":") for text in layers]
        self.layers = [(student, teacher or student) for student, _, teacher in halves]
        self.projections = nn.ModuleList()
        if (hint_weight or attention_weight) and not layers:
            raise BitLabError("hint_weight and attention_weight compare features: name the layers in hint_layers")
        if layers and not (hint_weight or attention_weight):
            raise BitLabError("hint_layers are not compared without a weight: set hint_weight or attention_weight")

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    @torch.no_grad()
    def prepare(self, student: nn.Module, images: Tensor) -> None:
        """Checks that student and teacher fit, and creates the projections.

        Args:
            student: The model that will learn; used in eval mode, and left as it was.
            images: Some input ``[B, ...]``.

        Raises:
            BitLabError: Other classes, unknown layers, or features that cannot be compared.
        """
        with for_shapes(student):
            logits, ours, theirs, expected = self._run(student, images)
        if logits.shape != expected.shape:
            raise BitLabError(
                f"the teacher has {expected.shape[1]} classes, the model {logits.shape[1]}; take one for the same data"
            )
        for (name, other), a, b in zip(self.layers, ours, theirs, strict=True):
            if a.ndim != b.ndim or a.ndim not in (2, 4) or (self.attention_weight and a.ndim != 4):
                shapes = f"{list(a.shape)} and {list(b.shape)}"
                raise BitLabError(f"hint layers '{name}' and '{other}' have outputs {shapes}, which cannot be compared")
            projection: nn.Module = nn.Identity()
            if self.hint_weight and a.shape[1] != b.shape[1]:
                sizes = a.shape[1], b.shape[1]
                projection = nn.Linear(*sizes) if a.ndim == 2 else nn.Conv2d(*sizes, kernel_size=1)
            self.projections.append(projection)

    def forward(self, student: nn.Module, images: Tensor, task: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the student's logits and the loss.

        Args:
            student: The model that learns.
            images: Its input.
            task: The loss of its logits by the labels.
        """
        logits, ours, theirs, expected = self._run(student, images)
        loss = (1 - self.alpha) * task(logits)
        if self.alpha:
            loss = loss + self.alpha * distillation(logits, expected, self.temperature)
        for projection, a, b in zip(self.projections, ours, theirs, strict=False):
            if self.hint_weight:
                loss = loss + self.hint_weight * hint(projection(a), b)
            if self.attention_weight:
                loss = loss + self.attention_weight * attention_transfer(a, b)
        return logits, loss

    def _run(self, student: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        if next(self.teacher.parameters(), images).device != images.device:
            self.teacher.to(images.device)
        with torch.no_grad(), _outputs(self.teacher, [t for _, t in self.layers]) as theirs:
            expected = self.teacher(images)
        with _outputs(student, [s for s, _ in self.layers]) as ours:
            logits = student(images)
        return logits, ours, theirs, expected


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects the outputs of named layers, in that order, of the forward call within."""
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise unknown("hint layer", name, filter(None, modules))
    outputs = [torch.empty(0)] * len(names)

    def keep(i: int, _layer: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        outputs[i] = y

    handles = [modules[name].register_forward_hook(partial(keep, i)) for i, name in enumerate(names)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
