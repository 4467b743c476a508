"""Batch norm in training: fused with the layers in front of it, and its statistics estimated anew at the end."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import Callback, Trainer

from bitcore.errors import BitLabError
from bitlayers.fusion import train_fused, trains_fused
from bittrain.batchnorm import batch_norms, freeze_batchnorm, reestimate_batchnorm
from bittrain.callbacks.registry import ends_training, method, some_inputs
from bittrain.module import Classifier


@method("fused-batch-norm")
class FusedBatchNorm(Callback):
    """Trains bit layers with a batch norm behind on the fused weights ``W γ/σ`` (`bitlayers.fusion.train_fused`).

    The saved model has the batch norms folded in.

    Args:
        start: Epochs of ordinary batch norm before.
        freeze: Epochs after which the running statistics are used and stay; 0 for never.
    """

    def __init__(self, *, start: int = 0, freeze: int = 0) -> None:
        super().__init__()
        self.start, self.freeze = start, freeze

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Checks that there is something to fuse; does it where no epoch comes before.

        Raises:
            BitLabError: There is nothing to fuse.
        """
        model = pl_module.model if self.start == 0 else copy.deepcopy(pl_module.model)
        if not trains_fused(train_fused(model)):
            raise BitLabError("method fused-batch-norm: no bit layer has a batch norm behind it; leave the method out")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Fuses when its time has come; the parameters stay the same ones, so the optimizer keeps its hold on them."""
        if self.start == trainer.current_epoch > 0:
            train_fused(pl_module.model)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Keeps the statistics frozen."""
        if self.freeze and trainer.current_epoch >= self.freeze:
            freeze_batchnorm(pl_module.model)


@method("bn-reestimation")
class BatchNormReestimation(Callback):
    """Estimates batch norm's running statistics anew, for the final weights, after the last step.

    Args:
        batches: Training batches to average over.
    """

    def __init__(self, *, batches: int = 50) -> None:
        super().__init__()
        self.batches = batches

    def on_fit_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Checks that there is something to do.

        Raises:
            BitLabError: The model has no batch norm.
        """
        if not batch_norms(pl_module.model):
            raise BitLabError("method bn-reestimation: the model has no batch norm; leave the method out")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does it behind the last batch, before the model is measured and saved."""
        if ends_training(trainer):
            reestimate_batchnorm(pl_module.model, some_inputs(trainer, pl_module, self.batches))
