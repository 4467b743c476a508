"""Weights that jump to and fro between two levels: dampened, or frozen (Nagel et al. 2022, arXiv:2203.11086)."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.quantizers import Quantizer
from bitcore.quantizers.granularity import spread
from bitcore.quantizers.learned import Parametric
from bitcore.quantizers.transforms import none
from bitlayers.base import BitLayer
from bittrain.callbacks.registry import method, progress, quantized_layers, require_quantized
from bittrain.module import Classifier


def dampening(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Returns ``‖ŵ − clip(w, low s, high s)‖²`` (eq. 7): it pulls weights to the middle of their bins.

    The quantized ŵ and the scale s are constants: the gradient is ``2 (w − ŵ)`` inside the range, 0 outside.

    Args:
        weight: The latent weight.
        quantizer: Its quantizer; where that transforms weights, w is the transformed one.
    """
    quantized = quantizer.quantize(weight)
    values = quantizer.transform(weight)
    scale = spread(quantized.scale, quantized.levels, quantized.group).to(values.dtype)
    low, high = quantizer.format.low * scale, quantizer.format.high * scale
    clipped = torch.minimum(torch.maximum(values, low), high)
    return (quantized.dequantize().to(values.dtype) - clipped).square().sum()


@method("dampening")
class OscillationDampening(Callback):
    """Adds ``weight * dampening`` of every quantized layer to the loss (section 4.2).

    The factor rises along a half cosine, ``(1 − cos(π progress)) / 2``, from 0: weights have to move at first.

    Args:
        weight: λ at the end.
    """

    def __init__(self, *, weight: float = 1e-3) -> None:
        super().__init__()
        self.weight = weight
        self._factor = 0.0

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Adds the penalty to the loss.

        Raises:
            BitLabError: No layer has quantized weights.
        """
        require_quantized(pl_module, "dampening")
        pl_module.penalties.append(lambda: self._penalty(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Sets the factor."""
        self._factor = self.weight * (1 - math.cos(math.pi * progress(trainer, pl_module, batch_idx))) / 2

    def _penalty(self, pl_module: Classifier) -> Tensor:
        terms = [
            dampening(layer.latent()[0], layer.weight_quantizer)
            for layer in quantized_layers(pl_module.model).values()
            if layer.weight_quantizer is not None
        ]
        return self._factor * torch.stack(terms).sum() if terms else torch.zeros((), device=pl_module.device)


class Oscillations:
    """Follows the levels of one tensor from step to step (section 4.3).

    A weight oscillates at a step where its level changes, in the direction opposite to its last change.

    Attributes:
        frequency: Running average of the oscillations (0 or 1) of each weight.
        average: Running average of the levels.
    """

    def __init__(self, levels: Tensor, momentum: float) -> None:
        self.momentum = momentum
        self.levels = levels.clone()
        self.direction = torch.zeros_like(levels, dtype=torch.int8)
        self.frequency = torch.zeros_like(levels)
        self.average = levels.clone()

    def update(self, levels: Tensor) -> Tensor:
        """Takes the levels after a step; returns which weights oscillated."""
        change = (levels - self.levels).sign().to(torch.int8)
        moved = change != 0
        oscillated = moved & (change == -self.direction)
        self.frequency.lerp_(oscillated.to(self.frequency.dtype), self.momentum)
        self.average.lerp_(levels, self.momentum)
        self.direction = torch.where(moved, change, self.direction)
        self.levels = levels.clone()
        return oscillated

    def state(self) -> dict[str, Tensor]:
        """The tensors, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@method("freeze-oscillations")
class OscillationFreezing(Callback):
    """Freezes weights that oscillate more often than a threshold, at their average level (algorithm 1).

    The threshold falls along a half cosine from ``start`` to ``end``. A frozen weight stays in the middle of its bin:
    it follows a learned scale; under a scale computed from the weights it keeps its value (were it to follow, scale and
    weights would shrink together).

    Args:
        start: Oscillation frequency above which a weight is frozen, at first.
        end: The same in the end.
        momentum: Of the running averages.
    """

    def __init__(self, *, start: float = 0.04, end: float = 0.01, momentum: float = 0.01) -> None:
        super().__init__()
        self.start, self.end, self.momentum = start, end, momentum
        self.oscillations: dict[str, Oscillations] = {}
        self.frozen: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Checks that there is something to do.

        Raises:
            BitLabError: No layer has quantized weights.
        """
        require_quantized(pl_module, "freeze-oscillations")

    def on_fit_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Checks that weights can be held, and brings a checkpoint's tensors to the device.

        Raises:
            BitLabError: Batch norm is fused: it would move weights that are frozen.
        """
        for name, layer in quantized_layers(pl_module.model).items():
            if layer.batch_norm is not None:
                raise BitLabError(
                    f"method freeze-oscillations: layer '{name}' trains with fused batch norm, which moves "
                    "frozen weights; use the method dampening with it"
                )
            if name in self.oscillations:
                tensors = self.oscillations[name].state()
                vars(self.oscillations[name]).update({k: t.to(layer.weight.device) for k, t in tensors.items()})
                self.frozen[name] = self.frozen[name].to(layer.weight.device)
                self._values[name] = self._values[name].to(layer.weight.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, freezes, and puts frozen weights back."""
        fall = (1 + math.cos(math.pi * progress(trainer, pl_module, batch_idx))) / 2
        threshold = self.end + (self.start - self.end) * fall
        for name, layer in quantized_layers(pl_module.model).items():
            self._step(name, layer, threshold)

    def _step(self, name: str, layer: BitLayer, threshold: float) -> None:
        quantizer, weight = layer.weight_quantizer, layer.rows(layer.weight)
        assert quantizer is not None
        quantized = quantizer.quantize(weight)
        if name not in self.oscillations:
            self.oscillations[name] = Oscillations(quantized.levels, self.momentum)
            self.frozen[name] = torch.zeros_like(quantized.levels, dtype=torch.bool)
            self._values[name] = weight.clone()
            return
        seen, frozen = self.oscillations[name], self.frozen[name]
        seen.update(quantized.levels)
        new = (seen.frequency > threshold) & ~frozen
        frozen |= new
        if not frozen.any():
            return
        middle = quantizer.format.nearest(seen.average)
        seen.average = torch.where(frozen, middle, seen.average)  # from now on the level it is frozen at
        centre = middle * spread(quantized.scale, middle, quantized.group)
        if quantizer.transform is not none:
            centre = weight  # the latent weight of a level is not known: it stays where it is
        follows = frozen if isinstance(quantizer.source, Parametric) and quantizer.transform is none else new
        self._values[name] = torch.where(follows, centre.to(weight.dtype), self._values[name])
        layer.weight.copy_(layer.unrows(torch.where(frozen, self._values[name], weight)))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors."""
        names = self.oscillations
        return {n: names[n].state() | {"frozen": self.frozen[n], "values": self._values[n]} for n in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        for name, saved in state_dict.items():
            tensors = {key: value.clone() for key, value in saved.items()}
            self.frozen[name], self._values[name] = tensors.pop("frozen"), tensors.pop("values")
            self.oscillations[name] = Oscillations(tensors["levels"], self.momentum)
            vars(self.oscillations[name]).update(tensors)
