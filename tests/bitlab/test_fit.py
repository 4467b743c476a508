"""`bitlab fit`: budgets hold, what is too large is not trained, searches go on, errors are one clear line."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitcore.errors import BitLabError
from bitexport.targets.c.chips import CHIPS
from bitlab import cli
from bitlab.fit import RECIPE, Fitter, Search, pareto_front
from bitlab.fit_cost import Budget, Cost, parse_budget
from bitlab.fit_space import FAMILIES, Smallest, candidate, describe, parse_count
from bitlab.measure import measure_export
from bitlab.pipeline import export, open_checkpoint
from bittrain.build import build_model
from bittrain.fit import fit
from bittrain.interrupts import Interrupted
from bittrain.recipe import Recipe

DIGITS = RECIPE.replace(dataset="digits", image_size=8, batch_size=16, threads=1)
SEARCH = Search(
    "rv32ec", Budget(2500, 1024), DIGITS, epochs=2, family="mlp", formats=("2bitsym", "4bitsym"), max_train_samples=500
)

LARGE = {"hidden": 2, "width1": 10, "format1": "4bitsym", "width2": 10, "format2": "4bitsym", "format_head": "4bitsym"}
SMALL = {"hidden": 1, "width1": 1, "format1": "2bitsym", "format_head": "4bitsym"}


@pytest.fixture(scope="module")
def tools(require_tool: Callable[[str, str], str], require_package: Callable[[str], object]) -> None:
    """Compiler, emulator and Optuna, or no test."""
    require_package("optuna")
    chip = CHIPS["rv32ec"]
    require_tool(chip.prefix + chip.compiler, chip.package)
    require_tool(chip.emulator.program, chip.emulator.package)


@pytest.fixture(scope="module")
def found(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Fitter:
    """A search that met a network over budget and trained a small one."""
    fitter = Fitter(SEARCH, tmp_path_factory.mktemp("fit") / "search")
    fitter.study.enqueue_trial(LARGE)
    fitter.study.enqueue_trial(SMALL)
    fitter.run(1)
    return fitter


def test_the_winner_keeps_the_budget(found: Fitter, tmp_path: Path) -> None:
    recipe = Recipe.load(found.out / "best.yaml")
    assert recipe.to_dict() == found.rows[1]["recipe"]
    assert (recipe.epochs, recipe.validation, recipe.max_train_samples) == (RECIPE.epochs, 0, None)
    fit(recipe.replace(epochs=1, plots=False, tensorboard=False), tmp_path / "run", progress=False)
    export(open_checkpoint(tmp_path / "run"), tmp_path / "c", "network", "rv32ec")
    result = measure_export(tmp_path / "c", samples=1)
    assert result["flash"] <= SEARCH.budget.flash and result["ram"] <= SEARCH.budget.ram
    assert result["mismatches"] == 0


def test_what_is_too_large_is_never_trained(found: Fitter) -> None:
    data = json.loads((found.out / "study.json").read_text())
    large, small = data["trials"]
    assert data["trials"] == found.rows and data["best"] == small["number"] and data["front"] == [1]
    assert large["state"] == "over budget" and "accuracy" not in large and "flash" in large["reason"]
    assert small["state"] == "finished" and small["epochs"] == 2 and small["accuracy"] > 0.2
    assert small["network"] == "12·2bitsym head·4bitsym" and small["parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    assert not Cost(small["flash"], small["ram"], small["instructions"]).excess(SEARCH.budget)
    assert Cost(small["flash"], small["ram"], small["instructions"]).excess(Budget(9999, 9999, 100))
    assert (found.out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_goes_on(found: Fitter) -> None:
    before = found.rows
    with pytest.raises(BitLabError, match="is not empty; continue its search with --resume"):
        Fitter(SEARCH, found.out)
    with pytest.raises(BitLabError, match="holds a search with another budget; use another folder"):
        Fitter(replace(SEARCH, budget=Budget(3000, 1024)), found.out, resume=True)
    again = Fitter(SEARCH, found.out, resume=True)
    again.study.enqueue_trial(SMALL | {"format_head": "2bitsym"})
    again.run(1)
    assert again.rows[: len(before)] == before and [row["number"] for row in again.rows] == [0, 1, 2]


def test_an_interrupted_search_keeps_what_it_found(
    tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("bitlab.fit.Fitter._require_a_candidate", lambda self: None)
    monkeypatch.setattr("bitlab.fit.measure_cost", interrupt)
    fitter = Fitter(SEARCH, tmp_path / "out")
    with pytest.raises(Interrupted, match="what was found is kept; go on with the same options, --resume and --out"):
        fitter.run(3)
    assert [row["state"] for row in json.loads((tmp_path / "out" / "study.json").read_text())["trials"]] == [
        "interrupted"
    ]


def test_a_budget_that_nothing_meets_is_refused(tools: None, tmp_path: Path) -> None:
    tight = replace(SEARCH, budget=Budget(600, 1024), formats=("2bitsym",))
    with pytest.raises(BitLabError, match=r"the smallest \(8·2bitsym head·2bitsym\) exceeds it: flash [\d,]+ > 600"):
        Fitter(tight, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_every_family_build(family: str) -> None:
    recipe = candidate(Smallest("ternary"), DIGITS, family, ("ternary",))
    build_model(recipe, (1, 8, 8), 10)
    assert describe(recipe).endswith("head·ternary")


def test_short_trainings_freeze_as_early_as_long_ones() -> None:
    recipe = RECIPE.replace(methods=("fused-batch-norm freeze=40 start=0", "freeze-scales epochs=2"), epochs=60)
    short = replace(SEARCH, recipe=recipe, epochs=18).short
    assert short.methods == ("fused-batch-norm freeze=12 start=0", "freeze-scales epochs=1")


def test_the_front_holds_what_nothing_beats() -> None:
    figures = [(100, 0.9), (90, 0.8), (95, 0.7), (100, 0.5), (120, 0.9), (130, 0.95)]
    rows = [{"state": "finished", "flash": flash, "accuracy": accuracy} for flash, accuracy in figures]
    front = pareto_front([*rows, {"state": "stopped", "flash": 1, "accuracy": 1}])
    assert [(row["flash"], row["accuracy"]) for row in front] == [(90, 0.8), (100, 0.9), (130, 0.95)]


def test_sizes() -> None:
    assert [parse_count(text, "flash") for text in ("8k", "2048", "1.5K", "4M", "64 B", "2kB")] == [
        8192, 2048, 1536, 4 << 20, 64, 2048
    ]  # fmt: skip
    assert parse_count("500k", "instructions", 1000) == 500_000
    for text in ("", "k", "0", "-1", "8 q", "nan", "inf"):
        with pytest.raises(BitLabError, match="is no size; write 8k"):
            parse_count(text, "flash")
    assert parse_budget("rv32ec", None, "1k", "2M") == Budget(16384, 1024, 2_000_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "rv32ce"], "did you mean 'rv32ec'?"),
        (["--target", "host"], "unknown target 'host'"),
        (["--target", "rv32ec", "--flash", "64k"], "more than the CH32V003 (rv32ec) has; at most 16384"),
        (["--target", "rv32ec", "--dataset", "digit"], "did you mean 'digits'?"),
        (["--target", "rv32ec", "--dataset", "digits", "--family", "mpl"], "did you mean 'mlp'?"),
        (["--target", "rv32ec", "--dataset", "digits", "--format", "3bit"], "unknown weight format '3bit'"),
        (["--target", "rv32ec", "--dataset", "digits", "--resume", "--out", "nowhere"], "holds no search to resume"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bitlab", "fit", *arguments])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    error = capsys.readouterr().err
    assert "error: " in error and words in error


def test_a_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BitLabError, match=r"pip install bitlab\[fit\]"):
        Fitter(SEARCH, tmp_path / "out")
