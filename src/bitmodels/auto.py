"""AutoBitModel: builds any registered model with any preset."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError, unknown
from bitcore.presets import Quant, resolve
from bitlayers.choice import Override
from bitlayers.convert import convert

DEFAULT = "default"
"""Stands for the quantization that a model's name implies: ternary weights, unless it was registered with another."""

Shape = tuple[int, int, int]
Inputs = Callable[[Shape], dict[str, Any]]


def channels(shape: Shape) -> dict[str, Any]:
    """The options of a model that takes images of any size."""
    return {"in_channels": shape[0]}


def features(shape: Shape) -> dict[str, Any]:
    """The options of a model that takes flat vectors."""
    return {"in_channels": math.prod(shape)}


def square_images(shape: Shape) -> dict[str, Any]:
    """The options of a model that takes square images of one size.

    Raises:
        BitLabError: If the images are not square.
    """
    if shape[1] != shape[2]:
        raise BitLabError(f"it takes square images, not {shape[1]}×{shape[2]}; resize them")
    return {"in_channels": shape[0], "image_size": shape[1]}


@dataclass(frozen=True)
class Family:
    """A registered model family.

    Attributes:
        name: The name that recipes and files use.
        config: Its config dataclass. The number of outputs is called ``out_channels`` everywhere.
        build: From a config to a plain, full-precision torch module.
        inputs: From the shape of an image to the options that depend on it.
    """

    name: str
    config: type
    build: Callable[[Any], nn.Module]
    inputs: Inputs = channels


@dataclass(frozen=True)
class Variant:
    """What a model's name stands for.

    Attributes:
        family: The family.
        options: The options that the name implies; others may be given.
        quant: The quantization that it implies.
        overrides: The layers that differ from it.
    """

    family: Family
    options: Mapping[str, Any] = field(default_factory=dict)
    quant: Quant = BitQuantConfig()
    overrides: Mapping[str, Override] = field(default_factory=dict)


_FAMILIES: dict[str, Family] = {}
_VARIANTS: dict[str, Variant] = {}
M = TypeVar("M", bound=Callable[[Any], nn.Module])


def register_model(name: str, config: type, inputs: Inputs = channels) -> Callable[[M], M]:
    """Decorator: registers a module class, or a function, that makes a model of the dataclass ``config``.

    ``inputs`` is that of `Family`.
    """

    def register(model: M) -> M:
        _FAMILIES[name] = Family(name, config, model, inputs)
        _VARIANTS[name] = Variant(_FAMILIES[name])
        return model

    return register


def register_variant(
    name: str,
    family: str,
    quant: Quant = Variant.quant,
    overrides: Mapping[str, Override] | None = None,
    **options: Any,
) -> None:
    """Registers a name for a family with certain options; the arguments are those of `Variant`."""
    _VARIANTS[name] = Variant(_FAMILIES[family], options, quant, overrides or {})


def list_models() -> list[str]:
    """Returns the names of all registered models."""
    return sorted(_VARIANTS)


def find_model(name: str) -> Variant:
    """Returns what a model's name stands for.

    Raises:
        BitLabError: If there is no such model; the message holds the nearest name.
    """
    if name not in _VARIANTS:
        raise unknown("model", name, _VARIANTS)
    return _VARIANTS[name]


def data_options(name: str, shape: Shape, classes: int) -> dict[str, Any]:
    """Returns the options that fit a model to a data set.

    Args:
        name: The model's name.
        shape: Channels, height and width of an image.
        classes: How many there are.

    Raises:
        BitLabError: If the name is unknown, or the model cannot take such images.
    """
    family = find_model(name).family
    try:
        return {**family.inputs(shape), "out_channels": classes}
    except BitLabError as error:
        raise BitLabError(f"model '{name}': {error}") from error


class AutoBitModel:
    """Builds models from their configs or names. The result is a plain module with bit layers inside.

    It carries ``bit_model``, a dictionary that says how to build it again (name, options, quantization).
    """

    @staticmethod
    def from_config(config: Any, quant: Quant = DEFAULT, overrides: Mapping[str, Override] | None = None) -> nn.Module:
        """Builds the model of a config.

        Args:
            config: An instance of a registered config dataclass, such as `bitmodels.mlp.BitMLPConfig`.
            quant: A `BitQuantConfig`, a preset's name, or ``None`` for the full-precision twin. The default is
                ternary weights.
            overrides: Layers that differ, by name pattern (see `bitlayers.convert.quantize`).

        Raises:
            BitLabError: If the config, a preset or an override is unknown.
        """
        family = next((f for f in _FAMILIES.values() if type(config) is f.config), None)
        if family is None:
            known = [f.config.__name__ for f in _FAMILIES.values()]
            raise unknown("model config", type(config).__name__, known)
        return _build(family.name, config, quant, overrides or {})

    @staticmethod
    def from_name(
        name: str, quant: Quant = DEFAULT, overrides: Mapping[str, Override] | None = None, **options: Any
    ) -> nn.Module:
        """Builds a model by its registered name and options (the fields of its config).

        Args:
            name: One of `list_models`, such as ``"resnet18"``; some names imply a quantization (``"alexnet_binary"``).
            quant: As in `from_config`; the default is what the name implies.
            overrides: As in `from_config`.
            **options: Fields of the config.

        Raises:
            BitLabError: If the name or an option is unknown, or an option is missing or of another type.
        """
        variant = find_model(name)
        config = variant.family.config
        known = [f.name for f in fields(config)]
        for option in options:
            if option not in known:
                raise unknown(f"option of model '{name}'", option, known)
        given = {option: _tuples(value) for option, value in options.items()}
        kinds = get_type_hints(config)
        for option, value in given.items():
            if not _fits(value, kinds[option]):
                wanted = _WANTED.get(get_origin(kinds[option]) or kinds[option], "of another kind")
                raise BitLabError(f"option '{option}' of model '{name}' must be {wanted}, not {value!r:.80}")
        try:
            built = config(**{**variant.options, **given})
        except (TypeError, ValueError) as error:
            raise BitLabError(f"model '{name}': {error}") from error
        return _build(name, built, quant, overrides or {})


def _build(name: str, config: Any, quant: Quant, overrides: Mapping[str, Override]) -> nn.Module:
    variant = _VARIANTS[name]
    if quant == DEFAULT:
        quant, overrides = variant.quant, overrides or variant.overrides
    model = variant.family.build(config)
    convert(model, quant, overrides)
    resolved = resolve(quant)
    options = {f.name: getattr(config, f.name) for f in fields(config)} if is_dataclass(config) else {}
    model.bit_model = {  # type: ignore[assignment]
        "name": name,
        "options": options,
        "quant": None if resolved is None else resolved.to_dict(),
        "overrides": {pattern: _plain(override) for pattern, override in overrides.items()},
    }
    return model


_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a config's field; whole numbers are numbers, truth values are none."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool) and kind is not bool:
        return False
    if kind is float:  # NaN and infinity are none, nor are whole numbers that no float holds
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _tuples(value: Any) -> Any:
    """The lists of YAML and JSON as tuples, so that configs stay frozen."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _plain(override: Override) -> Any:
    """An override as JSON can hold it."""
    if isinstance(override, Mapping):
        return dict(override)
    return override.to_dict() if isinstance(override, BitQuantConfig) else override
