"""What the command line sets for its process as a whole."""

from __future__ import annotations

import ctypes
import platform

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
