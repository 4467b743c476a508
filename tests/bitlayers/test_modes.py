"""What uses a model in eval mode gives every module its own mode back."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import bitlab
from bitcore.presets import get_preset
from bitlab.footprint import count_macs, layer_footprints
from bitlayers.batchnorm import freeze_batchnorm, reestimate_batchnorm
from bitlayers.modes import evaluating
from bittrain.callbacks.profit import aiwq
from bittrain.data import Split
from bittrain.distill import Distiller
from bittrain.evaluate import evaluate, predict, predict_batches
from bittrain.fit import _check_input
from bittrain.loader import TestLoader
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from networks import convolutional

SHAPE = (3, 9, 8)
SOURCES = Path(__file__).parents[2] / "src"
PREPROCESSING = Preprocessing(SHAPE[1:], SHAPE[0], (0.5,) * 3, (0.25,) * 3)
SPLIT = Split(torch.randint(256, (4, *SHAPE), dtype=torch.uint8), torch.arange(4))
X = PREPROCESSING(SPLIT.images)

USES: dict[str, Callable[[nn.Module], object]] = {
    "lower": lambda model: bitlab.lower(model, SHAPE),
    "compile": lambda model: bitlab.compile(model, SHAPE),
    "count_macs": lambda model: count_macs(model, SHAPE),
    "layer_footprints": lambda model: layer_footprints(model, SHAPE),
    "predict": lambda model: predict(model, SPLIT.images, PREPROCESSING),
    "predict_batches": lambda model: predict_batches(model, TestLoader(SPLIT, PREPROCESSING)),
    "evaluate": lambda model: evaluate(model, SPLIT, PREPROCESSING),
    "distillation": lambda model: Distiller(nn.Sequential(nn.Flatten(), nn.Linear(216, 5))).prepare(model, X),
    "re-estimation": lambda model: reestimate_batchnorm(model, [X]),
    "instability": lambda model: aiwq(model, [X]),
    "the check of a new model": lambda model: _check_input(model, Recipe(), SHAPE),
}


def network() -> nn.Module:
    """In training mode, but for its frozen batch norms and a layer."""
    model = convolutional(get_preset("mcu-4bitsym-static"), batch_norm=True, channels=3)
    model(X)
    freeze_batchnorm(model)
    model.get_submodule("conv1").eval()
    return model


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("training", [True, False])
def test_every_module_keeps_its_mode(name: str, training: bool) -> None:
    model = network()
    model.training = training
    modes = {path: module.training for path, module in model.named_modules()}
    USES[name](model)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2


def test_within_it_every_module_is_in_eval_mode() -> None:
    model = network()
    with evaluating(model) as same:
        assert same is model
        assert not any(module.training for module in model.modules())


def test_an_error_changes_no_mode() -> None:
    model = network()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="conv2d"), evaluating(model):
        model(torch.zeros(1, 1))
    assert [module.training for module in model.modules()] == modes


def test_no_other_code_remembers_a_models_mode() -> None:
    """`evaluating` is the one place; tracing only asks whether a dropout is off."""
    readers = {
        path.name
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (node.attr, type(node.ctx), type(node.value)) == ("training", ast.Load, ast.Name)
        and getattr(node.value, "id", "") != "self"
    }
    assert readers == {"modes.py", "tracing.py"}
