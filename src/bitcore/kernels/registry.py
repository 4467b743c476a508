"""The kernel registry: picks a kernel by operation, formats, device and instruction set."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from bitcore.compiling import constant
from bitcore.config import FLOAT, BitQuantConfig
from bitcore.errors import BitLabError, unknown
from bitcore.kernels.native import ISA_VARIABLE, library
from bitcore.quantizers import PackedTensor


class Kernel(ABC):
    """An integer product of activations and packed weights.

    Attributes:
        op: The operation, for example ``"linear"``.
        has_cpp_backend: Whether native code runs it.
        priority: Of the kernels that fit, the one with the highest runs.
        isa: The instruction set that it needs, ``""`` for none.
        rearranges: Whether `prepare` makes a layout of its own, which can stand in for the packed bytes.
    """

    op: ClassVar[str]
    has_cpp_backend: ClassVar[bool]
    priority: ClassVar[int]
    isa: ClassVar[str] = ""
    rearranges: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    @abstractmethod
    def available(self) -> bool:
        """Whether this machine can run it."""

    @abstractmethod
    def supports(self, weight_format: str, activation_dtype: str, device: str) -> bool:
        """Whether it takes these formats on this kind of device."""

    @abstractmethod
    def prepare(self, weight: PackedTensor, activation_dtype: str = "int8") -> Tensor:
        """Returns the weight in the kernel's own layout (never saved) for activations of that format."""

    @abstractmethod
    def __call__(self, x: Tensor, prepared: Tensor, weight: PackedTensor) -> Tensor:
        """Returns int32 accumulators ``[..., outputs]`` for int8 or uint8 levels ``x [..., inputs]``."""


K = TypeVar("K", bound=Kernel)


class KernelRegistry:
    """All kernels. A new one registers itself with ``@KernelRegistry.register``; the tests then find it."""

    _kernels: ClassVar[dict[str, Kernel]] = {}
    _found: ClassVar[dict[tuple[object, ...], str]] = {}

    @classmethod
    def register(cls, kernel: type[K]) -> type[K]:
        """Class decorator: adds a kernel."""
        cls._kernels[kernel.__name__] = kernel()
        cls._found.clear()
        return kernel

    @classmethod
    def all(cls) -> list[Kernel]:
        """Returns every registered kernel, available here or not."""
        return list(cls._kernels.values())

    @classmethod
    def list_available_kernels(cls) -> list[str]:
        """Returns the names of the kernels that this machine can run."""
        return [name for name, kernel in cls._kernels.items() if kernel.available()]

    @classmethod
    def get_kernel_by_name(cls, name: str) -> Kernel:
        """Returns a kernel.

        Raises:
            BitLabError: If there is none of that name.
        """
        if name not in cls._kernels:
            raise unknown("kernel", name, cls._kernels)
        return cls._kernels[name]

    @classmethod
    def get_kernel_for_config(cls, config: BitQuantConfig, op: str = "linear", device: str = "cpu") -> Kernel:
        """Returns the best available kernel for a quantization config.

        Raises:
            BitLabError: If there is none.
        """
        return cls.find(op, config.weight_format, config.activation_dtype, device)

    @classmethod
    def find(cls, op: str, weight_format: str, activation_dtype: str, device: str) -> Kernel:
        """Returns the best available kernel for an operation, its formats and a device type.

        Raises:
            BitLabError: If there is none.
        """
        return cls._kernels[cls._best(op, weight_format, activation_dtype, device)]

    @classmethod
    def rearrange(cls, weight: PackedTensor, activation_dtype: str) -> Tensor | None:
        """Returns a weight in the layout of the best kernel of linear layers, to be held in place of its bytes.

        ``None`` where that kernel has none of its own, or the bytes hold no codes: who reads them will be told.
        """
        kernel = cls.find("linear", weight.format.name, activation_dtype, weight.data.device.type)
        try:
            return kernel.prepare(weight, activation_dtype) if kernel.rearranges else None
        except ValueError:
            return None

    @classmethod
    @constant  # a compiled graph holds the choice
    def _best(cls, op: str, weight_format: str, activation_dtype: str, device: str) -> str:
        key = (op, weight_format, activation_dtype, device, library(), os.environ.get(ISA_VARIABLE))
        if key not in cls._found:
            fitting = [
                kernel
                for kernel in cls._kernels.values()
                if kernel.op == op and kernel.supports(weight_format, activation_dtype, device) and kernel.available()
            ]
            if not fitting:
                raise BitLabError(f"no kernel for {op} of {weight_format} weights and {activation_dtype} activations")
            cls._found[key] = max(fitting, key=lambda kernel: kernel.priority).name
        return cls._found[key]


def takes_bytes(activation_dtype: str) -> bool:
    """Whether levels of an activation format fit int8 or uint8 (``"float32"`` does not)."""
    from bitcore.formats import get_format

    return activation_dtype != FLOAT and get_format(activation_dtype).level_dtype in (torch.int8, torch.uint8)
