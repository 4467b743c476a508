"""Keeping models: one safetensors file with packed codes; its header says how to read and rebuild them.

``docs/file-format.md`` describes the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bitcore.config import FLOAT, BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitcore.formats import get_format
from bitlayers.base import BitLayer
from bitlayers.convert import convert_layers, pack
from bitlayers.copying import restored_on_error
from bitlayers.fusion import fuse_batchnorm, trains_fused
from bitlayers.storage import PACKED_AS, describe_packed
from bitmodels.auto import AutoBitModel

_FILE_KIND = "bitlab-model-1"
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
        elif layer is None or field != PACKED_AS:  # which the header says
            state[name] = tensor
    header = {
        "model": getattr(model, "bit_model", None),
        "formats": _describe_formats(configs),
        "configs": [config.to_dict() for config in configs],
        "layers": layers,
        "same": (same := _repeated(state)),
        "extra": extra or {},
    }
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items() if name not in same}
    write_atomically(Path(path), save_tensors(state, {_FILE_KIND: json.dumps(header)}))


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Reads what `save_model` wrote; nothing in the file is executed.

    Returns:
        The model, packed and in eval mode, and the ``extra`` dictionary.

    Raises:
        BitLabError: If the file is missing, truncated, or no BitLab model.
    """
    header, state = _read(path := Path(path))
    try:
        description = header["model"]
        if description is None:
            raise BitLabError(f"'{path}' holds a model that is not from the zoo; build it in code and use load_into")
        model = AutoBitModel.from_name(description["name"], None, **description["options"])
        if description.get("batch_norm") == "fused":
            fuse_batchnorm(model, inplace=True)
        _fill(model, header, state)
        model.bit_model = {**model.bit_model, "quant": description["quant"], "overrides": description["overrides"]}  # type: ignore[dict-item]
        return model, header["extra"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise _damaged(path, error) from error


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
    try:
        with restored_on_error(model):
            _fill(model, header, state)
            return header["extra"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise _damaged(path, error) from error


def read_header(path: Path) -> dict[str, Any]:
    """Returns the header of a file: ``model``, ``formats``, ``configs``, ``layers``, ``same``, ``extra``.

    Raises:
        BitLabError: If the file is missing, truncated, or no BitLab model.
    """
    return _read(Path(path))[0]


def _repeated(state: dict[str, Tensor]) -> dict[str, str]:
    """Returns the large tensors that repeat an earlier one bit for bit, as tied weights do, and which one."""
    first: dict[tuple[Any, ...], str] = {}
    same = {}
    for name, tensor in state.items():
        if tensor.nbytes >= _LARGE:
            data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            source = first.setdefault((tensor.dtype, tensor.shape, data), name)
            if source != name:
                same[name] = source
    return same


def _describe_formats(configs: list[BitQuantConfig]) -> dict[str, Any]:
    """What a reader must know to decode the codes."""
    described = {}
    for config in configs:
        if config.weight_format != FLOAT:
            fmt = get_format(config.weight_format)
            packing = {"radix": fmt.packing.radix, "codes": fmt.packing.codes, "word": fmt.packing.word}
            described[fmt.name] = {"levels": list(fmt.levels), **packing}
    return described


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise BitLabError(f"there is no file '{path}'")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BitLabError(
            f"'{path}' is no intact safetensors file ({error}); models are kept in model.safetensors, never in pickles"
        ) from error
    if _FILE_KIND not in metadata:
        raise BitLabError(f"'{path}' is a safetensors file of something else, not of a BitLab model")
    try:
        header = json.loads(metadata[_FILE_KIND])
        if not isinstance(header, dict):
            raise TypeError("its header is no object")
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    return header, state


def _fill(model: nn.Module, header: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Makes the model's layers those of the header, then loads the state."""
    configs = [BitQuantConfig.from_dict(config) for config in header["configs"]]
    layers = {name: configs[layer["config"]] for name, layer in header["layers"].items()}
    state = state | {name: state[other] for name, other in header.get("same", {}).items()}
    there = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, BitLayer)}
    convert_layers(model, {name: config for name, config in layers.items() if name not in there})
    for name, layer in there.items():
        if layers.get(name) != layer.quant_config:
            raise BitLabError(f"layer '{name}' is quantized otherwise in the file; give load_into the float model")
    described = _describe_formats([*layers.values()])
    for name, fmt in header["formats"].items():
        if fmt != described.get(name):
            raise ValueError(f"its format '{name}' is {fmt}; here it is {described.get(name)}")
    for name, layer in header["layers"].items():
        prefix = f"{name}." if name else ""
        if f"{prefix}packed_weight" in state:
            state[f"{prefix}{PACKED_AS}"] = describe_packed(layers[name].weight_format, layer["shape"], layer["group"])
        elif layers[name].weight_format != FLOAT:
            raise KeyError(f"{prefix}packed_weight")
    try:
        model.load_state_dict(state)
    except BitLabError as error:  # which names the entry, and not the file
        raise ValueError(error) from error
    pack(model, inplace=True)


def _damaged(path: Path, error: Exception) -> BitLabError:
    return BitLabError(f"'{path}' is damaged, of another BitLab version or of another model: {error}")
