"""Keeping models: one safetensors file with packed codes; its header says how to read and rebuild them.

``docs/file-format.md`` describes the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.container import load_container, save_container
from bitcore.errors import BitLabError
from bitlayers.base import BitLayer
from bitlayers.convert import convert_layers, pack
from bitlayers.copying import restored_on_error
from bitlayers.fusion import fuse_batchnorm, trains_fused
from bitlayers.storage import PACKED_AS, describe_packed
from bitmodels.agreement import check_layers, check_tensors, check_values, sketching
from bitmodels.auto import AutoBitModel
from bitmodels.header import REPEATS, Header, describe_formats

_FILE_KIND = "bitlab-model-1"
# What a held scale is for is past once there are codes; the header says what PACKED_AS does.
_SAID = (".weight_quantizer.source.held_scale", ".weight_quantizer.source.held_divisor")
_WHAT = "BitLab model"
_LARGE = 256  # bytes; smaller tensors are stored as often as they occur


def save_model(model: nn.Module, path: Path, extra: dict[str, Any] | None = None) -> None:
    """Writes a zoo model, packed, to one safetensors file. The model itself stays as it is.

    Args:
        model: From `AutoBitModel`.
        path: The file.
        extra: What travels along in the header (JSON-serializable), such as preprocessing and recipe.

    Raises:
        BitLabError: If weights are NaN (the message names the layer), or the file cannot be written.
    """
    if getattr(model, "bit_model", None) is None:
        raise BitLabError(
            "only models built by AutoBitModel can be saved: the file must say how to build them; "
            "keep others with save_weights and load them with load_into"
        )
    save_weights(model, path, extra)


def save_weights(model: nn.Module, path: Path, extra: dict[str, Any] | None = None) -> None:
    """Writes any model with bit layers, packed, as `save_model` does; `load_into` reads it.

    Args:
        model: Any model.
        path: The file.
        extra: As in `save_model`.

    Raises:
        BitLabError: As in `save_model`.
    """
    if trains_fused(model):  # kept as what it becomes
        model = fuse_batchnorm(model, pairs=())
    state: dict[str, Tensor] = {}
    configs: list[BitQuantConfig] = []
    layers: dict[str, dict[str, Any]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, BitLayer):
            if layer.quant_config not in configs:
                configs.append(layer.quant_config)
            group = layer.weight_quantizer.source.group if layer.weight_quantizer is not None else 0
            index = configs.index(layer.quant_config)
            layers[name] = {"config": index, "shape": list(layer.weight_shape), "group": group}
    for name, tensor in model.state_dict().items():
        layer_name, _, field = name.rpartition(".")
        layer = model.get_submodule(layer_name) if layer_name in layers else None
        if isinstance(layer, BitLayer) and field == "weight" and layer.weight_quantizer is not None:
            try:
                packed = layer.packed_tensor()
            except BitLabError as error:
                raise BitLabError(f"layer '{layer_name}': {error}") from error
            prefix = name.removesuffix("weight")
            state[f"{prefix}packed_weight"], state[f"{prefix}weight_scale"] = packed.data, packed.scale
        elif field != PACKED_AS and not name.endswith(_SAID):
            state[name] = tensor
    try:
        check_values(state)
    except BitLabError as error:
        raise BitLabError(f"{error}; the training diverged, lower the learning rate") from error
    header = {
        "model": getattr(model, "bit_model", None),
        "formats": describe_formats(configs),
        "configs": [config.to_dict() for config in configs],
        "layers": layers,
        "same": (same := _repeated(state)),
        "extra": extra or {},
    }
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items() if name not in same}
    save_container(Path(path), _FILE_KIND, header, state, save_tensors)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Reads what `save_model` wrote; nothing in the file is executed.

    Returns:
        The model, packed and in eval mode, and the ``extra`` dictionary.

    Raises:
        BitLabError: If the file is missing, truncated, or no BitLab model.
    """
    header, state = _read(path := Path(path))
    if header.model is None:
        raise BitLabError(f"'{path}' holds a model that is not from the zoo; build it in code and use load_into")
    with _blaming(path):
        with sketching(2 * len(state)):  # a batch norm that was folded into its layer had two parameters
            sketch = _build(header.model)
            _convert(sketch, header)
            check_tensors(sketch, state)
        model = _build(header.model)
        _convert(model, header)
        _fill(model, header, state)
        asked = {key: header.model[key] for key in ("quant", "overrides")}
        model.bit_model = {**model.bit_model, **asked}  # type: ignore[assignment, dict-item]
        return model, header.extra


def load_into(model: nn.Module, path: Path) -> dict[str, Any]:
    """Loads a file of `save_weights` or `save_model` into a model of the same architecture, in place.

    Float layers become the bit layers that the file says; the model ends packed, in eval mode.

    Args:
        model: The model as its own code builds it, float or quantized.
        path: The file. Nothing in it is executed.

    Returns:
        The ``extra`` dictionary.

    Raises:
        BitLabError: If the file is missing, truncated, or fits another model; the message names the difference. The
            model is what it was then.
    """
    header, state = _read(path := Path(path))
    with _blaming(path), restored_on_error(model):
        _convert(model, header)
        check_tensors(model, state)
        _fill(model, header, state)
        return header.extra


def read_header(path: Path) -> dict[str, Any]:
    """Returns the header of a file: ``model``, ``formats``, ``configs``, ``layers``, ``same``, ``extra``.

    Raises:
        BitLabError: If the file is missing, altered, or no BitLab model.
    """
    return load_container(Path(path), _FILE_KIND, _WHAT, "pt")[0]


def _repeated(state: dict[str, Tensor]) -> dict[str, str]:
    """Returns the large tensors that repeat an earlier one bit for bit, as tied weights do, and which one."""
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    for name, tensor in state.items():
        if tensor.nbytes >= _LARGE:
            data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            source = first.setdefault(key := (tensor.dtype, tensor.shape, data), name)
            if source == name:
                continue
            if repeats[source] == REPEATS:
                first[key] = name
            else:
                same[name] = source
                repeats[source] += 1
    return same


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    content, state = load_container(path, _FILE_KIND, _WHAT, "pt")
    with _blaming(path):
        header = Header.of(content)
        return header, state | {name: state[source] for name, source in header.repeated(state).items()}


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Lets every error name the file."""
    try:
        yield
    except (BitLabError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise BitLabError(f"'{path}' is damaged, of another BitLab version or of another model: {error}") from error


def _build(description: dict[str, Any]) -> nn.Module:
    """Builds the model of a header, its layers float."""
    model = AutoBitModel.from_name(description["name"], None, None, **description["options"])
    return fuse_batchnorm(model, inplace=True) if "batch_norm" in description else model


def _convert(model: nn.Module, header: Header) -> None:
    """Makes the model's layers those of the header."""
    there = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, BitLayer)}
    for name, layer in there.items():
        if name in header.layers and header.layers[name].config != layer.quant_config:
            raise BitLabError(f"layer '{name}' is quantized otherwise in the file; give load_into the float model")
    convert_layers(model, {name: entry.config for name, entry in header.layers.items() if name not in there})
    check_layers(model, header)


def _fill(model: nn.Module, header: Header, state: dict[str, Tensor]) -> None:
    """Loads tensors that were compared with the model's."""
    check_values(state)
    for name, entry in header.layers.items():
        prefix = f"{name}." if name else ""
        if f"{prefix}packed_weight" in state:
            state[f"{prefix}{PACKED_AS}"] = describe_packed(entry.config.weight_format, entry.shape, entry.group)
    model.load_state_dict(state)
    pack(model, inplace=True)
