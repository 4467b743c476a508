"""Calibration: static activation ranges and batch-norm statistics from data, without training."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitcore.quantizers import Quantizer
from bitcore.quantizers.granularity import sample
from bitcore.quantizers.ranges import Remembered
from bitlayers.base import BitLayer
from bitlayers.batchnorm import reestimate_with
from bitlayers.modes import frozen

_SAMPLE = 2**13  # values of a batch that a range is found from
Run = Callable[[nn.Module, Any], object]


class _Sample:
    """Values of a layer's input: of every batch some, evenly spaced."""

    def __init__(self, quantizer: Quantizer, name: str) -> None:
        self.quantizer, self.name = quantizer, name
        self._parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Takes some values of a batch."""
        if not bool(x.isfinite().all()):
            raise BitLabError(f"layer '{self.name}': the calibration data makes its input NaN or infinite")
        if x.numel():
            self._parts.append(self.quantizer.transform(sample(x, _SAMPLE)).float())

    def set_range(self) -> None:
        """Calibrates the quantizer, if its layer was used; whatever the order of the batches, with the same result."""
        if self._parts:
            values = torch.cat(self._parts).sort().values
            self.quantizer.source.calibrate(values, self.quantizer.format, self.quantizer.pow2)


def calibrate(
    model: nn.Module, loader: Iterable[Any], *, batches: int = 32, run: Run | None = None, inplace: bool = False
) -> nn.Module:
    """Finds every static activation range of a model from data, and estimates batch norm anew; nothing is trained.

    Post-training quantization of a trained model is ``calibrate(quantize(model, preset), loader)``. Each range becomes
    the one of least squared error over all batches (``tracked_percentile``: their 99.9th percentile), a power of two
    where the config says so. Ranges are found while the inputs of layers are float and the weights quantized, batch
    norms normalizing by each batch; then the statistics of batch norms are averaged over the same batches, now with
    everything quantized. The order of the batches makes no difference to the ranges.

    What is frozen, in eval mode by hand in a model in training mode, stays as it is. Layers that the data does not
    reach find no range, and refuse to run in eval mode.

    Args:
        model: Any model with bit layers that are not packed. Its modes stay as they are.
        loader: Batches: inputs, tuples or lists that begin with the input, or mappings of names to arguments (those
            that the model's forward does not take, such as labels, are left out). It is gone through twice: a list or
            a `DataLoader`, no generator.
        batches: How many batches are used, at most.
        run: Calls the model on a batch, where none of these ways is the right one.
        inplace: Whether the model itself is calibrated, and returned, or a copy.

    Raises:
        BitLabError: There is no data, or none that the model takes; the data makes a layer's input NaN or infinite; a
            layer is packed.
    """
    if batches < 1:
        raise BitLabError(f"calibrate: batches must be at least 1, not {batches}")
    if iter(loader) is loader:
        loader = list(islice(loader, batches))
    model = model if inplace else copy.deepcopy(model)
    call = partial(run or _run, model)
    with _observing(model) as collected:
        reestimate_with(model, _some(loader, batches), call)
    for values in collected:
        values.set_range()
    reestimate_with(model, _some(loader, batches), call)
    for module in model.modules():
        if isinstance(module, BitLayer):
            module.examine_again()
    return model


@contextmanager
def _observing(model: nn.Module) -> Iterator[list[_Sample]]:
    """Within, bit layers take their inputs as they come; samples of those that a static range is for are collected."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BitLayer) and not frozen(model, m)}
    quantizers = {layer: layer.activation_quantizer for layer in layers.values()}
    samples, hooks = [], []
    try:
        for name, layer in layers.items():
            quantizer = layer.activation_quantizer
            if quantizer is None or not isinstance(quantizer.source, Remembered):
                continue
            if layer.packed:
                raise BitLabError(f"layer '{name}' is packed; calibrate before pack()")
            samples.append(_Sample(quantizer, name))
            hooks.append(layer.register_forward_pre_hook(partial(_take, samples[-1])))
            layer.activation_quantizer = None
        yield samples
    finally:
        for hook in hooks:
            hook.remove()
        for layer, quantizer in quantizers.items():
            layer.activation_quantizer = quantizer


def _take(collected: _Sample, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    collected.add(inputs[0].detach())


def _some(loader: Iterable[Any], batches: int) -> Iterator[Any]:
    """Yields so many batches.

    Raises:
        BitLabError: There is none.
    """
    found = 0
    for found, batch in enumerate(islice(loader, batches), 1):  # noqa: B007
        yield batch
    if not found:
        raise BitLabError("calibrate: the loader has no batches")


def _run(model: nn.Module, batch: Any) -> object:
    """Calls a model on what loaders usually give."""
    tensors = (*model.parameters(), *model.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        taken = _taken(model, batch)
        return model(**{name: there(value) for name, value in taken.items()})
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        kind = type(first).__name__
        raise BitLabError(f"calibrate: a batch is a tensor, a tuple (input, …) or a mapping, not {kind}; or pass run=")
    return model(there(first))


def _taken(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model's forward has parameters for."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(batch)
    taken = {name: value for name, value in batch.items() if name in parameters}
    if not taken:
        raise BitLabError(
            f"calibrate: the model takes {', '.join(parameters)}, a batch has {', '.join(map(str, batch))}; pass run="
        )
    return taken
