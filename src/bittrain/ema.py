"""A running average of the weights: what is measured, chosen as best, and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class WeightAverage(Callback):
    """Keeps ``average = decay · average + (1 − decay) · weights``, and puts it in the model's place in validation.

    In step n the decay is ``min(decay, (1 + n) / (10 + n))``, so that the first weights are soon forgotten. Floating
    point buffers (batch norm's statistics, tracked ranges) are averaged too, all others copied.

    Args:
        decay: At most; 0.999 averages over about a thousand steps.

    Attributes:
        average: The model's state, averaged.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self._training: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins with the model as it is, or brings a checkpoint's average to the device."""
        state = _state(pl_module)
        self.average = {
            name: self.average.get(name, value).to(value.device, copy=True) for name, value in state.items()
        }
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the weights in after every optimizer step."""
        self._take(trainer, pl_module)

    @contextmanager
    def in_place(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Puts the average, with the present step in it, in the model's place; what changes there is kept in it."""
        self._take(trainer, pl_module)
        self.on_validation_start(trainer, pl_module)
        try:
            yield
            self.average = {name: value.clone() for name, value in _state(pl_module).items()}
        finally:
            self.on_validation_end(trainer, pl_module)

    @torch.no_grad()
    def _take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the weights, once a step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        state = _state(pl_module)
        for name, value in state.items():
            average = self.average.get(name)
            if average is None or average.shape != value.shape or not value.is_floating_point():
                self.average[name] = value.clone()  # also what a method has put in since
            else:
                average.lerp_(value, share)
        for name in self.average.keys() - state.keys():
            del self.average[name]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average in the model's place."""
        self._training = {name: value.clone() for name, value in _state(pl_module).items()}
        _load(pl_module, self.average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the weights back that training goes on with."""
        _load(pl_module, self._training)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the average beside the weights."""
        checkpoint["average"] = {"steps": self.steps, "state": self.average}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes a checkpoint's average, which `on_train_start` then brings to the device."""
        self.steps, self.average = checkpoint["average"]["steps"], checkpoint["average"]["state"]


def _state(module: Any) -> dict[str, Tensor]:
    return module.model.state_dict()


def _load(module: Any, state: dict[str, Tensor]) -> None:
    module.model.load_state_dict(state)
