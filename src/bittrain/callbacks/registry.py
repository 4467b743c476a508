"""Training methods by name: Lightning callbacks that a recipe lists as ``"name key=value"``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitlayers.base import BitLayer
from bitlayers.batchnorm import batch_norms, reestimate_batchnorm
from bittrain.ema import WeightAverage
from bittrain.entries import parse_entry
from bittrain.loader import TrainLoader
from bittrain.module import Classifier

METHODS: dict[str, Callable[..., Callback]] = {}
"""Name to callback; a method's options are its keyword-only parameters, all with defaults."""

C = TypeVar("C", bound=type[Callback])


def method(name: str) -> Callable[[C], C]:
    """Registers a callback under a name: recipes find it, its options and their defaults from there on."""

    def register(callback: C) -> C:
        METHODS[name] = callback
        return callback

    return register


def make_callbacks(entries: Sequence[str]) -> list[Callback]:
    """Returns the callbacks of a recipe's ``methods``.

    Raises:
        BitLabError: An unknown method or option (the nearest valid one is named), a wrong value, or a method twice.
    """
    callbacks: dict[str, Callback] = {}
    for entry in entries:
        name, options = parse_entry(entry, METHODS, "method", "option")
        if name in callbacks:
            raise BitLabError(f"method {name} is listed twice; keep one entry")
        callbacks[name] = METHODS[name](**options)
    return list(callbacks.values())


def require(found: object, name: str, problem: str) -> None:
    """Refuses a method that has nothing to do in a model.

    Args:
        found: What it works on; nothing if it is empty.
        name: The method's.
        problem: What is missing.

    Raises:
        BitLabError: There is nothing.
    """
    if not found:
        raise BitLabError(f"method {name}: {problem}; leave the method out")


def require_quantized(module: Classifier, name: str) -> None:
    """Refuses a method for quantized weights where there are none (see `require`)."""
    require(quantized_layers(module.model), name, "no layer has quantized weights")


def progress(trainer: Trainer, module: Classifier, batch_idx: int) -> float:
    """Returns the share of the training that is done: 0 at its first batch, 1 at its last."""
    total = (trainer.max_epochs or 1) * module.steps_per_epoch
    return min(1.0, (trainer.current_epoch * module.steps_per_epoch + batch_idx) / max(1, total - 1))


def ends_training(trainer: Trainer) -> bool:
    """Whether the present batch is the last one of the last epoch."""
    return trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs


def quantized_layers(model: nn.Module) -> dict[str, BitLayer]:
    """Returns the layers whose weights are quantized, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BitLayer) and layer.weight_quantizer is not None
    }


def reestimate(trainer: Trainer, module: Classifier, count: int) -> None:
    """Estimates batch norm's statistics anew from ``count`` batches, of the running average of the weights too.

    Several processes average theirs.
    """
    _reestimate(trainer, module, count)
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, WeightAverage):
            with callback.in_place(trainer, module):
                _reestimate(trainer, module, count)


def _reestimate(trainer: Trainer, module: Classifier, count: int) -> None:
    reestimate_batchnorm(module.model, some_inputs(trainer, module, count))
    for norm in batch_norms(module.model) if trainer.world_size > 1 else ():
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))


def some_inputs(trainer: Trainer, module: Classifier, count: int) -> Iterator[Tensor]:
    """Yields the inputs of the epoch's first batches, the same ones after a resume."""
    loader: Any = trainer.train_dataloader
    batches = loader.epoch(trainer.current_epoch) if isinstance(loader, TrainLoader) else iter(loader)
    for images, _ in islice(batches, count):
        yield images.to(module.device)
