"""Teachers from runs, from the hub and from timm, and what is said when they do not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from bitcore.errors import BitLabError
from bittrain.data import load_dataset
from bittrain.fit import fit
from bittrain.preprocessing import Preprocessing
from bittrain.teachers import Renormalized, load_teacher

from .test_options import RECIPE


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained float twin."""
    return fit(RECIPE.replace(quant=None, epochs=1), tmp_path_factory.mktemp("twin") / "run", progress=False)


def test_a_twin_teaches(twin: Path, tmp_path: Path) -> None:
    for i, teacher in enumerate((twin, twin / "checkpoints" / "best.ckpt", twin / "model.safetensors")):
        recipe = RECIPE.replace(epochs=1, teacher=str(teacher), kd_alpha=0.7, hint_weight=0.1, hint_layers=["relu1"])
        assert (fit(recipe, tmp_path / str(i), progress=False) / "model.safetensors").is_file()


def test_a_model_of_the_hub_teaches(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repo: str, file: str, **_: Any) -> str:
        asked.append(repo)
        return str(twin / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    data = load_dataset("digits")
    assert isinstance(load_teacher("owner/name", data.classes, data.preprocessing()), nn.Module)
    assert asked == ["owner/name"]


def test_teachers_that_do_not_fit(twin: Path) -> None:
    data = load_dataset("digits")
    preprocessing = data.preprocessing()
    with pytest.raises(BitLabError, match=r"knows the 10 classes 0, 1, .* the data has the 3 classes a, b, c"):
        load_teacher(twin, ["a", "b", "c"], preprocessing)
    with pytest.raises(BitLabError, match="was trained on other input"):
        load_teacher(twin, data.classes, data.preprocessing("pow2"))
    with pytest.raises(BitLabError, match="there is no run 'nowhere'; train it first"):
        load_teacher("nowhere", data.classes, preprocessing)


def fake_timm(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    """A timm with one model."""

    def create_model(name: str, pretrained: bool) -> nn.Module:
        assert pretrained
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})\nmore")
        model: Any = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, classes))
        model.num_classes = classes
        model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "input_size": (3, 4, 4)}
        return model

    module: Any = ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = Preprocessing.create("dataset", (8, 8), 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    fake_timm(monkeypatch, 10)
    teacher = load_teacher("timm:tiny", list("0123456789"), preprocessing)
    assert teacher(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(BitLabError, match=r"knows 10 classes, the data has 2"):
        load_teacher("timm:tiny", ["a", "b"], preprocessing)
    with pytest.raises(BitLabError, match=r"timm:tony cannot be had \(Unknown model \(tony\)\)"):
        load_teacher("timm:tony", ["a", "b"], preprocessing)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BitLabError, match="timm is not installed; pip install timm"):
        load_teacher("timm:tiny", ["a", "b"], preprocessing)


@pytest.mark.parametrize("normalization", ["dataset", "none", "pow2"])
def test_renormalization(normalization: str) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    pixels &= 254  # what pow2 keeps
    preprocessing = Preprocessing.create(normalization, (4, 4), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    expected = (pixels / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    found = Renormalized(nn.Identity(), preprocessing, mean, std, 4)(preprocessing(pixels))
    assert torch.allclose(found, expected, atol=1e-5)
