"""Graphs whose nodes, data and classes are called anything, through every output: none of it is code anywhere."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitcore.errors import BitLabError
from bitcore.graph import Graph, Linear, graph_dot, graph_table
from bitexport.targets import TARGETS, CTarget, Manifest, get_target, open_export
from bitexport.targets.c.chips import CHIPS
from bitexport.targets.c.readme import export_readme
from bitexport.targets.c.source import CSource
from bitexport.targets.manifest import MANIFEST_FILE
from graphs import random_graph
from hostile_names import HOSTILE, named, obeyed
from networks import extreme_codes, random_chain

INFO = {
    "dataset": "`|<b>\x1b[31m\n| evil | 1 |",
    "preprocessing": {},
    "pixels": "x = <script>|`\n# evil\n",
    "classes": list(HOSTILE),
    "*/": "*/ #error evil",
}
SAVED = [name for name in HOSTILE if "\udc80" not in name]  # which JSON of a file cannot hold


def long_graph(names: list[str]) -> Graph:
    """A chain with as many nodes as there are names: dense layers and what is behind them."""
    depth = len(names) // 2 + 1
    graph = random_chain(
        np.random.default_rng(1), ["ternary"] * depth, ["shift"] * (depth - 1), [3] * (depth + 1), "int8"
    )
    return replace(named(graph, names), info=INFO)


@pytest.fixture(params=["built", "loaded"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Graph:
    """A graph of every hostile name, as Python makes it and as a file holds it."""
    if request.param == "built":
        return long_graph(list(HOSTILE))
    built = long_graph(SAVED)
    built.save(tmp_path / "graph.safetensors")
    return Graph.load(tmp_path / "graph.safetensors")


def tables(markdown: str) -> Iterator[list[str]]:
    """The lines of each table."""
    for block in re.split(r"\n(?!\|)", markdown):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            yield lines


def columns(line: str) -> int:
    return len(re.split(r"(?<!\\)\|", line)) - 2


@pytest.mark.parametrize("optimize", ["speed", "flash"])
def test_c_of_all_names_compiles_and_is_the_network(graph: Graph, optimize: str, tmp_path: Path) -> None:
    if any("\udc80" in node.name for node in graph.nodes):
        graph = named(graph, [node.name.replace("\udc80", "surrogate") for node in graph.nodes])
    target = CTarget(optimize=optimize)
    artifact = target.emit(graph, tmp_path / "out", "network")
    codes = extreme_codes(graph, 20)
    assert np.array_equal(target.run(artifact, codes), graph.run(codes))
    for path in sorted((tmp_path / "out").glob("network.*")):
        text = path.read_text("utf-8")
        assert "evil(" not in text and "#error evil" not in text and "??/" not in text
        assert not obeyed(text) and all(len(line) < 400 for line in text.splitlines())
        assert "*/" not in re.sub(r"(?m)/\*.*?\*/", "", text, flags=re.DOTALL)


def test_the_readme_keeps_its_tables_and_has_no_tags(graph: Graph) -> None:
    source = CSource(graph, "network")
    source.source()
    text = export_readme(source)
    found = list(tables(text))
    assert len(found) == 2 and len(found[0]) == 2 + sum(node.op.kind == "linear" for node in graph.nodes)
    for lines in found:
        assert {columns(line) for line in lines} == {columns(lines[0])}
    assert not obeyed(text) and "<" not in text.replace("< IMAGE", "") and "# evil" not in text.splitlines()
    assert "&#96;&#124;&#60;b&#62;" in text and "evil &#124; 1" in text  # the dataset is shown, as it is


def test_graphviz_has_a_box_for_each_node_and_nothing_else(graph: Graph) -> None:
    text = graph_dot(graph)
    quoted = r'"(?:[^"\\\n]|\\.)*"'
    box, arrow = rf"  ({quoted}) \[label={quoted}\];", rf"  ({quoted}) -> ({quoted});"
    first, style, *lines, last, empty = text.split("\n")
    assert (first, last, empty) == ("digraph network {", "}", "") and "shape=box" in style
    boxes = [found[1] for line in lines if (found := re.fullmatch(box, line))]
    arrows = [found.groups() for line in lines if (found := re.fullmatch(arrow, line))]
    assert len(boxes) + len(arrows) == len(lines) and len(set(boxes)) == len(boxes) == len(graph.nodes) + 1
    assert {end for ends in arrows for end in ends} == set(boxes) and not obeyed(text)
    labels = re.findall(rf"label={quoted}", text)
    assert not any(re.search(r"\\[NGTHELlr]", label.replace("\\\\", "")) for label in labels)
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=text.encode(), check=True, capture_output=True, timeout=60)


def test_a_table_for_people_has_a_line_for_each_node(graph: Graph) -> None:
    text = graph_table(graph)
    assert len(text.split("\n")) == len(graph.nodes) + 2 and not obeyed(text)


def test_loaded_names_are_plain_and_plain_names_stay(tmp_path: Path) -> None:
    long_graph(SAVED).save(tmp_path / "graph.safetensors")
    loaded = Graph.load(tmp_path / "graph.safetensors")
    names = [node.name for node in loaded.nodes]
    assert all(re.fullmatch(r"[\w.-]{1,90}", name) for name in names) and not {"input", "output"} & set(names)
    loaded.save(tmp_path / "again.safetensors")
    assert [node.name for node in Graph.load(tmp_path / "again.safetensors").nodes] == names
    codes = extreme_codes(loaded, 20)
    assert np.array_equal(loaded.run(codes), long_graph(SAVED).run(codes))


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_a_loaded_graph(name: str, tmp_path: Path, require_tool: Callable[[str, str], str]) -> None:
    if chip := CHIPS.get(name):
        require_tool(chip.prefix + chip.compiler, chip.package)
    few = long_graph(SAVED[:4])
    few.save(tmp_path / "graph.safetensors")
    target = get_target(name)
    artifact = target.emit(Graph.load(tmp_path / "graph.safetensors"), tmp_path / "out", "network")
    opened, again = open_export(artifact.folder)
    codes = extreme_codes(again, 8)
    assert np.array_equal(target.run(opened, codes), few.run(codes))
    stretches = {"input", "output", *(node.name for node in again.nodes)}
    assert set(Manifest.load(artifact.folder).places) <= stretches | {f"scratch of {name}" for name in stretches}
    settings = artifact.folder / "firmware" / "settings.mk"
    if settings.exists():
        lines = settings.read_text().splitlines()
        assert all(re.fullmatch(r"#.*|[A-Z]+ :=[^$`]*", line) for line in lines)
        subprocess.run(["make", "-n", "-C", settings.parent], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("field", ["files", "sources", "name", "target", "optimize", "rice"])
def test_manifests_of_strangers_name_no_other_files(field: str, tmp_path: Path) -> None:
    artifact = CTarget().emit(long_graph(["a", "b"]), tmp_path / "out", "network")
    path = artifact.folder / MANIFEST_FILE
    whole = json.loads(path.read_text())
    bad = {"name": ["a/b", "*/", "", "int", 3, None], "target": [3, ["c"]], "optimize": [None], "rice": [3]}
    files = [[".."], ["../x.c"], [""], ["/x.c"], ["a\x00"], [3], [["x"]], ["."]]
    for value in bad.get(field, files):
        path.write_text(json.dumps({**whole, field: value}))
        with pytest.raises(BitLabError, match="no exported network"):
            Manifest.load(artifact.folder)


# Parts of C's identifiers: what layers' arrays, the network's own functions and other layers are called.
_PARTS = ("a", "net", "weight", "weight_bytes", "bytes", "order", "0", "1", "2", "bias", "value", "layer", "table",
          "run", "run_in", "in", "codes", "channels", "shift", "thresholds", "output", "input", "arena")  # fmt: skip


def hostile_graph(rng: np.random.Generator) -> Graph:
    """A random graph with hostile names, and names that could be those of another layer's arrays."""
    graph = random_graph(rng) if rng.integers(2) else random_chain(rng)
    names: dict[str, None] = {}
    while len(names) < len(graph.nodes):
        joint = str(rng.choice(["_", ".", "__"]))
        parts = joint.join(map(str, rng.choice(_PARTS, rng.integers(1, 4))))
        letters = "".join(map(chr, rng.choice([0, 9, 10, 13, 27, 34, 39, 42, 47, 63, 92, 95, 97, 0x202E], 6)))
        hostile = HOSTILE[rng.integers(len(HOSTILE))]
        names[(parts, parts, hostile, letters)[rng.integers(4)]] = None
    return named(graph, list(names))


