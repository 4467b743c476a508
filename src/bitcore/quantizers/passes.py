"""What training passes found, for passes that are made again: activation checkpointing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

_REMEMBERED = 16  # passes between a forward and its backward: micro-batches, and uses of a shared layer


class Passes:
    """Remembers what the latest passes found, so that a recomputation finds the same and changes nothing.

    ``torch.utils.checkpoint`` drops what a forward pass would save and computes it again within the backward pass. What
    a layer remembers has changed since: it must neither be used nor change a second time.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[tuple[Tensor, ...], Tensor]] = deque(maxlen=_REMEMBERED)

    def once(self, keys: tuple[Tensor, ...], find: Callable[[], Tensor]) -> Tensor:
        """Returns what ``find`` returns; in a recomputation, what it returned for equal keys.

        Args:
            keys: Numbers (shape ``[]``) of the pass's input, by which the pass is known again; none: it is the latest.
            find: May change what it remembers. Its result must not be changed.
        """
        if torch.compiler.is_compiling():
            return find()  # there it is the compiler that decides what is computed twice
        if recomputing():
            for known, found in reversed(self._known):
                if all(bool(a == b) for a, b in zip(known, keys, strict=True)):
                    return found
        found = find()
        self._known.append((keys, found))
        return found


def recomputing() -> bool:
    """Whether a backward pass is going on, in which a forward pass can only be one that is made again."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
