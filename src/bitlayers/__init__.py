"""Quantized replacements of torch's layers, and the conversion of whole models."""

from bitlayers.activations import RPReLU, RSign
from bitlayers.base import BitLayer
from bitlayers.bitattention import BitMultiheadAttention
from bitlayers.bitconv import BitConv1d, BitConv2d, BitConvTranspose2d
from bitlayers.bitembedding import BitEmbedding
from bitlayers.bitlinear import BitLinear, BitTransposedLinear
from bitlayers.calibration import calibrate
from bitlayers.clipping import clip_latent_weights
from bitlayers.convert import pack, quantize, unpack
from bitlayers.factory import Bit, BitFactory, convert_to_ternary, convert_to_ternary_p2
from bitlayers.fusion import fuse_batchnorm, train_fused
from bitlayers.report import ConversionReport

__all__ = [
    "Bit",
    "BitConv1d",
    "BitConv2d",
    "BitConvTranspose2d",
    "BitEmbedding",
    "BitFactory",
    "BitLayer",
    "BitLinear",
    "BitMultiheadAttention",
    "BitTransposedLinear",
    "ConversionReport",
    "RPReLU",
    "RSign",
    "calibrate",
    "clip_latent_weights",
    "convert_to_ternary",
    "convert_to_ternary_p2",
    "fuse_batchnorm",
    "pack",
    "quantize",
    "train_fused",
    "unpack",
]
