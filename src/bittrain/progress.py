"""The progress bar: Lightning's, with images per second and the time that is left."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Adds ``images/s`` and ``left``, the estimate for the rest of the run, both since training began or went on.

    Args:
        images: Images of a batch, of all processes together.
    """

    def __init__(self, images: int) -> None:
        super().__init__(refresh_rate=20)
        self._images = images
        self._start = 0.0
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._start, self._batches = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts."""
        self._batches += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands at the end of the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        seconds = time.perf_counter() - self._start
        if self._batches and trainer.max_epochs and seconds > 0:
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            batches = int(trainer.num_training_batches)
            left = (trainer.max_epochs - trainer.current_epoch) * batches - done
            shown["images/s"] = f"{self._batches * self._images / seconds:.0f}"
            shown["left"] = str(timedelta(seconds=round(max(0, left) * seconds / self._batches)))
        return shown
