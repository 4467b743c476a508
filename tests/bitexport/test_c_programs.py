"""Exported networks in other people's programs: C++, several networks of several versions, names that meet others."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bitcore.errors import BitLabError
from bitcore.graph import Graph
from bitexport.targets import Artifact, CTarget
from bitexport.targets.c import runtime
from bitexport.targets.c.chips import CHIPS, MCU
from bitexport.targets.c.host import STRICT, input_bytes
from bitexport.targets.c.names import check_name
from graphs import plain_network, random_graph
from networks import extreme_codes, random_chain

Tool = Callable[[str, str], str]
MAIN = """\
#include <cstdio>
#include "{a}.h"
#include "{b}.h"

int main() {{
    static int8_t x[{A}_INPUT_SIZE], y[{B}_INPUT_SIZE];
    static int32_t first[{A}_OUTPUT_SIZE], second[{B}_OUTPUT_SIZE];
    while (std::fread(x, 1, sizeof x, stdin) == sizeof x && std::fread(y, 1, sizeof y, stdin) == sizeof y) {{
        {a}_run(x, first);
        {b}_run(y, second);
        const int32_t classes[] = {{{a}_predict(x), {b}_predict(y)}};
        std::fwrite(first, 1, sizeof first, stdout);
        std::fwrite(second, 1, sizeof second, stdout);
        std::fwrite(classes, 1, sizeof classes, stdout);
    }}
}}
"""


def graphs() -> dict[str, Graph]:
    """What the runtimes take: dense layers with scales and Rice codes, convolutions, residual sums, tables."""
    shapes = ["conv2d", "residual", "normshift"]
    return {
        "dense": random_chain(np.random.default_rng(0), ["4bitsym", "nf4", "ternary"], ["shift", "threshold"]),
        "maps": random_graph(np.random.default_rng(3), shapes, (2, 6, 6), "int8", ["ternary", "fp130"], "linear"),
        "plain": plain_network(np.random.default_rng(4)),
    }


def link(artifacts: tuple[Artifact, Artifact], sources: list[Path], out: Path, require_tool: Tool) -> Path:
    """Compiles C files as C, and a main in C++ that runs two networks, without a warning."""
    gcc, gxx = require_tool("gcc", "gcc"), require_tool("g++", "g++")
    out.mkdir()
    objects = [out / f"{i}.o" for i in range(len(sources))]
    for source, target in zip(sources, objects, strict=True):
        subprocess.run([gcc, *STRICT, "-O0", "-c", str(source), "-o", str(target)], check=True)
    a, b = (artifact.name for artifact in artifacts)
    main = out / "main.cpp"
    main.write_text(MAIN.format(a=a, b=b, A=a.upper(), B=b.upper()))
    includes = [f"-I{artifact.folder}" for artifact in artifacts]
    warnings = ["-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    program = out / "program"
    subprocess.run([gxx, *warnings, *includes, str(main), *map(str, objects), "-o", str(program)], check=True)
    return program


def run(program: Path, pair: tuple[Graph, Graph]) -> None:
    """Runs two networks in turn and compares every output and class."""
    codes = [extreme_codes(graph, 9) for graph in pair]
    data = b"".join(input_bytes(part[i : i + 1]) for i in range(9) for part in codes)
    done = subprocess.run([str(program)], input=data, capture_output=True, check=True)
    rows = np.frombuffer(done.stdout, dtype="=i4").reshape(9, -1)
    scores = [graph.run(part) for graph, part in zip(pair, codes, strict=True)]
    assert np.array_equal(rows, np.concatenate([*scores, *(part.argmax(1)[:, None] for part in scores)], axis=1))


def c_files(*artifacts: Artifact) -> list[Path]:
    return [path for artifact in artifacts for path in sorted(artifact.folder.glob("*.c"))]


@pytest.fixture
def other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime whose descriptions have other layouts, so that nothing works with another's functions."""
    folder = tmp_path / "other runtime"
    shutil.copytree(runtime._FILES, folder)
    for file in ("bit_layers.h", "bit_compact_dense.h"):
        text = (folder / file).read_text()
        changed = re.sub(r"struct(?: \w+)? \{\n(?=    (?:BitColumns|BitWeights|BitAdd|BitCompactRow|const void) )",
                         r"\g<0>    uint32_t unused_by_this_version;\n", text)  # fmt: skip
        assert changed != text
        (folder / file).write_text(changed)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_FILES", folder)
        runtime.runtime_version.cache_clear()
        yield
    runtime.runtime_version.cache_clear()


# ---- several networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "two"), [("dense", "maps"), ("maps", "plain"), ("plain", "dense")])
def test_networks_of_one_version_share_the_runtime(one: str, two: str, tmp_path: Path, require_tool: Tool) -> None:
    first = CTarget(optimize="flash").emit(graphs()[one], tmp_path / "a", "first")
    second = CTarget().emit(graphs()[two], tmp_path / "b", "second")
    shared = {path.name: path for path in c_files(first, second)}
    run(link((first, second), [*shared.values()], tmp_path / "build", require_tool), (graphs()[one], graphs()[two]))


