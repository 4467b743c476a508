"""Number formats: one definition of each, from training to microcontroller.

Adding one = one `NumberFormat` in a file of this package and its name in `FORMATS`; quantizers, packed files,
kernels, the integer graph and the C tables all read the same levels.
"""

from bitcore.errors import unknown
from bitcore.formats.integers import BINARY, FULL, ODD, SYMMETRIC, TERNARY, UNSIGNED
from bitcore.formats.number_format import NumberFormat, round_half_even
from bitcore.formats.packing import Packing
from bitcore.formats.tables import FP130, NF4

FORMATS: dict[str, NumberFormat] = {
    f.name: f for f in (BINARY, TERNARY, *ODD, *SYMMETRIC, *FULL, FP130, NF4, *UNSIGNED)
}

__all__ = ["FORMATS", "NumberFormat", "Packing", "get_format", "round_half_even"]


def get_format(name: str) -> NumberFormat:
    """Returns the format of that name.

    Raises:
        BitLabError: If there is none; the message holds the nearest name.
    """
    if name not in FORMATS:
        raise unknown("number format", name, FORMATS)
    return FORMATS[name]
