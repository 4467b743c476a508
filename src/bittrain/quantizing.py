"""Post-training quantization of a run: calibrated, not trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitlayers import BitLayer, calibrate
from bitmodels.io import save_model
from bittrain.build import build_model, take_weights
from bittrain.loader import TestLoader
from bittrain.prepare import prepare
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from bittrain.record import environment
from bittrain.seeds import generator

_BATCH = 64


def quantize_run(
    model: nn.Module,
    extra: dict[str, Any],
    out: Path,
    quant: str,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    images: int = 1024,
) -> Path:
    """Quantizes a full-precision run after its training, into a run folder like a trained one's.

    The weights are the run's, its activation ranges and batch-norm statistics those of some of its training images
    (`bitlayers.calibrate`), which are chosen by its seed and not augmented.

    Args:
        model: The run's model.
        extra: What its file says about it.
        out: The new folder: new or empty. It then holds ``recipe.yaml``, ``environment.json``, ``model.safetensors``.
        quant: A preset's name.
        overrides: As a recipe's ``quant_overrides``: a mapping, or ``"PATTERN=PRESET"`` texts.
        images: Training images to calibrate on.

    Raises:
        BitLabError: The run is quantized already, the folder is in use, or a name is unknown.
    """
    if any(isinstance(module, BitLayer) for module in model.modules()):
        raise BitLabError("the run is quantized already; give its full-precision twin (bitlab train --float-twin)")
    if images < 1:
        raise BitLabError(f"calibrate: images must be at least 1, not {images}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BitLabError(f"'{out}' is in use; choose another folder with --out")
    trained = Recipe.from_dict(extra["recipe"])
    recipe = trained.replace(name=out.name, quant=quant, quant_overrides=overrides, augment=(), augment_copies=0)
    recipe = recipe.replace(augment_size=None)
    preprocessing = Preprocessing.from_dict(extra["preprocessing"])
    quantized = build_model(recipe, preprocessing.shape, len(extra["classes"]))
    take_weights(quantized, model.state_dict(), "the run")
    rows = prepare(recipe).train
    chosen = torch.randperm(len(rows), generator=generator(recipe.seed, "calibration"))[:images]
    batches = TestLoader(rows.take(chosen), preprocessing, _BATCH)
    calibrate(quantized, batches, batches=len(batches), inplace=True)
    found = {"recipe": recipe.to_dict(), "calibrated": {"images": len(chosen), "run": trained.name}}
    recipe.dump(out / "recipe.yaml")
    write_atomically(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
    save_model(quantized, out / "model.safetensors", extra | found)
    return out
