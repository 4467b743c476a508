"""The C structures of a program (csrc/simd/bit_engine.h), field by field."""

from __future__ import annotations

import ctypes
from enum import IntEnum

_INT, _SIZE, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_PAIR = _INT * 2
TILE_ROWS = 64


class StepKind(IntEnum):
    """``enum bit_step_kind``."""

    PRODUCT = 0
    COUNT = 1
    DEPTHWISE = 2
    PLAIN = 3
    MAX = 4
    SUM = 5
    LOAD = 6
    NORMSHIFT = 7
    SIGNS = 8
    FLATTEN = 9


class PostKind(IntEnum):
    """``enum bit_post_kind``."""

    REQUANTIZE = 0
    THRESHOLD = 1
    LOOKUP = 2
    ADD = 3
    STORE = 4
    KEEP = 5
    RESTORE = 6


class CBuffer(ctypes.Structure):
    """``struct bit_buffer``."""

    _fields_ = (
        ("at", _SIZE),
        ("bytes", _SIZE),
        *((name, _INT) for name in ("height", "width", "channels", "pixel", "item", "offset")),
    )


class CPost(ctypes.Structure):
    """``struct bit_post``."""

    _fields_ = (
        *((name, _INT) for name in ("kind", "target", "shared", "low", "high", "in_double")),
        ("count", _SIZE),
        ("channels", _SIZE),
        *((name, _POINTER) for name in ("factor", "addend", "multiplier", "bias", "shift", "table")),
    )


class CBlock(ctypes.Structure):
    """``struct bit_block``."""

    _fields_ = (("weight", _SIZE), *((name, _INT) for name in ("first", "rows", "shape", "channel")))


class CStep(ctypes.Structure):
    """``struct bit_step``."""

    _fields_ = (
        *((name, _INT) for name in ("kind", "source", "target", "height", "width")),
        *((name, _PAIR) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, _INT) for name in ("planes", "bits", "base", "shift", "grouped", "high", "relu")),
        *((name, _SIZE) for name in ("length", "units", "stride_weight")),
        *((name, _POINTER) for name in ("weight", "constant", "tap_sums")),
        ("blocks", ctypes.POINTER(CBlock)),
        ("posts", ctypes.POINTER(CPost)),
        *((name, _INT) for name in ("block_count", "post_count", "slots", "unused")),
    )


class CProgram(ctypes.Structure):
    """``struct bit_program``."""

    _fields_ = (
        ("buffers", ctypes.POINTER(CBuffer)),
        ("steps", ctypes.POINTER(CStep)),
        ("step_count", _SIZE),
        ("zeros", _POINTER * 2),
        ("input", _INT),
        ("border", _PAIR),
        *((name, _INT) for name in ("low", "high", "step")),
    )


class COutput(ctypes.Structure):
    """``struct bit_output``."""

    _fields_ = (
        *((name, _POINTER) for name in ("integers", "reals", "weight_scale", "bias")),
        ("weight_scales", _SIZE),
        ("bias_on_grid", ctypes.c_int),
    )
