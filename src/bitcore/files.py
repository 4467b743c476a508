"""Writing files so that nothing half-written is ever seen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bitcore.errors import BitLabError


def write_atomically(path: Path, content: bytes | bytearray | str) -> None:
    """Writes a file through a temporary one beside it and a rename; creates the folder.

    Raises:
        BitLabError: If the folder is full, read-only or no folder.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BitLabError(f"cannot write '{path}': {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise BitLabError(f"cannot write '{path}': {error.strerror or error}") from error
