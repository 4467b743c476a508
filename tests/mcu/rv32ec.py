"""Builds the firmware of an exported network for a chip described under `mcu/`, and runs it in the emulator.

    firmware = build(export_dir, "digits", tmp_path)
    result = run(firmware, images)

`run` and `Result` live in `mcu.emulator` and are offered here too.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from bitexport.targets.c.chips import MCU
from bitexport.targets.c.chips import Chip as ProductChip

from .emulator import MachineError, Result, run

__all__ = ["CH32V003", "BuildError", "Chip", "ChipOverflowError", "Firmware", "MachineError", "Result", "build", "run"]

C_FLAGS = (
    *("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-mstrict-align"),
    *("-ffunction-sections", "-fdata-sections", "-fno-asynchronous-unwind-tables"),
)


class BuildError(Exception):
    """The firmware does not compile or link; the message holds the compiler's words."""


class ChipOverflowError(BuildError):
    """The firmware does not fit the chip.

    Attributes:
        overflow: Bytes too many for each memory, by its name in the linker script ("FLASH", "RAM").
    """

    def __init__(self, chip: "Chip", overflow: dict[str, int]) -> None:
        self.overflow = overflow
        text = ", ".join(f"{region} by {size} bytes" for region, size in overflow.items())
        hint = " (RAM holds static data, the input and the reserved stack)" if "RAM" in overflow else ""
        super().__init__(f"the firmware overflows the {chip.chip}: {text}{hint}")


@dataclass(frozen=True)
class Chip:
    """What the harness needs to know about a chip."""

    folder: Path
    name: str
    chip: str
    tool_prefix: str
    package: str
    march: str
    mabi: str
    multiplier: bool
    clock_hz: int
    linker_script: str
    sources: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Takes what the product knows about the chip of that folder."""
        chip = ProductChip.load(folder)
        flags = dict(flag.split("=") for flag in chip.flags if "=" in flag)
        return cls(
            folder=folder,
            name=chip.name,
            chip=chip.chip,
            tool_prefix=chip.prefix,
            package=chip.package,
            march=flags["-march"],
            mabi=flags["-mabi"],
            multiplier=chip.multiplier,
            clock_hz=chip.clock_hz,
            linker_script=chip.link,
            sources=(*chip.startup, "../main.c"),
        )

    @property
    def machine_flags(self) -> tuple[str, ...]:
        """The compiler's flags that name the instruction set."""
        return f"-march={self.march}", f"-mabi={self.mabi}"

    def tool(self, name: str) -> str:
        """The path of a tool of the chip's toolchain ("gcc", "nm", ...)."""
        found = shutil.which(self.tool_prefix + name)
        if found is None:
            raise BuildError(f"{self.tool_prefix}{name} not found: install the package {self.package}")
        return found


CH32V003 = Chip.load(MCU / "rv32ec")


@dataclass(frozen=True)
class Firmware:
    """A linked program and its sizes in bytes.

    Attributes:
        elf: The linked program; beside it lie the .bin (flash image) and the .map.
        chip: What it was built for.
        symbols: Addresses (or values) of all symbols.
        flash_bytes: The whole flash image: code, constants and initial values of data, with the start-up.
        static_bytes: .data and .bss, with the input.
        input_bytes: The input.
        input_address: Where it goes, in the network's arena.
        output_size: The number of int32 outputs held in RAM; 0 in a firmware built with entry="predict".
        libgcc: The functions that had to come from libgcc; () proves that no `__mulsi3` is needed.
    """

    elf: Path
    chip: Chip
    symbols: dict[str, int] = field(repr=False)
    flash_bytes: int
    static_bytes: int
    input_bytes: int
    input_address: int
    output_size: int
    libgcc: tuple[str, ...]

    @property
    def image(self) -> bytes:
        """The flash image."""
        return self.elf.with_suffix(".bin").read_bytes()


