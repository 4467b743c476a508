"""What the command line sets for its process as a whole."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bitcore.errors import BitLabError, BitLabWarning
from bitlab import console
from bittrain.interrupts import Interrupted, interruptible

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> None:
    """Has glibc keep up to 2 GiB of freed memory for what comes next; elsewhere does nothing.

    By itself it gives large blocks back to the kernel, which maps and clears them again in every training step
    (``benchmarks/freed_memory.py``).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Ends the process with one line for what a user can change, and for a signal; warnings are a line too."""
    try:
        with warnings.catch_warnings(), interruptible():
            _warnings_as_lines()
            yield
    except BitLabError as error:
        _end(str(error), 1)
    except Interrupted as stop:
        from bittrain.hardware import is_first_process

        _end(str(stop) if is_first_process() else "", int(stop.code or 0))  # pyright: ignore[reportArgumentType]
    except OSError as error:  # full disks, permissions, folders in place of files: nothing that a traceback explains
        where = "" if error.filename is None else f"{os.fspath(error.filename)!r}: "
        _end(f"{where}{error.strerror or error}", 1)


def _warnings_as_lines() -> None:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, BitLabWarning):
            console.note(str(message))
        else:
            text = warnings.formatwarning(message, category, filename, lineno, line)
            console.err.print(text, end="", soft_wrap=True, highlight=False)

    warnings.showwarning = show


def _end(message: str, status: int) -> None:
    if message:
        console.error(message)
    sys.exit(status)
