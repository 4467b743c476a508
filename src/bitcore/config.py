"""BitQuantConfig: the names a user writes, and the quantizers they stand for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from bitcore.errors import BitLabError, unknown
from bitcore.formats import FORMATS, get_format
from bitcore.quantizers import (
    ESTIMATORS,
    LEARNED_WEIGHT_SCALES,
    SAWB_COEFFICIENTS,
    SCALERS,
    STATIC_RANGES,
    TRANSFORMS,
    FromValues,
    Granularity,
    Quantizer,
    ScaleSource,
)

FLOAT = "float32"
WEIGHT_GRANULARITIES = ("per_tensor", "per_channel", "per_group")
WEIGHT_SCALES = (*SCALERS, *LEARNED_WEIGHT_SCALES)
ROUNDINGS = ("nearest", "stochastic")
ACTIVATION_GRANULARITIES = ("per_tensor", "per_token")
DYNAMIC = "dynamic"
# What stands in at the network's input for ranges of signs, of what a ReLU leaves, and with an offset.
_INPUT_SCALES = {"unit": "tracked", "pact": "tracked", "learned_plus": "learned"}
# Methods that are defined for some formats alone.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "twn": ("ternary", "int2"),
    "ttq": ("ternary", "int2"),
    "sawb": tuple(SAWB_COEFFICIENTS),
    "libra": ("binary",),
    "approx_sign": ("binary",),
    "ede": ("binary",),
    "stochastic": tuple(name for name, fmt in FORMATS.items() if fmt.step),
}


def suits(method: str, format_name: str) -> bool:
    """Whether a scale, an estimator or a rounding is defined for a format."""
    return format_name in ONLY_FOR.get(method, (format_name,))


@dataclass(frozen=True)
class BitQuantConfig:
    """How a layer's weights and activations are quantized. Flat, frozen, serializable.

    Attributes:
        weight_format: A number format's name, or ``"float32"``.
        weight_scale: A scaler's name: ``absmean``, ``absmedian``, ``absmax``, ``octav``, ``twn``, ``sawb``, …; or a
            learned scale: ``learned`` (LSQ), ``learned_plus`` (LSQ+), ``ttq``.
        weight_granularity: ``"per_tensor"``, ``"per_channel"`` (one scale an output channel) or ``"per_group"``.
        weight_group_size: Weights of an output channel that share a scale, with ``per_group``.
        weight_scale_pow2: Round weight scales to powers of two.
        weight_transform: What happens to weights before: ``none``, ``standardize`` (IR-Net), ``tanh`` (DoReFa).
        weight_rounding: ``"nearest"``, or ``"stochastic"`` in training (BNN).
        weight_clip: Latent weights are clipped to ±1 after every optimizer step (`bitlayers.clip_latent_weights`).
        activation_dtype: A number format's name for the layer's input, or ``"float32"``.
        activation_granularity: ``"per_tensor"``, or ``"per_token"`` (``"per_channel"``, BitLab's word, means the same):
            a dynamic scale for each row of a linear layer's input, or for each sample of a convolution's.
        activation_scale: ``"dynamic"`` (from the values, at every call) or static: ``"tracked"`` (an average of the
            training batches' ranges; also ``tracked_percentile``, ``tracked_mse``), ``"learned"`` (LSQ's step),
            ``"learned_plus"`` (LSQ+: with a learned offset), ``"pact"``, ``"unit"`` (the range ±1).
        activation_estimator: The gradient estimator of activations of a static range; ``pact`` has its own.
        activation_scale_pow2: Round activation scales to powers of two.
        input_dtype: What stands in place of ``activation_dtype`` for layers that read the network's input (never below
            8 bits).
        estimator: The gradient estimator of the weights: ``ste``, ``clipped_ste``, ``approx_sign``, ``ede``, …

    Raises:
        BitLabError: If a name is unknown (the message holds the nearest valid one), or a method is not defined for a
            format.
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
    activation_estimator: str = "clipped_ste"
    weight_transform: str = "none"
    weight_rounding: str = "nearest"
    weight_group_size: int = 64
    weight_clip: bool = False

    def __post_init__(self) -> None:
        """Checks every name and number."""
        if self.activation_granularity == "per_channel":
            object.__setattr__(self, "activation_granularity", "per_token")
        known: dict[str, Collection[str]] = {
            "weight_format": (FLOAT, *FORMATS),
            "weight_scale": WEIGHT_SCALES,
            "weight_granularity": WEIGHT_GRANULARITIES,
            "activation_dtype": (FLOAT, *FORMATS),
            "activation_granularity": ACTIVATION_GRANULARITIES,
            "activation_scale": (DYNAMIC, *STATIC_RANGES),
            "input_dtype": (FLOAT, *FORMATS),
            "estimator": ESTIMATORS,
            "activation_estimator": ESTIMATORS,
            "weight_transform": TRANSFORMS,
            "weight_rounding": ROUNDINGS,
        }
        for field, names in known.items():
            if not isinstance(getattr(self, field), str) or getattr(self, field) not in names:
                raise unknown(field, getattr(self, field), names)
        if self.input_dtype != FLOAT and get_format(self.input_dtype).bits < 8:
            raise BitLabError(f"input_dtype '{self.input_dtype}' is below 8 bits; use int8, uint8 or float32")
        for field in ("weight_scale", "estimator", "weight_rounding"):
            self._check_suited(field, "weight_format")
        self._check_suited("activation_estimator", "activation_dtype")
        for field in ("weight_scale_pow2", "activation_scale_pow2", "weight_clip"):
            if not isinstance(getattr(self, field), bool):
                raise BitLabError(f"{field} must be true or false, not {getattr(self, field)!r:.80}")
        size = self.weight_group_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BitLabError(f"weight_group_size must be a whole number from 1, not {self.weight_group_size!r}")
        if self.weight_scale == "ttq" and self.weight_granularity == "per_group":
            raise BitLabError("weight_scale 'ttq' has no groups; use per_tensor or per_channel")

    def _check_suited(self, field: str, format_field: str) -> None:
        method, fmt = getattr(self, field), getattr(self, format_field)
        if fmt != FLOAT and not suits(method, fmt):
            raise BitLabError(f"{field} '{method}' is not defined for {fmt}; use {', '.join(ONLY_FOR[method])}")

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

    def for_input(self) -> Self:
        """Returns the config of a layer that reads the network's input: ``input_dtype``, in a range that fits it."""
        if self.activation_dtype == FLOAT:
            return self
        return self.replace(
            activation_dtype=self.input_dtype,
            activation_scale=_INPUT_SCALES.get(self.activation_scale, self.activation_scale),
            activation_estimator="clipped_ste",
        )

    def for_signed(self) -> Self:
        """Returns the config of a layer whose input can be negative: the signed format of the same width.

        It has the levels −(2^(b−1)−1) … 2^(b−1)−1, of 1 bit ±1. An offset that is learned (``learned_plus``) reaches
        negative values in any format.
        """
        if self.activation_dtype == FLOAT or self.activation_scale == "learned_plus":
            return self
        fmt = get_format(self.activation_dtype)
        if fmt.signed:
            return self
        return self.replace(activation_dtype="binary" if fmt.bits == 1 else f"int{fmt.bits:g}")

    def weight_quantizer(self, shape: Sequence[int]) -> Quantizer | None:
        """Returns the quantizer of a weight of that shape (output channels first), ``None`` for float32."""
        if self.weight_format == FLOAT:
            return None
        trailing = len(shape) - 1 if self.weight_granularity == "per_channel" else None
        group = self.weight_group_size if self.weight_granularity == "per_group" else 0
        source: ScaleSource
        if self.weight_scale in LEARNED_WEIGHT_SCALES:
            source = LEARNED_WEIGHT_SCALES[self.weight_scale](shape, Granularity(trailing, group))
        else:
            source = FromValues(SCALERS[_covering(self.weight_scale, self.weight_scale_pow2)], trailing, group)
        return Quantizer(
            get_format(self.weight_format),
            source,
            self.weight_scale_pow2,
            ESTIMATORS[self.estimator],
            TRANSFORMS[self.weight_transform],
            self.weight_rounding == "stochastic",
        )

    def activation_quantizer(self, trailing: int) -> Quantizer | None:
        """Returns the quantizer of a layer's input, ``None`` for float32.

        Args:
            trailing: The dimensions of one token or sample: 1 for a linear layer, 3 for a 2-d convolution.
        """
        if self.activation_dtype == FLOAT:
            return None
        if self.activation_scale == DYNAMIC:  # the largest value is inside: nothing is clipped
            scaler = SCALERS[_covering("absmax", self.activation_scale_pow2)]
            source = FromValues(scaler, trailing if self.activation_granularity == "per_token" else None)
            estimator = "ste"
        else:
            source = STATIC_RANGES[self.activation_scale]()
            estimator = "half_open_ste" if self.activation_scale == "pact" else self.activation_estimator
        fmt = get_format(self.activation_dtype)
        return Quantizer(fmt, source, self.activation_scale_pow2, ESTIMATORS[estimator])


def _covering(scaler: str, pow2: bool) -> str:
    """A range from the largest value stays uncut when its scale becomes a power of two."""
    return "absmax_pow2" if scaler == "absmax" and pow2 else scaler
