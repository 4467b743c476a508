"""Every target: the same bits in its emulator, sizes that fit, a firmware project that builds and runs."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitcore.errors import BitLabError
from bitcore.graph import Conv2d, Flatten, Graph, MaxPool2d, Requantize
from bitexport.targets import TARGETS, CTarget, get_target
from bitexport.targets.c.chips import CHIPS, Chip
from bitexport.targets.c.emulate import emulate
from bitexport.targets.c.firmware import defines, link, measure_size
from bitexport.targets.c.host import input_bytes
from bitexport.targets.c.plan import plan_layers
from bitexport.targets.c.runtime import runtime_version
from bitexport.targets.manifest import Manifest
from graphs import GraphMaker, plain_network, random_graph
from networks import extreme_codes, random_chain

Tool = Callable[[str, str], str]
BLOCKS = ["conv2d", "maxpool2d", "residual"]


@pytest.fixture
def tools(require_tool: Tool) -> Callable[[str], None]:
    """Compiler and emulator of a target, or no test."""

    def require(target: str) -> None:
        chip = CHIPS[target]
        require_tool(chip.prefix + chip.compiler, chip.package)
        require_tool(chip.emulator.program, chip.emulator.package)

    return require


@pytest.mark.parametrize("target", CHIPS)
def test_same_bits_in_the_emulator(target: str, tmp_path: Path, tools: Callable[[str], None]) -> None:
    tools(target)
    graph = random_graph(np.random.default_rng(3), BLOCKS, (2, 6, 6), "int8", ["4bitsym"], "linear")
    artifact = TARGETS[target].emit(graph, tmp_path / "net", "network")
    manifest = Manifest.load(artifact.folder)
    codes = extreme_codes(graph, 7)
    found = emulate(CHIPS[target], artifact.folder, manifest, codes)
    expected = graph.run(codes)
    assert np.array_equal(found.outputs, expected)
    assert np.array_equal(found.classes, expected.argmax(1))
    if found.size is not None:
        chip = CHIPS[target]
        assert 0 < found.size.flash <= chip.flash
        assert manifest.size("arena") < found.ram <= chip.ram
        assert 0 < found.stack <= chip.stack
        assert (found.counts > 100).all()


@pytest.mark.parametrize("target", CHIPS)
def test_the_compact_runtime_in_the_emulator(target: str, tmp_path: Path, tools: Callable[[str], None]) -> None:
    tools(target)
    for seed in (4, 6):  # shifts, multipliers
        graph = plain_network(np.random.default_rng(seed))
        artifact = get_target(target, "flash").emit(graph, tmp_path / f"net{seed}", "network")
        manifest = Manifest.load(artifact.folder)
        assert all(layer.compact for layer in plan_layers(graph, compact=True).layers)
        codes = extreme_codes(graph, 7)
        found = emulate(CHIPS[target], artifact.folder, manifest, codes)
        assert np.array_equal(found.outputs, graph.run(codes))


def test_the_compact_runtime_is_taken_where_the_fast_one_does_not_fit(
    tmp_path: Path, tools: Callable[[str], None]
) -> None:
    tools("rv32ec")
    maker = GraphMaker(np.random.default_rng(0), (420,), "uint8")
    maker.conv_formats = ["ternary"]
    maker.linear(170)
    maker.add(Requantize(np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.full(1, 6), 0, 255))
    maker.linear(3)
    graph = Graph(maker.spec, tuple(maker.nodes), 1.0)
    artifact = get_target("rv32ec").emit(graph, tmp_path / "auto", "net")
    assert Manifest.load(artifact.folder).optimize == "flash"
    with pytest.raises(BitLabError, match="does not fit the CH32V003"):
        get_target("rv32ec", "speed").emit(graph, tmp_path / "speed", "net")
    with pytest.raises(BitLabError, match="target engine is not optimized for speed or flash"):
        get_target("engine", "flash")
    with pytest.raises(BitLabError, match="did you mean 'flash'"):
        get_target("rv32ec", "flas")


def test_the_firmware_project_builds_and_runs(tmp_path: Path, tools: Callable[[str], None], require_tool: Tool) -> None:
    make = require_tool("make", "make")
    graph = random_chain(np.random.default_rng(0), ["4bitsym", "ternary"], ["shift"], [20, 12, 11], "int8")
    codes = extreme_codes(graph, 9)
    for target in ("rv32ec", "cortex-m0", "atmega328p"):
        tools(target)
        chip = CHIPS[target]
        folder = TARGETS[target].emit(graph, tmp_path / target, "network").folder
        command = [make, "-s", "-C", str(folder / "firmware")]
        subprocess.run([*command, "console.bin", "main.elf"], check=True, capture_output=True)

        def tool(name: str, *options: str, chip: Chip = chip, folder: Path = folder) -> str:
            words = [chip.tool(name), *options, str(folder / "firmware" / "main.elf")]
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout

        sources = [folder / file for file in Manifest.load(folder).sources]
        text, data = map(int, tool("size").splitlines()[1].split()[:2])
        assert text + data == measure_size(chip, "network", folder, sources, tmp_path / f"{target}-size").flash
        runs = "make -C firmware run" in (folder / "README.md").read_text()
        assert runs == (target != "atmega328p"), "a serial port is no terminal"
        if runs:
            assert f"{chip.stack:08x} A __stack_size" in tool("nm"), "the chip's reserve"
            printed = subprocess.run(
                [*command, "run"], input=input_bytes(codes), check=True, capture_output=True, timeout=60
            ).stdout
            assert list(map(int, printed.split())) == graph.run(codes).argmax(1).tolist()


def test_the_console_fits_where_the_smallest_program_does(
    tmp_path: Path, tools: Callable[[str], None], require_tool: Tool
) -> None:
    """To the last byte of RAM."""
    make, chip = require_tool("make", "make"), CHIPS["rv32ec"]
    tools("rv32ec")
    class_bytes, few = 4, 100

    def network(inputs: int) -> Graph:
        return random_chain(np.random.default_rng(0), ["4bitsym"], [], [inputs, 10], "int8")

    room = chip.ram - chip.stack - class_bytes
    graph = network(few + room - plan_layers(network(few)).arena)
    assert plan_layers(graph).arena == room
    folder = TARGETS["rv32ec"].emit(graph, tmp_path / "net", "network").folder
    subprocess.run([make, "-s", "-C", str(folder / "firmware"), "console.elf"], check=True, capture_output=True)


def test_shifts_need_no_multiplier_on_cortex_m0_either(tmp_path: Path, tools: Callable[[str], None]) -> None:
    """Nothing is linked that multiplies."""
    tools("cortex-m0")
    chip = replace(CHIPS["cortex-m0"], multiplier=False)
    maker = GraphMaker(np.random.default_rng(0), (2, 8, 8), "uint8")
    for fmt in ("4bitsym", "ternary"):
        levels = maker.levels((10, maker.type.shape[0], 3, 3), fmt)
        maker.add(Conv2d(levels, fmt, np.arange(10), (1, 1), (1, 1), (1, 1), 1))
        maker.add(Requantize(np.ones(1, dtype=np.int64), np.arange(10), np.full(10, 5), 0, 255))
        maker.add(MaxPool2d((2, 2), (2, 2), (0, 0)))
    maker.add(Flatten())
    maker.linear(3)
    graph = Graph(maker.spec, tuple(maker.nodes), 1.0)
    folder = CTarget(chip).emit(graph, tmp_path / "net", "net").folder
    files = [chip.folder.parent / "main.c", *(folder / file for file in Manifest.load(folder).sources)]
    program = link(chip, files, folder, tmp_path / "build", [*defines("net", chip), "-DBIT_NETWORK_PREDICT_ONLY"])
    code = subprocess.run([chip.tool("objdump"), "-d", program], check=True, capture_output=True, text=True).stdout
    assert f"<bit_conv2d_rows_{runtime_version()}>:" in code and not re.findall(r"<__\w*mul\w*>:|\tmuls\t", code)


def test_a_network_that_does_not_fit_is_refused(tmp_path: Path, tools: Callable[[str], None]) -> None:
    tools("rv32ec")
    tools("atmega328p")
    rng = np.random.default_rng(0)
    large = random_chain(rng, ["8bit", "8bit"], ["shift"], [200, 120, 10], "int8")
    with pytest.raises(BitLabError, match=r"does not fit the CH32V003 \(rv32ec\), flash by [\d,]+ bytes; use fewer"):
        TARGETS["rv32ec"].emit(large, tmp_path / "flash", "net")
    wide = random_chain(rng, ["binary", "binary"], ["normshift"], [8, 1200, 3], "int8")
    for target in ("rv32ec", "atmega328p"):  # with a linker script of ours, with the toolchain's
        with pytest.raises(BitLabError, match=r"RAM by [\d,]+ bytes; RAM holds arena, input and [\d,]+ bytes of stack"):
            TARGETS[target].emit(wide, tmp_path / "ram", "net")
    assert not list(tmp_path.iterdir())


def test_tools_that_are_not_installed_are_named(tmp_path: Path) -> None:
    graph = random_chain(np.random.default_rng(0), ["4bitsym"], [], [8, 3], "int8")
    chip = replace(CHIPS["rv32ec"], prefix="nowhere-", package="gcc-nowhere")
    with pytest.raises(BitLabError, match=r"needs nowhere-gcc, .* \(Debian: apt-get install gcc-no"):
        CTarget(chip).emit(graph, tmp_path / "out", "net")
    emulator = replace(CHIPS["rv32ec"].emulator, program="qemu-nowhere", package="qemu-system-misc")
    with pytest.raises(BitLabError, match=r"needs qemu-nowhere, .* apt-get install qemu-system-misc"):
        replace(CHIPS["rv32ec"], emulator=emulator).find_emulator()
    assert not list(tmp_path.iterdir())
