"""Builds the firmware of an exported network for a chip: how large it is, and whether it fits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitcore.errors import BitLabError
from bitexport.targets.c.chips import Chip

C_FLAGS = (
    *("-std=gnu99", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-asynchronous-unwind-tables"),
    *("-ffunction-sections", "-fdata-sections"),
)


@dataclass(frozen=True)
class Size:
    """What a firmware takes, in bytes.

    Attributes:
        flash: Code, constants and initial values, with the start-up.
        ram: Static memory: the network's arena, which holds the input, and the class.
    """

    flash: int
    ram: int


class DoesNotFitError(BitLabError):
    """A firmware exceeds its chip.

    Attributes:
        flash: Bytes of flash that are missing, 0 or less if none.
        ram: Bytes of RAM.
    """

    def __init__(self, chip: Chip, flash: int, ram: int) -> None:
        self.flash, self.ram = flash, ram
        parts = [f"{what} by {size:,} bytes" for what, size in (("flash", flash), ("RAM", ram)) if size > 0]
        remedy = "use fewer weights or a narrower weight format"
        if ram > 0:
            remedy = f"RAM holds arena, input and {chip.stack} bytes of stack: use fewer channels, or pool earlier"
        super().__init__(f"the network does not fit the {chip.chip} ({chip.name}), {' and '.join(parts)}; {remedy}")


def defines(name: str, chip: Chip) -> list[str]:
    """Returns the compiler's flags that name a network for the programs in ``bitexport/mcu``."""
    upper = name.upper()
    return [
        f'-DBIT_NETWORK_HEADER="{name}.h"',
        f"-DBIT_NETWORK_RUN={name}_run",
        f"-DBIT_NETWORK_PREDICT={name}_predict",
        f"-DBIT_NETWORK_INPUT={upper}_INPUT",
        f"-DBIT_NETWORK_INPUT_SIZE={upper}_INPUT_SIZE",
        f"-DBIT_NETWORK_OUTPUT_SIZE={upper}_OUTPUT_SIZE",
        *([] if chip.multiplier else ["-DBIT_NO_MULTIPLIER"]),
    ]


def link(
    chip: Chip, sources: Sequence[Path], folder: Path, out: Path, flags: Sequence[str] = (), memory: Path | None = None
) -> Path:
    """Compiles a program for a chip: its start-up, some sources, and the exported network in ``folder``.

    Args:
        chip: The chip.
        sources: C files of the program, with those of the network.
        folder: Where the network's headers are.
        out: A folder for the program; made if missing.
        flags: More flags for compiler and linker.
        memory: Another machine's memories instead of the chip's.

    Returns:
        The program.

    Raises:
        BitLabError: If the toolchain is missing, or the program does not compile or does not fit; the message says by
            how many bytes.
    """
    out.mkdir(parents=True, exist_ok=True)
    program = out / "program"
    script: list[str] = []
    if chip.link:
        shutil.copyfile(memory or chip.folder / "memory.ld", out / "memory.ld")
        script = ["-nostdlib", "-nostartfiles", f"-L{out}", "-T", str(chip.folder / chip.link)]
        script += _linker_options(chip)
    gc = [] if chip.name == "wasm32" else ["-Wl,--gc-sections"]
    files = [str(chip.folder / name) for name in chip.startup] + [str(source) for source in sources]
    command = [chip.tool(chip.compiler), *chip.flags, *C_FLAGS, *flags, f"-I{folder}", f"-I{chip.folder.parent}"]
    libraries = ["-lgcc"] if chip.compiler == "gcc" else []
    done = subprocess.run(
        [*command, *files, *script, *gc, *libraries, "-o", str(program)], capture_output=True, text=True, check=False
    )
    over = dict(re.findall(r"region `(FLASH|RAM)' overflowed by (\d+) bytes", done.stderr))
    if over:
        raise DoesNotFitError(chip, int(over.get("FLASH", 0)), int(over.get("RAM", 0)))
    if done.returncode:
        raise BitLabError(f"'{folder}' does not compile for {chip.name}:\n{done.stderr.strip()}")
    return program


def _linker_options(chip: Chip) -> list[str]:
    """The linker's options beside its script: the chip's reserve for the stack."""
    return ["-Wl,--no-warn-rwx-segments", f"-Wl,--defsym=__stack_size={chip.stack}"]


def measure_size(chip: Chip, name: str, folder: Path, sources: Sequence[Path], out: Path) -> Size:
    """Builds the smallest program around a network and returns its size.

    Raises:
        BitLabError: As `link`; also if it exceeds the memories of a chip without a linker script of ours.
    """
    flags = [*defines(name, chip), "-DBIT_NETWORK_PREDICT_ONLY", *chip.unlimited]
    program = link(chip, [chip.folder.parent / "main.c", *sources], folder, out, flags)
    lines = subprocess.run(
        [chip.tool("size"), "-A", str(program)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sections = {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 3 and words[1].isdigit()}
    data, bss = sections.get(".data", 0), sections.get(".bss", 0)
    size = Size(sections[".text"] + sections.get(".rodata", 0) + data, data + bss)
    flash, ram = size.flash - chip.flash, size.ram + chip.stack - chip.ram
    if flash > 0 or ram > 0:
        raise DoesNotFitError(chip, flash, ram)
    return size


def write_project(chip: Chip, name: str, sources: Sequence[str], out: Path) -> None:
    """Writes a complete firmware project for an exported network: programs, start-up, linker scripts, a Makefile.

    Args:
        chip: The chip.
        name: The network's name.
        sources: The network's C files, in the folder above.
        out: The project's folder.
    """
    out.mkdir()
    emulator = chip.emulator
    script = [chip.link] if chip.link else []
    for file in (*chip.startup, *script):
        shutil.copyfile(chip.folder / file, out / Path(file).name)
    for file in ("main.c", "console.c", "semihost.h", "Makefile"):
        shutil.copyfile(chip.folder.parent / file, out / file)
    run: list[str] = []
    link_flags: list[str] = []
    if chip.link:
        for kind, memory in (("chip", "memory.ld"), ("emulated", emulator.memory)):
            (out / kind).mkdir()
            shutil.copyfile(chip.folder / memory, out / kind / "memory.ld")
        options = ("-nographic", "-monitor none", "-serial none", "-semihosting", "-kernel")
        run = [emulator.program, *emulator.arguments, *options]
        link_flags = ["-nostdlib", "-nostartfiles", "-T", Path(chip.link).name, *_linker_options(chip)]
    lines = {
        "NAME": name,
        "SOURCES": " ".join(sources),
        "PREFIX": chip.prefix,
        "FLAGS": " ".join(chip.flags),
        "SETTINGS": "" if chip.multiplier else "-DBIT_NO_MULTIPLIER",
        "STARTUP": " ".join(Path(file).name for file in chip.startup),
        "LINK": " ".join(link_flags),
        "RUN": " ".join(run),
    }
    text = "".join(f"{key} := {value}".rstrip() + "\n" for key, value in lines.items())
    comment = f"# {chip.chip}; Debian: apt-get install make {chip.package} {emulator.package}\n"
    (out / "settings.mk").write_text(comment + text, "utf-8")
