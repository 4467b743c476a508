"""Runs exported networks in emulators of their chips: outputs, classes, time and stack."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitcore.errors import BitLabError
from bitcore.graph.ops import Ints
from bitexport.targets.c.chips import Chip
from bitexport.targets.c.firmware import Size, defines, link, measure_size
from bitexport.targets.c.host import input_bytes
from bitexport.targets.manifest import Manifest

_SECONDS = 3600  # the most that an emulator may take
_RESERVE = 1024  # flash that an AVR's probe takes beside the network


@dataclass(frozen=True)
class Emulation:
    """What a chip computed, and what it took.

    Attributes:
        size: Flash and static RAM of the smallest program around the network; ``None`` for WebAssembly.
        stack: The deepest stack, in bytes; 0 for WebAssembly.
        outputs: int64 ``[samples, outputs]``.
        classes: int64 ``[samples]``.
        counts: Instructions (AVR: cycles) of each sample; zeros for WebAssembly.
    """

    size: Size | None
    stack: int
    outputs: Ints
    classes: Ints
    counts: Ints

    @property
    def ram(self) -> int:
        """Static RAM, which holds the input, and stack."""
        return (self.size.ram if self.size else 0) + self.stack


def emulate(chip: Chip, folder: Path, manifest: Manifest, codes: Ints) -> Emulation:
    """Builds an exported network for a chip and runs it on integer inputs.

    Args:
        chip: The chip.
        folder: The export folder.
        manifest: Its manifest.
        codes: int64 ``[samples, *shape]``.

    Raises:
        BitLabError: If a tool is missing, the network does not fit or the program fails.
    """
    emulator, name = chip.find_emulator(), manifest.name
    sources = [folder / file for file in manifest.sources]
    with tempfile.TemporaryDirectory(prefix="bitlab-") as temporary:
        work = Path(temporary)
        size = None if chip.name == "wasm32" else measure_size(chip, name, folder, sources, work / "size")
        images = [input_bytes(codes[i : i + 1]) for i in range(len(codes))]
        if chip.name == "wasm32":
            words = _wasm(chip, emulator, folder, manifest, images, work)
        elif chip.name == "atmega328p":
            assert size is not None
            words = _avr(chip, emulator, name, folder, sources, images, work, size)
        else:
            words = _semihosted(chip, emulator, name, folder, sources, images, work)
    rows = np.concatenate([part[:-1] for part in words]).reshape(len(codes), -1).astype(np.int64)
    ticks = (rows[:, -1] << 32) | (rows[:, -2] & 0xFFFFFFFF)
    counts = np.round(ticks / chip.emulator.per_instruction).astype(np.int64)
    return Emulation(size, max(int(part[-1]) for part in words), rows[:, :-3], rows[:, -3], counts)


def _semihosted(
    chip: Chip, emulator: str, name: str, folder: Path, sources: Sequence[Path], images: Sequence[bytes], work: Path
) -> list[Ints]:
    """QEMU: one run, images and results in files."""
    probe = chip.folder.parent / "probe.c"
    flags = [*defines(name, chip), "-DBIT_NETWORK_PAINT=4096"]
    memory = (chip.folder / chip.emulator.memory).resolve()
    program = link(chip, [probe, *sources], folder, work / "probe", flags, memory)
    (work / "images").write_bytes(b"".join(images))
    options = ["-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
    options += ["-icount", f"shift={chip.emulator.shift}"]
    _run([emulator, *chip.emulator.arguments, *options, "-kernel", str(program)], work, chip)
    return [_read(work / "results", len(images), chip)]


def _avr(
    chip: Chip,
    emulator: str,
    name: str,
    folder: Path,
    sources: Sequence[Path],
    images: Sequence[bytes],
    work: Path,
    size: Size,
) -> list[Ints]:
    """simavr: as many images a run as flash has room for; results on the serial port."""
    room = max(1, (chip.flash - size.flash - _RESERVE) // len(images[0]))
    paint = max(64, min(512, chip.ram - size.ram - 160))
    parts = []
    for start in range(0, len(images), room):
        batch = images[start : start + room]
        rows = ",\n".join(f"{{{', '.join(str(int(v)) for v in np.frombuffer(image, np.int8))}}}" for image in batch)
        out = work / f"probe{start}"
        out.mkdir()
        (out / "images.h").write_text(
            f"#define IMAGES {len(batch)}\n"
            f"static const int8_t images[][BIT_NETWORK_INPUT_SIZE] PROGMEM = {{\n{rows}\n}};\n"
        )
        flags = [*defines(name, chip), f"-DBIT_NETWORK_PAINT={paint}", f"-I{out}"]
        program = link(chip, [chip.folder.parent / "probe.c", *sources], folder, out, flags)
        text = _run([emulator, *chip.emulator.arguments, str(program)], work, chip)
        # simavr shows what the serial port sends in colour and breaks its lines.
        sent = "".join(re.findall(r"\x1b\[32m(.*)", text))
        digits = re.sub(r"\x1b\[\d*m|[^0-9a-f]", "", sent)
        (out / "results").write_bytes(bytes.fromhex(digits[: len(digits) // 2 * 2]))
        parts.append(_read(out / "results", len(batch), chip))
    return parts


def _wasm(
    chip: Chip,
    emulator: str,
    folder: Path,
    manifest: Manifest,
    images: Sequence[bytes],
    work: Path,
) -> list[Ints]:
    """node: one run."""
    name, sources = manifest.name, [folder / file for file in manifest.sources]
    exported = [f"-Wl,--export={name}_{what}" for what in ("arena", "run", "predict")]
    program = link(chip, sources, folder, work / "probe", [*exported, "-Wl,--export=__heap_base"])
    (work / "images").write_bytes(b"".join(images))
    (offset, _), (begin, end) = manifest.place("input"), manifest.place("output")
    sizes = [len(images[0]), (end - begin) // 4, offset]
    _run([emulator, str(chip.folder / "run.mjs"), str(program), name, *map(str, sizes)], work, chip)
    return [_read(work / "results", len(images), chip)]


def _run(command: list[str], work: Path, chip: Chip) -> str:
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise BitLabError(f"{chip.emulator.program} did not finish within {_SECONDS} s; use fewer samples") from error
    text = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode:
        raise BitLabError(f"the network fails on {chip.name}, in {chip.emulator.program}: {text.strip()}")
    return text


def _read(results: Path, samples: int, chip: Chip) -> Ints:
    data = results.read_bytes() if results.is_file() else b""
    words = np.frombuffer(data[: len(data) // 4 * 4], dtype="<i4").astype(np.int64)
    if len(words) < 2 or (len(words) - 1) % samples:
        raise BitLabError(f"the network on {chip.name} did not finish in {chip.emulator.program}")
    return words
