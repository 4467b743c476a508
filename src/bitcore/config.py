"""BitQuantConfig: the names a user writes, and the quantizers they stand for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from bitcore.errors import BitLabError, unknown
from bitcore.formats import FORMATS, get_format
from bitcore.quantizers import ESTIMATORS, SCALERS, STATIC_RANGES, FromValues, Quantizer

FLOAT = "float32"
WEIGHT_GRANULARITIES = ("per_tensor", "per_channel")
ACTIVATION_GRANULARITIES = ("per_tensor", "per_token")
DYNAMIC = "dynamic"


@dataclass(frozen=True)
class BitQuantConfig:
    """How a layer's weights and activations are quantized. Flat, frozen, serializable.

    Attributes:
        weight_format: A number format's name, or ``"float32"``.
        weight_scale: A scaler's name: ``absmean``, ``absmedian``, ``absmax``, ``octav``, ``quantscale``, …
        weight_granularity: ``"per_tensor"``, or ``"per_channel"`` (one scale an output channel).
        weight_scale_pow2: Round weight scales to powers of two.
        activation_dtype: A number format's name for the layer's input, or ``"float32"``.
        activation_granularity: ``"per_tensor"``, or ``"per_token"`` (``"per_channel"``, BitLab's word, means the same):
            a dynamic scale for each row of a linear layer's input, or for each sample of a convolution's.
        activation_scale: ``"dynamic"`` (from the values, at every call), ``"tracked"`` (static: an average of the
            training batches' ranges) or ``"learned"`` (static: LSQ's step).
        activation_scale_pow2: Round activation scales to powers of two.
        input_dtype: What stands in place of ``activation_dtype`` for the network's first layer (never below 8 bits).
        estimator: The gradient estimator of the weights: ``ste`` or ``clipped_ste``.

    Raises:
        BitLabError: If a name is unknown; the message holds the nearest valid one.
    """

    weight_format: str = "ternary"
    weight_scale: str = "absmean"
    weight_granularity: str = "per_tensor"
    weight_scale_pow2: bool = False
    activation_dtype: str = FLOAT
    activation_granularity: str = "per_tensor"
    activation_scale: str = DYNAMIC
    activation_scale_pow2: bool = False
    input_dtype: str = "int8"
    estimator: str = "ste"

    def __post_init__(self) -> None:
        """Checks every name."""
        if self.activation_granularity == "per_channel":
            object.__setattr__(self, "activation_granularity", "per_token")
        known: dict[str, Collection[str]] = {
            "weight_format": (FLOAT, *FORMATS),
            "weight_scale": SCALERS,
            "weight_granularity": WEIGHT_GRANULARITIES,
            "activation_dtype": (FLOAT, *FORMATS),
            "activation_granularity": ACTIVATION_GRANULARITIES,
            "activation_scale": (DYNAMIC, *STATIC_RANGES),
            "input_dtype": (FLOAT, *FORMATS),
            "estimator": ESTIMATORS,
        }
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise unknown(field, getattr(self, field), names)
        if self.input_dtype != FLOAT and get_format(self.input_dtype).bits < 8:
            raise BitLabError(f"input_dtype '{self.input_dtype}' is below 8 bits; use int8, uint8 or float32")

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed.

        Raises:
            BitLabError: If a field or a value is unknown.
        """
        names = [f.name for f in fields(self)]
        for name in changes:
            if name not in names:
                raise unknown("quantization option", name, names)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary (for JSON and YAML)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Self:
        """Builds a config from `to_dict`'s form; fields that are left out keep their defaults."""
        return cls().replace(**options)

    def weight_quantizer(self, ndim: int) -> Quantizer | None:
        """Returns the quantizer of an ``ndim``-dimensional weight (output channels first), ``None`` for float32."""
        if self.weight_format == FLOAT:
            return None
        trailing = ndim - 1 if self.weight_granularity == "per_channel" else None
        source = FromValues(SCALERS[_covering(self.weight_scale, self.weight_scale_pow2)], trailing)
        return Quantizer(get_format(self.weight_format), source, self.weight_scale_pow2, ESTIMATORS[self.estimator])

    def activation_quantizer(self, trailing: int) -> Quantizer | None:
        """Returns the quantizer of a layer's input, ``None`` for float32.

        Args:
            trailing: The dimensions of one token or sample: 1 for a linear layer, 3 for a 2-d convolution.
        """
        if self.activation_dtype == FLOAT:
            return None
        estimator = ESTIMATORS["ste"]
        if self.activation_scale == DYNAMIC:
            scaler = SCALERS[_covering("absmax", self.activation_scale_pow2)]
            source = FromValues(scaler, trailing if self.activation_granularity == "per_token" else None)
        else:
            source = STATIC_RANGES[self.activation_scale]()
            estimator = ESTIMATORS["clipped_ste"]
        return Quantizer(get_format(self.activation_dtype), source, self.activation_scale_pow2, estimator)


def _covering(scaler: str, pow2: bool) -> str:
    """A range from the largest value stays uncut when its scale becomes a power of two."""
    return "absmax_pow2" if scaler == "absmax" and pow2 else scaler
