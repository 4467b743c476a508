"""Signals that ask a process to end, as an exception: what is open gets closed, and what is half-written goes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(SystemExit):
    """A signal asked this process to end.

    Left alone, it ends the process with the status that shells know the signal by, 128 + N. Its notes (``add_note``)
    say what was kept and how to go on.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        """See the class."""
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        """The signal's name, and what was kept."""
        return ": ".join([f"interrupted by {self.signal.name}", *getattr(self, "__notes__", ())])


_received: list[int] = []
"""The signal that this process is ending for."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises `Interrupted` in here when SIGINT, SIGTERM or SIGHUP arrives; what is ignored (nohup) stays ignored.

    It is raised once: a second signal (a launcher's, an impatient Ctrl-C) must not break the cleaning up. Other threads
    than the main one cannot receive signals; there it does nothing.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if threading.current_thread() is not threading.main_thread() or _interrupt in before.values():
        yield
        return
    try:
        listen()
        yield
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def listen() -> None:
    """Takes the signals, also back from Lightning, which would end a training with status 0, as if it were complete."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)


def raise_again() -> None:
    """Raises `Interrupted` if it was raised where Python drops exceptions, as in a ``__del__``."""
    if _received:
        raise Interrupted(_received[0])


def _interrupt(number: int, _: FrameType | None) -> None:
    if not _received:
        _received.append(number)
        raise Interrupted(number)
