"""Pictures of a run: its curve and its confusion matrix. Drawn without a screen and without pyplot's global state."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bitcore.files import write_atomically

_LABELLED = 20
"""Classes up to which a confusion matrix shows names and numbers."""


def draw_curve(metrics: Path, path: Path) -> None:
    """Draws loss and accuracy over the epochs.

    Args:
        metrics: The run's ``metrics.csv``.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, label in (("train", "training"), ("val", "watched")):
            axes.plot(epochs, [float(row[f"{split}_{name}"]) for row in rows], label=label, marker=".", markersize=3)
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def confusion(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts images by label (row) and predicted class (column), int64 ``[classes, classes]``.

    Args:
        logits: ``[N, classes]``.
        labels: ``[N]``.
        classes: The number of classes.
    """
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def draw_confusion(counts: Tensor, names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix, each row as shares of its class.

    Args:
        counts: From `confusion`.
        names: The classes.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    side = 1.5 + 0.45 * min(len(names), _LABELLED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the class")
    axes.set(xlabel="predicted", ylabel="label")
    if len(names) <= _LABELLED:
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        for row, column in counts.nonzero().tolist():
            dark = shares[row, column] > 0.5
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)  # pyright: ignore[reportAttributeAccessIssue]
    write_atomically(path, buffer.getvalue())
