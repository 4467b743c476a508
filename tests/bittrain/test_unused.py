"""Options that do nothing are refused, or said to be ignored; what nobody says follows from the model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitcore.errors import BitLabError
from bitlayers import BitLayer
from bitmodels import list_models
from bittrain.build import build_model
from bittrain.fit import fit
from bittrain.optim import regime_at
from bittrain.recipe import OPTIMIZERS, Recipe
from bittrain.run_folder import missing_run
from bittrain.unused import NEEDS, find_unused, load_with_flags, refuse_unused, without_unused

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
UNMET: dict[str, dict[str, Any]] = {  # a recipe in which each of them does nothing
    "momentum": {"momentum": 0.5},
    "nesterov": {"nesterov": True},
    "schedule": {"schedule": "step", "regime": ["1 lr=0.1"]},
    "lr_step_epochs": {"lr_step_epochs": 3},
    "lr_gamma": {"lr_gamma": 0.5},
    "lr_restart_epochs": {"lr_restart_epochs": 3},
    "lr_restart_factor": {"lr_restart_factor": 3},
    "lr_final": {"lr_final": 0.1, "schedule": "step"},
    "label_smoothing": {"label_smoothing": 0.1, "loss": "hinge"},
    "augment_probability": {"augment_probability": 0.5},
    "augment_copies": {"augment_copies": 1},
    "augment_size": {"augment_size": 10},
    "kd_temperature": {"kd_temperature": 2},
    "kd_alpha": {"kd_alpha": 0.1},
    "hint_weight": {"hint_weight": 0.1},
    "attention_weight": {"attention_weight": 0.1},
    "hint_layers": {"hint_layers": ["fc1"]},
    "scale_op": {"scale_op": "mean", "quant": None},
    "act_bits": {"act_bits": 4, "quant": None},
    "eval_ternary": {"eval_ternary": True, "quant": None},
    "workers": {"workers": 8},
    "sync_batchnorm": {"sync_batchnorm": True},
}


@pytest.mark.parametrize("name", sorted({name for need in NEEDS for name in need.options}))
def test_an_option_without_effect_is_refused_and_reset(name: str, tmp_path: Path) -> None:
    recipe = Recipe(**UNMET[name])
    assert list(find_unused(recipe)) == [name]
    if name != "sync_batchnorm":  # which the hardware refuses first
        with pytest.raises(BitLabError, match=f"{name} does nothing here: it needs .*; set that, or leave {name} out"):
            fit(recipe, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
    spec = next(spec for spec in fields(Recipe) if spec.name == name)
    assert without_unused(recipe) == recipe.replace(**{name: spec.default})


def test_options_with_an_effect_are_taken() -> None:
    for options in (
        {"optimizer": "sgd", "momentum": 0.5, "nesterov": True},
        {"momentum": 0.5, "regime": ["1 optimizer=sgd"]},
        {"schedule": "step", "lr_gamma": 0.5, "lr_step_epochs": 3},
        {"augment": ["flip"], "augment_probability": 0.5},
        {"teacher": "t", "kd_alpha": 0.2},
        {"loading": "disk", "workers": 8},
    ):
        refuse_unused(Recipe(**options))
    with pytest.raises(BitLabError, match="augment_probability does nothing here: it needs no augment_copies"):
        refuse_unused(Recipe(augment=("flip",), augment_copies=1, augment_probability=0.5))
    with pytest.raises(BitLabError, match="regime '1 momentum=0.5': momentum needs optimizer sgd"):
        regime_at(Recipe(regime=("1 momentum=0.5",)), 1)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_recipes_and_their_twins_set_nothing_in_vain(path: Path) -> None:
    refuse_unused(Recipe.load(path))
    refuse_unused(Recipe.load(path).full_precision())


def test_flags_over_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("optimizer: sgd\nnesterov: true\nmomentum: 0.8\n")
    assert load_with_flags(path, {}) == (Recipe(optimizer="sgd", nesterov=True, momentum=0.8), [])
    recipe, ignored = load_with_flags(path, {"optimizer": "Adam"})
    assert recipe == Recipe(optimizer="adam")
    assert ignored == ["momentum (it needs optimizer sgd)", "nesterov (it needs optimizer sgd)"]
    assert load_with_flags(path, {"lr_gamma": 0.1})[1] == ["lr_gamma (it needs schedule step)"]
    with pytest.raises(BitLabError, match="momentum does nothing here: it needs optimizer sgd"):
        load_with_flags(path, {"optimizer": "adam", "momentum": 0.9})  # said twice, though it is the default
    path.write_text("optimizer: adam\nnesterov: true\n")
    with pytest.raises(BitLabError, match=r"recipe.yaml: nesterov does nothing here"):
        load_with_flags(path, {"optimizer": "sgd"})


@pytest.mark.parametrize("model", list_models())
def test_quantization_and_name_follow_from_the_model(model: str) -> None:
    recipe = Recipe(model=model, dataset="owner/pets")
    own = "mcu-4bitsym" if model == "mlp" else "default"
    assert recipe.quant == own
    assert recipe.name == (f"{model}-{own}-pets" if model == "mlp" else f"{model}-pets")
    assert Recipe.from_dict({}, {"model": model, "dataset": "owner/pets"}) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe(model=model, quant=None, dataset="cifar10").name == f"{model}-float-cifar10"
    assert recipe.replace(quant="w8a8").name == f"{model}-w8a8-pets"
    assert recipe.replace(name="mine").replace(quant="w8a8").name == "mine"


def test_what_a_file_leaves_open_follows_from_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"epochs": 3}))
    assert load_with_flags(path, {"model": "resnet_binary"})[0] == Recipe(model="resnet_binary", epochs=3)
    path.write_text(yaml.safe_dump({"quant": "mcu-4bitsym", "model": "mlp"}))
    assert load_with_flags(path, {"model": "resnet20"})[0].quant == "mcu-4bitsym"


def test_a_binary_model_is_trained_with_one_bit() -> None:
    recipe = Recipe.from_dict({}, {"model": "resnet_binary", "model_options": ["width=4"], "dataset": "cifar10"})
    model = build_model(recipe, (3, 32, 32), 10)
    formats = {m.quant_config.weight_format for m in model.modules() if isinstance(m, BitLayer)}
    assert "binary" in formats and "4bitsym" not in formats


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a\0b", "a\x1b[2J"])
def test_a_name_is_a_folder_s(name: str) -> None:
    with pytest.raises(BitLabError, match="must be a folder's name|not printable"):
        Recipe(name=name)


@pytest.mark.parametrize("choice", [*OPTIMIZERS, "SGD", "Adam", "ADAMW"])
def test_choices_are_read_in_any_case(choice: str) -> None:
    assert Recipe(optimizer=choice).optimizer == choice.lower()
    assert Recipe(schedule="Warm_Restarts").schedule == "warm-restarts"
    assert Recipe(loss="cross-entropy").loss == "cross_entropy"


def test_a_missing_run_names_the_recipe_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(Path(__file__).parents[2] / "recipes")
    made = "bitlab train recipes/cifar10-short/resnet20-short.yaml"
    for path in ("runs/resnet20-short", "runs/resnet20-short/checkpoints/best.ckpt"):
        assert str(missing_run(path)) == (
            f"there is no run 'runs/resnet20-short'; train it first: {made} --out runs/resnet20-short"
        )
    assert f"{made} --float-twin --out runs/resnet20-short-float" in str(missing_run("runs/resnet20-short-float"))
    for option in ("init", "teacher"):
        with pytest.raises(BitLabError, match=f"{option}: there is no run 'runs/resnet20-short'; train it first"):
            fit(Recipe().replace(**{option: "runs/resnet20-short"}), tmp_path / "run", progress=False)
    fit(Recipe(epochs=1, max_train_samples=64, plots=False, tensorboard=False), tmp_path / "runs" / "a", progress=False)
    assert "known in runs: a; train it first: bitlab train RECIPE --out runs/b" in str(missing_run("runs/b"))


@pytest.mark.parametrize("path", [path for path in RECIPES if Recipe.load(path).init or Recipe.load(path).teacher])
def test_every_run_that_a_recipe_begins_with_has_a_recipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    for run in (Recipe.load(path).init, Recipe.load(path).teacher):
        assert run is None or "train it first: bitlab train recipes/" in str(missing_run(run))
