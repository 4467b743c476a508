"""What the file of a model says about it, which may come from a stranger: checked before anything uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError
from bitcore.naming import is_clean
from bittrain.classes import check_names
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import LOADING


def check_description(described: Any, path: Path | str) -> dict[str, Any]:
    """Checks ``preprocessing``, ``dataset``, ``classes`` and ``recipe``, as far as they are there.

    Args:
        described: What a model's file holds beside the weights.
        path: The file.

    Returns:
        The same.

    Raises:
        BitLabError: One is not what BitLab writes; the message names it.
    """
    if not isinstance(described, dict):
        raise BitLabError(f"'{path}' is damaged: what it says about its model is no mapping")
    try:
        if "preprocessing" in described:
            Preprocessing.from_dict(described["preprocessing"])
        if "classes" in described:
            _check_classes(described["classes"])
        dataset = described.get("dataset", "")
        if not isinstance(dataset, str) or not is_clean(dataset):
            raise BitLabError("dataset is no printable name")
        recipe = described.get("recipe", {})
        if not isinstance(recipe, dict):
            raise BitLabError("recipe is no mapping")
        if recipe.get("loading", LOADING[0]) not in LOADING or recipe.get("workers", 0) not in range(257):
            raise BitLabError("loading or workers of its recipe is impossible")
    except BitLabError as error:
        raise BitLabError(f"'{path}' is damaged or not from BitLab: {error}; use another one or train again") from None
    return described


def _check_classes(classes: Any) -> None:
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise BitLabError("classes is no list of names")
    if classes:
        check_names(classes, "classes")


def check_same_classes(model: Sequence[str], data: Sequence[str], dataset: str) -> None:
    """Checks that a model's outputs stand for the classes of the data, as far as both have names.

    Raises:
        BitLabError: They do not: what is measured would mean nothing.
    """
    model, data = tuple(model), tuple(data)
    numbered = tuple(map(str, range(len(data))))
    if model and model != data and numbered not in (model, data):
        order = "in another order" if sorted(model) == sorted(data) else "others"
        raise BitLabError(
            f"the classes of {dataset} ({_few(data)}) are {order} than those of the model ({_few(model)}); measure it "
            "on data with the classes that it was trained on"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
