"""What the commands show: rich tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitcore.kernels.native import library
from bitcore.naming import printable

__all__ = ["err", "native_kernels", "note", "out", "percent", "show_json", "show_table", "size"]

_LONGEST_LINE = 4000


class _Terminal(Console):
    """A console that shows texts as they are: no markup, and nothing in them that a terminal would obey.

    What is coloured is a `rich.text.Text`, of words of our own.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As of `rich.console.Console`, line by line."""
        lines = (printable(line.expandtabs(), _LONGEST_LINE) for line in text.split("\n"))
        return super().render_str("\n".join(lines), **{**options, "markup": False, "emoji": False})


out = _Terminal(width=None if sys.stdout.isatty() else 120)  # files and pipes get whole tables
err = _Terminal(stderr=True)


def note(message: str) -> None:
    """Says one line beside the result."""
    _say(Text("note:", "yellow"), message)


def error(message: str) -> None:
    """Says why the command ends."""
    _say(Text("error:", "bold red"), message)


def _say(what: Text, message: str) -> None:
    """Says a line; further lines are indented, so that none can pass for another message."""
    err.print(what, message.replace("\n", "\n  "), soft_wrap=True, highlight=False)


def show_json(data: Any) -> None:
    """Prints plain data as JSON, in ASCII."""
    out.print_json(json.dumps(data), ensure_ascii=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Prints a table; columns after the first are right-aligned when their cells begin with a digit."""
    listed = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(listed) and all(not row[i] or str(row[i])[0] in "0123456789-" for row in listed)
        table.add_column(column, justify="right" if numeric and i else "left", overflow="fold")
    for row in listed:
        table.add_row(*row)
    out.print(table)


def native_kernels() -> None:
    """Says so when the native kernels are missing; silent otherwise."""
    if library() is None:
        warning = Text("Native kernels are not installed; torch stands in.", "yellow")
        out.print(warning, "Install a C compiler, then BitLab again.")


def percent(share: float | None) -> str:
    """Returns a share as a percentage, a dash for ``None``."""
    return "–" if share is None else f"{100 * share:.2f} %"


def size(count: int) -> str:
    """Returns bytes with thousands separated."""
    return f"{count:,} B"
