"""Every command of the documentation runs as it stands there: a page's one after the other, in one folder.

Only their sizes differ: one tiny epoch on made-up pictures.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
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

from bitcore.errors import BitLabError
from bitlab import arguments, cli
from bitlab.arguments import translate
from bittrain.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "from-the-five-projects.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGES = {"mnist": (28, 1, 10), "cifar10": (32, 3, 10), "cifar100": (32, 3, 100), "imagenet": (40, 3, 12)}
"""Size, channels, classes."""
TINY = {
    "train": "--epochs 1 --start-epoch 0 --warmup-epochs 0 --batch-size 4 --max-train-samples 8 --max-test-samples 4 "
    "--quiet --no-tensorboard --no-plots --device cpu",
    "fit": "--trials 1 --epochs 1 --max-train-samples 60 --validation 0.1",
}
TINY_EPOCHS = {
    "profit": "--epochs 8",
    "--devices 8": "--devices 1 --strategy auto --image-size 32 --augment-size 40 --no-compile",
}
"""What else words of a command need to be tiny: PROFIT eight stages, ImageNet less than its size and GPUs."""
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


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks that begin with ``bitlab``."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if re.match("bitlab [a-z]", line)]


def smaller(command: str) -> list[str]:
    """The command's arguments, with flags behind them that make it short."""
    arguments = shlex.split(command, comments=True)[1:]
    more = [TINY.get(arguments[0], ""), *(flags for words, flags in TINY_EPOCHS.items() if words in command)]
    if arguments[0] == "train" and "--evaluate" not in arguments:
        recipe = next((Recipe.load(word) for word in arguments if word.endswith(".yaml")), None)
        named = arguments[arguments.index("--model") + 1] if "--model" in arguments else recipe and recipe.model
        more.append(SMALLER.get(named or "", ""))
    return [*arguments, *shlex.split(" ".join(more))] if "--evaluate" not in arguments else arguments


def run(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs a command line; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["bitlab", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes, and the data sets that the commands name."""
    random = np.random.RandomState(0)
    for name, (size, channels, classes) in IMAGES.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        features = {"image": {"_type": "Image"}, "label": {"names": [*map(str, range(classes))], "_type": "ClassLabel"}}
        for split, count in (("train", 80 if name == "mnist" else 10), ("test", 6)):
            cells = []
            for _ in range(count):
                buffer = io.BytesIO()
                pixels = random.randint(0, 256, (size, size, 3)[: 2 + (channels == 3)], dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            table = pa.table({"image": cells, "label": random.randint(0, classes, count)})
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            pq.write_table(table, tmp_path / "data" / name / f"{split}.parquet")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    np.save(tmp_path / "x.npy", random.rand(4, 1, 16, 16).astype(np.float32))  # a reader's own
    np.save(tmp_path / "y.npy", random.randint(0, 10, 4))
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands_in_the_documentation() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem == "fit"))  # compiles many networks
        for page in PAGES
        if commands(page)
    ],
)
def test_commands(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands(page):
        assert run(smaller(command), monkeypatch) == 0, f"{command}\n{capsys.readouterr().err}"


def flags_of_train() -> dict[str, Any]:
    """The flags of ``bitlab train`` and their options."""
    command: Any = typer.main.get_command(cli.app)
    options = command.commands["train"].params
    return {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}


def cells(column: int) -> set[str]:
    """The flags in a column of the page's tables."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    flag = r"(?<![\w*-])--?[a-zA-Z][a-zA-Z_-]*"
    return {name for line in lines for name in re.findall(flag, re.split(r"(?<!\\)\|", line)[column])}


def test_flags_of_the_right_columns_exist() -> None:
    """Flags and keys in the right columns are options here."""
    named = cells(2)
    assert len(named) > 30
    assert named <= {*flags_of_train(), "--help", "--params"}, named - set(flags_of_train())
    assert {spec.name for spec in fields(Recipe)} >= {"epochs", "lr_gamma", "lr_step_epochs", "augment_copies"}


@pytest.mark.parametrize("flag", sorted(cells(1)))
def test_flags_of_the_left_columns_are_taken_or_answered(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are, translated, ignored aloud, or with an error that says how it is said here."""
    known = flags_of_train()
    values = {"--type": "torch.cuda.HalfTensor", "--gpus": "0,1"}
    if arguments.dashes(flag) in arguments.OTHERWISE:
        with pytest.raises(BitLabError, match=f"{flag} is said otherwise here: --"):
            list(translate([flag, "1"]))
        return
    words = list(translate([flag, values.get(flag, "1")]))
    found = [word for word in words if word.startswith("-")]
    assert all(arguments.dashes(word) in known for word in found)
    assert found or flag == "--params" or "ignored" in capsys.readouterr().err


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
