"""The C structures of a program (csrc/simd/bit_engine.h), field by field."""

from __future__ import annotations

import ctypes
from enum import IntEnum

from bitcore.errors import BitLabError

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


PROBLEMS = (
    "",
    "a buffer has impossible sizes, or lies beyond the memory",
    "the input has impossible sizes, or levels that its buffer does not hold",
    "the output is not, or not wholly, written",
    "there is no such step",
    "it reads what no step before it writes",
    "its result does not fit where it goes",
    "kernel, stride, padding and dilation do not lead from its input's size to its result's",
    "its blocks of channels overlap, leave gaps, or are not those of its input",
    "its weights are shorter than what reads them, or of another layout",
    "what follows it has too few parameters, impossible ones, or a tensor of another size",
)
"""What ``enum bit_problem`` numbers."""


class Record(ctypes.Structure):
    """A structure that refuses numbers beyond its fields, of which ctypes would drop the upper bits in silence."""

    def __setattr__(self, name: str, value: object) -> None:
        """Sets a field.

        Raises:
            BitLabError: If it cannot hold the value.
        """
        super().__setattr__(name, value)
        kept = getattr(self, name)  # None: a pointer to nothing
        kept = tuple(kept) if isinstance(kept, ctypes.Array) else kept
        if isinstance(value, int | tuple) and kept not in (None, value):
            raise BitLabError(f"{name} {value} is beyond what the engine counts; use smaller tensors")


class CBuffer(Record):
    """``struct bit_buffer``."""

    _fields_ = (
        ("at", _SIZE),
        ("bytes", _SIZE),
        *((name, _INT) for name in ("height", "width", "channels", "pixel", "item", "offset")),
    )


class CPost(Record):
    """``struct bit_post``."""

    _fields_ = (
        *((name, _INT) for name in ("kind", "target", "shared", "low", "high", "in_double")),
        *((name, _SIZE) for name in ("count", "channels", "items")),
        *((name, _POINTER) for name in ("factor", "addend", "multiplier", "bias", "shift", "table")),
    )


class CBlock(Record):
    """``struct bit_block``."""

    _fields_ = (("weight", _SIZE), *((name, _INT) for name in ("first", "rows", "shape", "channel")))


class CStep(Record):
    """``struct bit_step``."""

    _fields_ = (
        *((name, _INT) for name in ("kind", "source", "target", "height", "width")),
        *((name, _PAIR) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, _INT) for name in ("planes", "bits", "base", "shift", "grouped", "high", "relu")),
        *((name, _SIZE) for name in ("length", "units", "stride_weight")),
        *((name, _SIZE) for name in ("weight_bytes", "constant_count", "tap_sums_count")),
        *((name, _POINTER) for name in ("weight", "constant", "tap_sums")),
        ("blocks", ctypes.POINTER(CBlock)),
        ("posts", ctypes.POINTER(CPost)),
        *((name, _INT) for name in ("block_count", "post_count", "slots", "unused")),
    )


class CProgram(Record):
    """``struct bit_program``."""

    _fields_ = (
        ("buffers", ctypes.POINTER(CBuffer)),
        ("steps", ctypes.POINTER(CStep)),
        ("buffer_count", _SIZE),
        ("step_count", _SIZE),
        ("zeros", _POINTER * 2),
        *((name, _SIZE) for name in ("zeros_bytes", "arena_bytes", "output_bytes", "input_count")),
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
