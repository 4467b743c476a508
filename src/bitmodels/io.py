"""Keeping models: one safetensors file with packed codes, and how to build the model in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitlayers.base import BitLayer
from bitlayers.convert import pack
from bitmodels.auto import AutoBitModel

_FILE_KIND = "bitlab-model-1"


def save_model(model: nn.Module, path: Path, extra: dict[str, Any] | None = None) -> None:
    """Writes a zoo model, packed, to one safetensors file. The model itself stays as it is.

    Args:
        model: From `AutoBitModel`.
        path: The file.
        extra: What travels along in the header (JSON-serializable), such as preprocessing and recipe.

    Raises:
        BitLabError: If weights are NaN (the message names the layer), or the file cannot be written.
    """
    description = getattr(model, "bit_model", None)
    if description is None:
        raise BitLabError("only models built by AutoBitModel can be saved: the file must say how to build them")
    state = {}
    for name, tensor in model.state_dict().items():
        layer_name, _, field = name.rpartition(".")
        layer = model.get_submodule(layer_name)
        if isinstance(layer, BitLayer) and field == "weight" and layer.weight_quantizer is not None:
            try:
                packed = layer.packed_tensor()
            except BitLabError as error:
                raise BitLabError(f"layer '{layer_name}': {error}") from error
            prefix = f"{layer_name}." if layer_name else ""
            state[f"{prefix}packed_weight"], state[f"{prefix}weight_scale"] = packed.data, packed.scale
        else:
            state[name] = tensor
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    header = json.dumps({"model": description, "extra": extra or {}})
    write_atomically(path, save_tensors(state, {_FILE_KIND: header}))


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Reads what `save_model` wrote; nothing in the file is executed.

    Returns:
        The model, packed and in eval mode, and the ``extra`` dictionary.

    Raises:
        BitLabError: If the file is missing, truncated, or no BitLab model.
    """
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
        description = header["model"]
        quant = description["quant"]
        model = AutoBitModel.from_name(
            description["name"],
            None if quant is None else BitQuantConfig.from_dict(quant),
            description["overrides"],
            **description["options"],
        )
        model.load_state_dict(state)
        for layer in model.modules():
            if isinstance(layer, BitLayer) and layer.packed:
                layer.quantized_weight()  # raises where bytes hold no codes: the fast kernels do not look
        return pack(model), header["extra"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BitLabError(f"'{path}' is damaged or of another BitLab version: {error}") from error
