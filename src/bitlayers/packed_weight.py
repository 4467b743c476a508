"""PackedWeight: what `layer.weight` is while a layer is packed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.kernels.machine import PreparedTensor
from bitcore.quantizers import PackedTensor

_aten = torch.ops.aten
_READ_ONLY = "a packed weight cannot be written to; unpack(model) makes it a parameter again"


class _Meaning(NamedTuple):
    """How codes become the weight.

    Attributes:
        format: The name of the number format.
        rows: The shape with the output channels first.
        group: Values that share a scale, or 0.
        prepared: Whether the codes are in the machine's layout.
        inputs_first: Groups of a weight whose inputs come first, else 0 (see `unrows`).
        dtype: The weight's.
    """

    format: str
    rows: tuple[int, ...]
    group: int
    prepared: bool
    inputs_first: int
    dtype: torch.dtype


class PackedWeight(Tensor):
    """The weight of a packed layer as a tensor: type, shape and device at no cost, values decoded when they are read.

    Code that asks for ``layer.weight.dtype``, as many models do in ``forward``, costs nothing; code that computes with
    ``layer.weight`` gets levels times scales. It cannot be written to.
    """

    codes: Tensor
    scale: Tensor
    meaning: _Meaning

    @staticmethod
    def __new__(cls: type[PackedWeight], codes: Tensor, scale: Tensor, meaning: _Meaning) -> PackedWeight:  # noqa: D102
        shape = unrows(torch.empty(meaning.rows, device="meta"), meaning.inputs_first).shape
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=meaning.dtype, device=codes.device)  # pyright: ignore
        self.codes, self.scale, self.meaning = codes, scale, meaning
        return self

    @classmethod
    def of(cls, packed: PackedTensor, inputs_first: int, dtype: torch.dtype) -> PackedWeight:
        """Returns the weight that shares a packed tensor's memory."""
        prepared = isinstance(packed, PreparedTensor)
        codes = packed.machine if isinstance(packed, PreparedTensor) else packed.data
        meaning = _Meaning(packed.format.name, tuple(packed.shape), packed.group, prepared, inputs_first, dtype)
        return cls(codes, packed.scale, meaning)

    def decode(self) -> Tensor:
        """Returns levels times scales, in memory of its own."""
        m, fmt = self.meaning, get_format(self.meaning.format)
        if m.prepared:
            packed: PackedTensor = PreparedTensor(self.codes, self.scale, m.rows, fmt)
        else:
            packed = PackedTensor(self.codes, self.scale, m.rows, fmt, m.group)
        return unrows(packed.unpack().dequantize().to(m.dtype), m.inputs_first).contiguous()

    def numpy(self, *, force: bool = False) -> Any:
        """As in torch."""
        return self.decode().numpy(force=force)

    def tolist(self) -> Any:
        """As in torch."""
        return self.decode().tolist()

    def __setitem__(self, *args: Any) -> None:
        raise BitLabError(_READ_ONLY)

    def __repr__(self) -> str:
        m = self.meaning
        return f"PackedWeight({m.format}, shape={tuple(self.shape)}, dtype={m.dtype}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return PackedWeight(self.codes.clone(), self.scale.clone(), self.meaning)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PackedWeight, (self.codes, self.scale, self.meaning)

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (_aten.detach.default, _aten.alias.default):
            return cls(args[0].codes, args[0].scale, args[0].meaning)
        names = [argument.name for argument in func._schema.arguments if argument.is_write]
        written = [*args[: len(names)], *(kwargs or {}).values()] if names else []
        if any(isinstance(value, cls) for value in written):
            raise BitLabError(_READ_ONLY)
        args, kwargs = tree_map_only(cls, cls.decode, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __tensor_flatten__(self) -> tuple[list[str], _Meaning]:
        return ["codes", "scale"], self.meaning

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], meaning: _Meaning, size: Any, stride: Any) -> PackedWeight:
        return PackedWeight(tensors["codes"], tensors["scale"], meaning)


def rows(weight: Tensor, inputs_first: int) -> Tensor:
    """Returns a weight with the output channels first, as codes are packed.

    Args:
        weight: The weight.
        inputs_first: 0 where the output channels come first already; else the groups of a weight
            ``[inputs, outputs of a group, …]``.
    """
    if not inputs_first:
        return weight
    return weight.unflatten(0, (inputs_first, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def unrows(weight: Tensor, inputs_first: int) -> Tensor:
    """The inverse of `rows`."""
    return weight.unflatten(0, (inputs_first, -1)).transpose(1, 2).flatten(0, 1) if inputs_first else weight
