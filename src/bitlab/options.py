"""Command-line flags made from the fields of `Recipe`, so that every option is defined once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin, get_type_hints

import typer

from bittrain.recipe import Recipe


def recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Function decorator: gives a typer command one flag for each field of `Recipe`.

    The command's last parameter, ``**flags``, receives the given ones under the fields' names; flags that were not
    given are absent, so that the recipe's own values stay.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    kinds = get_type_hints(Recipe)
    flags = [_parameter(spec, kinds[spec.name]) for spec in fields(Recipe)]

    def run(**arguments: Any) -> None:
        given = {p.name: arguments.pop(p.name) for p in flags}
        command(**arguments, **{name: value for name, value in given.items() if value not in (None, [])})

    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    return run


def _parameter(spec: Field[Any], kind: Any) -> inspect.Parameter:
    """The typer parameter of one field; unset by default."""
    base = next((k for k in get_args(kind) if k is not type(None)), kind) if get_args(kind) else kind
    repeatable = get_origin(kind) in (dict, tuple)
    flag = f"--{spec.name.replace('_', '-')}"
    metadata = spec.metadata
    option = typer.Option(
        None,
        f"{flag}/--no-{flag[2:]}" if base is bool else flag,
        *metadata["also"],
        help=f"{metadata['help']}{_choices(spec)}{_default(spec)}",
        rich_help_panel=metadata["panel"],
        show_default=False,
    )
    annotation = list[str] | None if repeatable else (base | None)
    return inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _choices(spec: Field[Any]) -> str:
    return f" One of: {', '.join(spec.metadata['choices'])}." if spec.metadata["choices"] else ""


def _default(spec: Field[Any]) -> str:
    shown = spec.metadata["shown"] or spec.default
    return "" if shown in (MISSING, None, ()) else f" Default: {shown}."