def build(
    export_dir: Path,
    name: str,
    out_dir: Path,
    opt: str = "-Os",
    *,
    chip: Chip = CH32V003,
    entry: Literal["run", "predict"] = "run",
    stack: int = 256,
    flags: Sequence[str] = (),
) -> Firmware:
    """Compiles all C files of an exported network with the chip's start-up and main, and links them.

    Linked without libgcc first; only what is then missing is taken from it, and reported.

    Args:
        export_dir: The exported network: `name`.h, `name`.c and the runtime's files.
        name: The network's name.
        out_dir: Where the program is written; made if missing.
        opt: The optimization level.
        chip: The chip.
        entry: "run" keeps the int32 outputs (verification); "predict" is the product's program, the class only.
        stack: Bytes of RAM that the linker keeps free for the stack.
        flags: More compiler flags.

    Returns:
        The firmware with its sizes.

    Raises:
        ChipOverflowError: Flash or RAM (static data, input, reserved stack) overflow.
        BuildError: Anything else that the compiler or linker refuses.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    upper = name.upper()
    defines = [
        f'-DBIT_NETWORK_HEADER="{name}.h"',
        f"-DBIT_NETWORK_RUN={name}_run",
        f"-DBIT_NETWORK_PREDICT={name}_predict",
        f"-DBIT_NETWORK_INPUT={upper}_INPUT",
        f"-DBIT_NETWORK_OUTPUT_SIZE={upper}_OUTPUT_SIZE",
    ]
    if entry == "predict":
        defines.append("-DBIT_NETWORK_PREDICT_ONLY")
    if not chip.multiplier:
        defines.append("-DBIT_NO_MULTIPLIER")
    sources = [chip.folder / source for source in chip.sources] + sorted(export_dir.glob("*.c"))
    compiler = [chip.tool("gcc"), *chip.machine_flags, opt, *C_FLAGS, *flags, *defines, f"-I{export_dir}"]
    objects = [out_dir / f"{index}_{source.stem}.o" for index, source in enumerate(sources)]
    for source, target in zip(sources, objects, strict=True):
        _compile([*compiler, "-c", str(source), "-o", str(target)])

    elf = out_dir / f"{name}.elf"
    linker = [
        *(
            chip.tool("gcc"),
            *chip.machine_flags,
            "-nostdlib",
            "-nostartfiles",
            "-T",
            str(chip.folder / chip.linker_script),
            f"-L{chip.folder}",
        ),
        *("-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments", f"-Wl,--defsym=__stack_size={stack}"),
        *(f"-Wl,-Map={elf.with_suffix('.map')}", *map(str, objects), "-o", str(elf)),
    ]
    libgcc = _link(linker, chip)
    _compile([chip.tool("objcopy"), "-O", "binary", str(elf), str(elf.with_suffix(".bin"))])

    symbols, sizes = _symbols(chip, elf)
    header = (export_dir / f"{name}.h").read_text()
    input_bytes, offset = (int(re.findall(rf"{upper}_INPUT_{what} (\d+)", header)[0]) for what in ("SIZE", "OFFSET"))
    return Firmware(
        elf=elf,
        chip=chip,
        symbols=symbols,
        flash_bytes=elf.with_suffix(".bin").stat().st_size,
        static_bytes=symbols["__static_end"] - symbols["__ram_origin"],
        input_bytes=input_bytes,
        input_address=symbols[f"{name}_arena"] + offset,
        output_size=sizes.get("network_output", 0) // 4,
        libgcc=libgcc,
    )


def _compile(command: list[str]) -> str:
    """Runs a tool and returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed:\n{done.stderr}")
    return done.stdout


def _link(command: list[str], chip: Chip) -> tuple[str, ...]:
    """Links without libgcc if possible, with it otherwise; returns the names that libgcc defines."""
    done = subprocess.run(command, capture_output=True, text=True)
    missing = sorted(set(re.findall(r"undefined reference to `([^']+)'", done.stderr)))
    if missing:
        done = subprocess.run([*command, "-lgcc"], capture_output=True, text=True)
    overflow = {
        region: int(size) for region, size in re.findall(r"region `(\w+)' overflowed by (\d+) bytes", done.stderr)
    }
    if overflow:
        raise ChipOverflowError(chip, overflow)
    if done.returncode:
        raise BuildError(f"linking failed:\n{done.stderr}")
    return tuple(missing)


def _symbols(chip: Chip, elf: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Reads each symbol's value and, where it has one, its size."""
    values: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for line in _compile([chip.tool("nm"), "-S", str(elf)]).splitlines():
        words = line.split()
        values[words[-1]] = int(words[0], 16)
        if len(words) == 4:
            sizes[words[-1]] = int(words[1], 16)
    return values, sizes
