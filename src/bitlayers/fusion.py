"""Fusion of batch norm with the layer in front of it: of trained models, and for training on the fused weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitcore.errors import BitLabError
from bitlayers.base import BitLayer
from bitlayers.bitconv import BitConv1d, BitConv2d, BitConvTranspose2d
from bitlayers.bitlinear import BitLinear, BitTransposedLinear
from bitlayers.copying import M, owned
from bitlayers.folding import fold
from bitlayers.packed_weight import rows, unrows
from bitlayers.tracing import Tracer

_BIT = (BitLinear, BitTransposedLinear, BitConv1d, BitConv2d, BitConvTranspose2d)
_FLOAT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by the weight's dimensions


class FusedNorm(nn.Identity):
    """Stands where a batch norm stood that is part of the layer before it now.

    Args:
        ndim: Dimensions of the tensors in which the layer's channels are those of the norm. Of tensors ``[B, tokens,
            features]``, for instance, the norm was over tokens, which no weight can do.
    """

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``."""
        if x.ndim != self.ndim:
            raise BitLabError(
                f"a batch norm that was fused with the layer before it gets a tensor of shape {tuple(x.shape)}, whose "
                "dimension 1, which it normalized, is not the layer's outputs; leave this norm out: fuse with pairs=[…]"
            )
        return x


def fuse_batchnorm(model: M, pairs: Sequence[tuple[str, str]] | None = None, *, inplace: bool = False) -> M:
    """Returns a copy of the model with every batch norm folded into the layer in front, by its running statistics.

    ``W ← W γ/σ`` and ``b ← β + (b − μ) γ/σ``; the batch norm becomes a `FusedNorm`, an identity that refuses what the
    norm would not have normalized by the layer's outputs. Float layers compute the same as before, to the last few
    bits. So do bit layers that were trained with fused batch norm (`train_fused`): not a code changes. Other bit layers
    quantize the new weights anew: with one scale a layer they get other codes, so train them fused. Pairs are layers
    and norms that are called once, with nothing between; weights that other layers share stay as they are there.

    Args:
        model: Any model that torch.fx can trace.
        pairs: Names of layers and of their batch norms, where it cannot be traced. All pairs are found by default.
        inplace: Change and return the model itself, which saves the copy's memory.

    Raises:
        BitLabError: The model cannot be traced or copied, or a given pair is none; nothing has changed then.
    """
    model = owned(model, inplace)
    found = _pairs(model, pairs)
    for layer, name in found:
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        if isinstance(layer, BitLayer):
            layer.batch_norm = norm.eval()
        else:
            _fold_float(layer, norm)
        model.set_submodule(name, FusedNorm(layer.get_parameter("weight").ndim))
    for layer in model.modules():
        if isinstance(layer, BitLayer):
            layer.absorb_batch_norm()
    if isinstance(getattr(model, "bit_model", None), dict):
        model.bit_model = model.bit_model | {"batch_norm": "fused"}  # type: ignore[assignment, operator]
    return model


def train_fused(model: M, pairs: Sequence[tuple[str, str]] | None = None, *, inplace: bool = False) -> M:
    """Returns a copy whose pairs of a bit layer and a batch norm are layers that train on the fused weight.

    What is quantized from now on is the fused weight ``W γ/σ``, with the scale (layer- or channel-wise) of the layer's
    config; its bias is ``β + (b − μ) γ/σ``. μ and σ are the running statistics of the quantized weight's outputs. While
    the batch norm (now the layer's ``batch_norm``) is in training mode, the outputs are normalized by the batch's
    statistics besides; putting ``batch_norm`` alone in eval mode freezes the statistics and trains on.
    `fuse_batchnorm` ends it. (Jacob et al., arXiv:1712.05877, section 3.2; correction and freezing: Krishnamoorthi,
    arXiv:1806.08342, section 3.2.2.)

    Args:
        model: As in `fuse_batchnorm`.
        pairs: Likewise.
        inplace: Likewise.

    Raises:
        BitLabError: As `fuse_batchnorm`.
    """
    model = owned(model, inplace)
    for layer, name in _pairs(model, pairs):
        if isinstance(layer, BitLayer):
            layer.batch_norm = cast(_BatchNorm, model.get_submodule(name))
            model.set_submodule(name, FusedNorm(layer.get_parameter("weight").ndim))
    return model


def trains_fused(model: nn.Module) -> bool:
    """Whether a model has layers with batch norm folded in (see `train_fused`)."""
    return any(isinstance(layer, BitLayer) and layer.batch_norm is not None for layer in model.modules())


def _pairs(model: nn.Module, given: Sequence[tuple[str, str]] | None) -> list[tuple[nn.Module, str]]:
    """The layers, and the names of their batch norms."""
    names = list(_traced(model)) if given is None else list(given)
    modules, seen = dict(model.named_modules(remove_duplicate=False)), set()
    for first, second in names:
        for name in (first, second):
            if name not in modules:
                raise BitLabError(f"there is no layer '{name}' in the model")
            if modules[name] in seen:
                raise BitLabError(f"'{name}' is in two pairs; a layer takes up one batch norm")
            seen.add(modules[name])
        problem = _problem(model.get_submodule(first), model.get_submodule(second))
        if problem:
            raise BitLabError(f"'{first}' and '{second}' cannot be fused: {problem}")
    return [(model.get_submodule(first), second) for first, second in names]


def _problem(layer: nn.Module, norm: nn.Module) -> str:
    """Why two modules are no pair; empty if they are."""
    if type(layer) not in (*_BIT, *_FLOAT):
        return f"{type(layer).__name__} is no layer that takes up a batch norm"
    if not isinstance(norm, _BatchNorm):
        return f"{type(norm).__name__} is no batch norm"
    if isinstance(layer, BitLayer) and layer.packed:
        return "the layer is packed; fuse before pack()"
    if layer._parameters.get("weight") is None:
        return "the layer's weight is computed (weight_norm, pruning); make it a plain parameter first"
    if layer._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks:
        return "there are forward hooks between them; remove them first (handle.remove())"
    if type(norm) not in (_NORMS[layer.get_parameter("weight").ndim], nn.SyncBatchNorm):
        return f"the dimension that {type(norm).__name__} normalizes is not that of the layer's outputs"
    if norm.running_mean is None:
        return "the batch norm has no running statistics; use track_running_stats=True"
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return "" if channels == norm.num_features else f"{channels} outputs, {norm.num_features} normalized channels"


def _traced(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The pairs in which the layer's output goes to the batch norm alone, both called once and read by nobody else."""
    try:
        nodes = Tracer().functional(model).nodes
    except Exception as error:  # torch.fx raises many kinds for code that it cannot follow
        raise BitLabError(
            f"the model's forward cannot be traced ({error}); give pairs=[('conv1', 'bn1'), …]"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: Counter[nn.Module] = Counter()
    for node in nodes:
        if node.op == "call_module":
            calls.update(modules[str(node.target)].modules())
        if node.op == "get_attr":  # a weight that the model's own code reads, and would read fused
            calls[modules[str(node.target).rpartition(".")[0]]] += 2
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        layer, norm = (modules[name] for name in names)
        if calls[layer] == calls[norm] == 1 and not _problem(layer, norm):
            yield names


@torch.no_grad()
def _fold_float(layer: Any, norm: _BatchNorm) -> None:
    transposed = layer.groups if isinstance(layer, nn.ConvTranspose2d) else 0
    folded, bias = fold(rows(layer.weight, transposed), layer.bias, norm)
    # Its own: other layers may share the old one.
    layer.weight = nn.Parameter(unrows(folded, transposed).contiguous(), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias)
