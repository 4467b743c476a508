"""How a bit layer keeps its weight: as a float parameter, as packed bytes, or in a kernel's own layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.kernels.machine import PreparedTensor
from bitcore.quantizers import PackedTensor, QTensor, Quantizer
from bitcore.quantizers.ranges import DIVERGED, UNSEEN

NOT_FINITE = "its weights are NaN or infinite; the training diverged, lower the learning rate"


class PackedStorage(nn.Module):
    """The part of a `bitlayers.base.BitLayer` that packs, saves and loads its weight.

    On a CPU a packed weight is held once, in the layout of the kernel that runs it; whatever leaves the layer
    (``state_dict``, copies, pickles, moves to another device) holds the packed bytes.
    """

    weight: Tensor
    bias: Tensor | None
    quant_config: BitQuantConfig
    weight_quantizer: Quantizer | None
    weight_shape: tuple[int, ...]
    packed_weight: Tensor | None
    weight_scale: Tensor | None
    machine_weight: Tensor | None
    batch_norm: _BatchNorm | None
    _unexamined: bool  # whether the numbers may have changed since they were last found to be in order

    def latent(self) -> tuple[Tensor, Tensor | None]:
        """Returns what is quantized: the float weight (`rows`) and bias, with ``batch_norm``, if any, folded in."""
        raise NotImplementedError

    def problem(self) -> str:
        """Returns why the layer cannot run; empty if it can."""
        raise NotImplementedError

    def rows(self, weight: Tensor) -> Tensor:
        """Returns the weight with the output channels first: what is quantized, packed and given to `operate`."""
        return weight

    def unrows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows

    @property
    def packed(self) -> bool:
        """Whether only packed codes are held."""
        return self.packed_weight is not None

    def quantized_weight(self) -> QTensor:
        """Returns the weight's levels and scale.

        Raises:
            BitLabError: If the weights are float32.
        """
        if self.weight_quantizer is None:
            raise BitLabError("this layer's weights are float32: it has no quantized weight")
        if self.packed:
            return self.packed_tensor().unpack()
        return self.weight_quantizer.quantize(self.latent()[0])

    def packed_tensor(self) -> PackedTensor:
        """Returns the packed weight, packing it when the layer is not packed.

        Raises:
            BitLabError: If the weights are float32, NaN or infinite.
        """
        if self.packed_weight is not None and self.weight_scale is not None:
            fmt = get_format(self.quant_config.weight_format)
            if self.machine_weight is not None:
                return PreparedTensor(self.machine_weight, self.weight_scale, self.weight_shape, fmt)
            group = self.weight_quantizer.source.group if self.weight_quantizer is not None else 0
            return PackedTensor(self.packed_weight, self.weight_scale, self.weight_shape, fmt, group)
        if not torch.isfinite(self.latent()[0]).all():
            raise BitLabError(NOT_FINITE)
        quantized = self.quantized_weight()
        if not bool(((quantized.scale > 0) & quantized.scale.isfinite()).all()):
            raise BitLabError(DIVERGED)
        return quantized.pack()

    @property
    def qweight(self) -> Tensor:
        """The quantized weight as integer levels: int8 wherever the format fits it (fp130 is int16)."""
        return self.quantized_weight().integers()

    def pack(self) -> None:
        """Replaces the latent float weight by packed codes and scale; the layer can then only evaluate.

        Raises:
            BitLabError: If the weights or a scale are no finite numbers. Ranges without data are refused when they run.
        """
        if self.packed or self.weight_quantizer is None:
            return
        if (problem := self.problem()) not in ("", UNSEEN):
            raise BitLabError(problem)
        self.absorb_batch_norm()
        packed = self.packed_tensor()
        self._hold(packed.data, packed.scale)
        self._to_machine()

    @torch.no_grad()
    def absorb_batch_norm(self) -> None:
        """Makes the batch norm that is folded in (if any) part of weight and bias, by its running statistics."""
        if self.batch_norm is None:
            return
        weight, bias = self.latent()
        self.batch_norm = None
        fused = torch.empty_like(self.weight).copy_(self.unrows(weight))
        self.weight = nn.Parameter(fused, self.weight.requires_grad)  # its own: other layers may share the old one
        self.bias = nn.Parameter(bias.clone())  # type: ignore[union-attr]

    def _hold(self, data: Tensor, scale: Tensor) -> None:
        self.packed_weight, self.weight_scale = data, scale
        self.eval()
        self.register_parameter("weight", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes on the state, packed or not, of the dictionary it loads."""
        self._to_bytes()
        if f"{prefix}packed_weight" in state_dict and not self.packed and self.weight_quantizer is not None:
            # Of the layer's own shapes, so that torch refuses to fill them with another layer's.
            zeros = torch.zeros_like(self.rows(self.weight))
            row_bytes = self.weight_quantizer.format.packing.row_bytes(zeros[:1].numel())
            data = torch.zeros(len(zeros), row_bytes, dtype=torch.uint8, device=zeros.device)
            self._hold(data, self.weight_quantizer.scale(zeros).detach())
        elif f"{prefix}weight" in state_dict and self.packed:
            assert self.weight_scale is not None
            self.weight = nn.Parameter(self.unrows(torch.empty(self.weight_shape, device=self.weight_scale.device)))
            self.packed_weight = self.weight_scale = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._unexamined = True
        self._to_machine()

    def machine_layout(self, weight: PackedTensor) -> Tensor | None:
        """Returns the packed weight in a kernel's own layout, to be held in its place; ``None`` for none."""
        return None

    def _to_machine(self) -> None:
        """Replaces the packed bytes, wherever a kernel has a layout of its own, so that a weight is held once."""
        if self.packed_weight is not None and self.machine_weight is None:
            self.machine_weight = self.machine_layout(self.packed_tensor())
            if self.machine_weight is not None:
                self.packed_weight = self.packed_weight.new_empty(0)

    def _to_bytes(self) -> None:
        """The inverse of `_to_machine`."""
        if self.machine_weight is not None:
            self.packed_weight, self.machine_weight = self.packed_tensor().data, None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.machine_weight is not None:
            destination[f"{prefix}packed_weight"] = self.packed_tensor().data

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._to_bytes()
        super()._apply(fn, recurse)
        self._to_machine()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the packed bytes."""
        state = dict(self.__dict__)
        if self.machine_weight is not None:
            bytes_ = {"packed_weight": self.packed_tensor().data, "machine_weight": None}
            state["_buffers"] = {**self._buffers, **bytes_}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._to_machine()
