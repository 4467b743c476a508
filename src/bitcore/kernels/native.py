"""Loads the shared library of native kernels. Without it everything still runs, on torch."""

from __future__ import annotations

import ctypes
import warnings
from functools import lru_cache
from pathlib import Path

import bitcore

_NAMES = ("libbitcore.so", "libbitcore.dylib", "libbitcore.dll")
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_LINEAR = [ctypes.c_int, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE]
_SIGNATURES = {"bit_linear_int8_portable": _LINEAR, "bit_linear_uint8_portable": _LINEAR}


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
        for name, arguments in _SIGNATURES.items():
            function = getattr(native, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as error:
        warnings.warn(f"native kernels cannot be used, torch stands in: {error}", RuntimeWarning, stacklevel=3)
        return None
    return native
