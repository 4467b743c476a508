"""The chips that networks are exported for: what the description files in ``bitexport/mcu`` say."""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError

MCU = Path(__file__).parents[2] / "mcu"
_UNITS = {"": 1, "K": 1024, "M": 1024**2}


@dataclass(frozen=True)
class Emulator:
    """What runs a chip's programs.

    Attributes:
        program: The emulator's command.
        package: The Debian package that holds it.
        arguments: Its arguments before the program's.
        memory: The linker's memory description of the emulated machine, relative to the chip's folder.
        counter: What is counted for an image: "instructions", "cycles" or nothing.
        shift: How far QEMU shifts an instruction to get nanoseconds.
        per_instruction: Ticks of the machine's timer in an instruction (or a cycle).
    """

    program: str
    package: str
    arguments: tuple[str, ...]
    memory: str = ""
    counter: str = ""
    shift: int = 0
    per_instruction: float = 1.0


@dataclass(frozen=True)
class Chip:
    """A chip, or another machine that C is compiled for.

    Attributes:
        name: What users write.
        chip: What data sheets write.
        prefix: Of the toolchain's commands.
        package: The Debian packages of the toolchain.
        flags: The compiler's flags.
        multiplier: Whether it multiplies.
        clock_hz: Its clock, 0 where there is none to speak of.
        startup: Start-up files, relative to the chip's folder.
        stack: Bytes of RAM that are kept free for the stack.
        flash: Bytes of flash, 0 for no limit.
        ram: Bytes of RAM, 0 for no limit.
        emulator: What runs its programs.
        link: The linker script, relative to the chip's folder; "" for the toolchain's own.
        compiler: The compiler behind the prefix.
        unlimited: Flags that lift the limits of the toolchain's own linker script, to measure what is too large.
    """

    name: str
    chip: str
    prefix: str
    package: str
    flags: tuple[str, ...]
    multiplier: bool
    clock_hz: int
    startup: tuple[str, ...]
    stack: int
    flash: int
    ram: int
    emulator: Emulator
    link: str = ""
    compiler: str = "gcc"
    unlimited: tuple[str, ...] = ()
    folder: Path = field(default=MCU, repr=False)

    @classmethod
    def load(cls, folder: Path) -> Chip:
        """Reads a chip's ``target.toml`` and ``memory.ld``."""
        values: dict[str, Any] = tomllib.loads((folder / "target.toml").read_text())
        memory = folder / "memory.ld"
        if memory.is_file():
            sizes = re.findall(r"\b(FLASH|RAM)\b.*LENGTH = (\d+)([KM]?)", memory.read_text())
            values |= {region.lower(): int(number) * _UNITS[unit] for region, number, unit in sizes}
        emulator = values.pop("emulator")
        emulator["arguments"] = tuple(emulator["arguments"])
        values |= {"flags": tuple(values["flags"]), "startup": tuple(values["startup"])}
        values["unlimited"] = tuple(values.get("unlimited", ()))
        return cls(**{"flash": 0, "ram": 0, "stack": 0, **values}, emulator=Emulator(**emulator), folder=folder)

    def tool(self, name: str) -> str:
        """Returns the path of one of the toolchain's commands, "gcc" or "nm".

        Raises:
            BitLabError: If it is not installed.
        """
        return _find(self.prefix + name, self.package, self.name)

    def find_emulator(self) -> str:
        """Returns the path of the emulator.

        Raises:
            BitLabError: If it is not installed.
        """
        return _find(self.emulator.program, self.emulator.package, self.name)


def _find(command: str, package: str, target: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise BitLabError(
            f"target {target} needs {command}, which is not installed (Debian: apt-get install {package})"
        )
    return path


CHIPS: dict[str, Chip] = {
    chip.name: chip for chip in map(Chip.load, sorted(path.parent for path in MCU.glob("*/target.toml")))
}
