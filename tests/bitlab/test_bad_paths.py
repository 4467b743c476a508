"""Every path that any command takes: whatever lies there, the answer is a result or one line, never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from bitlab import cli

NEEDED = {"export": ["--out", "new"], "publish": ["--float-twin", "new"], "fit": ["--target", "rv32ec"]}
"""What a command does not start without."""


def paths_of_commands() -> list[tuple[str, str]]:
    """Each command with each of its arguments (``""``) and flags that is a path."""
    group: Any = typer.main.get_command(cli.app)
    found = []
    for name, command in group.commands.items():
        for option in command.params:
            if option.type.name == "path" or "path" in type(option.type).__name__.lower():
                found.append((name, option.opts[0] if option.opts[0].startswith("-") else ""))
    return found


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Things that are no input and no place for output."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"\xff\0 no such thing")
    Path("folder").mkdir()
    Path("folder", "file").touch()
    Path("broken").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    return [
        "file",
        "folder",
        "broken",
        "loop",
        "missing/deep",
        "file/below",
        "broken/below",
        "x" * 300,
        "/dev/null/x",
        "",
    ]


def test_there_are_paths() -> None:
    assert {("train", ""), ("train", "--out"), ("evaluate", ""), ("info", "--dot"), ("fit", "--recipe")} <= set(
        paths_of_commands()
    )


@pytest.mark.parametrize(("command", "option"), paths_of_commands())
def test_any_path(
    command: str, option: str, places: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if (command, option) in {("bench", "--out"), ("bench", "--roofline")}:
        pytest.skip("written when all is measured, which takes minutes")
    if option in ("--data-path", "--results-dir") or (command, option) == ("quickstart", "--out"):
        places = [place for place in places if place in ("file/below", "/dev/null/x", "x" * 300)]  # others are fine
    for place in places:
        if (command, option) in {("train", "--out"), ("fit", "--out")} and place == "missing/deep":
            continue  # is made
        words = [option, place] if option else [place]
        words += NEEDED.get(command, []) if option not in NEEDED.get(command, []) else []
        if command in ("export", "publish", "measure") and option:
            words += ["file"]
        if command == "train":
            words += ["--epochs", "1", "--max-train-samples", "64", "--quiet"]
        monkeypatch.setattr(sys, "argv", ["bitlab", command, *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr().err
        assert stop.value.code == 1, (words, shown)
        assert shown.startswith("error: ") and shown.count("\n") == 1, (words, shown)


@pytest.mark.parametrize("value", ["9" * 400, "1e400", "-" + "9" * 400, "nan", "9" * 5000])
@pytest.mark.parametrize("flag", ["--epochs", "--lr", "--batch-size", "--seed", "--act-bits", "--warmup-epochs"])
def test_numbers_beyond_all_bounds(
    flag: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bitlab", "train", flag, value, "--out", str(tmp_path / "run"), "--quiet"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (1, 2) and "rror" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
