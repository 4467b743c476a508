"""Kernels: integer products on packed weights, chosen by what the machine has. All give the same bits."""

import bitcore.kernels.linear  # noqa: F401  (registers its kernels)
from bitcore.kernels.registry import Kernel, KernelRegistry

__all__ = ["Kernel", "KernelRegistry"]
