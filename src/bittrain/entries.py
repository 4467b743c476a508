"""A recipe's list entries, ``"name key=value key=value"``, checked against a registry of functions or classes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from bitcore.errors import BitLabError, unknown

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def parse_entry(
    text: str, registry: Mapping[str, Callable[..., Any]], kind: str, option: str
) -> tuple[str, dict[str, Any]]:
    """Reads one entry; the keyword-only parameters of the registered callable, and the types of their defaults, rule.

    Args:
        text: For example ``"affine degrees=10 translate=0.1"``.
        registry: The valid names.
        kind: What an entry is called in errors.
        option: What its parameters are called.

    Raises:
        BitLabError: An unknown name or parameter (the nearest valid one is named), a value of another type or below 0.
    """
    name, *pairs = text.split() or [""]
    if name not in registry:
        raise unknown(kind, name, registry)
    parameters = inspect.signature(registry[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in defaults:
            raise unknown(f"{option} of {kind} {name}", key, defaults)
        wanted = type(defaults[key])
        try:
            values[key] = _convert(value, wanted)
        except ValueError:
            raise BitLabError(f"{kind} {name}: {key} must be {_WANTED[wanted]}, not '{value}'") from None
        if wanted in (int, float) and values[key] < 0:
            raise BitLabError(f"{kind} {name}: {key} must be at least 0, not {value}")
    return name, values


def _convert(value: str, wanted: type) -> Any:
    if wanted is bool:
        if value not in ("true", "false"):
            raise ValueError
        return value == "true"
    converted = wanted(value)
    if wanted is float and not math.isfinite(converted):
        raise ValueError
    return converted
