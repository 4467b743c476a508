"""Constants and names of a network in C."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field

from bitcore.graph.ops import Ints
from bitcore.graph.types import INT32

_C_TYPES = (("int8_t", 8, True), ("uint8_t", 8, False), ("int16_t", 16, True), ("int32_t", 32, True))


@dataclass(frozen=True)
class Constant:
    """A constant array of the network.

    Attributes:
        name: Its C name.
        type: Its C element type.
        values: The elements.
    """

    name: str
    type: str
    values: list[int]

    @property
    def bytes(self) -> int:
        """Its size in flash."""
        return len(self.values) * self.bits // 8

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return int(re.sub(r"\D", "", self.type))

    def declaration(self) -> str:
        """Returns the C declaration."""
        digits = (f"{value:#010x}" if self.type == "uint32_t" else str(value) for value in self.values)
        body = textwrap.fill(", ".join(digits), 120, initial_indent=" " * 4, subsequent_indent=" " * 4)
        return f"static const {self.type} {self.name}[{len(self.values)}] BIT_IN_FLASH = {{\n{body}\n}};\n"


@dataclass
class Constants:
    """The constant arrays of a network, and what the C names of its layers begin with.

    Attributes:
        labels: For each node, the beginning of its C identifiers.
        arrays: The arrays.
    """

    labels: dict[str, str]
    arrays: list[Constant] = field(default_factory=list)

    def add(self, name: str, values: list[int], c_type: str | None = None) -> str:
        """Adds an array, of the narrowest type unless one is given; returns its name."""
        self.arrays.append(Constant(name, c_type or narrowest(values), values))
        return name

    def element(self, name: str, values: Ints, index: str, c_type: str | None = None) -> str:
        """Returns the expression of one element: of an array that is added, or the number that all share."""
        if (values == values[0]).all():
            return literal(int(values[0]))
        self.add(name, values.tolist(), c_type)
        constant = self.arrays[-1]
        return f"({constant.type})BIT_FLASH{constant.bits}(&{name}[{index}])"


def narrowest(values: list[int]) -> str:
    """Returns the narrowest C type of some values."""
    low, high = min(values), max(values)
    for name, bits, signed in _C_TYPES:
        if (-(1 << (bits - 1)) if signed else 0) <= low and high < 1 << (bits - signed):
            return name
    return "int64_t"


def literal(value: int) -> str:
    """A number in C. INT32_MIN has no literal of its own; int is only 16 bits wide on some chips."""
    if value == INT32[0]:
        return "INT32_MIN"
    if INT32[0] < value <= INT32[1]:
        return str(value) if abs(value) < 2**15 else f"INT32_C({value})"
    return f"INT64_C({value})"
