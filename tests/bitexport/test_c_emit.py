"""The export folder: complete or absent, rightly named, rightly described."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph import (
    Graph,
    InputSpec,
    IntTensor,
    Linear,
    MaxPool2d,
    Node,
    Requantize,
    Threshold,
)
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.targets import Artifact, CTarget
from bitexport.targets.c.host import run_on_host
from bitexport.targets.c.plan import plan_layers
from bitexport.targets.c.source import CSource
from bitexport.targets.manifest import open_export
from bitlayers.convert import quantize
from networks import extreme_codes, perceptron, random_chain, train_a_little
from programs import SANITIZERS

Tool = Callable[[str, str], str]
ROOT = Path(__file__).resolve().parents[2]
DYNAMIC = PRESETS["mcu-4bitsym"]
STATIC = DYNAMIC.replace(activation_scale="tracked", activation_dtype="uint8")


def chain(seed: int = 0) -> Graph:
    folds = ["normshift", "channel shift", "channel multiplier", "threshold"]
    return random_chain(np.random.default_rng(seed), ["4bitsym", "ternary", "nf4", "binary", "int3"], folds)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is written -----------------------------------------------------------------------------------------------


def test_the_folder_holds_what_it_should(tmp_path: Path) -> None:
    graph = chain()
    artifact = CTarget().emit(graph, tmp_path / "deep" / "export", "digits")
    assert artifact == Artifact(tmp_path / "deep" / "export", "digits")
    names = set(content(artifact.folder))
    assert {"digits.h", "digits.c", "README.md", "graph.safetensors", "bit_runtime.h", "bit_formats.h"} <= names
    assert {name for name in names if name.endswith(".c")} == {
        "digits.c", "bit_argmax.c", "bit_dense.c", "bit_normshift.c", "bit_requantize.c", "bit_requantize_shift.c",
        "bit_threshold.c", "bit_columns_4bit.c", "bit_columns_ternary.c", "bit_columns_nf4.c", "bit_columns_binary.c",
    }  # fmt: skip
    opened, loaded = open_export(artifact.folder)
    assert opened == artifact
    codes = extreme_codes(graph, 20)
    assert np.array_equal(loaded.run(codes), graph.run(codes))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["export"], "nothing temporary is left"


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    one = CTarget().emit(chain(), tmp_path / "one", "net")
    two = CTarget().emit(chain(), tmp_path / "two", "net")
    assert content(one.folder) == content(two.folder)


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    CTarget().emit(chain(0), tmp_path / "out", "first")
    CTarget().emit(chain(1), tmp_path / "out", "second")
    expected = CTarget().emit(chain(1), tmp_path / "fresh", "second")
    assert content(tmp_path / "out") == content(expected.folder)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    CTarget().emit(chain(), tmp_path / "out", "net")
    assert (tmp_path / "out" / "net.c").is_file()


def test_headers_and_readme_tell_the_sizes(tmp_path: Path, require_tool: Tool) -> None:
    gcc, nm = require_tool("gcc", "gcc"), require_tool("nm", "binutils")
    for seed in range(4):
        graph = random_chain(np.random.default_rng(seed))
        artifact = CTarget().emit(graph, tmp_path / f"n{seed}", "digits")
        header = (artifact.folder / "digits.h").read_text()
        sizes = {name: int(value) for name, value in re.findall(r"#define DIGITS_(\w+)_SIZE (\d+)", header)}
        arena = plan_layers(graph).arena
        assert sizes == {"INPUT": graph.input.type.size, "OUTPUT": graph.output.type.size, "ARENA": arena}

        readme = (artifact.folder / "README.md").read_text()
        object_file = tmp_path / f"{seed}.o"
        command = [gcc, "-std=c99", "-O0", "-c", str(artifact.folder / "digits.c"), "-o", str(object_file)]
        subprocess.run(command, check=True)
        symbols = subprocess.run([nm, "-S", str(object_file)], capture_output=True, text=True, check=True).stdout
        sizes = {words[-1]: int(words[1], 16) for words in map(str.split, symbols.splitlines()) if words[-2] == "r"}
        for node in graph.nodes:
            if isinstance(node.op, Linear):
                n, k = node.op.levels.shape
                size = sum(sizes.get(f"{node.name}_{what}", 0) for what in ("weight", "weight_bytes"))
                assert f"| {node.name} | {n}x{k} | {node.op.format} | {size} |" in readme
        assert f"| {arena} |" in readme
        constants = re.search(r"\| constants .* \| (\d+) \|", readme)
        assert constants is not None
        arrays = sum(size for name, size in sizes.items() if not name.endswith("_layer"))
        assert int(constants[1]) == arrays, "what the compiler makes of it"


def test_generated_c_is_formatted(tmp_path: Path) -> None:
    """All but the tables of constants, whose columns nobody reads."""
    clang_format = shutil.which("clang-format", path=str(Path(sys.executable).parent)) or shutil.which("clang-format")
    assert clang_format, "a development dependency: pip install clang-format"
    for i, graph in enumerate([chain(), *(random_chain(np.random.default_rng(seed)) for seed in range(4))]):
        artifact = CTarget().emit(graph, tmp_path / f"n{i}", "digits")
        for path in (artifact.folder / "digits.c", artifact.folder / "digits.h"):
            path.write_text(re.sub(r"\{\n    [-x0-9a-f,\s]+\n\};", "{0};", path.read_text()))
            command = [clang_format, f"--style=file:{ROOT / '.clang-format'}", str(path)]
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == path.read_text()


# ---- names ---------------------------------------------------------------------------------------------------------

KEYWORDS = "int for while double static inline restrict register sizeof void main if case union".split()


@pytest.mark.parametrize(
    "name",
    [*KEYWORDS, "2net", "bit_x", "bit_", "Bit_Runtime", "größe", "a-b", "a b", "", "_x", "a.b", "../x", "x\n", "run"],
)
def test_names_that_c_cannot_take_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BitLabError, match="cannot name C functions"):
        CTarget().emit(chain(), tmp_path / "out", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "Net1", "x_y", "input", "int8", "value", "arena", "net_run", "predict", "bit"])
def test_other_names_compile(name: str, tmp_path: Path) -> None:
    graph = random_chain(np.random.default_rng(0), ["4bitsym", "ternary"], ["shift"])
    artifact = CTarget().emit(graph, tmp_path / "out", name)
    codes = extreme_codes(graph, 10)
    assert np.array_equal(CTarget().run(artifact, codes), graph.run(codes))


def test_any_layer_names_compile(tmp_path: Path) -> None:
    """Those of nn.Sequential are digits; others may meet once their dots are gone, or mean something in C."""
    names = ["0", "0.input", "a.b", "a_b", "größe", "int", "run", "run_x", "x_weight", "x", "weight", "net", "layer_0"]
    names += ["net_run", "arena", "input_", "bit_argmax", "INT32_MIN"]
    rng = np.random.default_rng(0)
    spec = InputSpec((5,), "int8", 1.0)
    nodes: list[Node] = []
    source, kind = "input", spec.type
    for name in names:
        linear = Linear(rng.integers(-7, 8, (4, kind.size)), "int4", rng.integers(-9, 9, 4))
        accumulator = linear.infer(kind)
        shift = Requantize(np.ones(1, dtype=np.int64), rng.integers(-9, 9, 4), rng.integers(1, 4, 4), -127, 127)
        fold = "fold" if name == "0" else f"{name}.input"  # "0.input" is a layer here
        nodes += [Node(name, linear, (source,), accumulator), Node(fold, shift, (name,), shift.infer(accumulator))]
        source, kind = nodes[-1].name, nodes[-1].type
    linear = Linear(rng.integers(-7, 8, (3, 4)), "int4", np.zeros(1, dtype=np.int64))
    nodes.append(Node("output", linear, (source,), linear.infer(kind)))
    graph = Graph(spec, tuple(nodes), 1.0)
    artifact = CTarget().emit(graph, tmp_path / "net", "net")
    codes = extreme_codes(graph, 20)
    assert np.array_equal(CTarget().run(artifact, codes), graph.run(codes))


def test_models_of_unnamed_layers_compile(tmp_path: Path) -> None:
    model = quantize(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), STATIC)
    x = torch.randn(40, 8)
    graph = lower(train_a_little(model, x), (8,))
    artifact = CTarget().emit(graph, tmp_path / "net", "net")
    codes = graph.input.quantize(x)
    assert np.array_equal(CTarget().run(artifact, codes), graph.run(codes))


# ---- refused -------------------------------------------------------------------------------------------------------


def test_wide_activations_are_refused(tmp_path: Path) -> None:
    spec = InputSpec((3,), "fp130", 1.0)
    linear = Linear(np.ones((2, 3), dtype=np.int64), "ternary", np.zeros(1, dtype=np.int64))
    graph = Graph(spec, (Node("fc", linear, ("input",), linear.infer(spec.type)),), 1.0)
    with pytest.raises(BitLabError, match="layer 'fc': its input is wider than 8 bits; quantize it"):
        CTarget().emit(graph, tmp_path / "out", "net")


def test_what_c_cannot_count_is_refused(tmp_path: Path) -> None:
    one, levels = np.zeros(1, dtype=np.int64), np.ones((2, 2**16), dtype=np.int64)
    linear, pool = Linear(levels, "ternary", one), MaxPool2d((1, 256), (1, 1), (0, 0))
    for op, shape, words in (
        (linear, (2**16,), "counts to 65535, not to 65536"),
        (pool, (1, 1, 300), "wider than 255"),
    ):
        spec = InputSpec(shape, "int8", 1.0)
        graph = Graph(spec, (Node("long", op, ("input",), op.infer(spec.type)),), 1.0)
        with pytest.raises(BitLabError, match=f"layer 'long': .*{words}"):
            CTarget().emit(graph, tmp_path / "out", "net")


def test_thresholds_beyond_int32_are_refused(tmp_path: Path) -> None:
    spec = InputSpec((1,), "int8", 1.0)
    linear = Linear(np.ones((1, 1), dtype=np.int64), "ternary", np.array([2**31 - 200]))
    kind = linear.infer(spec.type)
    threshold = Threshold(np.array([[2**31]]), np.array([1]), 0, 1)
    fold = Node("t", threshold, ("fc",), threshold.infer(kind))
    graph = Graph(spec, (Node("fc", linear, ("input",), kind), fold), 1.0)
    with pytest.raises(BitLabError, match="layer 't': a threshold leaves int32"):
        CTarget().emit(graph, tmp_path / "out", "net")


def test_extreme_thresholds_and_biases_run(tmp_path: Path) -> None:
    spec = InputSpec((1,), "int8", 1.0)
    linear = Linear(np.ones((2, 1), dtype=np.int64), "ternary", np.array([2**31 - 129, 129 - 2**31]))
    kind = linear.infer(spec.type)
    assert (kind.low, kind.high) == (-(2**31) + 2, 2**31 - 2)
    thresholds = np.array([[-(2**31) + 1, 2**31 - 129, 2**31 - 1], [-(2**31) + 1, 0, 2**31 - 129]])
    threshold = Threshold(thresholds, np.array([1, -1]), -3, 2)
    act = IntTensor((2,), -3, 3, "int8")
    assert threshold.infer(kind) == act
    last = Linear(np.array([[1, -1], [1, 1]]), "ternary", np.zeros(1, dtype=np.int64))
    nodes = (
        Node("fc", linear, ("input",), kind),
        Node("t", threshold, ("fc",), act),
        Node("head", last, ("t",), last.infer(act)),
    )
    graph = Graph(spec, nodes, 1.0)
    artifact = CTarget().emit(graph, tmp_path / "out", "net")
    codes = np.arange(-127, 128)[:, None]
    assert np.array_equal(run_on_host(artifact.folder, "net", codes, SANITIZERS), graph.run(codes))


def test_foreign_folders_and_files_are_refused(tmp_path: Path) -> None:
    thesis = tmp_path / "home" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(BitLabError, match="holds other files; give a new or empty folder"):
        CTarget().emit(chain(), thesis.parent, "net")
    with pytest.raises(BitLabError, match="is a file; give a folder"):
        CTarget().emit(chain(), thesis, "net")
    with pytest.raises(BitLabError, match="cannot write"):
        CTarget().emit(chain(), thesis / "net", "net")
    assert content(tmp_path) == {"home/thesis.txt": b"years of work"}


def test_folders_that_are_no_export_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(BitLabError, match="is no exported network"):
        open_export(tmp_path)
    with pytest.raises(BitLabError, match="is no exported network"):
        open_export(tmp_path / "missing")
    CTarget().emit(chain(), tmp_path / "out", "net")
    (tmp_path / "out" / "net.h").unlink()
    with pytest.raises(BitLabError, match="is no exported network"):
        open_export(tmp_path / "out")


# ---- failures midway -----------------------------------------------------------------------------------------------


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def fail_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bitexport.targets.c.target.shutil.copyfile", full_disk)


def fail_graph(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("os.replace", full_disk)


def fail_readme(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bitexport.targets.c.target.export_readme", full_disk)


def fail_rename(patch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    patch.setattr(Path, "rename", lambda self, to: full_disk() if self.name == "new" else rename(self, to))


FAILURES = {f.__name__: f for f in (fail_copy, fail_graph, fail_readme, fail_rename)}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_midway_leaves_everything_as_it_was(
    failure: str, earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if earlier:
        CTarget().emit(chain(0), out, "former")
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        FAILURES[failure](patch)
        with pytest.raises(BitLabError, match=r"cannot write .*No space left"):
            CTarget().emit(chain(1), out, "latter")
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if earlier else [])
    CTarget().emit(chain(1), out, "latter")
    assert (out / "latter.c").is_file() and not (out / "former.c").exists()


# ---- the host's compiler -------------------------------------------------------------------------------------------


def test_no_compiler_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain()
    artifact = CTarget().emit(graph, tmp_path / "out", "net")
    before = content(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BitLabError, match="no C compiler found; install one"):
        CTarget().run(artifact, extreme_codes(graph, 5))
    monkeypatch.setenv("CC", "/nonexistent -O1")
    with pytest.raises(BitLabError, match=r"the C compiler '/nonexistent' of \$CC is not installed"):
        CTarget().run(artifact, extreme_codes(graph, 5))
    assert content(tmp_path) == before


def test_cc_chooses_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Tool) -> None:
    graph = chain()
    artifact = CTarget().emit(graph, tmp_path / "out", "net")
    codes = extreme_codes(graph, 5)
    monkeypatch.setenv("CC", f"{require_tool('clang', 'clang')} -O0")
    assert np.array_equal(CTarget().run(artifact, codes), graph.run(codes))


def test_c_that_does_not_compile_or_run_is_an_error(tmp_path: Path) -> None:
    graph = chain()
    artifact = CTarget().emit(graph, tmp_path / "out", "net")
    source = artifact.folder / "net.c"
    whole = source.read_text()
    source.write_text(whole + "\nint unused_warning(int a) { return 1; }\n")
    with pytest.raises(BitLabError, match="does not compile with"):
        CTarget().run(artifact, extreme_codes(graph, 5))
    body = "void net_run(const int8_t *input, int32_t *output) {"
    source.write_text("#include <stdlib.h>\n" + whole.replace(body, f"{body} exit(3);"))
    with pytest.raises(BitLabError, match="failed"):
        CTarget().run(artifact, extreme_codes(graph, 5))


def test_the_readme_of_every_kind_of_input(tmp_path: Path) -> None:
    x = torch.randn(8, 24)
    for config, words in (
        (DYNAMIC, "the smallest power of two that clips nothing"),
        (PRESETS["bitnet"], "each sample has a scale of its own, the smallest that clips nothing"),
        (STATIC, "limited to -127...127"),
        (STATIC.replace(input_dtype="uint8"), "limited to 0...255"),
    ):
        widths = (24, 5) if config == PRESETS["bitnet"] else (24, 9, 5)
        graph = lower(train_a_little(perceptron(config, widths), x), (24,), {"pixels": "x / 16"})
        CTarget().emit(graph, tmp_path / "out", "net")
        readme = " ".join((tmp_path / "out" / "README.md").read_text().split())
        assert words in readme
        assert "x / 16" in readme
        assert "net_predict(input)" in readme


def test_every_weight_format_has_its_runtime_file(tmp_path: Path) -> None:
    for name in FORMATS:
        artifact = CTarget().emit(
            random_chain(np.random.default_rng(0), [name], [], [3, 2], "int8"), tmp_path / name, "net"
        )
        sources = "".join(path.read_text() for path in artifact.folder.glob("bit_columns_*.c"))
        assert sources, name


# ---- what its comments say -------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two convolutions with a shortcut around the second one, a pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 5, 3, padding=1, bias=False)
        self.b = nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.fc = nn.Linear(80, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        x = (self.b(x) + x).relu()
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1))


def test_graphs_know_the_scales_of_their_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    model = train_a_little(quantize(Residual(), PRESETS["mcu-ternary-static"]), x)
    graph = lower(model, (1, 8, 8))
    seen: list[torch.Tensor] = []
    model.get_submodule("fc").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(x)
    codes = dict(graph.trace(graph.input.quantize(x)))["flatten"]
    scale = next(node.scale for node in graph.nodes if node.name == "flatten")
    assert scale is not None
    assert np.abs(seen[0].numpy().clip(0, 255 * scale) - codes * scale).max() <= scale / 2
    graph.save(tmp_path / "graph.safetensors")
    again = Graph.load(tmp_path / "graph.safetensors")
    assert [node.scale for node in again.nodes] == [node.scale for node in graph.nodes]


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("preset", ["mcu-ternary-static", "mcu-ternary"])
def test_the_map_gives_place_range_and_scale_of_every_buffer(preset: str, compact: bool) -> None:
    torch.manual_seed(0)
    static = preset.endswith("static")
    plain = nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3, bias=False))
    model = train_a_little(quantize(Residual() if static else plain, PRESETS[preset]), torch.randn(8, 1, 8, 8))
    graph = lower(model, (1, 8, 8))
    source = CSource(graph, "net", compact=compact)
    text = source.source().partition("#include")[0]
    pattern = r"\[(\d+)\.\.(\d+)\): (\S+), (\w+) (-?\d+) to (-?\d+)(?: in steps of (\S+))?,"
    found = {m[3]: (int(m[1]), int(m[2]), m[4], int(m[5]), int(m[6]), m[7]) for m in re.finditer(pattern, text)}
    output = graph.output.type
    kinds = {**source.plan.types, "output": IntTensor(output.shape, output.low, output.high)}
    scales = {node.name: node.scale for node in graph.nodes}
    scales |= {"input": graph.input.scale, "output": graph.output_scale}
    expected = {
        place.name: (
            place.offset,
            place.offset + place.bytes,
            kinds[place.name].storage,
            kinds[place.name].low,
            kinds[place.name].high,
            repr(scales[place.name]) if static else None,
        )
        for place in source.plan.places
        if not place.name.startswith("scratch of ")
    }
    assert found == expected
    assert all((scales[name] is not None) == static for name in found)
