"""Decoded datasets on disk, so that 60,000 pictures are decoded once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.files import write_atomically

_DECODING = (2, PIL.__version__)
"""Part of every key, as other versions decode otherwise; raise the number when decoding changes."""


@dataclass(frozen=True)
class Decoded:
    """A decoded dataset.

    Attributes:
        classes: The class names.
        tensors: The tensors by name.
        lasting: Whether the key that it is cached under covers everything that it was made of.
    """

    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    lasting: bool = True


def cache_dir() -> Path:
    """The folder of decoded data: ``$BITLAB_CACHE``, else ``bitlab`` in the user's cache folder."""
    if folder := os.environ.get("BITLAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlab"


def file_stamp(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What identifies files without reading them: paths, sizes and modification times."""
    return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def cached(key: Any, build: Callable[[], Decoded]) -> Decoded:
    """Returns what ``build`` returns, from the disk where it was built before.

    A damaged entry is rebuilt, a folder that cannot be written to only costs the time.

    Args:
        key: JSON-serializable; everything that the result depends on.
        build: Decodes the data.
    """
    digest = hashlib.sha256(json.dumps([_DECODING, key], default=str).encode()).hexdigest()[:32]
    path = cache_dir() / "data" / f"{digest}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError):
        return _read(path)
    decoded = build()
    if decoded.lasting:
        with contextlib.suppress(BitLabError):
            _write(path, decoded)
    return decoded


def _read(path: Path) -> Decoded:
    """Reads an entry."""
    with safe_open(path, framework="pt") as file:
        classes = tuple(json.loads(file.metadata()["classes"]))
        return Decoded(classes, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)


def _write(path: Path, decoded: Decoded) -> None:
    """Writes an entry; no reader ever sees half of it."""
    contiguous = {name: tensor.contiguous() for name, tensor in decoded.tensors.items()}
    write_atomically(path, save(contiguous, metadata={"classes": json.dumps(decoded.classes)}))
