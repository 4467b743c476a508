"""Kernels: integer products on packed weights, chosen by what the machine has. All give the same bits."""

import bitcore.kernels.linear
import bitcore.kernels.real
import bitcore.kernels.simd  # noqa: F401
from bitcore.kernels.registry import Kernel, KernelRegistry

__all__ = ["Kernel", "KernelRegistry"]
