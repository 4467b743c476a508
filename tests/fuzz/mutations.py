"""Mutations of files: blind ones of bytes, and lies in formats that a reader takes apart."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from lies import NUMBERS, seal

TEXTS = (
    "", "\0", "\x1b[2J", "../../x", "/etc/passwd", "*/ }", "a" * 5000, "é", "\ud7ff", "nan", "1e999", "-1", "int8",
    "NaN", "sha256", "a\nb", '"', "\\", "%s%n", "${x}", "__class__", "[" * 3000, "{}",
)  # fmt: skip
INTEGERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
JSON = (*NUMBERS, *TEXTS)


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Flips, cuts, repeats, inserts, overwrites and splices, without regard to what the bytes mean."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 2, 8, 64, 1000)))
        kind = rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:end]
        elif kind == 2:
            out[at:at] = out[at:end] * rng.choice((1, 2, 50))
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        elif kind == 4:
            out[at:end] = rng.randbytes(end - at)
        elif kind == 5:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTEGERS) + rng.choice((-1, 0, 1))
            out[at : at + size] = (number % 256**size).to_bytes(size, rng.choice(("little", "big")))
        elif kind == 6:
            del out[at:]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:end] = other[start : start + rng.choice((1, 8, 64, 1000))]
    return bytes(out)


def mutate_tree(rng: Random, value: Any, leaves: Sequence[Any] = JSON) -> Any:
    """Returns a nested value in which one thing is another: a leaf, a key, an entry that is gone, twice, or moved."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, rng.choice(TEXTS): value[key]}
        if kind == 2:
            return {**value, key: value[rng.choice(list(value))]}
        return {**value, key: mutate_tree(rng, value[key], leaves)}
    if isinstance(value, list) and value and rng.random() < 0.95:
        at = rng.randrange(len(value))
        middle = rng.choice(([], [value[at]] * 2, [rng.choice(value)], *[[mutate_tree(rng, value[at], leaves)]] * 4))
        return [*value[:at], *middle, *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.3:
        return value * rng.choice((-1, 2, 1000, 0.5)) + rng.choice((-1, 0, 1))
    if rng.random() < 0.03:
        return nested(rng.choice((2, 50, 900)))
    return rng.choice(leaves)


def nested(depth: int) -> list[Any]:
    """Returns lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def lie_in_json(rng: Random, data: bytes) -> bytes:
    """A mutation of what a JSON text says; now and then of how it says it."""
    text = json.dumps(mutate_tree(rng, json.loads(data)))
    if rng.random() < 0.1:
        text = rng.choice((text.replace("{", '{"name": 1, "name": 2, ', 1), "[" * 100_000, text[:-1], text * 2))
    return text.encode()


def lie_in_container(rng: Random, data: bytes) -> bytes:
    """A safetensors file whose header lies: BitLab's own in its metadata, or the types and places of its tensors."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if rng.random() < 0.7:
        kind, text = next(iter(header["__metadata__"].items()))
        inner = json.loads(text)
        digest = inner.pop("sha256", None)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            changed = mutate_tree(rng, inner)
            inner = changed if isinstance(changed, dict) else inner
        header["__metadata__"] = {kind: json.dumps(inner if digest is None else {"sha256": digest, **inner})}
    elif rng.random() < 0.5 and body:
        for _ in range(rng.choice((1, 4, 16))):
            at = rng.randrange(len(body))
            lie = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", rng.randbytes(4)))
            body[at : at + len(lie)] = lie
            del body[len(data) - 8 - size :]
    else:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        header = {"__metadata__": header["__metadata__"], **mutate_tree(rng, tensors, (*JSON, "F16", "I64", "U8"))}
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def lie_in_zip(rng: Random, data: bytes) -> bytes:
    """An archive with an entry that is another, is missing or is there twice; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(entries))
    name, content = entries[at]
    kind = rng.randrange(6)
    if kind == 0:
        del entries[at]
    elif kind == 1:
        entries[at] = (name + rng.choice(("x", "/../x", "")), rng.choice(entries)[1])
    else:
        entries[at] = (name, mutate_bytes(rng, content, [content for _, content in entries]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def mutate(rng: Random, data: bytes, others: Sequence[bytes], lie: Callable[[Random, bytes], bytes] | None) -> bytes:
    """Returns another file: a lie, a blind mutation, or both; mostly with a checksum that is right again.

    Args:
        rng: Where all that is random comes from.
        data: A file.
        others: More files, of which pieces may be taken.
        lie: What changes the meaning of a file; it may fail on files that are broken already.
    """
    lied = lie is not None and rng.random() < 0.7
    if lied and lie is not None:
        try:
            data = lie(rng, data)
        except Exception:  # of a broken file, no reader makes sense
            lied = False
    if not lied or rng.random() < 0.1:
        data = mutate_bytes(rng, data, others)
    return seal(data) if rng.random() < 0.95 else data
