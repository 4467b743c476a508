"""Batch norm in training: fused with the layers in front of it, and its statistics estimated anew at the end."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, Trainer

from bitcore.errors import BitLabError
from bitlayers.batchnorm import batch_norms, freeze_batchnorm
from bitlayers.fusion import train_fused, trains_fused
from bittrain.callbacks.registry import ends_training, method, reestimate, require
from bittrain.module import Classifier

_SHORT = 100  # times what running statistics remember: trainings beyond are long


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
        fused = train_fused(pl_module.model, inplace=self.start == 0)
        require(trains_fused(fused), "fused-batch-norm", "no bit layer has a batch norm behind it")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Fuses when its time has come; the parameters stay the same ones, so the optimizer keeps its hold on them."""
        if self.start == trainer.current_epoch > 0:
            train_fused(pl_module.model, inplace=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Keeps the statistics frozen."""
        if self.freeze and trainer.current_epoch >= self.freeze:
            freeze_batchnorm(pl_module.model)


class FreshStatistics(Callback):
    """Estimates batch norm's statistics anew at the end of every epoch while the training is short; always on.

    Running statistics remember ``1 / momentum`` batches, in which the weights change a lot as long as there were not
    many more: after the ten batches of a short epoch the statistics are those of other weights, and what is measured,
    chosen and saved is far below what was trained. So they are estimated anew, before the epoch is measured, until the
    training is a hundred times as long as they remember (1000 batches for torch's momentum 0.1).

    Args:
        batches: At most so many training batches are averaged over.
    """

    def __init__(self, batches: int = 50) -> None:
        super().__init__()
        self.batches = batches

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does it behind the last batch of a short training's epoch."""
        if not trainer.is_last_batch or not (norms := batch_norms(pl_module.model)):
            return
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if ends_training(trainer) and any(isinstance(other, BatchNormReestimation) for other in callbacks):
            return
        done = trainer.current_epoch * pl_module.steps_per_epoch + batch_idx + 1
        remembered = max(math.inf if norm.momentum is None else 1 / max(norm.momentum, 1e-9) for norm in norms)
        if done < _SHORT * remembered:
            reestimate(trainer, pl_module, self.batches)


@method("bn-reestimation")
class BatchNormReestimation(Callback):
    """Estimates batch norm's running statistics anew, for the final weights, after the last step.

    Args:
        batches: Training batches to average over.
    """

    def __init__(self, *, batches: int = 50) -> None:
        super().__init__()
        if batches < 1:
            raise BitLabError("method bn-reestimation: batches must be at least 1")
        self.batches = batches

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Checks that there is something to do.

        Raises:
            BitLabError: The model has no batch norm, or training may end before the last epoch.
        """
        require(batch_norms(pl_module.model), "bn-reestimation", "the model has no batch norm")
        if pl_module.recipe.early_stop:
            raise BitLabError(
                "method bn-reestimation waits for the last epoch, which early_stop skips; keep one of them"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does it behind the last batch, before the model is measured and saved."""
        if ends_training(trainer):
            reestimate(trainer, pl_module, self.batches)
