"""Addresses of buffers that live for a time, in one arena."""

from __future__ import annotations

from collections.abc import Sequence

_ALIGNMENT = 64


def aligned(size: int) -> int:
    """Returns the next multiple of the alignment."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def place(sizes: Sequence[int], lives: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Gives each buffer the lowest address that is free while it lives, the largest first.

    Args:
        sizes: Bytes.
        lives: The first and the last step that needs each.

    Returns:
        The addresses, and the bytes of the arena.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], lives[i])):
        busy = sorted(
            (offsets[j], offsets[j] + aligned(sizes[j]))
            for j in placed
            if lives[j][0] <= lives[i][1] and lives[i][0] <= lives[j][1]
        )
        at = 0
        for begin, end in busy:
            if at + aligned(sizes[i]) <= begin:
                break
            at = max(at, end)
        offsets[i] = at
        placed.append(i)
    return offsets, max((offsets[i] + aligned(sizes[i]) for i in placed), default=0)
