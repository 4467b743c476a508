"""Recipes: round trips, flags, and errors that name the nearest valid key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bitcore.errors import BitLabError
from bitcore.presets import PRESETS
from bittrain.augment import parse
from bittrain.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def test_every_option_explains_itself() -> None:
    for spec in fields(Recipe):
        assert spec.metadata["help"].endswith(".") or spec.metadata["help"][-1].isalnum(), spec.name
        assert spec.metadata["panel"], spec.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_published_recipes(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert recipe.quant in (None, "default", *PRESETS)
    for entry in recipe.augment:
        parse(entry)
    recipe.dump(tmp_path / "again.yaml")
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_there_are_recipes() -> None:
    assert {"digits-mlp", "mnist-mlp-4bitsym", "mnist-mlp-ternary"} <= {p.stem for p in RECIPES}


def test_round_trip_of_awkward_values(tmp_path: Path) -> None:
    recipe = Recipe(
        name="ümläut: yes",
        quant=None,
        lr=1e-5,
        augment=("affine degrees=10", "flip"),
        model_options={"hidden_dims": [64, 60], "norm": None},
        quant_overrides={"layers.0": "w8a8"},
    )
    recipe.dump(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def load(tmp_path: Path, text: str) -> Recipe:
    """A recipe from text."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return Recipe.load(path)


def test_yaml_numbers(tmp_path: Path) -> None:
    recipe = load(tmp_path, "lr: 1e-3\nprecision: 32\nweight_decay: 1\nquant: none\nimage_size: 16\naugment: [flip]\n")
    assert (recipe.lr, recipe.precision, recipe.weight_decay, recipe.quant) == (1e-3, "32", 1.0, None)
    assert recipe.image_size == 16
    assert recipe.augment == ("flip",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown recipe key 'epoch'; did you mean 'epochs'"),
        ("optimizer: sdg", "unknown optimizer 'sdg'; did you mean 'sgd'"),
        ("epochs: three", "epochs: must be a whole number, not 'three'"),
        ("epochs: 1.5", "epochs: must be a whole number"),
        ("epochs: true", "epochs: must be a whole number"),
        ("lr: fast", "lr: must be a number"),
        ("lr: .nan", "lr: must be a number"),
        ("epochs: 0", "epochs: must be at least 1, not 0"),
        ("augment_probability: 2", "augment_probability: must be 0 to 1"),
        ("augment: affine", "augment: must be a list of texts"),
        ("model_options: [1]", "model_options: must be a mapping"),
        ("nesterov: 1", "nesterov: must be true or false"),
        ("lr: 1\nlr: 2", "the key 'lr' is given twice"),
        ("- 1", "is no recipe"),
        ("a: [", "is no valid YAML"),
        ("x: !!python/object/apply:os.system ['true']", "is no valid YAML"),
    ],
)
def test_errors_name_file_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BitLabError, match=r"recipe.yaml") as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(BitLabError, match=r"cannot read the recipe nowhere.yaml"):
        Recipe.load("nowhere.yaml")


def test_replace_takes_flags() -> None:
    flags: dict[str, Any] = {"model_options": ["hidden_dims=[64, 60]", "dropout=0.1"], "lr": 1, "augment": ["flip"]}
    recipe = Recipe(model_options={"hidden_dims": [8], "bias": False}).replace(**flags)
    assert recipe.model_options == {"hidden_dims": [64, 60], "bias": False, "dropout": 0.1}
    assert recipe.lr == 1.0
    assert recipe.augment == ("flip",)
    with pytest.raises(BitLabError, match="did you mean 'batch_size'"):
        recipe.replace(batchsize=3)
    with pytest.raises(BitLabError, match="'dropout' is not of the form KEY=VALUE"):
        recipe.replace(model_options=["dropout"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("afine", "unknown augmentation 'afine'; did you mean 'affine'"),
        ("affine degree=3", "unknown strength of augmentation affine 'degree'; did you mean 'degrees'"),
        ("affine degrees=much", "degrees must be a number, not 'much'"),
        ("", "unknown augmentation ''"),
    ],
)
def test_augmentation_errors(entry: str, message: str) -> None:
    with pytest.raises(BitLabError) as caught:
        parse(entry)
    assert message in str(caught.value)
