"""What a model file says of itself: every field of its header is checked before anything is made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from bitcore.config import FLOAT, BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.presets import resolve

REPEATS = 8
"""How many tensors of a file may repeat a stored one, so that a small file cannot stand for any number of tensors."""


@dataclass(frozen=True)
class LayerEntry:
    """What the header says of a bit layer.

    Attributes:
        config: How it is quantized.
        shape: Of its weight, output channels first.
        group: Values that share a scale, or 0.
    """

    config: BitQuantConfig
    shape: tuple[int, ...]
    group: int


@dataclass(frozen=True)
class Header:
    """A header whose fields have their types and agree with one another.

    Attributes:
        model: How to build the model; ``None`` where it is not from the zoo.
        layers: The bit layers, by name.
        same: Tensors that repeat another one, which is stored.
        extra: What the caller of `save_model` gave.
    """

    model: dict[str, Any] | None
    layers: dict[str, LayerEntry]
    same: dict[str, str]
    extra: dict[str, Any]

    @classmethod
    def of(cls, content: dict[str, Any]) -> Header:
        """Checks a header as it was read.

        Raises:
            BitLabError: If a field is missing, unknown, of another type, or disagrees with another one.
        """
        _fields(content, "its header", ("model", "formats", "configs", "layers", "same", "extra"))
        if content["model"] is not None:
            _check_model(content["model"])
        if not isinstance(content["configs"], list):
            raise BitLabError("its 'configs' must be a list")
        configs = [_config(config) for config in content["configs"]]
        layers = {name: _layer(name, entry, configs) for name, entry in _object(content["layers"], "layers").items()}
        _check_formats(_object(content["formats"], "formats"), configs)
        same = _object(content["same"], "same")
        if not all(isinstance(source, str) for source in same.values()):
            raise BitLabError("its 'same' must name tensors")
        return cls(content["model"], layers, same, _object(content["extra"], "extra"))

    def repeated(self, stored: Collection[str]) -> dict[str, str]:
        """Returns `same`, once it is certain that it repeats stored tensors alone, each at most `REPEATS` times.

        Raises:
            BitLabError: If it does not.
        """
        for name, source in self.same.items():
            if source not in stored or name in stored:
                raise BitLabError(
                    f"its 'same' lets '{name:.80}' repeat '{source:.80}', of which one alone must be stored"
                )
        if any(count > REPEATS for count in Counter(self.same.values()).values()):
            raise BitLabError(f"its 'same' repeats a tensor more than {REPEATS} times")
        return self.same


def describe_formats(configs: Iterable[BitQuantConfig]) -> dict[str, Any]:
    """Returns what a reader must know to decode the codes."""
    described = {}
    for config in configs:
        if config.weight_format != FLOAT:
            fmt = get_format(config.weight_format)
            packing = {"radix": fmt.packing.radix, "codes": fmt.packing.codes, "word": fmt.packing.word}
            described[fmt.name] = {"levels": list(fmt.levels), **packing}
    return described


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BitLabError(f"its '{name}' must be an object, not {value!r:.80}")
    return value


def _fields(value: Any, what: str, needed: Collection[str], possible: Collection[str] = ()) -> None:
    if not isinstance(value, dict) or not set(needed) <= value.keys() <= {*needed, *possible}:
        more = f", may hold {', '.join(possible)}" if possible else ""
        raise BitLabError(f"{what} must hold {', '.join(needed)}{more} and nothing else")


def _check_model(model: Any) -> None:
    _fields(model, "its 'model'", ("name", "options", "quant", "overrides"), ("batch_norm",))
    if not isinstance(model["name"], str):
        raise BitLabError(f"the model's name must be text, not {model['name']!r:.80}")
    _object(model["options"], "options")
    if model.get("batch_norm", "fused") != "fused":
        raise BitLabError(f"'batch_norm' is {model['batch_norm']!r:.80}; it can only be 'fused'")
    asked = None if model["quant"] is None else _config(model["quant"])
    for override in _object(model["overrides"], "overrides").values():
        if isinstance(override, dict):
            (asked or BitQuantConfig()).replace(**override)
        elif override is None or isinstance(override, str):
            resolve(override)
        else:
            raise BitLabError(f"an override is {override!r:.80}; it must be a preset, options, or null")


def _config(options: Any) -> BitQuantConfig:
    if "weight_format" not in _object(options, "configs"):
        raise BitLabError("a config says no weight_format")  # other readers have no default for it
    return BitQuantConfig.from_dict(options)


def _layer(name: str, entry: Any, configs: list[BitQuantConfig]) -> LayerEntry:
    what = f"layer '{name:.80}'"
    _fields(entry, what, ("config", "shape", "group"))
    index, shape, group = entry["config"], entry["shape"], entry["group"]
    if type(index) is not int or not 0 <= index < len(configs):
        raise BitLabError(f"{what}: there is no config {index!r:.80}")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise BitLabError(f"{what}: its shape is {shape!r:.80}; it must be a list of whole numbers from 1")
    if type(group) is not int or group < 0:
        raise BitLabError(f"{what}: its group is {group!r:.80}; it must be a whole number")
    return LayerEntry(configs[index], tuple(shape), group)


def _check_formats(formats: dict[str, Any], configs: list[BitQuantConfig]) -> None:
    expected = describe_formats(configs)
    for name in {**expected, **formats}:
        there, here = (json.dumps(described.get(name), sort_keys=True) for described in (formats, expected))
        if there != here:  # as JSON, in which true is not 1
            raise BitLabError(f"the file's format '{name:.80}' is not this version's: {there:.80}, not {here:.80}")
