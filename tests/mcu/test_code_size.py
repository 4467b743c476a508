"""What the compact runtime of fully connected networks takes on the smallest chip."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import bitcore.kernels
from bitcore.graph import Graph, InputSpec, Linear, Node, Requantize
from bitexport.targets import CTarget
from bitexport.targets.c.chips import CHIPS
from bitexport.targets.c.firmware import defines, link, measure_size
from bitexport.targets.c.plan import plan_layers
from bitexport.targets.c.runtime import copy_runtime, runtime_version
from bitexport.targets.c.source import CSource
from bitexport.targets.manifest import Manifest
from networks import random_linear

RUNTIME = Path(bitcore.kernels.__file__).parent / "csrc" / "portable"
START = {"_start", "main", "network_wait", "network_resume", "memset", "memcpy", "memmove"}
FORMATS = {
    "binary": {"bit_compact_digits", "bit_compact_fill"},
    "ternary": {"bit_compact_5bit", "bit_compact_fill"},
    "2bitsym": {"bit_compact_digits", "bit_compact_fill"},
    "4bitsym": {"bit_compact_4bit"},
    "8bit": {"bit_compact_8bit"},
    "fp130": {"bit_compact_levels"},
    "nf4": {"bit_compact_levels"},
}


def network(name: str, crowded: int = 0, inputs: int = 128) -> Graph:
    """Three layers, scales for each output, products beyond 32 bits; Rice codes pay in the first ``crowded`` ones."""
    rng = np.random.default_rng(0)
    spec = InputSpec((800 if name in ("binary", "ternary", "2bitsym") else inputs,), "int8", 0.5)
    nodes: list[Node] = []
    source, kind = "input", spec.type
    for i, outputs in enumerate((48, 24, 10)):
        linear = random_linear(rng, kind, outputs, name, bias=i == 2)
        if i < crowded:
            linear = Linear(linear.levels * 0 + rng.choice([-1, 1, 3], linear.levels.shape), name, linear.bias)
        kind = linear.infer(kind)
        nodes.append(Node(f"fc{i}", linear, (source,), kind))
        source = f"fc{i}"
        if i < 2:
            multiplier, bias = rng.integers(2**13, 2**15, outputs), rng.integers(-(2**20), 2**20, outputs)
            scale = Requantize(multiplier, bias, rng.integers(20, 22, outputs), 0, 255)
            kind = scale.infer(kind)
            nodes.append(Node(f"scale{i}", scale, (source,), kind))
            source = f"scale{i}"
    return Graph(spec, tuple(nodes), 0.5)


def functions(graph: Graph, folder: Path) -> dict[str, int]:
    """Links the smallest program; returns the bytes of its functions without the start-up."""
    chip = CHIPS["rv32ec"]
    artifact = CTarget(chip, "flash").emit(graph, folder / "net", "net")
    sources = [chip.folder.parent / "main.c", *artifact.folder.glob("*.c")]
    flags = [*defines("net", chip), "-DBIT_NETWORK_PREDICT_ONLY"]
    program = link(chip, sources, artifact.folder, folder / "program", flags)
    listing = subprocess.run([chip.tool("nm"), "-S", program], capture_output=True, text=True, check=True).stdout
    symbols = [words for words in map(str.split, listing.splitlines()) if len(words) == 4 and words[2] in "tT"]
    version = f"_{runtime_version()}"
    return {name.removesuffix(version): int(size, 16) for _, size, _, name in symbols if name not in START}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("toolchain")
def test_a_format_runs_in_a_kilobyte(name: str, tmp_path: Path) -> None:
    found = functions(network(name), tmp_path)
    always = {"bit_compact_dense", "bit_scale", "bit_argmax"}
    assert {function for function in found if function.startswith("bit_")} == always | FORMATS[name]
    assert not [function for function in found if function.startswith("__")], "libgcc: a multiplication, or 64 bits"
    assert sum(found.values()) <= 1024, found


@pytest.mark.usefixtures("toolchain")
def test_rice_codes_run_in_a_kilobyte(tmp_path: Path) -> None:
    found = functions(network("4bitsym", crowded=3), tmp_path)
    assert "bit_compact_rice" in found
    assert sum(found.values()) <= 1024, found


def plain_flash(graph: Graph, folder: Path) -> int:
    """Returns the flash of a network without Rice codes."""
    source = CSource(graph, "net", compact=True, with_rice=False)
    folder.mkdir()
    (folder / "net.c").write_text(source.source())
    (folder / "net.h").write_text(source.header())
    copy_runtime((*source.headers, *source.runtime), folder)
    return measure_size(CHIPS["rv32ec"], "net", folder, sorted(folder.glob("*.c")), folder / "program").flash


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize(("crowded", "inputs"), [(1, 16), (3, 128)])
def test_rice_codes_are_chosen_by_measured_flash(crowded: int, inputs: int, tmp_path: Path) -> None:
    """In one layer of 16 inputs they save less than the decoder takes."""
    graph = network("4bitsym", crowded, inputs)
    artifact = CTarget(CHIPS["rv32ec"], "flash").emit(graph, tmp_path / "net", "net")
    manifest = Manifest.load(artifact.folder)
    files = [artifact.folder / file for file in manifest.sources]
    flash = measure_size(CHIPS["rv32ec"], "net", artifact.folder, files, tmp_path / "program").flash
    plain = plain_flash(graph, tmp_path / "plain")
    text = (artifact.folder / "README.md").read_text()
    places = plan_layers(graph, None, True, bool(manifest.rice)).places
    assert manifest.places == {place.name: [place.offset, place.offset + place.bytes] for place in places}
    if crowded == 3:
        assert manifest.rice and flash < plain
        assert f"Rice codes save {plain - flash} bytes of flash, their decoder included" in text
    else:
        assert not manifest.rice and flash == plain and "Rice" not in text
