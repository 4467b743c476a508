"""Every command of docs/from-the-five-projects.md runs, for one tiny epoch on made-up pictures."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image
from torch import nn

from bitlab import cli
from bittrain.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "from-the-five-projects.md"
BLOCKS = re.findall(r"^```\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
TINY = "--epochs 1 --start-epoch 0 --warmup-epochs 0 --batch-size 4 --max-train-samples 8 --max-test-samples 4 --quiet"
TINY += " --no-tensorboard --no-plots --device cpu"
SMALLER = {
    "mlp": "--model-options hidden_dims=[8]",
    "netcnn": "--model-options widths=[4,8]",
    "resnet18": "--model-options width=4",
    "resnet_binary": "--model-options width=4",
    "resnet20": "--model-options width=4",
    "alexnet_binary": "--model-options width=0.125 --model-options hidden_dims=[8]",
    "vgg_cifar10_binary": "--model-options features=[4,pool,4,pool] --model-options hidden_dims=[8]",
    "vgg_cifar100_binary": "--model-options features=[4,pool,4,pool] --model-options hidden_dims=[8]",
    "mobilenetv1": "--model-options width=0.25",
}


def smaller(command: str) -> list[str]:
    """The command's arguments, with flags behind them that make it short."""
    arguments = shlex.split(command)[1:]
    if arguments[0] != "train":
        return arguments
    model = arguments[arguments.index("--model") + 1] if "--model" in arguments else ""
    tiny = TINY.replace("--epochs 1", "--epochs 8" if "profit" in command else "--epochs 1")
    return [*arguments, *shlex.split(tiny), *shlex.split(SMALLER.get(model, ""))]


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets that the commands name, and an empty folder to run in."""
    random = np.random.RandomState(0)
    for name, shape, classes in (("mnist", (28, 28), 10), ("cifar10", (32, 32, 3), 10), ("cifar100", (32, 32, 3), 100)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, count in (("train", 10), ("test", 6)):
            cells = []
            for _ in range(count):
                buffer = io.BytesIO()
                Image.fromarray(random.randint(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            labels = [classes - 1, *random.randint(0, classes, count - 1).tolist()]
            pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "data" / name / f"{split}.parquet")
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"project{i}" for i in range(1, len(BLOCKS) + 1)])
def test_commands(
    block: str, made_up: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = block.strip().splitlines()
    assert commands
    for number, command in enumerate(commands):
        assert command.startswith("bitlab ")
        arguments = smaller(command)
        if arguments[0] == "train" and not {"--out", "--save", "--evaluate"} & set(arguments):
            arguments += ["--save", f"run{number}"]
        monkeypatch.setattr(sys, "argv", ["bitlab", *arguments])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        assert code in (0, None), f"{command}\n{capsys.readouterr().err}"


def test_flags_of_the_tables_exist() -> None:
    """Flags and keys in the right columns are options here."""
    command: Any = typer.main.get_command(cli.app)
    flags = {flag for option in command.commands["train"].params for flag in (*option.opts, *option.secondary_opts)}
    flags.add("--help")
    named = set()
    for line in PAGE.read_text().splitlines():
        if line.startswith("|"):
            named |= set(re.findall(r"(?<![\w*-])--?[a-z][a-z-]*", re.split(r"(?<!\\)\|", line)[2]))
    assert len(named) > 30
    assert named <= flags, named - flags
    assert {spec.name for spec in fields(Recipe)} >= {"epochs", "lr_gamma", "lr_step_epochs", "augment_copies"}


def test_functions_of_the_tables_exist() -> None:
    import bitlab
    from bitlayers import Bit
    from bitmodels.netcnn import NetCNN
    from bittrain.distill import Distiller
    from bittrain.losses import distillation, hint
    from bittrain.mixing import mix

    functions: list[Callable[..., object]] = [Distiller, distillation, hint, mix, bitlab.quantize, bitlab.pack]
    assert all(callable(f) and f.__doc__ for f in functions)
    for convert in (bitlab.convert_to_ternary, bitlab.convert_to_ternary_p2):
        model: nn.Module = NetCNN(in_channels=1, num_classes=10, mod=Bit, widths=(4, 8))
        assert convert(model).eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
