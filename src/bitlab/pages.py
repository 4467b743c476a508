"""Generated tables inside hand-written pages: what stands between two marks is replaced."""

from __future__ import annotations

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def with_table(text: str, table: str) -> str:
    """Returns a document with what is between its markers replaced."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
