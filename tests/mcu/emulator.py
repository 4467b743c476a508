"""Runs a firmware in the unicorn emulator as its chip would: no more memory, registers or instructions than it has."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .decode import IllegalInstructionError, count_instructions

if TYPE_CHECKING:
    from .rv32ec import Firmware

_PAGE = 4096
_PAINT = struct.pack("<I", 0xA5C3_965A)
_MAX_INSTRUCTIONS = 1_000_000_000


class MachineError(Exception):
    """The firmware did something its chip cannot do or must not do."""


@dataclass(frozen=True)
class Result:
    """What a firmware computed for each image, and what it took.

    Attributes:
        classes: The class of each image.
        outputs: The int32 outputs of each image; empty tuples where the firmware keeps none.
        instructions: Instructions executed for each image, all of them counted.
        stack_bytes: The deepest stack over all images.
        ram_bytes: Static data, which holds the input, and measured stack.
    """

    classes: list[int]
    outputs: list[tuple[int, ...]]
    instructions: list[int]
    stack_bytes: int
    ram_bytes: int


def run(firmware: "Firmware", images: Sequence[bytes], *, max_instructions: int = _MAX_INSTRUCTIONS) -> Result:
    """Starts the firmware once and classifies the images one after the other.

    Checked throughout: the instructions of every block reached (see `count_instructions`), accesses outside flash and
    RAM, writes to flash, code outside flash. Checked during start-up and the first image only, because it costs a call
    for every access: alignment, and that the stack pointer stays above the static data.

    Args:
        firmware: The program.
        images: The inputs, each of `firmware.input_bytes` bytes (int8 or uint8 codes).
        max_instructions: The most that one image may take.

    Returns:
        The result.

    Raises:
        MachineError: The firmware broke a rule of its chip or did not finish.
        ValueError: An image has the wrong size.
    """
    machine = _Machine(firmware, max_instructions)
    machine.start()
    classes: list[int] = []
    outputs: list[tuple[int, ...]] = []
    instructions: list[int] = []
    for index, image in enumerate(images):
        if len(image) != firmware.input_bytes:
            raise ValueError(f"image {index} has {len(image)} bytes; the network takes {firmware.input_bytes}")
        if index == 1:
            machine.end_close_watch()
        instructions.append(machine.infer(image))
        classes.append(machine.words("network_class", 1)[0])
        outputs.append(machine.words("network_output", firmware.output_size))
    stack = machine.stack_bytes()
    return Result(classes, outputs, instructions, stack, firmware.static_bytes + stack)


class _Machine:
    """The chip: flash, RAM, core."""

    def __init__(self, firmware: "Firmware", max_instructions: int) -> None:
        from unicorn import riscv_const, unicorn_const, unicorn_py3  # GPL: only the tests may use it

        self._engine_error = unicorn_py3.UcError
        self._pc_register, self._sp_register = riscv_const.UC_RISCV_REG_PC, riscv_const.UC_RISCV_REG_SP
        self._firmware = firmware
        self._symbols = firmware.symbols
        self._max_instructions = max_instructions
        self._flash, self._flash_size = self._symbols["__flash_origin"], self._symbols["__flash_length"]
        self._ram, self._ram_size = self._symbols["__ram_origin"], self._symbols["__ram_length"]
        self._ram_end = self._ram + self._ram_size
        self._counts: dict[tuple[int, int], int] = {}
        self._instructions = 0
        self._lowest_sp = self._ram_end
        self._error: Exception | None = None

        self._const = const = unicorn_const
        self._core = unicorn_py3.Uc(const.UC_ARCH_RISCV, const.UC_MODE_RISCV32)
        self._core.mem_map(self._flash, _pages(self._flash_size), const.UC_PROT_READ | const.UC_PROT_EXEC)
        self._core.mem_map(self._ram, _pages(self._ram_size), const.UC_PROT_READ | const.UC_PROT_WRITE)
        self._core.mem_write(self._flash, firmware.image.ljust(self._flash_size, b"\xff"))
        self._core.mem_write(self._ram, _PAINT * (self._ram_size // 4))

        access = const.UC_HOOK_MEM_READ | const.UC_HOOK_MEM_WRITE
        broken = const.UC_HOOK_MEM_UNMAPPED | const.UC_HOOK_MEM_PROT
        self._core.hook_add(const.UC_HOOK_BLOCK, self._on_block)
        self._core.hook_add(broken, self._on_broken_access)
        for start, size in ((self._flash, self._flash_size), (self._ram, self._ram_size)):
            if size % _PAGE:  # from 3 bytes before the end: a word can begin inside and end outside
                self._core.hook_add(access, self._on_edge, None, start + size - 3, start + _pages(size) - 1)
        self._close_watch = self._core.hook_add(access, self._on_access)

    def start(self) -> None:
        """Runs from reset to the first wait for an input."""
        self._go(self._symbols["_start"])

    def infer(self, image: bytes) -> int:
        """Runs one image and returns its instructions."""
        self._core.mem_write(self._firmware.input_address, image)
        self._instructions = 0
        self._go(self._symbols["network_resume"])
        return self._instructions

    def words(self, symbol: str, count: int) -> tuple[int, ...]:
        """Reads `count` int32 values at a symbol."""
        return struct.unpack(f"<{count}i", self._core.mem_read(self._symbols[symbol], 4 * count)) if count else ()

    def end_close_watch(self) -> None:
        """Ends the checks that see every access."""
        self._core.hook_del(self._close_watch)

    def stack_bytes(self) -> int:
        """Measures the stack: below its deepest word the paint is whole."""
        static_end = self._symbols["__static_end"]
        free = self._core.mem_read(static_end, self._ram_end - static_end)
        unused = 0
        while unused < len(free) and free[unused : unused + 4] == _PAINT:
            unused += 4
        if not unused and free:
            raise MachineError(f"the stack has used all {len(free)} bytes that the static data leaves, or more")
        return self._ram_end - min(static_end + unused, self._lowest_sp)

    def _go(self, address: int) -> None:
        """Runs from an address to the next wait."""
        wait = self._symbols["network_wait"]
        try:
            self._core.emu_start(address, wait)
        except self._engine_error as error:
            self._error = self._error or MachineError(f"the core stopped at {self._pc():#x}: {error}")
        if self._error is None and self._pc() != wait:
            self._error = MachineError(f"the program stopped at {self._pc():#x}")
        if self._error is not None:
            raise self._error

    def _pc(self) -> int:
        return self._core.reg_read(self._pc_register)

    def _fail(self, error: Exception) -> None:
        """Keeps the first error and stops the core; raised once the core has stopped."""
        self._error = self._error or error
        self._core.emu_stop()

    def _on_block(self, core: object, address: int, size: int, _data: object) -> None:
        """Checks a block when it is first reached and counts its instructions each time."""
        count = self._counts.get((address, size))
        if count is None:
            code = bytes(self._core.mem_read(address, size))
            try:
                count = count_instructions(code, address, multiplier=self._firmware.chip.multiplier)
            except IllegalInstructionError as error:
                return self._fail(MachineError(f"{self._firmware.chip.chip}: {error}"))
            self._counts[address, size] = count
        self._instructions += count
        if self._instructions > self._max_instructions:
            self._fail(MachineError(f"no result after {self._max_instructions} instructions, at {address:#x}"))
        return None

    def _watch_stack(self) -> None:
        """Follows the stack pointer, which may pass over RAM without leaving a mark."""
        sp = self._core.reg_read(self._sp_register)
        if self._ram <= sp <= self._ram_end:
            self._lowest_sp = min(self._lowest_sp, sp)
        if self._lowest_sp < self._symbols["__static_end"]:
            self._fail(MachineError(f"the stack runs into static data, near {self._pc():#x}"))

    def _on_access(self, core: object, kind: int, address: int, size: int, value: int, _data: object) -> None:
        """Demands aligned accesses, since the core need not split others, and follows the stack pointer."""
        self._watch_stack()
        if address % size:
            self._fail(MachineError(f"unaligned access of {size} bytes at {address:#x}, from {self._pc():#x}"))

    def _on_edge(self, core: object, kind: int, address: int, size: int, value: int, _data: object) -> None:
        """Guards the rest of a page whose memory is smaller."""
        end = self._ram_end if address >= self._ram else self._flash + self._flash_size
        if address + size > end:
            self._fail(MachineError(f"access of {size} bytes at {address:#x}, past the memory's end {end:#x}"))

    def _on_broken_access(self, core: object, kind: int, address: int, size: int, value: int, _data: object) -> bool:
        """Names accesses that leave all memory, write to flash or run code in RAM."""
        const = self._const
        what = {
            const.UC_MEM_WRITE_PROT: "write to flash",
            const.UC_MEM_FETCH_PROT: "code fetched from RAM",
            const.UC_MEM_FETCH_UNMAPPED: "code fetched outside memory",
        }.get(kind, "access outside memory")
        self._error = self._error or MachineError(f"{what}: {size} bytes at {address:#x}, from {self._pc():#x}")
        return False


def _pages(size: int) -> int:
    """Rounds up to whole pages."""
    return -(-size // _PAGE) * _PAGE
