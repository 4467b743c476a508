"""How a bit layer keeps its weight: as a float parameter, as packed bytes, or in a kernel's own layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from bitlayers.packed_weight import PackedWeight, rows, unrows

NOT_FINITE = "its weights are NaN or infinite; the training diverged, lower the learning rate"
PACKED_AS = "packed_as"
"""The entry of a state dictionary that says how a packed weight is meant (see `describe_packed`)."""


def describe_packed(format_name: str, shape: Sequence[int], group: int) -> Tensor:
    """Returns, as the bytes of a text, what tells a packed weight from another of as many bytes.

    Args:
        format_name: The number format.
        shape: The weight's, output channels first.
        group: Values that share a scale, or 0.
    """
    groups = f", groups of {group}" if group else ""
    text = f"{format_name} {list(shape)}{groups}"
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


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
    weight_dtype: torch.dtype  # of the float weight, also while there are only codes
    batch_norm: _BatchNorm | None
    _unexamined: bool  # whether the numbers may have changed since they were last found to be in order

    def latent(self) -> tuple[Tensor, Tensor | None]:
        """Returns what is quantized: the float weight (`rows`) and bias, with ``batch_norm``, if any, folded in."""
        raise NotImplementedError

    def problem(self) -> str:
        """Returns why the layer cannot run; empty if it can."""
        raise NotImplementedError

    @property
    def inputs_first(self) -> int:
        """Groups of a layer whose weight has its inputs first; 0 for output channels first, as most have them."""
        return 0

    def rows(self, weight: Tensor) -> Tensor:
        """Returns the weight with the output channels first: what is quantized, packed and given to `operate`."""
        return rows(weight, self.inputs_first)

    def unrows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return unrows(rows, self.inputs_first)

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

    @torch.no_grad()
    def unpack(self, hold_scales: bool = True) -> None:
        """Makes the codes a float weight again, a parameter that trains: their levels times their scales.

        It is quantized to the same codes and scales. Where the layer's scaler would compute another scale from it, the
        scale is held: half the weights of a ternary layer being 0, for example, their mean is half the scale. A weight
        that is transformed before it is quantized gets values that the transform maps there.

        Args:
            hold_scales: Whether such scales are held. If not, they change at once, and codes may.

        Raises:
            BitLabError: If no float weight would be quantized to these codes.
        """
        if not self.packed:
            return
        quantizer, packed = self.weight_quantizer, self.packed_tensor()
        assert quantizer is not None
        try:
            weight = quantizer.recover(packed.unpack(packed.scale.dtype), self.weight_dtype)
        except ValueError as error:
            raise BitLabError(f"it cannot be unpacked: {error}") from error
        self._release(weight)
        if not hold_scales:
            quantizer.source.release()

    def _hold(self, data: Tensor, scale: Tensor) -> None:
        self.weight_dtype = self.weight.dtype
        self.packed_weight, self.weight_scale = data, scale
        self.eval()
        self.register_parameter("weight", None)

    def _release(self, weight: Tensor) -> None:
        """The inverse of `_hold`, with a weight as `rows` gives it."""
        self._to_bytes()
        self.packed_weight = self.weight_scale = None
        self.weight = nn.Parameter(self.unrows(weight).contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes on the state, packed or not, of the dictionary it loads."""
        described = state_dict.pop(f"{prefix}{PACKED_AS}", None)
        if f"{prefix}packed_weight" in state_dict and self.weight_quantizer is not None:
            data, scale = (torch.empty_like(like, device=self.weight.device) for like in self.packed_like())
            self._check_packed(state_dict, prefix, described, data, scale)
            self._to_bytes()
            if not self.packed:
                self._hold(data, scale)
        elif f"{prefix}weight" in state_dict and self.packed:
            blank = torch.empty(self.weight_shape, dtype=self.weight_dtype, device=self.weight.device)
            _expect(f"{prefix}weight", list(state_dict[f"{prefix}weight"].shape), list(self.weight.shape))
            self._release(blank)
        self._to_bytes()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._unexamined = True
        self._to_machine()

    def packed_like(self) -> tuple[Tensor, Tensor]:
        """Returns tensors of the shape and type of the layer's packed weight and scale, on the meta device."""
        quantizer, scale = self.weight_quantizer, self.weight_scale
        assert quantizer is not None
        row_bytes = quantizer.format.packing.row_bytes(math.prod(self.weight_shape[1:]))
        data = torch.empty(self.weight_shape[0], row_bytes, dtype=torch.uint8, device="meta")
        if scale is not None:
            return data, scale.detach().to("meta")
        dtype = quantizer.source(self.weight.detach().new_empty(0), quantizer.format).dtype
        dtype = torch.promote_types(dtype, torch.float32)
        return data, torch.empty(quantizer.source.shape(self.weight_shape), dtype=dtype, device="meta")

    def _check_packed(
        self, state_dict: dict[str, Any], prefix: str, described: Tensor | None, data: Tensor, scale: Tensor
    ) -> None:
        """Compares what a state dictionary holds with what the layer takes.

        Raises:
            BitLabError: If they differ; the message names the entry.
        """
        quantizer, key = self.weight_quantizer, f"{prefix}packed_weight"
        assert quantizer is not None
        expected = describe_packed(quantizer.format.name, self.weight_shape, quantizer.source.group)
        if described is not None:
            _expect(key, *(bytes(text.tolist()).decode(errors="replace") for text in (described, expected)))
        if f"{prefix}weight_scale" not in state_dict:
            raise BitLabError(f"'{key}' comes without '{prefix}weight_scale'")
        there, scales = state_dict[key], state_dict[f"{prefix}weight_scale"]
        _expect(f"{prefix}weight_scale", list(scales.shape), list(scale.shape))
        _expect(key, f"{there.dtype} {list(there.shape)}", f"{data.dtype} {list(data.shape)}")
        if there.is_meta:
            return
        if not bool(((scales > 0) & scales.isfinite()).all()):
            raise BitLabError(f"'{prefix}weight_scale': {DIVERGED}")
        packing, n = quantizer.format.packing, math.prod(self.weight_shape[1:])
        try:
            codes = packing.unpack(there, there.shape[-1] // packing.word * packing.codes)
            quantizer.format.decode(codes)
        except ValueError as error:
            raise BitLabError(f"'{key}': {error}") from error
        if codes[:, n:].any():
            raise BitLabError(f"'{key}': its rows are padded with other codes than 0")

    def machine_layout(self, weight: PackedTensor) -> Tensor | None:
        """Returns the packed weight in a kernel's own layout, to be held in its place; ``None`` for none."""
        return None

    def _to_machine(self) -> None:
        """Replaces the packed bytes, wherever a kernel has a layout of its own, so that a weight is held once."""
        if self.packed_weight is None:
            return
        if self.machine_weight is None:
            self.machine_weight = self.machine_layout(self.packed_tensor())
            if self.machine_weight is not None:
                self.packed_weight = self.packed_weight.new_empty(0)
        # In front of the parameter, which is None. No attribute of Module's: it is no part of the layer's state.
        self.__dict__["weight"] = PackedWeight.of(self.packed_tensor(), self.inputs_first, self.weight_dtype)

    def _to_bytes(self) -> None:
        """The inverse of `_to_machine`."""
        if self.machine_weight is not None:
            self.packed_weight, self.machine_weight = self.packed_tensor().data, None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.machine_weight is not None:
            destination[f"{prefix}packed_weight"] = self.packed_tensor().data
        if self.packed:
            assert self.weight_quantizer is not None
            name, group = self.weight_quantizer.format.name, self.weight_quantizer.source.group
            destination[f"{prefix}{PACKED_AS}"] = describe_packed(name, self.weight_shape, group)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._to_bytes()
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if scale is not None and self.weight_scale is not None:
            self.weight_dtype = fn(scale.new_empty(0, dtype=self.weight_dtype)).dtype
            if self.weight_scale.dtype.itemsize < 4:  # scales are never rounded to half precision
                self.weight_scale = scale.to(self.weight_scale.device, torch.float32)
        self._to_machine()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the packed bytes."""
        state = dict(self.__dict__)
        state.pop("weight", None)
        if self.machine_weight is not None:
            bytes_ = {"packed_weight": self.packed_tensor().data, "machine_weight": None}
            state["_buffers"] = {**self._buffers, **bytes_}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._to_machine()


def _expect(key: str, there: object, expected: object) -> None:
    if there != expected:
        raise BitLabError(f"'{key}' is {there}; the layer takes {expected}")
