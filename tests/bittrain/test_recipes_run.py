"""Every recipe of the repository trains: an epoch of very few images, made up in the form that its dataset has."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bittrain.fit import fit
from bittrain.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
IMAGES = {"mnist": (28, 1, 10), "cifar10": (32, 3, 10), "cifar100": (32, 3, 100), "imagenet": (40, 3, 12)}
"""Size, channels, classes."""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data folders with random pictures under the names of the real ones."""
    random = np.random.RandomState(0)
    for name, (size, channels, classes) in IMAGES.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        features = {"image": {"_type": "Image"}, "label": {"names": [*map(str, range(classes))], "_type": "ClassLabel"}}
        for split, count in (("train", 16), ("test", 8)):
            cells = []
            for _ in range(count):
                buffer = io.BytesIO()
                pixels = random.randint(0, 256, (size, size, 3)[: 2 + (channels == 3)], dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "JPEG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            table = pa.table({"image": cells, "label": random.randint(0, classes, count)})
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            pq.write_table(table, tmp_path / "data" / name / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path / "data"))


SMALLER: dict[str, dict[str, Any]] = {  # widths that do not change what is tested
    "resnet18": {"width": 8},
    "birealnet18": {"width": 8},
    "alexnet": {"width": 0.125, "hidden_dims": (16,)},
    "vgg_small": {"features": (8, "pool", 8, "pool", 8, "pool")},
    "vgg_cifar100_binary": {"features": (8, "pool", 8, "pool", 8, "pool"), "hidden_dims": (16,)},
    "mobilenetv2": {"width": 0.25},
    "convnextv2_atto": {"widths": (8, 16, 24, 32)},
    "netcnn": {"widths": (8, 16, 24, 32)},
    "resnet20": {"width": 4},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_one_tiny_epoch(path: Path, made_up: None, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    options = recipe.model_options | {
        k: list(v) if isinstance(v, tuple) else v for k, v in SMALLER.get(recipe.model, {}).items()
    }
    methods = [re.sub(r"(start|freeze|epochs)=\d+", r"\1=1", method) for method in recipe.methods]
    profit = any(method.startswith("profit") for method in methods)
    epochs = 8 if profit else 1 + (methods != list(recipe.methods))  # all that begins later begins in the second
    tiny = recipe.replace(
        model_options=options,
        methods=methods,
        gradient_clip=1.0 if profit else recipe.gradient_clip,  # eight stages of two steps each diverge
        epochs=epochs,
        start_epoch=0,
        batch_size=4,
        max_train_samples=8,
        max_test_samples=4,
        **({} if recipe.loading == "memory" else {"workers": 1}),
        warmup_epochs=0,
        lr=1e-4,
        device="cpu",
        precision="bf16" if recipe.precision == "16" else recipe.precision,
        compile=False,
        tensorboard=False,
        plots=False,
        loading="disk" if profit and recipe.loading == "stream" else recipe.loading,  # streams pause when they end
        **({"image_size": 32, "augment_size": 40} if recipe.dataset == "imagenet" else {}),
    )
    others = [name for name in ("teacher", "init") if getattr(recipe, name) is not None]
    if others:
        twin = fit(tiny.full_precision().replace(init=None), tmp_path / "twin", progress=False)
        tiny = tiny.replace(**dict.fromkeys(others, str(twin)))
    run = fit(tiny, tmp_path / "run", progress=False)
    assert (run / "model.safetensors").is_file()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2 * epochs
