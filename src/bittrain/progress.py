"""The progress of a training: two lines, on a terminal of 80 columns too."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

_PERIOD = 0.1  # seconds between two updates: a step may take less than showing it


class ProgressBar(Callback):
    """Shows the epoch, its batches, images per second and the time that is left; below, what the last epoch came to.

    Speed and time are those since training began or went on.

    Args:
        images: Images of a batch, of all processes together.
        console: Where it is shown; by default standard output.
    """

    def __init__(self, images: int, console: Console | None = None) -> None:
        """See the class."""
        self._images = images
        self._console = console
        self._start = self._shown = 0.0
        self._batches = 0
        self.lines: _Lines | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._batches = time.perf_counter(), 0
        if trainer.is_global_zero:
            self.lines = _Lines(self._console or Console())
            self._update(trainer)
            self.lines.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a new bar."""
        self._update(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts."""
        self._batches += 1
        if trainer.is_last_batch or time.perf_counter() - self._shown > _PERIOD:
            self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what the epoch came to."""
        metrics: dict[str, float] = pl_module.epoch_metrics  # pyright: ignore[reportAssignmentType]
        if self.lines:
            parts = [
                f"{words} loss {metrics[f'{split}_loss']:.4f}, {100 * metrics[f'{split}_accuracy']:.2f} %"
                for split, words in (("train", "trained"), ("val", "measured"))
                if f"{split}_loss" in metrics
            ]
            self.lines.below = f"after epoch {trainer.current_epoch + 1}: {'; '.join(parts)}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the terminal back."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the terminal back."""
        self._stop()

    def _update(self, trainer: Trainer) -> None:
        if self.lines is None or trainer.max_epochs is None:
            return
        self._shown = time.perf_counter()
        seconds = self._shown - self._start
        progress, batches = trainer.fit_loop.epoch_loop.batch_progress, int(trainer.num_training_batches)
        done = progress.current.processed  # pyright: ignore[reportAttributeAccessIssue]
        speed, left = "", ""
        if self._batches:
            remaining = (trainer.max_epochs - trainer.current_epoch) * batches - done
            speed = f"{self._batches * self._images / seconds:,.0f} images/s"
            left = f"{timedelta(seconds=round(max(0, remaining) * seconds / self._batches))} left"
        epoch = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.lines.update(self.lines.bar, description=epoch, completed=done, total=batches, speed=speed, left=left)

    def _stop(self) -> None:
        if self.lines:
            self.lines.stop()


class _Lines(Progress):
    """A bar with figures behind it, and a line of text below."""

    def __init__(self, console: Console) -> None:
        fields = (TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[left]}"))
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), *fields)
        super().__init__(*columns, console=console, expand=True, refresh_per_second=4)
        self.below = ""
        self.bar = self.add_task("", total=1, speed="", left="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """The two lines."""
        yield from super().get_renderables()
        yield Text(getattr(self, "below", ""), no_wrap=True, overflow="ellipsis")
