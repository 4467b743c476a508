"""The vector kernels in C against plain loops: on this machine, and those for Arm in an emulator."""

from __future__ import annotations

import itertools
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitcore.kernels
from bitcore.formats import FORMATS, NumberFormat
from graphs import BLOCKS, ENDS, random_graph
from native_blocks import programs

SIMD = Path(bitcore.kernels.__file__).parent / "csrc" / "simd"
SOURCES = (
    "bit_prepare", "bit_pool", "bit_isa", "bit_linear_simd", "bit_linear_real", "bit_conv_portable", "bit_program",
    "bit_engine", "bit_engine_samples", "bit_engine_tiles",
)  # fmt: skip
HARNESSES = ("simd_harness", "conv_harness", "engine_harness")
# As in CMakeLists.txt.
OPTIONS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno")
FAMILIES = {
    "BIT_X86": {
        "avx2": ["-mavx2"],
        "avxvnni": ["-mavx2", "-mavx512vl", "-mavx512vnni"],  # the same in AVX-512's encoding: see bit_avxvnni.h
        "avx512": [f"-mavx512{x}" for x in ("f", "bw", "vl", "dq", "vnni", "vpopcntdq")],
    },
    "BIT_ARM": {"neon": ["-march=armv8.2-a+dotprod"], "i8mm": ["-march=armv8.2-a+dotprod+i8mm"]},
}


def c_format(fmt: NumberFormat) -> str:
    packing = fmt.packing
    head = (packing.radix, packing.codes, packing.word, len(fmt.levels), fmt.step if fmt.affine else 0)
    return f"    {{{', '.join(map(str, head))}, {{{', '.join(map(str, fmt.levels))}}}}},\n"


def build(folder: Path, compiler: str, family: str) -> list[str]:
    formats = "".join(c_format(fmt) for fmt in FORMATS.values())
    (folder / "formats.h").write_text(f"static const struct bit_format formats[] = {{\n{formats}}};\n")
    options = [compiler, *OPTIONS, f"-D{family}", "-DBIT_AVXVNNI", "-D_GNU_SOURCE", f"-I{SIMD}", f"-I{folder}"]
    files: dict[Path, list[str]] = {SIMD / f"{name}.c": [] for name in SOURCES}
    files |= {SIMD / f"bit_{op}_{isa}.c": f for isa, f in FAMILIES[family].items() for op in ("linear", "conv")}
    files |= {Path(__file__).with_name(f"{name}.c"): [] for name in HARNESSES}
    jobs = [subprocess.Popen([*options, *f, "-c", str(s), "-o", str(folder / f"{s.stem}.o")]) for s, f in files.items()]
    codes = [job.wait() for job in jobs]
    assert not any(codes)
    static = ["-static"] if family == "BIT_ARM" else []
    shared = [str(folder / f"{source.stem}.o") for source in files if source.stem not in HARNESSES]
    for name in HARNESSES:
        objects = [str(folder / f"{name}.o"), *shared]
        subprocess.run([compiler, *static, *objects, "-pthread", "-lm", "-o", str(folder / name)], check=True)
    return [str(folder / name) for name in HARNESSES]


def written_programs(folder: Path) -> Path:
    """Programs of the engine: every kind of operation, weight format, input and end."""
    path = folder / "programs"
    if not path.exists():
        rng, formats = np.random.default_rng(0), list(FORMATS)
        graphs = [random_graph(rng, [name], end=end) for name, end in zip(BLOCKS, itertools.cycle(ENDS), strict=False)]
        graphs += [random_graph(rng, ["conv2d"], formats=formats[i : i + 2]) for i in range(0, len(formats), 2)]
        path.write_bytes(programs([*graphs, *(random_graph(rng) for _ in range(20))]))
    return path


def check(command: list[str], families: set[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert families <= set(result.stdout.split())


def test_arm_kernels_in_an_emulator(tmp_path: Path, require_tool: Callable[[str, str], str]):
    compiler = require_tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    emulator = require_tool("qemu-aarch64", "qemu-user")
    for program in build(tmp_path, compiler, "BIT_ARM"):
        check([emulator, "-cpu", "max", program, str(written_programs(tmp_path))], set(FAMILIES["BIT_ARM"]))


needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are kernels for x86")


@needs_x86
def test_x86_kernels(tmp_path: Path, require_tool: Callable[[str, str], str]):
    for program in build(tmp_path, require_tool("gcc", "gcc"), "BIT_X86"):
        check([program, str(written_programs(tmp_path))], set())


@needs_x86
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_avx_vnni_needs_no_avx512(compiler: str, tmp_path: Path, require_tool: Callable[[str, str], str]):
    """As it ships: every instruction of its own (which begin with the byte 62 in AVX-512) is one that it may use."""
    disassemble = [require_tool("objdump", "binutils"), "-d", "--wide"]
    for op in ("linear", "conv"):
        target = tmp_path / f"{op}.o"
        options = [*OPTIONS, "-DBIT_X86", "-DBIT_AVXVNNI", "-D_GNU_SOURCE", "-mavx2", "-mavxvnni"]
        source = str(SIMD / f"bit_{op}_avxvnni.c")
        subprocess.run([require_tool(compiler, compiler), *options, "-c", source, "-o", str(target)], check=True)
        code = subprocess.run([*disassemble, str(target)], capture_output=True, text=True, check=True).stdout
        assert re.search(r"\tc4 [^\t]*\t(?:\{vex\} )?vpdpbusd ", code)
        assert not re.findall(r":\t62 .*", code)
