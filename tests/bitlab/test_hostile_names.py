"""What commands print, write and draw of names from strangers: nothing that a terminal, a page or a disk would obey."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.text import Text

from bitcore.errors import BitLabError, BitLabWarning
from bitcore.graph import Graph
from bitcore.naming import is_file_name
from bitexport.targets import TARGETS
from bitlab import cli, console
from bitlab.process import errors_as_lines
from bitlab.results import results_tables, write_result
from bitmodels import AutoBitModel, save_model
from bittrain.plots import draw_confusion
from bittrain.preprocessing import Preprocessing
from hostile_names import HOSTILE, named, obeyed
from networks import random_chain

SAVED = [name for name in HOSTILE if "\udc80" not in name]  # which JSON of a file cannot hold
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns its status and what it printed."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bitlab", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        assert not obeyed(printed.out + printed.err) and "Traceback" not in printed.err
        return int(stop.value.code or 0), printed.out, printed.err

    return command


@pytest.mark.parametrize("target", ["c", "engine"])
def test_commands_print_exports_of_strangers(target: str, run: Run, tmp_path: Path) -> None:
    chain = random_chain(np.random.default_rng(0), ["ternary"] * 20, ["shift"] * 19, [3] * 21, "int8")
    graph = named(chain, SAVED[:39])
    folder = (
        TARGETS[target]
        .emit(Graph(graph.input, graph.nodes, 1.0, {"dataset": "\x1b[31m|[/]"}), tmp_path / "x", "net")
        .folder
    )
    graph.save(folder / "graph.safetensors")  # the stranger's own
    status, text, _ = run("info", folder, "--graph", "--dot", tmp_path / "x.dot")
    assert status == 0 and len([line for line in text.splitlines() if "linear" in line]) == 20
    assert run("info", folder, "--json")[0] == 0
    status, text, _ = run("verify", folder)
    assert status == 0 and text.count("Verified: ") == 1
    assert not obeyed((tmp_path / "x.dot").read_text("utf-8"))


@pytest.mark.parametrize("dataset", ["[/]", "\u202eevil", "\x1b[31m", "../../evil", "x" * 10_000, "a\nerror: b"])
def test_commands_print_models_of_strangers(
    dataset: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = AutoBitModel.from_name("mlp", "mcu-4bitsym-static", in_channels=64, hidden_dims=[4], out_channels=2)
    extra = {
        "preprocessing": Preprocessing((8, 8), 1, (0.0,), (1.0,)).to_dict(),
        "dataset": dataset,
        "classes": ["[red]a", "*/"],
        "recipe": {"name": dataset, "seed": 0},
    }
    save_model(model, tmp_path / "model.safetensors", extra)
    for words in (["info"], ["evaluate"], ["verify"]):
        status, _, errors = run(*words, tmp_path / "model.safetensors")
        assert status in (0, 1) and errors.count("error: ") == (status == 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_notes_and_warnings_are_lines_of_our_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (BitLabWarning, UserWarning, None):
        with pytest.raises(SystemExit) if kind is None else warnings.catch_warnings(), errors_as_lines():
            if kind is None:
                raise BitLabError(f"layer '{name}': wrong")
            warnings.simplefilter("always")
            warnings.warn(f"layer '{name}': odd", kind, stacklevel=1)
        first, *rest = capsys.readouterr().err.rstrip("\n").split("\n")
        assert not obeyed("".join([first, *rest])) and max(map(len, [first, *rest])) < 4200
        if kind is not UserWarning:
            assert first.startswith("error: layer '" if kind is None else "note: layer '")
            assert all(line.startswith("  ") for line in rest)


def test_markup_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.out.print("[red]a[/] :bomb: [/]", highlight=False)
    assert capsys.readouterr().out == "[red]a[/] :bomb: [/]\n"
    console.show_table("[bold]t\x1b", ("[i]c",), [["[b]x\x07[/]"], [Text("own", "red")]])
    text = capsys.readouterr().out
    assert all(part in text for part in ("[bold]t\\x1b", "[i]c", "[b]x\\x07[/]", "own"))


def test_tables_and_json_obey_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_table("".join(HOSTILE), HOSTILE[:2], [(name, "1") for name in HOSTILE])
    console.show_json({name: [name] for name in HOSTILE})
    text = capsys.readouterr().out
    assert not obeyed(text)
    shown = json.loads(text[text.index("\n{") :])
    assert list(shown) == list(HOSTILE)


def result(recipe: str) -> dict[str, object]:
    return {
        "recipe": recipe, "seed": 0, "dataset": recipe, "epochs": 1, "weights": [recipe], "activations": [recipe],
        "sizes": {"weights": 1}, "accuracy": {"float": 1.0, "fake_quantized": 1.0}, "mismatches": None,
        "environment": {},
        "chips": [{"chip": recipe, "target": recipe, "optimize": "flash", "flash": 1, "ram": 1, "cycles": 1}],
    }  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_results_stay_in_their_folder_and_tables_in_their_columns(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "results"
    if is_file_name(name):
        assert write_result(folder, result(name)).parent == folder
    else:
        with pytest.raises(BitLabError, match="names no file"):
            write_result(folder, result(name))
        assert not any(path.is_file() for path in tmp_path.rglob("*"))
        folder.mkdir(parents=True)
        (folder / "x.json").write_text(json.dumps(result(name)))
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {folder}
    text = results_tables(folder)
    lines = text.split("\n")
    assert len(lines) == 11 and not obeyed(text)
    assert [line.count("|") for line in lines] == [0, 0, 10, 10, 10, 0, 0, 0, 8, 8, 8]


def test_classes_are_drawn_as_they_are_called(tmp_path: Path) -> None:
    names = [r"$\frac{", "$x$", "a_b", "%s"]
    draw_confusion(torch.eye(4, dtype=torch.int64), names, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
