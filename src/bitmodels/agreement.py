"""Whether the tensors of a file are those that a model takes: compared before anything large is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bitcore.errors import BitLabError, unknown
from bitlayers.base import BitLayer
from bitlayers.storage import PACKED_AS
from bitmodels.header import Header

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@contextmanager
def sketching(most: int) -> Iterator[None]:
    """What is built inside has shapes and no memory, and is refused beyond a number of parameters.

    Raises:
        BitLabError: If more are built: the depth that a header asks for may have no end.
    """
    thread, built = get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal built
        built += parameter is not None and get_ident() == thread
        if built > most:
            raise BitLabError("its header describes a deeper model than it holds tensors for")

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        handle.remove()


def check_layers(model: nn.Module, header: Header) -> None:
    """Checks that the model's bit layers are those of the header.

    Raises:
        BitLabError: If one is missing, or has another config, shape or group; the message names it.
    """
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, BitLayer):
            continue
        if name not in header.layers:
            raise BitLabError(f"layer '{name}' is quantized in the model, but not in the file")
        entry = header.layers[name]
        group = layer.weight_quantizer.source.group if layer.weight_quantizer is not None else 0
        for what, there, expected in (
            ("config", entry.config, layer.quant_config),
            ("shape", list(entry.shape), list(layer.weight_shape)),
            ("group", entry.group, group),
        ):
            if there != expected:
                raise BitLabError(f"layer '{name}': its {what} is {there}; the layer takes {expected}")


def check_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Checks that a file's tensors are the model's, packed: names, shapes and types.

    A real tensor may be of a type whose every value the model's type holds (bfloat16 where float32 is taken), a scale
    may not: it is what a reader decodes with.

    Raises:
        BitLabError: If a tensor is missing, unknown, or another; the message names it.
    """
    expected = _expected(model)
    for name in expected:
        if name not in state:
            raise BitLabError(f"it holds no tensor '{name}', which the model needs")
    for name, there in state.items():
        if name not in expected:
            raise unknown("tensor", name, expected)
        wanted = expected[name]
        if there.shape != wanted.shape:
            raise BitLabError(f"'{name}' has shape {list(there.shape)}; the layer takes {list(wanted.shape)}")
        if there.dtype != wanted.dtype and not _widens(name, there.dtype, wanted.dtype):
            raise BitLabError(f"'{name}' is {there.dtype}, which the layer's {wanted.dtype} does not hold")


def _expected(model: nn.Module) -> dict[str, Tensor]:
    expected = dict(model.state_dict())
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, BitLayer) and layer.weight_quantizer is not None:
            prefix = f"{name}." if name else ""
            for field in ("weight", PACKED_AS):
                expected.pop(f"{prefix}{field}", None)
            expected[f"{prefix}packed_weight"], expected[f"{prefix}weight_scale"] = layer.packed_like()
    return expected


def _widens(name: str, there: torch.dtype, wanted: torch.dtype) -> bool:
    both = {there, wanted} <= _FLOATS and not name.endswith("weight_scale")
    return both and torch.promote_types(there, wanted) == wanted


def check_values(state: Mapping[str, Tensor]) -> None:
    """Checks the numbers that can be no others: scales, activation ranges and variances.

    Raises:
        BitLabError: If a scale or range is not positive, a variance is negative, or one is NaN or infinite.
    """
    for name, tensor in state.items():
        path, _, field = name.rpartition(".")
        if field == "weight_scale" or (path.endswith("_quantizer.source") and field == "range"):
            if not ((tensor > 0) & tensor.isfinite()).all():
                raise BitLabError(f"'{name}' has values that are no positive numbers")
        elif field == "running_var":
            if not ((tensor >= 0) & tensor.isfinite()).all():
                raise BitLabError(f"'{name}' has variances that are negative, NaN or infinite")
        elif path.endswith("_quantizer.source") and not tensor.isfinite().all():
            raise BitLabError(f"'{name}' is NaN or infinite")
