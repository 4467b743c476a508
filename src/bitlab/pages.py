"""Generated tables inside hand-written pages: what stands between two marks is replaced."""

from __future__ import annotations

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def with_table(text: str, table: str, name: str = "results") -> str:
    """Returns a document with what is between the markers of that name replaced."""
    begin, end = (mark.replace("results", name) for mark in (BEGIN, END))
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
