"""The one kind of file for models and graphs: safetensors, a JSON header in its metadata, and a checksum of every byte.

The metadata has one entry, the header, under a name that says what the file is. The header's first key is ``sha256``:
the SHA-256 of the whole file, in hexadecimal digits, as it is with 64 zeros in their place. Nothing in a file is
executed, and nothing of it is believed: who reads a header checks what it says.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from bitcore.errors import BitLabError
from bitcore.files import write_atomically

_CHECKSUM = "sha256"
_BLANK = "0" * 64
T = TypeVar("T")


def save_container(
    path: Path, kind: str, header: Mapping[str, Any], tensors: dict[str, T], save: Callable[..., bytes]
) -> None:
    """Writes a file, atomically; its bytes depend on the content alone.

    Args:
        path: The file.
        kind: What it is, such as ``"bitlab-model-1"``.
        header: JSON-serializable.
        tensors: What goes along with it.
        save: ``save(tensors, metadata)`` of safetensors, for the library that the tensors are of.

    Raises:
        BitLabError: If it cannot be written, or the header is no JSON.
    """
    try:
        text = json.dumps({_CHECKSUM: _BLANK, **header}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BitLabError(f"cannot write '{path}': what it shall hold is no JSON: {error}") from error
    parse_json(text, f"what '{path}' shall hold")  # a key may be there twice: the number 1 and the text "1"
    try:
        content = bytearray(save(tensors, {kind: text}))
    except UnicodeEncodeError as error:
        raise BitLabError(f"cannot write '{path}': a name in it is no text ({error})") from error
    place = _place(content, kind)
    content[place : place + len(_BLANK)] = hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content)


def load_container(path: Path, kind: str, what: str, framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save_container` wrote.

    Args:
        path: The file.
        kind: What it must be.
        what: The same in words, for errors: "BitLab model".
        framework: Of the tensors: ``"pt"`` or ``"np"``.

    Returns:
        The header and the tensors.

    Raises:
        BitLabError: If the file is missing, truncated, altered, or something else.
    """
    if not path.is_file():
        raise BitLabError(f"there is no file '{path}'")
    try:
        with safe_open(path, framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise BitLabError(f"'{path}' is no intact safetensors file ({error}), so no {what}") from error
    if kind not in metadata:
        raise BitLabError(f"'{path}' is a safetensors file of something else, not of a {what}")
    header = parse_json(metadata[kind], f"the header of '{path}'")
    if not isinstance(header, dict):
        raise BitLabError(f"'{path}' is damaged: its header is no JSON object")
    if header.pop(_CHECKSUM, None) != _digest(path, kind):
        raise BitLabError(
            f"'{path}' is damaged: its checksum is not that of its content; copy it again, or make it anew"
        )
    return header, tensors


def parse_json(text: str | bytes, what: str) -> Any:
    """Reads JSON as its standard has it: no NaN or infinity, no key twice, no nesting beyond Python's own limit.

    Raises:
        BitLabError: If it is none; the message begins with ``what``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            raise ValueError("a key occurs twice")
        return keys

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    def finite(number: str) -> float:
        if math.isinf(value := float(number)):
            raise ValueError(f"{number:.80} is beyond all floating-point numbers")
        return value

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise BitLabError(f"{what} is damaged, no JSON: {error}") from error


def _place(content: bytearray | mmap.mmap, kind: str) -> int:
    """Returns where the checksum's digits begin (anywhere, in a file that has none)."""
    before = f'"{kind}":"{{\\"{_CHECKSUM}\\": \\"'.encode()
    return content.find(before) + len(before)


def _digest(path: Path, kind: str) -> str:
    """Returns the checksum of a file as it is with zeros in the checksum's place."""
    digest = hashlib.sha256()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _place(content, kind)
        with memoryview(content) as view, view[:place] as before, view[place + len(_BLANK) :] as behind:
            for part in (before, _BLANK.encode(), behind):
                digest.update(part)
    return digest.hexdigest()
