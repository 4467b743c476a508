"""BitLayer: what every quantized layer shares. It trains on latent float weights, evaluates on codes, ships packed."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import round_half_even
from bitcore.graph import GraphBuilder, Value
from bitcore.kernels.gradients import refuse_gradient
from bitcore.presets import Quant, resolve
from bitcore.quantizers import PackedTensor, QTensor, Quantizer
from bitcore.quantizers.passes import Passes, recomputing
from bitcore.quantizers.ranges import Remembered
from bitlayers.folding import affine_of, fold
from bitlayers.naming import name_in_call
from bitlayers.storage import NOT_FINITE, PackedStorage

_EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here, so float sums of levels below it are exact


class BitLayer(PackedStorage):
    """Mixin in front of a torch layer (`nn.Linear`, `nn.Conv2d`, …).

    It adds to the torch layer's attributes and changes none, so a torch layer becomes a bit layer in place when it
    changes its class and calls `_init_quantization` (see `bitlayers.convert`).

    Three states:

    - train: ``op(fake_quantize(x), fake_quantize(weight)) + bias``; gradients by the estimators.
    - eval: the same on integer levels, ``op(x levels, weight levels) * (x scale * weight scale) + bias``. The integer
      sums are exact, so the result does not depend on the machine. No gradients: asking for the input's is an error
      (where inputs are float32 in the config, theirs is that of a float layer).
    - packed (after `pack`): as eval, bit for bit; only the packed codes are kept and the float weights are freed. Where
      a kernel has a layout of its own, that one is held in place of the bytes, which are made again to be saved.

    Where ``batch_norm`` is set (`bitlayers.fusion.train_fused`), the weight and bias of all this are those with the
    batch norm folded in, ``W γ/σ`` and ``β + (b − μ) γ/σ`` (see `latent`).

    With a static activation range the bias is rounded to the accumulator's grid (``x scale * weight scale``, the
    int32 bias of integer inference), in training too.
    """

    token_dims: int  # dimensions of one token or sample at the input

    @classmethod
    def adopt(cls, layer: nn.Module, config: Quant) -> Self:
        """Turns a torch layer of the class's own kind into a bit layer, in place.

        The object stays what it was: every name and reference, parameters (tied ones too), hooks, flags, device, dtype.
        """
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer._init_quantization(config)
        return layer

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:
        """Returns why a torch layer of the class's own kind cannot be adopted; ``None`` if it can."""
        if layer._parameters.get("weight") is None:
            return "its weight is computed (weight_norm, spectral_norm, pruning); make it a plain parameter first"
        if "forward" in vars(layer):
            return "its forward was replaced on the instance, as accelerate does; remove that first"
        if not layer._parameters["weight"].is_floating_point():  # type: ignore[union-attr]
            return f"its weight is {layer.weight.dtype}, not a real floating-point type"
        return None

    def _init_quantization(self, config: Quant) -> None:
        """Creates the quantizers; call after the torch layer's ``__init__``."""
        self.quant_config = resolve(config) or BitQuantConfig()
        self.weight_shape = tuple(self.rows(self.weight).shape)
        self.weight_quantizer = self.quant_config.weight_quantizer(self.weight_shape)
        self.activation_quantizer = self.quant_config.activation_quantizer(self.token_dims)
        for quantizer in (self.weight_quantizer, self.activation_quantizer):
            if quantizer is not None:
                quantizer.to(self.weight.device).train(self.training)
        self.register_buffer("packed_weight", None)
        self.register_buffer("machine_weight", None, persistent=False)
        self.register_buffer("weight_scale", None)
        self.register_module("batch_norm", None)
        self._unexamined, self._passes = True, Passes()

    def requantize(self, config: BitQuantConfig) -> None:
        """Changes how weights and activations are quantized, at any time before the layer is packed.

        Ranges that were learned or tracked stay (the same parameters, so that an optimizer keeps its hold on them)
        wherever the new config wants one of the same kind and shape; a learned step becomes
        ``step * old high / new high``. Other ranges start anew.

        Raises:
            BitLabError: If the layer is packed.
        """
        if config == self.quant_config:
            return
        if self.packed:
            raise BitLabError("a packed layer has no float weights to quantize anew; unpack(model) gives it some")
        weight, activation, batch_norm = self.weight_quantizer, self.activation_quantizer, self.batch_norm
        self._init_quantization(config)
        self.batch_norm = batch_norm
        _keep_range(weight, self.weight_quantizer)
        _keep_range(activation, self.activation_quantizer)

    def latent(self) -> tuple[Tensor, Tensor | None]:
        """Returns what is quantized: the float weight (`rows`) and bias, with ``batch_norm``, if any, folded in."""
        weight = self.rows(self.weight)
        if self.batch_norm is None:
            return weight, self.bias
        return fold(weight, self.bias, self.batch_norm)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Applies the layer's linear operation (the torch layer's own) with a weight as `rows` gives it."""
        raise TypeError(f"{type(self).__name__} defines no operation")

    def train(self, mode: bool = True) -> Self:
        """Sets training or eval mode. A packed layer stays in eval mode: nothing is left to train.

        In eval mode the layer's numbers stay, so they are examined here, and no call pays for it.
        """
        super().train(mode and not self.packed)
        self._unexamined = self.training or bool(self.problem())
        if not self.training:
            self._report_left_out()
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer to ``input`` (shapes as in the torch layer).

        Raises:
            BitLabError: In eval mode, if the layer has a `problem`; the message names the layer.
        """
        if self.training:
            return self._forward_fake(input)
        if self._unexamined:
            self._examine()
        y = self._forward_levels(input)
        if input.requires_grad and torch.is_grad_enabled() and self.activation_quantizer is not None:
            return refuse_gradient(y, input)
        return y

    @torch.no_grad()
    def problem(self) -> str:
        """Returns why the layer cannot run in eval mode (a number is none, a range has no data); empty if it can."""
        weight = self.weight_scale if self.packed else self.weight
        assert weight is not None
        if not weight.is_meta and not bool(weight.isfinite().all()):
            return NOT_FINITE
        sources = [q.source for q in (self.weight_quantizer, self.activation_quantizer) if q is not None]
        return next(filter(None, (source.problem() for source in sources)), "")

    def examine_again(self, needed: bool = True) -> None:
        """Says that numbers have changed in eval mode: the next call looks for a `problem`; or that none need to."""
        self._unexamined = needed

    def _examine(self) -> None:
        if problem := self.problem():
            raise BitLabError(f"{name_in_call(self)}: {problem}")
        self._unexamined = False

    def _report_left_out(self) -> None:
        source = None if self.activation_quantizer is None else self.activation_quantizer.source
        if isinstance(source, Remembered) and (count := source.take_left_out()):
            message = "batches held values that are NaN or infinite; its activation range leaves them out"
            warnings.warn(f"{name_in_call(self)}: {count} {message}", stacklevel=2)

    def _forward_fake(self, x: Tensor) -> Tensor:
        x_scale = weight_scale = None
        if self.activation_quantizer is not None:
            fake, x_scale = self.activation_quantizer.fake(x)
            x = fake.to(x.dtype)
        if self.batch_norm is not None and self.batch_norm.training:
            return self._normalize(x, self.batch_norm)
        weight, bias = self.latent()
        if self.weight_quantizer is not None:
            fake, weight_scale = self.weight_quantizer.fake(weight)
            weight = fake.to(weight.dtype)  # of half weights, scales are float32
        if bias is not None and self._static_input and self._uniform(weight_scale):
            assert weight_scale is not None
            assert x_scale is not None
            scale = (x_scale * self._per_channel(weight_scale)).detach()
            bias = bias + (_on_grid(bias, scale) * scale.flatten().double() - bias).to(bias.dtype).detach()
        return self.operate(x, weight, bias)

    def _normalize(self, x: Tensor, norm: _BatchNorm) -> Tensor:
        """Training with batch statistics: the weight is quantized as it will be, folded with the running statistics.

        Dividing the outputs by the folded gain gives batch norm the outputs of the quantized weight to normalize. So
        the running statistics are those of the network that will run, and the outputs do not jump when they take over
        (the correction of Krishnamoorthi, arXiv:1806.08342, section 3.2.2).
        """
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = norm.running_mean, norm.running_var
        with torch.no_grad():
            gain = self._passes.once((), lambda: affine_of(norm, *statistics)[0].to(self.weight.dtype))
        gain = torch.where(gain == 0, 1, gain)
        weight = self.rows(self.weight)
        weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer.fake(weight)[0].to(weight.dtype)
        y = self.operate(x, weight) / self._channels(gain)
        y = y if self.bias is None else y + self._channels(self.bias)
        return _normalized(y.movedim(-self.token_dims, 1), norm).movedim(1, -self.token_dims)

    @property
    def _static_input(self) -> bool:
        return self.activation_quantizer is not None and self.activation_quantizer.source.static

    def _forward_levels(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self.weight_quantizer is None:
            x = x if self.activation_quantizer is None else self.activation_quantizer.quantize(x).dequantize()
            return self.operate(x, *self.latent())
        weight = self.packed_tensor() if self.packed else self.quantized_weight()
        if not weight.uniform:  # several scales a row: sums of real values, as in training
            values = weight.unpack().dequantize() if isinstance(weight, PackedTensor) else weight.dequantize()
            x = (
                x
                if self.activation_quantizer is None
                else self.activation_quantizer.quantize(x).dequantize().to(x.dtype)
            )
            return self.operate(x, values.to(x.dtype), self._bias())
        weight_scale = self._per_channel(weight.scale)
        if self.activation_quantizer is None:
            half = x.dtype.itemsize < 4 and x.device.type == "cpu"  # where float32 is the faster one, too
            sums = self.accumulate(x.float() if half else x, weight)
            return self._add_bias(sums * weight_scale).to(x.dtype)
        codes = self.activation_quantizer.quantize(x)
        return self.dequantize(self.accumulate(codes, weight), codes.scale * weight_scale).to(x.dtype)

    def _check_input(self, x: Tensor) -> None:
        """Results have the input's dtype."""
        if not x.is_floating_point():
            raise BitLabError(f"the layer takes floating-point inputs, not {x.dtype}; convert them, with .float()")
        self._check_device(x)

    def _check_device(self, x: Tensor) -> None:
        """Kernels, and some of torch's operators, read memory where the weights are."""
        weight = self.weight if self.weight_scale is None else self.weight_scale
        if x.device != weight.device:
            raise BitLabError(f"the layer is on {weight.device}, its input on {x.device}; move one of them")

    def accumulate(self, x: QTensor | Tensor, weight: QTensor | PackedTensor) -> Tensor:
        """Returns sums of products of weight levels and ``x``: exact integers (in any dtype) where ``x`` is levels."""
        if isinstance(weight, PackedTensor):
            weight = weight.unpack()
        if isinstance(x, Tensor):
            return self.operate(x, weight.levels.to(x.dtype))
        largest = weight.levels[:1].numel() * x.format.largest * weight.format.largest
        dtype = torch.float64 if x.shift is not None else self.accumulator_dtype(largest)
        device = "cpu" if x.levels.is_meta else x.levels.device.type  # `meta` has no autocast
        with torch.autocast(device, enabled=False):
            return self.operate(x.shifted().to(dtype), weight.levels.to(dtype))

    def accumulator_dtype(self, largest: int) -> torch.dtype:
        """Returns the fastest floating-point dtype in which sums of magnitudes up to ``largest`` are exact."""
        return torch.float32 if largest < _EXACT_FLOAT32 else torch.float64

    def dequantize(self, accumulator: Tensor, scale: Tensor) -> Tensor:
        """Turns accumulators without bias into real outputs."""
        bias = self.integer_bias(scale) if self._static_input else None
        if bias is None:
            return self._add_bias(accumulator.to(scale.dtype) * scale)
        with_bias = accumulator.double() + self._channels(bias)
        return with_bias.to(scale.dtype) * scale

    def integer_bias(self, scale: Tensor) -> Tensor | None:
        """Returns the bias ``[channels]`` on the accumulator's grid, as integers in float64; ``None`` without one."""
        bias = self._bias()
        return None if bias is None else _on_grid(bias, scale)

    def _bias(self) -> Tensor | None:
        return self.bias if self.batch_norm is None else self.latent()[1]

    def _add_bias(self, y: Tensor) -> Tensor:
        bias = self._bias()
        return y if bias is None else y + self._channels(bias)

    def _channels(self, x: Tensor) -> Tensor:
        """Shapes ``[channels]`` so that it broadcasts along the channel dimension of the output."""
        return x.reshape(-1, *[1] * (self.token_dims - 1))

    def _uniform(self, scale: Tensor | None) -> bool:
        """Whether a weight scale is one a channel, so that sums of levels can be scaled."""
        grouped = self.weight_quantizer is not None and self.weight_quantizer.source.group
        return scale is not None and not grouped and scale.ndim <= len(self.weight_shape)

    def _per_channel(self, scale: Tensor) -> Tensor:
        """Shapes the weight's scale likewise."""
        return scale if scale.numel() == 1 and scale.ndim == 0 else self._channels(scale.flatten())

    def lower(self, g: GraphBuilder, x: Value) -> Value:
        """Adds the layer to an integer graph.

        Raises:
            BitLabError: If the layer's weights or inputs are float32, or integers cannot express it.
        """
        if type(self).add_to_graph is BitLayer.add_to_graph:
            return self.add_to_graph(g)  # raises
        if problem := self.problem():
            raise g.error(problem)
        if self.weight_quantizer is None:
            raise g.error("its weights are float32; give it a weight_format to export it")
        codes = g.quantize(x, self.activation_quantizer)
        try:
            weight = self.packed_tensor().unpack()
        except BitLabError as error:
            raise g.error(str(error)) from error
        if not weight.uniform:
            c = self.quant_config
            raise g.error(
                f"weight_scale '{c.weight_scale}' {c.weight_granularity} gives a row several scales, integer sums take "
                "one; use per_channel or per_tensor, and 'twn' or 'learned' in place of 'ttq'"
            )
        weight_scale = weight.scale.detach()
        scale = torch.tensor(codes.scale, dtype=weight_scale.dtype) * self._per_channel(weight_scale)
        bias = np.zeros(1, dtype=np.int64)
        on_grid = self.integer_bias(scale)
        if on_grid is not None:
            if codes.relative:
                raise g.error("a bias behind a dynamic activation scale; use bias=False or activation_scale=tracked")
            exact = on_grid.numpy()
            if not np.all(np.abs(exact) < 2**31):  # NaN is refused too
                raise g.error(
                    "its bias is NaN, or beyond int32 in units of the accumulator: the training diverged, "
                    "or the layer's input is always 0"
                )
            bias = exact.astype(np.int64)
        levels = weight.levels.numpy().astype(np.int64)
        factor = scale.flatten().double().numpy()
        return self.add_to_graph(g, codes, levels, bias, factor, lambda a: a * scale)

    def add_to_graph(self, g: GraphBuilder, *args: Any) -> Value:
        """Adds the layer's own operation (see `lower`)."""
        raise g.error(f"{type(self).__name__} has no integer operation; integer graphs take BitLinear and BitConv2d")

    def extra_repr(self) -> str:
        """Adds the formats to torch's description."""
        c = self.quant_config
        state = "packed" if self.packed else "latent"
        return f"{super().extra_repr()}, weight={c.weight_format}, activation={c.activation_dtype}, {state}"


def _normalized(y: Tensor, norm: _BatchNorm) -> Tensor:
    """Returns ``norm(y)``; in a recomputation (activation checkpointing) the statistics do not take ``y`` in again."""
    if not recomputing():
        return norm(y)
    momentum, norm.momentum = norm.momentum, 0.0
    try:
        return norm(y)
    finally:
        norm.momentum = momentum
        norm.num_batches_tracked.sub_(1)  # type: ignore[union-attr]


def _on_grid(bias: Tensor, scale: Tensor) -> Tensor:
    """Returns the bias in units of the accumulator's scale, rounded, in float64."""
    return round_half_even(bias.detach().double() / scale.flatten().double())


def _keep_range(old: Quantizer | None, new: Quantizer | None) -> None:
    """Gives ``new`` the range that ``old`` learned, where both are of one kind."""
    if old is None or new is None or type(old.source) is not type(new.source) or old.source.group != new.source.group:
        return
    shapes = [{name: value.shape for name, value in q.source.state_dict().items()} for q in (old, new)]
    if shapes[0] and shapes[0] == shapes[1]:
        new.source = old.source
        new.source.reformat(old.format, new.format)
