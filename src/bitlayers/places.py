"""The layers of a model that hold weights: which are bit layers or may become some, and why others may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from bitlayers.base import BitLayer
from bitlayers.bitattention import PROJECTIONS
from bitlayers.bitconv import BitConv1d, BitConv2d, BitConvTranspose2d
from bitlayers.bitembedding import BitEmbedding
from bitlayers.bitlinear import BitLinear, BitTransposedLinear

# By type, or by name where the library need not be installed. Exact types: a subclass's forward may do anything.
# nn.MultiheadAttention is not among them: it becomes a BitMultiheadAttention, whose projections are.
CONVERSIONS: dict[type[nn.Module] | str, type[BitLayer]] = {
    nn.Linear: BitLinear,
    nn.Conv1d: BitConv1d,
    nn.Conv2d: BitConv2d,
    nn.ConvTranspose2d: BitConvTranspose2d,
    nn.Embedding: BitEmbedding,
    "transformers.pytorch_utils.Conv1D": BitTransposedLinear,
}


@dataclass(frozen=True)
class Place:
    """A layer with weights, which is a bit layer, may become one, or must stay.

    Attributes:
        names: Every name of it.
        type: The name of its type.
        module: The layer, or the attention module that it will be a projection of.
        projection: Which one, else empty.
        kind: What it may become.
        reason: Why it must stay; empty if it may be converted, or given another config.
    """

    names: tuple[str, ...]
    type: str
    module: nn.Module
    projection: str = ""
    kind: type[BitLayer] | None = None
    reason: str = ""

    @property
    def key(self) -> tuple[nn.Module, str]:
        """The layer as `bitlayers.flow` knows it."""
        return self.module, self.projection

    @property
    def fit(self) -> bool:
        """Whether it may be a bit layer."""
        return not self.reason


def places(model: nn.Module) -> Iterator[Place]:
    """Yields every module with weights, once, with all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    inside = {child for module in names if type(module) is nn.MultiheadAttention for child in module.children()}
    for module, known in names.items():
        name = type(module).__name__
        if type(module) is nn.MultiheadAttention:
            for projection in PROJECTIONS:
                parts = tuple(f"{path}.{projection}".lstrip(".") for path in known)
                yield Place(parts, name, module, projection, BitLinear, _attention_obstacle(module))
        elif isinstance(module, BitLayer):
            yield Place(tuple(known), name, module, kind=type(module))
        elif module not in inside:
            kind = CONVERSIONS.get(type(module)) or CONVERSIONS.get(_qualified(type(module)))
            reason = (kind.obstacle(module) or "") if kind else _unknown(module)
            if kind or reason:
                yield Place(tuple(known), name, module, kind=kind, reason=reason)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _unknown(module: nn.Module) -> str:
    """Why a module of no known type stays; empty if it holds no weights of its own."""
    if isinstance(module, LazyModuleMixin):
        return "it has no weights yet; pass a batch through the model first"
    if is_parametrized(module):
        return "it is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    weights = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    if not weights or isinstance(module, ParametrizationList):
        return ""
    for kind in CONVERSIONS:
        if isinstance(kind, type) and isinstance(module, kind):
            return f"it is a subclass of {kind.__name__}, whose forward may differ"
    return "there is no bit layer for its type"


def _attention_obstacle(attention: nn.Module) -> str:
    for name in ("in_proj_weight", "q_proj_weight"):
        if attention._parameters.get(name) is not None:
            return "its forward was replaced on the instance" if "forward" in vars(attention) else ""
    return "its weight is computed (weight_norm, spectral_norm, pruning); make it a plain parameter first"
