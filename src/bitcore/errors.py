"""The one exception that users meet: it names the thing that is wrong and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from bitcore.naming import printable


class BitLabError(Exception):
    """Bad input, or something this machine cannot do. The command line prints the message and exits with 1."""


class BitLabWarning(UserWarning):
    """What was asked for is done, but for something that the message says. The command line shows it as one line."""


def unknown(kind: str, name: object, known: Iterable[str]) -> BitLabError:
    """Returns the error for a name that is in no registry, with the nearest valid name and all of them.

    Args:
        kind: What was looked up, for example ``"dataset"``.
        name: The name that was asked for.
        known: Every valid name.
    """
    names = sorted(known)
    asked = printable(name)
    near = difflib.get_close_matches(asked, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return BitLabError(f"unknown {kind} '{asked}'{hint} Known: {', '.join(names)}")
