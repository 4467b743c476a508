"""BitLab's core: number formats, quantizers, the integer graph and the kernels. Depends on torch and numpy alone."""

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS, NumberFormat, get_format
from bitcore.presets import PRESETS, get_preset

__all__ = ["FORMATS", "PRESETS", "BitLabError", "BitQuantConfig", "NumberFormat", "get_format", "get_preset"]
