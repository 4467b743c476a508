"""Quantizers: a number format, a scale source, power-of-two rounding and a gradient estimator, combined freely."""

from bitcore.quantizers.estimators import ESTIMATORS, GradientScale, PowerOfTwo, ede_temperature
from bitcore.quantizers.granularity import Granularity, spread
from bitcore.quantizers.learned import LEARNED_WEIGHT_SCALES, Learned, LearnedPlus, Pact, Ttq, pact_penalty
from bitcore.quantizers.quantizer import Quantizer
from bitcore.quantizers.ranges import FromValues, ScaleSource, Tracked, TrackedMse, TrackedPercentile, Unit
from bitcore.quantizers.scalers import SAWB_COEFFICIENTS, SCALERS
from bitcore.quantizers.tensors import PackedTensor, QTensor
from bitcore.quantizers.transforms import TRANSFORMS

# Activation scales that are constants of the trained model.
STATIC_RANGES: dict[str, type[ScaleSource]] = {
    "tracked": Tracked,
    "tracked_percentile": TrackedPercentile,
    "tracked_mse": TrackedMse,
    "learned": Learned,
    "learned_plus": LearnedPlus,
    "pact": Pact,
    "unit": Unit,
}

__all__ = [
    "ESTIMATORS",
    "LEARNED_WEIGHT_SCALES",
    "SAWB_COEFFICIENTS",
    "SCALERS",
    "STATIC_RANGES",
    "TRANSFORMS",
    "FromValues",
    "GradientScale",
    "Granularity",
    "Learned",
    "LearnedPlus",
    "PackedTensor",
    "Pact",
    "PowerOfTwo",
    "QTensor",
    "Quantizer",
    "ScaleSource",
    "Tracked",
    "TrackedMse",
    "TrackedPercentile",
    "Ttq",
    "Unit",
    "ede_temperature",
    "pact_penalty",
    "spread",
]
