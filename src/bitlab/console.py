"""What the commands show: rich tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitcore.kernels.native import library

__all__ = ["err", "escape", "native_kernels", "note", "out", "percent", "show_json", "show_table", "size"]

out = Console(width=None if sys.stdout.isatty() else 120)  # files and pipes get whole tables
err = Console(stderr=True)


def note(message: str) -> None:
    """Says one line beside the result."""
    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True, highlight=False)


def show_json(data: Any) -> None:
    """Prints plain data as JSON."""
    out.print_json(json.dumps(data))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; columns after the first are right-aligned when their cells begin with a digit."""
    listed = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(listed) and all(not row[i] or row[i][0] in "0123456789-" for row in listed)
        table.add_column(column, justify="right" if numeric and i else "left", overflow="fold")
    for row in listed:
        table.add_row(*row)
    out.print(table)


def native_kernels() -> None:
    """Says so when the native kernels are missing; silent otherwise."""
    if library() is None:
        out.print(
            "[yellow]Native kernels are not installed; torch stands in.[/] Install a C compiler, then BitLab again."
        )


def percent(share: float | None) -> str:
    """Returns a share as a percentage, a dash for ``None``."""
    return "–" if share is None else f"{100 * share:.2f} %"


def size(count: int) -> str:
    """Returns bytes with thousands separated."""
    return f"{count:,} B"