def definitions(text: str) -> list[str]:
    """What C defines: arrays, structures, functions."""
    return re.findall(r"^(?:static const \w+|static \w+|void|int|int32_t) (\w+)[\[( ]", text, re.MULTILINE)


def check_source(graph: Graph) -> None:
    text = CSource(graph, "net", compact=bool(len(graph.nodes) % 2)).source()
    assert text.isprintable() or not obeyed(text)
    rest = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert "*/" not in rest and "/*" not in rest and "??" not in text and "\\\n" not in text
    assert rest.count("#error") == 1 and all(ord(c) < 128 for c in rest)
    defined = definitions(rest)
    assert defined and len(defined) == len(set(defined))


@pytest.mark.parametrize("seed", range(30))
def test_random_names_never_meet(seed: int) -> None:
    check_source(hostile_graph(np.random.default_rng(seed)))


@pytest.mark.slow
def test_ten_thousand_graphs_of_hostile_names_become_c() -> None:
    for seed in range(10_000):
        check_source(hostile_graph(np.random.default_rng([7, seed])))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_hundreds_of_graphs_of_hostile_names_compile(seed: int, tmp_path: Path) -> None:
    graph = hostile_graph(np.random.default_rng([8, seed]))
    target = CTarget()
    if any("\udc80" in node.name for node in graph.nodes) or target.check(graph):
        pytest.skip("no file holds the name, or C cannot express the graph")
    artifact = target.emit(graph, tmp_path / "out", "net")
    codes = extreme_codes(graph, 10)
    assert np.array_equal(target.run(artifact, codes), graph.run(codes))


def test_errors_name_layers_in_a_line_each() -> None:
    graph = long_graph(list(HOSTILE))
    wrong = tuple(
        replace(node, op=replace(node.op, levels=node.op.levels + 9)) if isinstance(node.op, Linear) else node
        for node in graph.nodes
    )
    for target in TARGETS.values():
        with pytest.raises(BitLabError) as refused:
            target.require(replace(graph, nodes=wrong))
        assert "\n" not in str(refused.value) and not obeyed(str(refused.value))
