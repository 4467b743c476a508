"""QTensor: levels, scale, format. PackedTensor: the same as bytes, as they are saved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitcore.formats import NumberFormat
from bitcore.quantizers.granularity import spread


@dataclass(frozen=True)
class QTensor:
    """A quantized tensor: ``value = (levels + shift) * scale``, the scale spread to the levels' shape.

    Attributes:
        levels: Integer levels in a floating-point dtype (so that integer sums run on the fast float paths).
        scale: Positive and compact: broadcastable to ``levels``, or one a group of a row, or (with one dimension more
            than the levels) two, for levels above and below 0.
        format: The number format whose levels these are.
        group: Values of a row that share a scale; 0 for no groups.
        shift: An integer (floating-point dtype, shape ``[]``), ``None`` for 0.
    """

    levels: Tensor
    scale: Tensor
    format: NumberFormat
    group: int = 0
    shift: Tensor | None = None

    @property
    def uniform(self) -> bool:
        """Whether the levels of a row share one scale, so that it can be applied behind sums of levels."""
        return not self.group and self.scale.ndim <= self.levels.ndim

    def dequantize(self) -> Tensor:
        """Returns ``(levels + shift) * scale``."""
        return self.shifted() * spread(self.scale, self.levels, self.group)

    def shifted(self) -> Tensor:
        """Returns ``levels + shift``: the integers that are multiplied."""
        return self.levels if self.shift is None else self.levels + self.shift

    def codes(self) -> Tensor:
        """Returns the uint8 codes (indices into the format's levels)."""
        return self.format.encode(self.levels)

    def integers(self) -> Tensor:
        """Returns the levels in the narrowest integer dtype of the format (int8 wherever they fit)."""
        return self.levels.to(self.format.level_dtype)

    def pack(self) -> PackedTensor:
        """Packs the codes row by row.

        Raises:
            ValueError: If a value is no level, as after quantizing NaN.
        """
        rows = self.codes().flatten(1)
        shape = tuple(self.levels.shape)
        return PackedTensor(self.format.packing.pack(rows), self.scale, shape, self.format, self.group)


@dataclass(frozen=True)
class PackedTensor:
    """Packed codes: what a file holds.

    Attributes:
        data: uint8 ``[shape[0], bytes of a row]``; a row is everything behind the first dimension, flattened.
        scale: As in `QTensor`.
        shape: The shape of the unpacked tensor.
        format: The number format.
        group: As in `QTensor`.
    """

    data: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    format: NumberFormat
    group: int = 0

    @property
    def uniform(self) -> bool:
        """As in `QTensor`."""
        return not self.group and self.scale.ndim <= len(self.shape)

    def unpack(self, dtype: torch.dtype = torch.float32) -> QTensor:
        """Returns the levels as a `QTensor` of floating-point ``dtype``.

        Raises:
            ValueError: If the bytes do not hold codes of the format.
        """
        n = 1
        for size in self.shape[1:]:
            n *= size
        levels = self.format.decode(self.format.packing.unpack(self.data, n))
        return QTensor(levels.to(dtype).reshape(self.shape), self.scale, self.format, self.group)
