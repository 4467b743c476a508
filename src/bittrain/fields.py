"""The fields of a recipe: what a command line shows of them, how their values are read, converted and checked."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Union, get_args, get_origin

import yaml

from bitcore.errors import BitLabError, unknown
from bitcore.naming import is_clean, is_file_name, shown

_LONGEST = 4096
"""Letters of a text, entries of a list."""
_DEEPEST = 8
_LARGEST = 2**63 - 1


def option(
    default: Any,
    help: str,
    panel: str,
    choices: Iterable[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    also: Iterable[str] = (),
    shown: str = "",
) -> Any:
    """A field with what a command line shows of it.

    Args:
        default: The value; a callable makes one.
        help: One line, in plain words.
        panel: The group it is listed under.
        choices: The valid values, where there are few.
        low: The smallest valid number.
        high: The largest.
        also: Other names of the flag, such as ``-b``.
        shown: The default in words, where the value alone would not say it.
    """
    metadata = {
        "help": help,
        "panel": panel,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "also": tuple(also),
        "shown": shown,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def read_yaml(text: str) -> Any:
    """Reads safe YAML whose numbers are YAML 1.2's (``1e-3`` is a number); keys given twice and aliases are refused.

    Raises:
        yaml.YAMLError: It is none, or deeply nested, or a number or date in it is impossible.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, OverflowError) as error:  # 5,000 digits, the 45th of May
        raise yaml.YAMLError(f"an impossible value ({error})") from None


def parse_pairs(texts: Iterable[str], what: str) -> dict[str, Any]:
    """Reads ``key=value`` texts; a value is YAML, so that lists and numbers work.

    Args:
        texts: For example ``["hidden_dims=[64, 60]"]``.
        what: The option's name, for the error.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, sign, value = str(text).partition("=")
        if not sign or not key:
            raise BitLabError(f"{what}: '{text}' is not of the form KEY=VALUE")
        try:
            values[key.strip()] = read_yaml(value)
        except yaml.YAMLError:
            raise BitLabError(f"{what}: '{value}' is no valid value for {key}") from None
    return values


class _Loader(yaml.SafeLoader):
    """See `read_yaml`."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node that is no alias (a few can stand for billions of values), and not deep (which is slow)."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, f"the alias *{event.anchor}; write the value itself", event.start_mark
            )
        self.depth += 1
        if self.depth > 2 * _DEEPEST:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of single values, without double keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def convert(name: str, value: Any, kind: Any) -> Any:
    """Returns ``value`` as ``kind``, where it means that without loss.

    Args:
        name: The field's.
        value: Any plain value.
        kind: The field's type.

    Raises:
        BitLabError: It does not, or holds something that no recipe needs: huge numbers, endless or unprintable texts.
    """
    if get_origin(kind) in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return convert(name, value, next(k for k in get_args(kind) if k is not types.NoneType))
    base = get_origin(kind) or kind
    _check_plain(name, value)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if base is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
    elif base is dict:
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return dict(value)
    elif base is str and type(value) is int:
        return str(value)  # precision: 32
    elif type(value) is base:
        return value
    wanted = {
        "tuple": "a list of texts",
        "dict": "a mapping",
        "str": "text",
        "int": "a whole number",
        "bool": "true or false",
    }
    raise BitLabError(f"recipe key {name}: must be {wanted.get(base.__name__, 'a number')}, not {shown(value)}")


def _check_plain(name: str, value: Any, depth: int = 0) -> None:
    """Checks that a value is made of numbers, printable texts, lists and mappings, none of them huge.

    Raises:
        BitLabError: It is not; the message names the recipe's key ``name``.
    """
    if isinstance(value, list | tuple | Mapping):
        if len(value) > _LONGEST or depth == _DEEPEST:
            raise BitLabError(f"recipe key {name}: too long or too deeply nested; shorten {shown(value)}")
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        for part in parts:
            _check_plain(name, part, depth + 1)
    elif isinstance(value, str):
        if len(value) > _LONGEST or not is_clean(value):
            raise BitLabError(f"recipe key {name}: too long or not printable; correct {shown(value)}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BitLabError(f"recipe key {name}: must be a number, not {shown(value)}")
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise BitLabError(f"recipe key {name}: at most {_LARGEST}, not {shown(value)}")
    elif value is not None:
        raise BitLabError(f"recipe key {name}: must be plain text or a number, not {shown(value)}")


def check_file_name(name: str, value: str) -> None:
    """Checks that a text can name a folder in any folder: it leads nowhere else.

    Raises:
        BitLabError: It cannot; the message names the recipe's key ``name``.
    """
    if not is_file_name(value):
        raise BitLabError(
            f"recipe key {name}: must be a folder's name, without / and \\ and dots at its ends, not {shown(value)}"
        )


def canonical(spec: dataclasses.Field[Any], value: Any) -> Any:
    """Returns a choice as it is written here: ``SGD`` is ``sgd``, ``warm_restarts`` is ``warm-restarts``."""
    if not isinstance(value, str):
        return value
    return next((choice for choice in spec.metadata["choices"] if _folded(choice) == _folded(value)), value)


def _folded(choice: str) -> str:
    return choice.casefold().replace("_", "-")


def check(spec: dataclasses.Field[Any], value: Any) -> None:
    """Checks a value against the field's choices and limits."""
    choices, low, high = (spec.metadata[k] for k in ("choices", "low", "high"))
    if choices and value is not None and value not in choices:
        raise unknown(spec.name, value, choices)
    if isinstance(value, int | float) and not low <= value <= high:
        limits = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
        raise BitLabError(f"recipe key {spec.name}: must be {limits}, not {value:g}")
