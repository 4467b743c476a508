"""Bit: a factory of bit layers for models that take their layer classes as an argument, and ternary conversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.errors import unknown
from bitcore.presets import PRESETS, Quant, resolve
from bitlayers.base import BitLayer
from bitlayers.bitattention import BitMultiheadAttention
from bitlayers.convert import convert_layers, pack, require_any, warn_of_floats
from bitlayers.copying import M, owned
from bitlayers.places import CONVERSIONS, places

_MADE: dict[str, type[nn.Module]] = {
    **{kind.__name__: made for kind, made in CONVERSIONS.items() if isinstance(kind, type)},
    "MultiheadAttention": BitMultiheadAttention,
}
SCALE_OPS = ("median", "mean")


@dataclass(frozen=True)
class BitFactory:
    """Stands for `torch.nn` where a model takes its layers from: ``mod.Linear``, ``mod.Conv2d``, … are bit layers.

    ``NetCNN(mod=Bit)`` is ternary, ``NetCNN(mod=torch.nn)`` its float twin, ``NetCNN(mod=Bit("w8a8"))`` another preset.
    Layers know nothing of what stands before them: all have the config as it is, the one that reads the model's input
    and those whose inputs can be negative too. `quantize` of the whole model fits each to what it reads.

    Attributes:
        quant: The layers' config or its preset's name.
    """

    quant: BitQuantConfig | str = "bitnet-cnn"

    def __call__(self, quant: Quant = None, **changes: Any) -> BitFactory:
        """Returns a factory for another preset or config (default: this one's), with some fields changed.

        Raises:
            BitLabError: If a name is unknown.
        """
        config = resolve(quant or self.quant)
        assert config is not None
        return BitFactory(config.replace(**changes))

    def __getattr__(self, name: str) -> Callable[..., nn.Module]:
        """Returns the maker of a layer, with the arguments of torch's layer of that name."""
        if name not in _MADE:
            raise AttributeError(str(unknown("bit layer", name, _MADE)))
        return partial(_MADE[name], quant_config=resolve(self.quant))


Bit = BitFactory()  # as in BitNetCNN: ternary weights, a scale per output channel from the median


def convert_to_ternary(model: M, scale_op: str = "median", *, inplace: bool = False) -> M:
    """Returns a ternary copy of a trained model for inference: packed, in eval mode.

    Layers that are ternary already keep their scaler. Float layers and those of other formats get ternary weights with
    one scale per output channel, the median or the mean of |w|; activation quantizers stay.

    Args:
        model: Any model.
        scale_op: ``"median"`` or ``"mean"``.
        inplace: Convert and return the model itself, which saves the copy's memory.

    Raises:
        BitLabError: If ``scale_op`` is unknown, a layer was packed in another format (the message names it), or the
            model cannot be copied.
    """
    return _to_ternary(model, scale_op, pow2=False, inplace=inplace)


def convert_to_ternary_p2(model: M, scale_op: str = "median", *, inplace: bool = False) -> M:
    """As `convert_to_ternary`, and every weight scale is a power of two: applying it is a shift."""
    return _to_ternary(model, scale_op, pow2=True, inplace=inplace)


def _to_ternary(model: M, scale_op: str, *, pow2: bool, inplace: bool) -> M:
    if scale_op not in SCALE_OPS:
        raise unknown("scale_op", scale_op, SCALE_OPS)
    config = PRESETS["bitnet-cnn"].replace(weight_scale=f"abs{scale_op}", weight_scale_pow2=pow2)
    weights = {k: value for k, value in config.to_dict().items() if k.startswith("weight_") or k == "estimator"}
    model = owned(model, inplace)
    configs: dict[str, BitQuantConfig] = {}
    require_any(layers := list(places(model)))
    for place in layers:
        if place.fit:
            old = place.module.quant_config if isinstance(place.module, BitLayer) else config
            ternary = old.weight_format == "ternary"
            changes = {"weight_scale_pow2": pow2 or old.weight_scale_pow2} if ternary else weights
            configs[place.names[0]] = old.replace(**changes)
    warn_of_floats(convert_layers(model, configs), stacklevel=4)
    return pack(model, inplace=True)
