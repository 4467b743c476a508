"""Measures a model on a dataset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bittrain.data import ImageData, Split, load_dataset
from bittrain.loader import TestLoader
from bittrain.preprocessing import Preprocessing


def load_split(dataset: str | ImageData | Split, preprocessing: Preprocessing, split: str = "test") -> Split:
    """Returns the images that a model was made for, at its size and with its channels.

    Args:
        dataset: A name (see `load_dataset`), or data in memory.
        preprocessing: The model's.
        split: ``train`` or ``test``.
    """
    if isinstance(dataset, str):
        height, width = preprocessing.image_size
        size = height if height == width else None
        dataset = load_dataset(dataset, size, preprocessing.channels)
    return dataset.split(split) if isinstance(dataset, ImageData) else dataset


def predict(model: nn.Module, images: Tensor, preprocessing: Preprocessing, batch_size: int = 1000) -> Tensor:
    """Returns a model's outputs in eval mode.

    Args:
        model: The model; its mode is restored afterwards.
        images: uint8 ``[N, C, H, W]``.
        preprocessing: The model's.
        batch_size: Images at a time.

    Returns:
        float32 ``[N, outputs]``, on the CPU.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    labels = torch.zeros(len(images), dtype=torch.int64)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            loader = TestLoader(Split(images, labels), preprocessing, batch_size)
            return torch.cat([model(x.to(device)).float().cpu() for x, _ in loader])
    finally:
        model.train(training)


def evaluate(
    model: nn.Module,
    dataset: str | ImageData | Split,
    preprocessing: Preprocessing,
    split: str = "test",
    max_samples: int | None = None,
    batch_size: int = 1000,
) -> dict[str, Any]:
    """Measures accuracy and loss.

    Args:
        model: Float, quantized or packed.
        dataset: A name or data in memory.
        preprocessing: The model's.
        split: ``train`` or ``test``.
        max_samples: Measure on the first so many images only.
        batch_size: Images at a time.

    Returns:
        ``samples``, ``correct``, ``accuracy`` (0 to 1) and ``loss`` (mean cross-entropy).

    Raises:
        BitLabError: The dataset has more classes than the model has outputs.
    """
    rows = load_split(dataset, preprocessing, split)
    images, labels = rows.images[:max_samples], rows.labels[:max_samples]
    logits = predict(model, images, preprocessing, batch_size)
    if int(labels.max()) >= logits.shape[1]:
        raise BitLabError(f"the data has a label {int(labels.max())}, the model only {logits.shape[1]} outputs")
    correct = int((logits.argmax(1) == labels).sum())
    return {
        "samples": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
    }
