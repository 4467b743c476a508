"""Quantizers: a number format, a scale source, power-of-two rounding and a gradient estimator, combined freely."""

from bitcore.quantizers.estimators import ESTIMATORS, GradientScale, PowerOfTwo
from bitcore.quantizers.quantizer import Quantizer
from bitcore.quantizers.ranges import STATIC_RANGES, FromValues, Learned, ScaleSource, Tracked
from bitcore.quantizers.scalers import SCALERS
from bitcore.quantizers.tensors import PackedTensor, QTensor

__all__ = [
    "ESTIMATORS",
    "SCALERS",
    "STATIC_RANGES",
    "FromValues",
    "GradientScale",
    "Learned",
    "PackedTensor",
    "PowerOfTwo",
    "QTensor",
    "Quantizer",
    "ScaleSource",
    "Tracked",
]
