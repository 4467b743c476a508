"""Measures a model on a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitlayers.modes import evaluating
from bittrain.bigdata import first, open_dataset
from bittrain.data import ImageData, Rows, Split
from bittrain.described import check_same_classes
from bittrain.loader import TestLoader
from bittrain.preprocessing import Preprocessing


def load_split(
    dataset: str | ImageData[Split] | Split,
    preprocessing: Preprocessing,
    split: str = "test",
    classes: Sequence[str] = (),
) -> Split:
    """Returns the images that a model was made for, in memory, at its size and with its channels.

    Args:
        dataset: A name (see `load_dataset`), or data in memory.
        preprocessing: The model's.
        split: ``train`` or ``test``.
        classes: The model's class names, where they are known.

    Raises:
        BitLabError: As `load_dataset`, or the data has other classes.
    """
    rows = _open_split(dataset, preprocessing, split, classes, "memory", 0)
    assert isinstance(rows, Split)
    return rows


def _open_split(
    dataset: str | ImageData[Rows] | Rows,
    preprocessing: Preprocessing,
    split: str,
    classes: Sequence[str],
    loading: str,
    workers: int,
) -> Rows:
    if isinstance(dataset, str):
        height, width = preprocessing.image_size
        size = height if height == width else None
        crop = preprocessing.center_crop
        dataset = open_dataset(dataset, size, preprocessing.channels, loading, workers, center_crop=crop)
    if not isinstance(dataset, ImageData):
        return dataset
    check_same_classes(classes, dataset.classes, dataset.name)
    return dataset.split(split)


def predict(model: nn.Module, images: Tensor, preprocessing: Preprocessing, batch_size: int = 1000) -> Tensor:
    """Returns a model's outputs in eval mode.

    Args:
        model: The model; every module's mode is restored afterwards.
        images: uint8 ``[N, C, H, W]``.
        preprocessing: The model's.
        batch_size: Images at a time.

    Returns:
        float32 ``[N, outputs]``, on the CPU.
    """
    labels = torch.zeros(len(images), dtype=torch.int64)
    return predict_batches(model, TestLoader(Split(images, labels), preprocessing, batch_size))[0]


def predict_batches(model: nn.Module, loader: TestLoader) -> tuple[Tensor, Tensor]:
    """Returns a model's outputs for all batches of a loader, float32 ``[N, outputs]``, and the labels, on the CPU."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with torch.inference_mode(), evaluating(model):
        found = [(model(x.to(device)).float().cpu(), labels) for x, labels in loader]
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, labels


def evaluate(
    model: nn.Module,
    dataset: str | ImageData[Rows] | Rows,
    preprocessing: Preprocessing,
    split: str = "test",
    max_samples: int | None = None,
    batch_size: int = 1000,
    loading: str = "memory",
    workers: int = 2,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures accuracy and loss.

    Args:
        model: Float, quantized or packed.
        dataset: A name, or opened data.
        preprocessing: The model's.
        split: ``train`` or ``test``.
        max_samples: Measure on the first so many images only.
        batch_size: Images at a time.
        loading: Of a name, see `open_dataset`.
        workers: Likewise.
        classes: The model's class names, where they are known.

    Returns:
        ``samples``, ``correct``, ``accuracy`` (0 to 1) and ``loss`` (mean cross-entropy).

    Raises:
        BitLabError: The dataset has other classes than the model, or more than it has outputs.
    """
    rows = _open_split(dataset, preprocessing, split, classes, loading, workers)
    if max_samples is not None:
        rows = first(rows, max_samples)
    logits, labels = predict_batches(model, TestLoader(rows, preprocessing, batch_size))
    if int(labels.max()) >= logits.shape[1]:
        raise BitLabError(f"the data has a label {int(labels.max())}, the model only {logits.shape[1]} outputs")
    correct = int((logits.argmax(1) == labels).sum())
    return {
        "samples": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
    }
