"""PROFIT: progressive quantization that freezes the most sensitive layers (arXiv:2008.04693)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from bitcore.config import FLOAT, ONLY_FOR, BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitlayers.base import BitLayer
from bittrain.build import restructure, structure
from bittrain.callbacks.registry import method, quantized_layers, reestimate, some_inputs
from bittrain.callbacks.stages import Change, StagedQuantization
from bittrain.distill import Distiller
from bittrain.module import Classifier

_PHASES = 3
_PLAIN = {  # what stands in for methods that are not defined for a stage's format
    "weight_scale": "octav",
    "estimator": "ste",
    "weight_rounding": "nearest",
    "activation_estimator": "clipped_ste",
}


@method("profit")
class ProgressiveQuantization(StagedQuantization):
    """PROFIT (arXiv:2008.04693).

    - Stages: activations at each of ``bits`` with float weights, then weights at each of them, both ending at the
      model's own formats.
    - Three phases follow the last one's beginning: all layers train; then the third of the layers with the largest
      activation instability by weight quantization (`aiwq`) is frozen; then two thirds are.
    - At the end of every phase batch norm's statistics are estimated anew for the weights as they are then.
    - Self-teacher: in every stage the model of the stage before teaches, unless the recipe has a teacher.

    Args:
        bits: The stages' widths, from wide to narrow; those beyond a layer's own are left out for it.
        share: Of the training, for the stages before the three phases, each of which takes a third of the rest.
        batches: Training batches that AIWQ and batch norm are measured on.
        teacher: Whether there is a self-teacher.
        temperature: Of its logits.
        alpha: Their share in the loss.
        restart: Whether the learning rate's schedule begins anew with every stage and phase.
    """

    def __init__(
        self,
        *,
        bits: str = "8,5,4",
        share: float = 0.5,
        batches: int = 20,
        teacher: bool = True,
        temperature: float = 4.0,
        alpha: float = 0.5,
        restart: bool = True,
    ) -> None:
        super().__init__("profit", restart)
        try:
            self.bits = [int(b) for b in bits.split(",")]
        except ValueError:
            self.bits = []
        if not self.bits or not all(2 <= b <= 8 for b in self.bits) or not 0 < share < 1:
            raise BitLabError("method profit: bits are widths from 2 to 8 such as 8,5,4, share lies between 0 and 1")
        if batches < 1:
            raise BitLabError("method profit: batches must be at least 1")
        self.share, self.batches = share, batches
        self.teaches, self.temperature, self.alpha = teacher, temperature, alpha
        self.instability: dict[str, float] = {}
        self.frozen: list[str] = []
        self._saved_teacher: dict[str, Any] | None = None

    def plan(self) -> list[tuple[float, Change]]:  # noqa: D102
        *wider, _ = self.bits
        steps: list[Change] = [partial(_activations_at, bits=b) for b in wider]
        steps += [lambda c: c.replace(weight_format=FLOAT)]
        steps += [partial(_weights_at, bits=b) for b in wider]
        before = [(self.share / len(steps), step) for step in steps]
        return before + [((1 - self.share) / _PHASES, lambda c: c)] * _PHASES

    @property
    def phase(self) -> int:
        """The present phase, 0 to 2; negative before."""
        return self.stage - (len(self.plan()) - _PHASES)

    def on_fit_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Puts a checkpoint's self-teacher in place."""
        if self._saved_teacher is not None:
            teacher = copy.deepcopy(pl_module.model)
            restructure(teacher, self._saved_teacher["structure"])
            teacher.load_state_dict(self._saved_teacher["weights"])
            self._teach(pl_module, teacher)

    def leaving(self, trainer: Trainer, pl_module: Classifier) -> None:
        """The model becomes the next stage's teacher."""
        if self.stage >= 0 and self.teaches and pl_module.recipe.teacher is None:
            self._teach(pl_module, copy.deepcopy(pl_module.model))

    def entered(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Measures, when the second phase begins, and freezes."""
        if self.phase < 1:
            return
        if not self.instability:
            self.instability = aiwq(pl_module.model, some_inputs(trainer, pl_module, self.batches))
        order = sorted(self.instability, key=lambda name: -self.instability[name])
        self.frozen = order[: len(order) * self.phase // _PHASES]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Classifier, optimizer: Optimizer) -> None:
        """Takes the gradients of the frozen layers away, so that the optimizer leaves them alone."""
        for name in self.frozen:
            layer = pl_module.model.get_submodule(name)
            assert isinstance(layer, BitLayer)
            assert layer.weight_quantizer is not None
            for parameter in (layer.weight, layer.bias, *layer.weight_quantizer.parameters()):
                if parameter is not None:
                    parameter.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Estimates batch norm anew at the end of each phase."""
        if self.phase >= 0 and self.ends_stage(trainer):
            reestimate(trainer, pl_module, self.batches)

    def state_dict(self) -> dict[str, Any]:
        """The stage, the measured instability, the frozen layers and the self-teacher."""
        state = {"instability": self.instability, "frozen": self.frozen, "teacher": self._saved_teacher}
        return super().state_dict() | state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        super().load_state_dict(state_dict)
        self.instability, self.frozen = state_dict["instability"], state_dict["frozen"]
        self._saved_teacher = state_dict["teacher"]

    def _teach(self, pl_module: Classifier, teacher: nn.Module) -> None:
        teacher.requires_grad_(False)
        self._saved_teacher = {"structure": structure(teacher), "weights": teacher.state_dict()}
        pl_module.distiller = Distiller(teacher, temperature=self.temperature, alpha=self.alpha)


@torch.no_grad()
def aiwq(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Returns each layer's activation instability by weight quantization (section 3.2).

    The mean, over batches and output channels, of ``KL(p ‖ q)`` between normal distributions with mean and variance of
    the layer's outputs by float weights (p) and by quantized weights (q), for the same quantized input.

    Args:
        model: Left as it was: a copy, in eval mode and not compiled, is measured.
        batches: Inputs.
    """
    totals: dict[str, list[Tensor]] = {}
    model = copy.deepcopy(model).eval()

    def measure(layer: BitLayer, inputs: tuple[Tensor, ...], name: str) -> None:
        x = inputs[0]
        if layer.activation_quantizer is not None:
            x = layer.activation_quantizer.quantize(x).dequantize().to(x.dtype)
        weight, bias = layer.latent()
        quantized = layer.quantized_weight().dequantize().to(weight.dtype)
        p, q = (layer.operate(x, w, bias).movedim(-layer.token_dims, 0).flatten(1) for w in (weight, quantized))
        totals.setdefault(name, []).append(gaussian_kl(p, q).mean())

    for name, layer in quantized_layers(model).items():
        layer.register_forward_pre_hook(partial(measure, name=name))
    for x in batches:
        model(x)
    return {name: float(torch.stack(values).mean()) for name, values in totals.items()}


def gaussian_kl(p: Tensor, q: Tensor) -> Tensor:
    """``ln(σq/σp) + (σp² + (μp − μq)²) / (2 σq²) − 1/2`` of the rows of two matrices of samples."""
    (var_p, mean_p), (var_q, mean_q) = (torch.var_mean(x, 1, correction=0) for x in (p, q))
    var_p, var_q = var_p.clamp_min(1e-10), var_q.clamp_min(1e-10)
    return 0.5 * ((var_q / var_p).log() + (var_p + (mean_p - mean_q).square()) / var_q - 1)


def _activations_at(config: BitQuantConfig, bits: int) -> BitQuantConfig:
    wider = _at_bits(config.activation_dtype, bits)
    return _suited(config, weight_format=FLOAT, activation_dtype=wider)


def _weights_at(config: BitQuantConfig, bits: int) -> BitQuantConfig:
    return _suited(config, weight_format=_at_bits(config.weight_format, bits))


def _at_bits(name: str, bits: int) -> str:
    """The integer format of so many bits, where that is wider than the format."""
    if name == FLOAT or bits <= get_format(name).bits:
        return name
    return f"int{bits}" if get_format(name).signed else f"uint{bits}"


def _suited(config: BitQuantConfig, **formats: str) -> BitQuantConfig:
    """Changes formats, and methods that are not defined for them."""
    changes: dict[str, str] = dict(formats)
    for field, plain in _PLAIN.items():
        of = "activation_dtype" if field.startswith("activation") else "weight_format"
        fmt = formats.get(of, getattr(config, of))
        valid = ONLY_FOR.get(getattr(config, field))
        if valid is not None and fmt != FLOAT and fmt not in valid:
            changes[field] = plain
    return config.replace(**changes)