@pytest.mark.parametrize("optimize", ["speed", "flash"])
def test_networks_of_different_versions_do_not_meet(
    optimize: str, tmp_path: Path, require_tool: Tool, request: pytest.FixtureRequest
) -> None:
    """All files of both, one program: each network calls its own version's functions."""
    pair = graphs()["dense"], graphs()["maps"]
    first = CTarget(optimize=optimize).emit(pair[0], tmp_path / "a", "first")
    request.getfixturevalue("other_version")
    second = CTarget(optimize=optimize).emit(pair[1], tmp_path / "b", "second")
    run(link((first, second), c_files(first, second), tmp_path / "build", require_tool), pair)


def test_files_of_another_version_are_refused(
    tmp_path: Path, require_tool: Tool, request: pytest.FixtureRequest
) -> None:
    first = CTarget().emit(graphs()["dense"], tmp_path / "a", "first")
    request.getfixturevalue("other_version")
    second = CTarget().emit(graphs()["dense"], tmp_path / "b", "second")
    shutil.copyfile(first.folder / "first.c", second.folder / "first.c")
    shutil.copyfile(first.folder / "first.h", second.folder / "first.h")
    command = [require_tool("gcc", "gcc"), "-c", str(second.folder / "first.c"), "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "the bit_* files here are another version's" in done.stderr


def test_every_symbol_is_the_networks_or_of_a_version(tmp_path: Path, require_tool: Tool) -> None:
    gcc, nm = require_tool("gcc", "gcc"), require_tool("nm", "binutils")
    files = {}
    for optimize in ("speed", "flash"):
        for name, graph in graphs().items():
            artifact = CTarget(optimize=optimize).emit(graph, tmp_path / f"{name}_{optimize}", f"{name}_{optimize}")
            files |= {path.name: path for path in c_files(artifact)}
    known = set()
    for source in files.values():
        subprocess.run([gcc, "-std=c99", "-c", str(source), "-o", str(tmp_path / "x.o")], check=True)
        symbols = subprocess.run([nm, "-g", str(tmp_path / "x.o")], capture_output=True, text=True, check=True).stdout
        known |= {line.split()[-1] for line in symbols.splitlines()}
    own = {name for name in known if re.fullmatch(r"\w+_(speed|flash)_(run|run_in|predict|arena)", name)}
    assert len(own) == 4 * 6
    assert all(name.endswith(f"_{runtime.runtime_version()}") for name in known - own - {"_GLOBAL_OFFSET_TABLE_"})


def test_the_version_changes_with_any_file(request: pytest.FixtureRequest) -> None:
    before = runtime.runtime_version()
    request.getfixturevalue("other_version")
    assert runtime.runtime_version() != before


# ---- names -----------------------------------------------------------------------------------------------------------

KEYWORDS = ["int", "_Bool", "class", "new", "and", "constexpr", "char8_t", "main", "run"]
FILES = ["stdint", "stdio", "string", "features", "assert", "String", "MATH", "AUX", "images", "semihost", "Bit_dense"]


@pytest.mark.parametrize("name", [*KEYWORDS, *FILES])
def test_names_that_meet_others_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BitLabError, match=f"'{name}' cannot name C functions and files, .*; use another name"):
        CTarget().emit(graphs()["dense"], tmp_path / "out", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["digits", "Int", "avr", "math_net", "Main1", "bit"])
def test_other_names_are_taken(name: str) -> None:
    check_name(name)


def test_no_name_hides_a_file_of_a_firmware() -> None:
    for path in [*MCU.rglob("*.[chS]"), *runtime._sources()]:
        for name in (path.stem, path.stem.upper()):
            with pytest.raises(BitLabError, match="cannot name C functions and files"):
                check_name(name)


@pytest.mark.parametrize("compiler", sorted({"gcc", "clang", *(f"{chip.prefix}gcc" for chip in CHIPS.values())}))
def test_no_name_hides_a_header_that_standard_headers_include(compiler: str, require_tool: Tool) -> None:
    """As far as a compiler says which files it reads, each by its name in the search path."""
    tool = require_tool(compiler, compiler)
    names = (
        "assert ctype errno float inttypes limits math setjmp signal stdarg stdbool stddef stdint stdio stdlib string"
    )
    text = "".join(f"#if __has_include(<{name}.h>)\n#include <{name}.h>\n#endif\n" for name in names.split())
    done = subprocess.run([tool, "-E", "-H", "-x", "c", "-"], input=text, capture_output=True, text=True, check=False)
    found = {Path(line.split()[-1]) for line in done.stderr.splitlines() if line.startswith(".")}
    flat = {path.stem for path in found if path.parent.name in ("include", "x86_64-linux-gnu")}
    assert "stddef" in flat
    for name in flat:
        with pytest.raises(BitLabError, match="cannot name C functions and files"):
            check_name(name)
