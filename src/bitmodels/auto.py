"""AutoBitModel: builds any registered model with any preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError, unknown
from bitlayers.convert import Override, Quant, quantize, resolve

_DEFAULT = BitQuantConfig()


@dataclass(frozen=True)
class Family:
    """A registered model family.

    Attributes:
        name: The name that recipes and files use.
        config: Its config dataclass.
        build: From a config to a plain, full-precision torch module.
    """

    name: str
    config: type
    build: Callable[[Any], nn.Module]


_FAMILIES: dict[str, Family] = {}
M = TypeVar("M", bound=Callable[[Any], nn.Module])


def register_model(name: str, config: type) -> Callable[[M], M]:
    """Decorator: registers a module class, or a function, that makes a model of the dataclass ``config``."""

    def register(model: M) -> M:
        _FAMILIES[name] = Family(name, config, model)
        return model

    return register


def list_models() -> list[str]:
    """Returns the names of all registered models."""
    return sorted(_FAMILIES)


class AutoBitModel:
    """Builds models from their configs or names. The result is a plain module with bit layers inside.

    It carries ``bit_model``, a dictionary that says how to build it again (name, options, quantization).
    """

    @staticmethod
    def from_config(config: Any, quant: Quant = _DEFAULT, overrides: Mapping[str, Override] | None = None) -> nn.Module:
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
        model = quantize(family.build(config), quant, overrides)
        resolved = resolve(quant)
        options = {f.name: getattr(config, f.name) for f in fields(config)} if is_dataclass(config) else {}
        model.bit_model = {  # type: ignore[assignment]
            "name": family.name,
            "options": options,
            "quant": None if resolved is None else resolved.to_dict(),
            "overrides": {pattern: _plain(override) for pattern, override in (overrides or {}).items()},
        }
        return model

    @staticmethod
    def from_name(
        name: str, quant: Quant = _DEFAULT, overrides: Mapping[str, Override] | None = None, **options: Any
    ) -> nn.Module:
        """Builds a model by its registered name and options (the fields of its config).

        Raises:
            BitLabError: If the name or an option is unknown, or an option is missing.
        """
        if name not in _FAMILIES:
            raise unknown("model", name, _FAMILIES)
        config = _FAMILIES[name].config
        known = [f.name for f in fields(config)]
        for option in options:
            if option not in known:
                raise unknown(f"option of model '{name}'", option, known)
        try:
            built = config(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
        except (TypeError, ValueError) as error:
            raise BitLabError(f"model '{name}': {error}") from error
        return AutoBitModel.from_config(built, quant, overrides)


def _plain(override: Override) -> Any:
    """An override as JSON can hold it."""
    if isinstance(override, Mapping):
        return dict(override)
    return override.to_dict() if isinstance(override, BitQuantConfig) else override
