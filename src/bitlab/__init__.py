"""BitLab: low-bit neural networks, from training to microcontroller. The facade over the packages below it."""

from bitcore import FORMATS, PRESETS, BitLabError, BitQuantConfig, get_format, get_preset
from bitexport import lower
from bitexport.targets.engine import compile  # noqa: A004
from bitlayers import (
    Bit,
    BitConv2d,
    BitLinear,
    calibrate,
    convert_to_ternary,
    convert_to_ternary_p2,
    pack,
    quantize,
    unpack,
)
from bitlayers.convert import convert
from bitmodels import (
    AutoBitModel,
    from_pretrained,
    list_models,
    load_into,
    load_model,
    push_to_hub,
    save_model,
    save_pretrained,
    save_weights,
)

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "PRESETS",
    "AutoBitModel",
    "Bit",
    "BitConv2d",
    "BitLabError",
    "BitLinear",
    "BitQuantConfig",
    "calibrate",
    "compile",
    "convert",
    "convert_to_ternary",
    "convert_to_ternary_p2",
    "from_pretrained",
    "get_format",
    "get_preset",
    "list_models",
    "load_into",
    "load_model",
    "lower",
    "pack",
    "push_to_hub",
    "quantize",
    "save_model",
    "save_pretrained",
    "save_weights",
    "unpack",
]
