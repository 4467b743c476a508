"""The C header of the number formats, generated from their levels. Run as a module to rewrite the committed file."""

from __future__ import annotations

from pathlib import Path

from bitcore.formats import FORMATS, NumberFormat

HEADER = Path(__file__).parent.parent / "kernels" / "csrc" / "portable" / "bit_formats.h"


def format_header() -> str:
    """Returns the text of ``bit_formats.h``."""
    names = list(FORMATS)
    streams = [f for f in FORMATS.values() if is_bit_stream(f)]
    tables = [f for f in FORMATS.values() if not f.affine]
    lines = [
        "/* Number formats. Generated from their levels by bitcore.formats.ctables; do not edit. */",
        "#ifndef BIT_FORMATS_H",
        "#define BIT_FORMATS_H",
        "",
        "/* X(format): every format, in the order of their numbers. */",
        *_macro("BIT_FORMATS(X)", [f"X({name})" for name in names]),
        f"#define BIT_FORMAT_COUNT {len(names)}",
        "",
        "/* X(format, bits, low, step): level = low + step * code, codes in a little-endian bit stream. */",
        *_macro("BIT_FORMATS_OF_BITS(X)", [f"X({f.name}, {_bits(f)}, {f.low}, {f.step})" for f in streams]),
        "",
        "/* Levels in code order. */",
    ]
    for f in tables:
        lines.append(f"#define BIT_{f.name.upper()}_LEVELS {{{', '.join(str(level) for level in f.levels)}}}")
    return "\n".join([*lines, "", "#endif", ""])


def is_bit_stream(f: NumberFormat) -> bool:
    """Whether codes are evenly spaced and whole bits wide."""
    return f.affine and f.packing.radix & (f.packing.radix - 1) == 0


def _bits(f: NumberFormat) -> int:
    return f.packing.radix.bit_length() - 1


def _macro(name: str, entries: list[str]) -> list[str]:
    """A macro of one entry a line, its backslashes where clang-format puts them."""
    body = [f"#define {name}", *(f"    {entry}" for entry in entries)]
    return [f"{line:<119}\\" for line in body[:-1]] + [body[-1]]


if __name__ == "__main__":
    HEADER.write_text(format_header())
