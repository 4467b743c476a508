"""Quantized replacements of torch's layers, and the conversion of whole models."""

from bitlayers.base import BitLayer
from bitlayers.bitconv import BitConv2d
from bitlayers.bitlinear import BitLinear
from bitlayers.convert import pack, quantize

__all__ = ["BitConv2d", "BitLayer", "BitLinear", "pack", "quantize"]
