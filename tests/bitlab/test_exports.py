"""`info`, `verify` and `measure` of exports: what the export says, whichever target made it and from whatever graph."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitcore.errors import BitLabError
from bitcore.graph import Graph
from bitexport.targets import OPTIMIZE, TARGETS, CTarget, EngineTarget
from bitexport.targets.c.source import CSource
from bitexport.targets.manifest import MANIFEST_FILE, Manifest, open_export
from bitlab.inspection import show_network
from bitlab.measure import measure_export
from bitlab.pipeline import verify
from bitlab.samples import RANDOM, find_samples
from graphs import plain_network, random_graph
from networks import extreme_codes, random_chain


def maps() -> Graph:
    """Convolutions that run row by row, if they may."""
    return random_graph(np.random.default_rng(3), ["conv2d", "residual"], (2, 6, 6), "int8", ["ternary"], "linear")


def chain() -> Graph:
    return random_chain(np.random.default_rng(0), ["4bitsym", "ternary"], ["shift"], [20, 12, 7], "int8")


def info(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    capsys.readouterr()
    show_network(folder, False, None, json=True)
    return json.loads(capsys.readouterr().out)["totals"]


# ---- info ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", OPTIMIZE)
def test_info_shows_what_the_export_has(optimize: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, graph in enumerate((maps(), chain(), plain_network(np.random.default_rng(4)))):
        folder = CTarget(optimize=optimize).emit(graph, tmp_path / f"n{i}", "net").folder
        found = info(folder, capsys)
        header, readme = (folder / "net.h").read_text(), (folder / "README.md").read_text()
        assert f"#define NET_ARENA_SIZE {found['arena']}\n" in header
        assert f"| constants (weights, thresholds, biases) | {found['constants']} |" in readme
        assert found["input_in_arena"] and found["ram"] == found["arena"]
        assert found["input"] == graph.input.type.bytes
        show_network(folder, True, None, json=False)
        text = capsys.readouterr().out
        begin, end = Manifest.load(folder).place("input")
        assert f"#define NET_INPUT_OFFSET {begin}\n" in header and f"{begin}…{end - 1}" in text
        assert " + input" not in text


def test_info_does_not_plan_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CTarget().emit(maps(), tmp_path / "net", "net").folder

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("planned anew")

    monkeypatch.setattr(CSource, "__post_init__", fail)
    assert info(folder, capsys)["arena"] == Manifest.load(folder).size("arena")


@pytest.mark.parametrize("legacy", [False, True])
def test_info_and_verify_take_an_engine_export(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of earlier versions, too, which have the graph alone."""
    folder = EngineTarget().emit(maps(), tmp_path / "net", "net").folder
    if legacy:
        (folder / MANIFEST_FILE).unlink()
    assert info(folder, capsys)["arena"] > 0
    report = verify(folder, max_samples=20).to_dict()
    assert report["mismatches"] == 0 and "engine" in report["accuracy"]
    with pytest.raises(BitLabError, match="holds no C; verify it with --target engine"):
        verify(folder, max_samples=20, target="c")
    with pytest.raises(BitLabError, match="is made for the engine"):
        measure_export(folder)


