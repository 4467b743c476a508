"""What a run leaves in its folder while it trains: checkpoints, a table of metrics, the environment."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from bitcore.files import write_atomically

_PACKAGES = ("bitlab", "torch", "lightning", "kornia", "datasets", "numpy", "pillow", "safetensors")


class Recorder(Checkpoint):
    """Writes ``metrics.csv`` (a row an epoch), ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt``.

    Args:
        run_dir: The run's folder.
        every: Steps between checkpoints within an epoch; 0 for none.
        patience: Epochs without a better result after which training stops; 0 for never.
    """

    def __init__(self, run_dir: Path, every: int, patience: int = 0) -> None:
        """See the class."""
        super().__init__()
        self.run_dir = run_dir
        self.every = every
        self.patience = patience
        self.waited = 0  # epochs since the best one
        self.best = [-1.0, 0.0]  # accuracy, -loss: compared in this order
        self.rows: list[dict[str, Any]] = []
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The best result so far, kept in the checkpoint."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.best, self.waited = state_dict["best"], state_dict.get("waited", 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the rows of the epochs before a resume, and only these."""
        self._saved = trainer.global_step
        self._stop(trainer)
        path = self.run_dir / "metrics.csv"
        if trainer.current_epoch and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves ``last.ckpt`` every so many steps."""
        if trainer.global_step == self._saved:  # gradients are being added up, which no checkpoint holds
            return
        self._saved = trainer.global_step
        if self.every and trainer.global_step % self.every == 0 and not trainer.is_last_batch:
            self._save(trainer, "last")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row and saves the checkpoints."""
        metrics: dict[str, float] = pl_module.epoch_metrics  # pyright: ignore[reportAssignmentType]
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {"lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}"}
        row |= {name: f"{metrics[name]:.6f}" for name in sorted(metrics)}
        row |= {"seconds": f"{time.perf_counter() - self._start:.3f}" if self._start else ""}
        self.rows.append(row)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(row), restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_atomically(self.run_dir / "metrics.csv", text.getvalue())
        score = [metrics["val_accuracy"], -metrics["val_loss"]]
        self.waited += not pl_module.provisional
        if score > self.best and not pl_module.provisional:
            self.best, self.waited = score, 0
            self._save(trainer, "best")
        self._save(trainer, "last")
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """Ends the training when there was nothing better for too long."""
        if self.patience and self.waited >= self.patience:
            trainer.should_stop = True

    def _save(self, trainer: Trainer, name: str) -> None:
        """Saves a checkpoint."""
        trainer.save_checkpoint(self.run_dir / "checkpoints" / f"{name}.ckpt")


def environment() -> dict[str, Any]:
    """What a result depends on beside the recipe: versions, processor, commit."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": _commit(),
        "command": sys.argv,
    }


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the source tree, with ``-dirty`` after uncommitted changes; ``None`` outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
