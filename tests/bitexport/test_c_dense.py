"""The compact dense runtime: every format and its Rice codes compute what the interpreter computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitcore.formats import FORMATS
from bitcore.graph import Graph, InputSpec, Linear, Node, Requantize
from bitexport.targets import CTarget
from bitexport.targets.c.compact_dense import CODES, RICE, Scale, coded_sizes
from bitexport.targets.c.plan import plan_layers
from bitexport.targets.manifest import Manifest
from networks import FOLDS, extreme_codes, random_chain
from programs import SANITIZERS, build

Tool = Callable[[str, str], str]
BUILDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gcc-sanitized": ("gcc", SANITIZERS),
    "clang-no-multiplier": ("clang", ("-O1", "-DBIT_NO_MULTIPLIER")),
}
ODD = ("2bitsym", "4bitsym", "5bitsym")
WHOLE = ("ternary", "int2", "int4", "int5", "4bit", "8bit")


def check(graphs: dict[str, Graph], folder: Path, compiler: str, flags: tuple[str, ...]) -> None:
    made = [CTarget(optimize="flash").emit(graph, folder / name, name) for name, graph in graphs.items()]
    program = build(made, folder / "build", compiler, flags)
    for name, graph in graphs.items():
        codes = extreme_codes(graph, 20)
        codes[8:] *= np.random.default_rng(0).random(codes[8:].shape) < 0.2  # rows of zeros, and zeros within rows
        bad = np.argwhere(graph.run(codes) != program.run(name, codes))
        assert not len(bad), f"{name}: first difference at {bad[0]}"


def codings(graph: Graph) -> list[str]:
    return [layer.coding for layer in plan_layers(graph, compact=True).layers]


@pytest.mark.parametrize("how", BUILDS)
def test_every_format(how: str, tmp_path: Path, require_tool: Tool) -> None:
    """Tails of groups of inputs and of blocks of outputs; what is between two layers takes turns."""
    compiler, flags = BUILDS[how]
    graphs = {}
    for seed, name in enumerate(list(FORMATS)[list(BUILDS).index(how) :: len(BUILDS)]):
        widths, folds = [37 + seed, [85, 43, 12][seed % 3], 7], [FOLDS[seed % len(FOLDS)]]
        # nf4 makes sure that the dense runtime takes the network, whatever the compact one could run.
        graphs[f"n{name}"] = random_chain(np.random.default_rng(seed), [name, "nf4"], folds, widths)
        assert codings(graphs[f"n{name}"])[0], "not the dense runtime's"
    check(graphs, tmp_path, require_tool(compiler, compiler), flags)


def crowded(name: str, seed: int, inputs: int = 84, outputs: int = 90) -> Graph:
    """Two layers: weights near zero and a scale for each output, then weights of any level."""
    rng = np.random.default_rng(seed)
    spec = InputSpec((inputs,), "int8", 0.5)
    nodes: list[Node] = []
    source, kind = "input", spec.type
    for i, n in enumerate((outputs, 5)):
        step = 2 if name in ODD else 1
        magnitude = np.minimum(rng.geometric(0.6, (n, kind.size)) - 1, FORMATS[name].high // step)
        levels = (step * magnitude + step - 1) * rng.choice([-1, 1], (n, kind.size))
        if i:  # nothing to gain
            levels = rng.choice(FORMATS[name].levels, levels.shape)
        elif len(FORMATS[name].levels) <= 32:  # the longest codes, too
            levels.ravel()[: len(FORMATS[name].levels)] = FORMATS[name].levels
        linear = Linear(levels, name, rng.integers(-500, 500, n))
        kind = linear.infer(kind)
        nodes.append(Node(f"fc{i}", linear, (source,), kind))
        if not i:
            shift = rng.integers(18, 20, n)
            scale = Requantize(rng.integers(2**13, 2**15, n), rng.integers(-(2**20), 2**20, n), shift, 0, 255)
            kind = scale.infer(kind)
            nodes.append(Node("scale", scale, ("fc0",), kind))
            source = "scale"
    return Graph(spec, tuple(nodes), 0.5)


@pytest.mark.parametrize("how", BUILDS)
def test_rice_codes(how: str, tmp_path: Path, require_tool: Tool) -> None:
    compiler, flags = BUILDS[how]
    graphs = {f"n{name}": crowded(name, seed) for seed, name in enumerate((*ODD, *WHOLE))}
    taken = {name: codings(graph)[0] for name, graph in graphs.items()}
    assert [name for name, coding in taken.items() if coding == RICE] == [
        "n4bitsym",
        "n5bitsym",
        "nint4",
        "nint5",
        "n4bit",
        "n8bit",
    ]
    assert all(Scale.of(layer.nodes) for graph in graphs.values() for layer in plan_layers(graph).layers[:1])
    check(graphs, tmp_path, require_tool(compiler, compiler), flags)


def test_rice_codes_are_taken_where_they_pay() -> None:
    graph = crowded("4bitsym", 0)
    layers = [node.op for node in graph.nodes if isinstance(node.op, Linear)]
    codes, rice = coded_sizes(layers[0])
    assert codings(graph) == [RICE, CODES], "the last layer has nothing to gain"
    assert codes == 84 * 45 and rice < 0.8 * codes
    assert set(codings(crowded("4bitsym", 0, 20, 10))) == {""}, "nothing pays for the decoder"
    levels = np.random.default_rng(0).choice(FORMATS["4bitsym"].levels, (90, 84))
    assert coded_sizes(Linear(levels, "4bitsym", np.zeros(1, dtype=np.int64)))[1] > codes


def test_rice_codes_are_reported(tmp_path: Path) -> None:
    graph = crowded("4bitsym", 0)
    folder = CTarget(optimize="flash").emit(graph, tmp_path / "net", "net").folder
    codes, rice = coded_sizes(next(node.op for node in graph.nodes if isinstance(node.op, Linear)))
    found = Manifest.load(folder).rice
    assert list(found) == ["fc0"]
    assert tuple(found["fc0"])[1] == codes
    assert abs(found["fc0"][0] - rice) < 200, "blocks of other sizes"
    saved = codes - found["fc0"][0]
    assert (
        f"| fc0 | 90x84 | 4bitsym, Rice codes: {saved} bytes less | {found['fc0'][0]} |"
        in (folder / "README.md").read_text()
    )
    assert CTarget().emit(graph, tmp_path / "fast", "net") and not Manifest.load(tmp_path / "fast").rice


def test_results_take_the_place_of_sums() -> None:
    """A block's sums are read before the results that lie there are written."""
    graph = crowded("4bitsym", 1)
    plan = plan_layers(graph, compact=True)
    first = plan.layers[0]
    assert first.block == 30
    places = {place.name: place for place in plan.places}
    sums, results = places["scratch of scale"], places["scale"]
    assert results.offset + 60 <= sums.offset + 3 < results.offset + results.bytes
