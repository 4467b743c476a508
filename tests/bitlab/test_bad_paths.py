"""Every path that any command takes: whatever lies there, the answer is a result or one line, never a traceback."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.models import ArgumentInfo

from bitlab import cli

NEEDED = {
    "quantize": ["--preset", "w8a8"],
    "export": ["--out", "new"],
    "publish": ["--float-twin", "new"],
    "fit": ["--target", "rv32ec"],
}
"""What a command does not start without."""


def paths_of_commands() -> list[tuple[str, str]]:
    """Each command with each of its arguments (``""``) and flags that is a path."""
    found = []
    for command in cli.app.registered_commands:
        assert command.callback is not None
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            kind, *options = get_args(parameter.annotation) or (None,)
            if Path in (kind, *get_args(kind)):
                argument = isinstance(options[0], ArgumentInfo)
                flag = options[0].default  # where typer keeps the first name of an annotated option
                flag = flag if isinstance(flag, str) else f"--{name}"
                found.append((command.name or command.callback.__name__, "" if argument else flag))
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
    below = ["missing/deep", "file/below", "broken/below", "/dev/null/x"]
    return ["file", "folder", "broken", "loop", *below, "x" * 300]


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
    fine = {"--results-dir": ("folder", "missing/deep"), "--out": ("missing/deep",), "--data-path": ("folder",)}
    for place in places:
        if command in ("train", "fit", "quickstart") and place in fine.get(option, ()):
            continue
        words = [option, place] if option else [place]
        words += NEEDED.get(command, []) if option not in NEEDED.get(command, []) else []
        if command in ("export", "publish", "measure", "quantize", "verify") and option:
            words += ["file"]
        if command == "train":
            words += ["--epochs", "1", "--max-train-samples", "64", "--quiet"]
        monkeypatch.setattr(sys, "argv", ["bitlab", command, *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr().err
        assert stop.value.code == 1, (words, shown)
        *notes, last = shown.splitlines()
        assert last.startswith("error: ") and all(line.startswith("note: ") for line in notes), (words, shown)


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
