"""Scales that stay from an epoch on."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

from bitcore.quantizers import FromValues, Tracked
from bittrain.callbacks.registry import method, quantized_layers, require_quantized
from bittrain.module import Classifier


@method("freeze-scales")
class FreezeScales(Callback):
    """Keeps every weight scale and tracked range constant after some epochs: what is learned then stays on one grid.

    Weight scales computed from the weights are held as they are (the checkpoint has them), learned ones get no
    gradient; ranges of activations stop following the batches. Scales that are powers of two need it most: one that
    lies between two of them otherwise doubles and halves to the end, however small the learning rate.

    Args:
        epochs: Epochs before that.
    """

    def __init__(self, *, epochs: int = 10) -> None:
        super().__init__()
        self.epochs = epochs

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Checks that there is something to do.

        Raises:
            BitLabError: No layer has quantized weights.
        """
        require_quantized(pl_module, "freeze-scales")

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Holds the scales that are not held yet."""
        if trainer.current_epoch < self.epochs:
            return
        for module in pl_module.model.modules():
            if isinstance(module, Tracked):
                module.eval()
        for layer in quantized_layers(pl_module.model).values():
            quantizer = layer.weight_quantizer
            assert quantizer is not None
            if isinstance(quantizer.source, FromValues) and not quantizer.source.held:
                weight = quantizer.transform(layer.latent()[0])
                quantizer.source.hold(weight.float() if weight.dtype.itemsize < 4 else weight, quantizer.format)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Classifier, optimizer: Optimizer) -> None:
        """Takes the gradients of learned scales away."""
        if trainer.current_epoch < self.epochs:
            return
        for layer in quantized_layers(pl_module.model).values():
            assert layer.weight_quantizer is not None
            for parameter in layer.weight_quantizer.source.parameters():
                parameter.grad = None
