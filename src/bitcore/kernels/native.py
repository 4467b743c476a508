"""Loads the shared library of native kernels. Without it everything still runs, on torch."""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import lru_cache
from pathlib import Path

import bitcore

ISA_VARIABLE = "BITLAB_ISA"
PORTABLE = "portable"

_NAMES = ("libbitcore.so", "libbitcore.dylib", "libbitcore.dll")
_INT, _FLAG, _POINTER, _SIZE = ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
_PORTABLE = [_INT, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE]
_SIGNATURES: dict[str, list[type]] = {
    "bit_linear_int8_portable": _PORTABLE,
    "bit_linear_uint8_portable": _PORTABLE,
}
_SIMD_SIGNATURES: dict[str, list[type]] = {
    "bit_isa_supported": [_INT],
    "bit_prepare": [_POINTER, _INT, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER],
    "bit_unprepare": [_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE],
    "bit_levels": [_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER],
    "bit_linear_real": [_INT, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _INT],
    "bit_linear_levels": [_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _INT],
    "bit_linear_int8_simd": [_INT, _POINTER, _SIZE, _POINTER, _FLAG, _POINTER, _SIZE, _SIZE, _SIZE, _INT],
    "bit_linear_float_simd": [_POINTER, _POINTER, _POINTER, _SIZE, _INT, _POINTER, _SIZE],
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Returns the library with its functions' signatures declared, or ``None`` (with one warning if it is broken)."""
    for folder in bitcore.__path__:
        for path in (Path(folder) / "_native" / name for name in _NAMES):
            if path.exists():
                return _load(path)
    return None


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        native = ctypes.CDLL(str(path))
        _declare(native, _SIGNATURES)
        if hasattr(native, "bit_isa_name"):  # else a compiler or a processor without vector kernels built it
            _declare(native, _SIMD_SIGNATURES)
            native.bit_isa_name.argtypes, native.bit_isa_name.restype = [_INT], ctypes.c_char_p
            native.bit_prepared_bytes.argtypes, native.bit_prepared_bytes.restype = [_INT, _SIZE, _SIZE], _SIZE
    except (OSError, AttributeError) as error:
        warnings.warn(f"native kernels cannot be used, torch stands in: {error}", RuntimeWarning, stacklevel=3)
        return None
    return native


def _declare(native: ctypes.CDLL, signatures: dict[str, list[type]]) -> None:
    for name, arguments in signatures.items():
        function = getattr(native, name)
        function.argtypes, function.restype = arguments, _INT


def built_sets() -> list[str]:
    """Returns the vector instruction sets that the library was built with, best first; their index is their number."""
    native, names = library(), []
    while native is not None and hasattr(native, "bit_isa_name"):
        name = native.bit_isa_name(len(names))
        if name is None:
            break
        names.append(name.decode())
    return names


def usable_sets() -> dict[str, int]:
    """Returns the numbers of the vector instruction sets that kernels may use here, by name, best first.

    The environment variable ``BITLAB_ISA`` names the only one, or ``portable`` for none; where this machine (or the
    library) lacks it, one warning says so and it does not count.
    """
    return _usable_sets(library(), os.environ.get(ISA_VARIABLE, ""))


@lru_cache(maxsize=1)
def _usable_sets(native: ctypes.CDLL | None, forced: str) -> dict[str, int]:
    supported = {n: i for i, n in enumerate(built_sets()) if native is not None and native.bit_isa_supported(i)}
    if not forced:
        return supported
    if forced == PORTABLE:
        return {}
    if forced in supported:
        return {forced: supported[forced]}
    there = ", ".join([*supported, PORTABLE])
    warnings.warn(
        f"{ISA_VARIABLE}={forced}: this machine has no such kernels (it has {there}); the best of them run instead",
        RuntimeWarning,
        stacklevel=3,
    )
    return supported
