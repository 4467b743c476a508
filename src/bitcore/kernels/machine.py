"""The machine layout of weights (csrc/simd/bit_simd.h): made from packed codes, never saved."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.formats import NumberFormat
from bitcore.kernels import gate
from bitcore.kernels.native import library
from bitcore.quantizers import PackedTensor, QTensor

BITS_8, BITS_4, BITS_2, BITS_1, TERNARY, SIGNS = range(6)  # enum bit_layout
_ERRORS = {
    1: "the bytes are no weight of this shape and format in the machine's layout",
    2: "this machine lacks the instruction set; export the model again here, or set BITLAB_ISA=portable before packing",
    3: "out of memory",
    4: "a packed weight holds codes that its format does not have: corrupted data",
    5: "the machine's layout does not hold this format",
    6: "weights prepared for signs take the levels -1 and +1 of binary activations, and no others",
    7: "sums of products could leave int32, or a batch is too large; use fewer inputs, or smaller batches",
    8: "the input has no values in this machine's memory (a tensor on another device, or one that was freed)",
    9: "the engine's program takes no such input",
}
_HUGE_PAGE = 2**21


class _Format(ctypes.Structure):
    """``struct bit_format``."""

    _fields_ = (
        ("radix", ctypes.c_int32),
        ("codes", ctypes.c_int32),
        ("word", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("step", ctypes.c_int32),
        ("levels", ctypes.c_int16 * 256),
    )


class PreparedTensor(PackedTensor):
    """A packed weight that is held in the machine's layout alone; its bytes as in a file are made when asked for.

    Attributes:
        machine: What `prepare` returns.
    """

    machine: Tensor

    def __init__(self, machine: Tensor, scale: Tensor, shape: tuple[int, ...], fmt: NumberFormat) -> None:
        for name, value in (("machine", machine), ("scale", scale), ("shape", shape), ("format", fmt), ("group", 0)):
            object.__setattr__(self, name, value)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """uint8 ``[shape[0], bytes of a row]``."""
        return unprepare(self.machine, self.format, self.shape)

    def unpack(self, dtype: torch.dtype = torch.float32) -> QTensor:
        """As in `PackedTensor`."""
        outputs, inputs = self.shape[0], math.prod(self.shape[1:])
        levels = torch.ops.bitcore.decode(self.machine, self.format.name, outputs, inputs)
        return QTensor(levels.to(dtype).reshape(self.shape), self.scale, self.format)


@lru_cache
def c_format(fmt: NumberFormat) -> _Format:
    """Returns a format as native functions take it."""
    packing, step = fmt.packing, fmt.step if fmt.affine else 0
    levels = (ctypes.c_int16 * 256)(*fmt.levels)
    return _Format(packing.radix, packing.codes, packing.word, len(fmt.levels), step, levels)


def check(error: int) -> None:
    """Raises what a C function reports.

    Raises:
        ValueError: If data are corrupted.
        MemoryError: If there is too little.
        BitLabError: If a weight and an input do not fit, or the machine cannot do it.
    """
    if error:
        kind = {3: MemoryError, 4: ValueError}.get(error, BitLabError)
        raise kind(_ERRORS[error])


def layout(fmt: NumberFormat, outputs: int, signs: bool, dense: bool) -> int:
    """Returns the layout of a weight.

    Args:
        fmt: Its format.
        outputs: Its rows.
        signs: Whether the activations are binary.
        dense: Whether ternary weights take 1.6 instead of 2 bits.
    """
    if signs and fmt.levels == (-1, 1):
        return SIGNS
    count = len(fmt.levels)
    if count <= 2 and outputs > 64:  # 128 rows at a time
        return BITS_1
    if count <= 4:
        return TERNARY if count == 3 and dense else BITS_2
    return BITS_4 if count <= 16 else BITS_8


def holds(fmt: NumberFormat) -> bool:
    """Whether the machine's layout holds a format: levels evenly spaced, or up to 16 of them."""
    return fmt.affine or len(fmt.levels) <= 16


