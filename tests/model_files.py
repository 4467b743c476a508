"""Model files for tests: their content, and files that say something else with the right checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bitcore.container import save_container

KIND = "bitlab-model-1"
Content = tuple[dict[str, Any], dict[str, Tensor]]


def content(path: Path) -> Content:
    """The header, without its checksum, and the tensors."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[KIND])
        del header["sha256"]
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes a file with the right checksum: whoever lies on purpose computes it, too."""

    def save_lies(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
        text = json.dumps({**json.loads(metadata[KIND]), **header})
        return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {KIND: text})

    save_container(path, KIND, {}, tensors, save_lies)
