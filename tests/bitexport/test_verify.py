"""Verification finds every difference, and says where."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitcore.errors import BitLabError
from bitcore.graph import Graph, IntTensor, Linear
from bitexport.targets import TARGETS, Artifact, CTarget
from bitexport.verify import Mismatch, compare
from networks import extreme_codes, random_chain


def export(tmp_path: Path, seed: int = 0) -> tuple[Graph, Artifact]:
    graph = random_chain(np.random.default_rng(seed), ["int8", "int8"], ["normshift"], [9, 8, 4], "int8")
    return graph, CTarget().emit(graph, tmp_path / "net", "net")


@pytest.mark.parametrize("target", TARGETS)
def test_equal_networks(target: str, tmp_path: Path) -> None:
    graph = random_chain(np.random.default_rng(1))
    artifact = TARGETS[target].emit(graph, tmp_path / "net", "net")
    codes = extreme_codes(graph, 50)
    found = compare(graph, TARGETS[target], artifact, codes)
    assert (found.samples, found.outputs, found.mismatches, found.first) == (50, graph.output.type.size, 0, None)
    assert np.array_equal(found.scores, graph.run(codes))
    assert np.array_equal(found.target_scores, found.scores)


def with_another_weight(graph: Graph, layer: str, row: int, column: int, step: int) -> Graph:
    """The same graph, but for one weight."""
    nodes = []
    for node in graph.nodes:
        if node.name == layer:
            assert isinstance(node.op, Linear)
            levels = node.op.levels.copy()
            levels[row, column] += step
            op = replace(node.op, levels=levels)
            node = replace(node, op=op, type=op.infer(IntTensor((levels.shape[1],), -127, 127)))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def test_one_flipped_weight_is_found(tmp_path: Path) -> None:
    graph, _ = export(tmp_path)
    [before] = [int(node.op.levels[0, 0]) for node in graph.nodes if node.name == "fc1" and isinstance(node.op, Linear)]
    step = 64 if before < 0 else -64
    artifact = CTarget().emit(with_another_weight(graph, "fc1", 0, 0, step), tmp_path / "changed", "net")
    codes = extreme_codes(graph, 60)
    hidden = dict(graph.trace(codes))["fc1.input"]
    reads = np.flatnonzero(hidden[:, 0])  # the first weight of the first output meets the first hidden value
    assert 0 < len(reads) < len(codes), "some samples show it, some do not"
    codes = np.concatenate([codes[hidden[:, 0] == 0][:3].repeat(2, 0), codes])

    result = compare(graph, CTarget(), artifact, codes)
    expected = graph.run(codes)
    values = dict(graph.trace(codes))["fc1.input"][:, 0]
    differing = np.flatnonzero(values)
    assert result.mismatches == len(differing)
    first = result.first
    assert first is not None
    assert (first.sample, first.output) == (differing[0], 0)
    assert first.sample >= 2
    assert first.expected == expected[differing[0], 0]
    assert first.got == first.expected + step * values[differing[0]]
    assert f"sample {first.sample}, output 0" in str(first)
    assert str(first.expected) in str(first) and str(first.got) in str(first)


def test_a_difference_in_one_output_that_changes_no_class_counts(tmp_path: Path) -> None:
    graph = random_chain(np.random.default_rng(0), ["4bitsym"], [], [9, 4], "int8")
    changed = with_another_weight(graph, "fc0", 3, 8, 2)
    artifact = CTarget().emit(changed, tmp_path / "net", "net")
    codes = extreme_codes(graph, 60)
    codes[:, 8] = 0
    codes[41, 8] = 1
    assert np.array_equal(graph.run(codes).argmax(1), changed.run(codes).argmax(1))
    result = compare(graph, CTarget(), artifact, codes)
    expected = int(graph.run(codes)[41, 3])
    assert result.mismatches == 1
    assert result.first == Mismatch(41, 3, expected, expected + 2)


def test_no_samples_are_no_proof(tmp_path: Path) -> None:
    graph, artifact = export(tmp_path)
    with pytest.raises(BitLabError, match="no samples"):
        compare(graph, CTarget(), artifact, extreme_codes(graph, 5)[:0])


def test_another_networks_export_is_refused(tmp_path: Path) -> None:
    graph, artifact = export(tmp_path)
    other = random_chain(np.random.default_rng(0), ["int8", "int8"], ["normshift"], [9, 8, 5], "int8")
    with pytest.raises(BitLabError, match="4 outputs, its graph 5; export it again"):
        compare(other, CTarget(), artifact, extreme_codes(graph, 5))


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    graph, artifact = export(tmp_path)
    with pytest.raises(BitLabError, match=r"this network takes \(9,\)"):
        compare(graph, CTarget(), artifact, np.zeros((3, 8), dtype=np.int64))