def prepare(weight: PackedTensor, signs: bool = False, dense: bool = False) -> Tensor:
    """Returns a packed weight in the machine's layout: uint8 ``[bytes]``. See `layout` for the other arguments.

    Raises:
        ValueError: If the data hold no codes of the format.
    """
    native = _native()
    gate.expect("a packed weight", weight.data, (torch.uint8,), (None, None))
    outputs, inputs = weight.shape[0], math.prod(weight.shape[1:])
    data = weight.data if weight.data.stride(-1) == 1 or not weight.data.numel() else weight.data.contiguous()
    if data.shape != (outputs, weight.format.packing.row_bytes(inputs)):
        raise ValueError(f"{outputs} rows of {inputs} codes take other bytes than {list(data.shape)}")
    kind = layout(weight.format, outputs, signs, dense)
    machine = _aligned(native.bit_prepared_bytes(kind, outputs, inputs))
    memory = gate.address(data), data.stride(0)
    fmt = ctypes.byref(c_format(weight.format))
    check(native.bit_prepare(fmt, kind, *memory, outputs, inputs, machine.data_ptr()))
    return machine


def unprepare(machine: Tensor, fmt: NumberFormat, shape: tuple[int, ...]) -> Tensor:
    """Returns the packed bytes of a weight in the machine's layout: uint8 ``[shape[0], bytes of a row]``.

    Raises:
        ValueError: If it is no weight of that shape.
    """
    outputs, inputs = shape[0], math.prod(shape[1:])
    memory: tuple[int | None, ...] = memory_of(machine)
    data = torch.empty(outputs, fmt.packing.row_bytes(inputs), dtype=torch.uint8)
    memory += outputs, inputs, data.data_ptr(), data.shape[1]
    check(_native().bit_unprepare(ctypes.byref(c_format(fmt)), *memory))
    return data


def memory_of(machine: Tensor) -> tuple[int | None, int]:
    """Returns where a weight in the machine's layout begins, and its bytes, as native functions take it.

    The caller keeps the tensor as long as they run.

    Raises:
        BitLabError: If it is no contiguous uint8 ``[bytes]`` of the CPU's.
    """
    gate.expect("a weight in the machine's layout", machine, (torch.uint8,), (None,))
    if not machine.is_contiguous():
        raise BitLabError("a weight in the machine's layout must be contiguous, as `prepare` returns it")
    return gate.address(machine), machine.numel()


def levels(machine: Tensor, fmt: NumberFormat, shape: tuple[int, int]) -> Tensor:
    """Returns the levels of a weight in the machine's layout: float32 ``[outputs, inputs]``.

    Raises:
        ValueError: If it is no weight of that shape.
    """
    memory = memory_of(machine)
    result = torch.empty(shape, dtype=torch.float32)
    check(_native().bit_levels(ctypes.byref(c_format(fmt)), *memory, *shape, result.data_ptr()))
    return result


def _native() -> ctypes.CDLL:
    native = library()
    if native is None or not hasattr(native, "bit_isa_name"):
        raise BitLabError("the native kernels are not installed; install a C compiler and reinstall bitlab")
    return native


def _aligned(count: int) -> Tensor:
    """Large weights begin on a huge page; the pages before that are never touched, so they take no memory."""
    if count < _HUGE_PAGE:
        return torch.empty(count, dtype=torch.uint8)
    whole = torch.empty(count + _HUGE_PAGE, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + count]


_RESIDENTS: WeakKeyDictionary[object, int] = WeakKeyDictionary()


def count_weights(owner: object, weights: int) -> None:
    """Counts an object's weights, for as long as it lives, among those that share the cache."""
    _RESIDENTS[owner] = weights


def live_in_dram() -> bool:
    """Whether all counted weights, at 2 bits each, exceed the last level of cache.

    Ternary weights then take 1.6 bits: in cache arithmetic is the limit, in DRAM bytes are.
    """
    return sum(_RESIDENTS.values()) / 4 > last_level_cache()


@lru_cache
def last_level_cache() -> int:
    """Returns the bytes of the largest cache; 8 MiB where the system does not tell."""
    listed = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    sizes = [int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in listed if size[-1:] in ("K", "M")]
    return max(sizes, default=8 * 2**20)
