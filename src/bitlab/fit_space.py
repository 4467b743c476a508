"""What `bitlab fit` chooses among: shapes and weight formats of a family, as recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bitcore.errors import BitLabError, unknown
from bitcore.presets import PRESETS
from bittrain.recipe import Recipe

DEFAULT_FORMATS = ("ternary", "2bitsym", "4bitsym")
_CHANNELS = (4, 5, 6, 8, 10, 12, 15, 16, 20, 25, 30, 40, 50, 60)  # 5 ternary codes are a byte
_HIDDEN = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128)


class Chooser(Protocol):
    """Chooses a network, value by value: an Optuna trial, or `Smallest`."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Returns a whole number from ``low`` to ``high``."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Returns one of ``choices``."""
        ...


@dataclass(frozen=True)
class Smallest:
    """Chooses the fewest and narrowest layers, all of one format.

    Attributes:
        format: The format.
    """

    format: str

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Returns ``low``."""
        return low

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Returns the format."""
        return self.format


Layers = dict[str, str]  # a layer's name: its format


def _one_of(choose: Chooser, name: str, widths: Sequence[int]) -> int:
    """Chooses a width by its place, so that the search knows their order."""
    return widths[choose.suggest_int(name, 0, len(widths) - 1)]


def _mcunet(choose: Chooser, formats: Sequence[str]) -> tuple[dict[str, Any], Layers]:
    """Two or three stages of one or two convolutions and a pooling."""
    features: list[int | str] = []
    layers: Layers = {}
    for stage in range(1, 1 + choose.suggest_int("stages", 2, 3)):
        for i in range(1, 1 + choose.suggest_int(f"convolutions{stage}", 1, 2)):
            features.append(_one_of(choose, f"width{stage}_{i}", _CHANNELS))
            layers[f"conv{len(features)}"] = choose.suggest_categorical(f"format{stage}_{i}", formats)
        features.append("pool")
    return {"features": features}, layers


def _mlp(choose: Chooser, formats: Sequence[str]) -> tuple[dict[str, Any], Layers]:
    """One to three hidden layers."""
    widths: list[int] = []
    layers: Layers = {}
    for i in range(1, 1 + choose.suggest_int("hidden", 1, 3)):
        widths.append(_one_of(choose, f"width{i}", _HIDDEN))
        layers[f"fc{i}"] = choose.suggest_categorical(f"format{i}", formats)
    return {"hidden_dims": widths, "batch_norm": True}, layers


FAMILIES: dict[str, Callable[[Chooser, Sequence[str]], tuple[dict[str, Any], Layers]]] = {
    "mcunet": _mcunet,
    "mlp": _mlp,
}


def candidate(choose: Chooser, base: Recipe, family: str, formats: Sequence[str]) -> Recipe:
    """Returns a network of the search space as a recipe.

    Args:
        choose: Chooses it.
        base: Everything but the network.
        family: A name of `FAMILIES`.
        formats: The weight formats to choose among.
    """
    options, layers = FAMILIES[family](choose, formats)
    head = choose.suggest_categorical("format_head", formats)
    quant = PRESETS[f"mcu-{head}-static"].to_dict()
    overrides: dict[str, Any] = {}
    for name, layer in layers.items():  # a scale for each channel: batch norm is part of the weights
        config = PRESETS[f"mcu-{layer}-static"].replace(weight_granularity="per_channel").to_dict()
        overrides[name] = {key: value for key, value in config.items() if value != quant[key]}
    return base.replace(
        model=family, model_options=options, quant=f"mcu-{head}-static", quant_overrides=overrides, act_bits=None
    )


def check_space(family: str, formats: Sequence[str]) -> None:
    """Refuses names that are unknown.

    Raises:
        BitLabError: The nearest name is given.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    known = [name[4:-7] for name in PRESETS if name.startswith("mcu-") and name.endswith("-static")]
    for name in formats:
        if name not in known:
            raise unknown("weight format", name, known)
    if not formats:
        raise BitLabError("there is no weight format to choose; give one with --format")


def describe(recipe: Recipe) -> str:
    """Returns a network in a few words, such as ``12·4bitsym pool 16·ternary pool head·4bitsym``."""
    head = str(recipe.quant).removeprefix("mcu-").removesuffix("-static")

    def layer(name: str, width: object) -> str:
        return f"{width}·{recipe.quant_overrides.get(name, {}).get('weight_format', head)}"

    options = recipe.model_options
    if recipe.model == "mlp":
        words = [layer(f"fc{i}", width) for i, width in enumerate(options["hidden_dims"], start=1)]
    else:
        words = [
            "pool" if width == "pool" else layer(f"conv{i}", width)
            for i, width in enumerate(options["features"], start=1)
        ]
    return " ".join([*words, layer("head", "head")])


def parse_count(text: str, what: str, thousand: int = 1024) -> int:
    """Returns a size such as ``8k``, ``1.5k``, ``2048`` or ``4M``.

    Args:
        text: A number, with k or M behind it or not.
        what: What it is, for the error.
        thousand: What k stands for: 1024 for bytes, 1000 for instructions.

    Raises:
        BitLabError: It is none, or not positive.
    """
    number = text.strip().lower().removesuffix("b")
    units = {"k": thousand, "m": thousand**2}
    try:
        count = int(float(number.rstrip("km")) * units.get(number[-1:], 1))
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise BitLabError(f"{what} '{text}' is no size; write 8k, 2048 or 1.5M")
    return count
