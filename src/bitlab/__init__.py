"""BitLab: low-bit neural networks, from training to microcontroller. The facade over the packages below it."""

from bitcore import FORMATS, PRESETS, BitLabError, BitQuantConfig, get_format, get_preset
from bitexport import lower
from bitlayers import BitConv2d, BitLinear, pack, quantize
from bitmodels import AutoBitModel, list_models, load_model, save_model

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "PRESETS",
    "AutoBitModel",
    "BitConv2d",
    "BitLabError",
    "BitLinear",
    "BitQuantConfig",
    "get_format",
    "get_preset",
    "list_models",
    "load_model",
    "lower",
    "pack",
    "quantize",
    "save_model",
]