def test_exports_without_sizes_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CTarget().emit(chain(), tmp_path / "net", "net").folder
    values = json.loads((folder / MANIFEST_FILE).read_text())
    earlier = {key: value for key, value in values.items() if key not in ("sizes", "places")}
    (folder / MANIFEST_FILE).write_text(json.dumps({**earlier, "limit": None, "packed": 0}))
    with pytest.raises(BitLabError, match="an earlier version exported 'net' .* export it again"):
        info(folder, capsys)
    assert verify(folder, max_samples=10).check.mismatches == 0
    for wrong in ({"name": "a b"}, {"sources": ["../x.c"]}, {"files": ["/etc/passwd"]}, {"files": 3}):
        (folder / MANIFEST_FILE).write_text(json.dumps({**values, **wrong}))
        with pytest.raises(BitLabError, match="is no exported network"):
            open_export(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_every_export_says_its_target_and_sizes(target: str, tmp_path: Path) -> None:
    artifact = TARGETS[target].emit(chain(), tmp_path / "net", "net")
    manifest = Manifest.load(artifact.folder)
    assert TARGETS[manifest.target].name == TARGETS[target].name
    sizes = TARGETS[target].describe(artifact)
    assert 0 < sizes.weights <= sizes.constants and sizes.arena > 0


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_any_graph_is_verified_and_measured(tmp_path: Path) -> None:
    """Without a data set: on random inputs, which the report says, or on the caller's."""
    graph = maps()
    folder = CTarget().emit(graph, tmp_path / "net", "net").folder
    report = verify(folder, max_samples=30).to_dict()
    assert (report["inputs"], report["dataset"]) == ("random inputs", "random int8, seed 0")
    assert (report["samples"], report["mismatches"], report["accuracy"]["c"]) == (30, 0, None)
    codes = extreme_codes(graph, 12)
    classes = graph.run(codes).argmax(1)
    np.save(tmp_path / "x.npy", codes.astype(np.int8))
    np.save(tmp_path / "y.npy", np.where(np.arange(12) < 3, classes + 1, classes))
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    report = verify(folder, inputs=x, labels=y).to_dict()
    assert (report["samples"], report["mismatches"], report["accuracy"]["c"]) == (12, 0, 0.75)
    result = measure_export(folder, inputs=x, labels=y, samples=6)
    assert (result["samples"], result["mismatches"], result["accuracy"]) == (6, 0, 0.5)
    result = measure_export(folder, samples=5)
    assert (result["samples"], result["mismatches"], result["accuracy"]) == (5, 0, None)
    assert result["inputs"] == "random inputs (random int8, seed 0)"
    readme = (folder / "README.md").read_text()
    assert "on random inputs of its whole range" in readme and "[samples, 2, 6, 6]" in readme


def test_a_wrong_output_on_random_inputs_is_found(tmp_path: Path) -> None:
    folder = CTarget().emit(chain(), tmp_path / "net", "net").folder
    source = (folder / "net.c").read_text()
    before, end, after = source.partition("\n}\n\nint32_t net_arena")
    assert end
    (folder / "net.c").write_text(f"{before}\n    output[3] += input[0] == 127;{end}{after}")
    check = verify(folder).check
    assert check.samples == RANDOM and 0 < check.mismatches < 20


def test_random_inputs_are_all_levels(tmp_path: Path) -> None:
    graph = chain()
    for fmt in ("int8", "uint4", "ternary"):
        found = find_samples(replace(graph, input=replace(graph.input, format=fmt)))
        kind = replace(graph.input, format=fmt).type
        assert (found.codes.min(), found.codes.max()) == (kind.low, kind.high)
        assert np.array_equal(found.codes, find_samples(replace(graph, input=replace(graph.input, format=fmt))).codes)


def test_inputs_of_integers_and_of_real_values(tmp_path: Path) -> None:
    graph = chain()
    codes = extreme_codes(graph, 9)
    assert graph.input.scale == 0.5
    for values in (codes, codes.astype(np.int8), codes * 0.5, (codes * 0.5).astype(np.float32)):
        np.save(tmp_path / "x.npy", values)
        assert np.array_equal(find_samples(graph, inputs=tmp_path / "x.npy", most=7).codes, codes[:7])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((3, 19), np.int8), r"has shape \(3, 19\); this network takes \[samples, 20\]"),
        (np.zeros((0, 20), np.int8), "this network takes"),
        (np.full((3, 20), 200), "holds 200…200; this network takes integers -127…127"),
        (np.full((3, 20), np.nan), "holds NaN or infinity"),
        (np.zeros((3, 20), bool), "holds bool; give integers"),
        (np.array([{}]), "cannot read"),
    ],
)
def test_wrong_inputs_are_refused(values: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(BitLabError, match=words):
        find_samples(chain(), inputs=tmp_path / "x.npy")


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, extreme_codes(chain(), 9))
    for labels in (np.zeros(8, np.int64), np.zeros((9, 1), np.int64), np.zeros(9)):
        np.save(y, labels)
        with pytest.raises(BitLabError, match="give an integer for each of the inputs"):
            find_samples(chain(), inputs=x, labels=y)
    with pytest.raises(BitLabError, match="cannot read '.*nothing.npy'"):
        find_samples(chain(), inputs=tmp_path / "nothing.npy")
    with pytest.raises(BitLabError, match="--labels are the classes of --inputs"):
        find_samples(chain(), labels=y)
    with pytest.raises(BitLabError, match="--inputs or --dataset, not both"):
        find_samples(chain(), "digits", inputs=x)
    with pytest.raises(BitLabError, match="does not say how pixels become its input; give --inputs"):
        find_samples(chain(), "digits")
