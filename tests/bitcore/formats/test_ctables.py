"""The generated C header: up to date, and true to the formats."""

from __future__ import annotations

import re

from bitcore.formats import FORMATS
from bitcore.formats.ctables import HEADER, format_header, is_bit_stream


def test_the_committed_header_is_the_generated_one():
    assert HEADER.read_text() == format_header(), "run python -m bitcore.formats.ctables"


def test_the_header_numbers_the_formats_in_registry_order():
    numbered = re.search(r"#define BIT_FORMATS\(X\)(.*?)#define", format_header(), re.DOTALL)
    assert numbered
    assert re.findall(r"X\((\w+)\)", numbered[1]) == list(FORMATS)
    assert f"#define BIT_FORMAT_COUNT {len(FORMATS)}" in format_header()


def test_the_header_gives_the_levels_of_every_format():
    """Each format stands in a table of levels or is `low + step * code`; ternary is the one with code of its own."""
    header = format_header()
    found: dict[str, tuple[int, ...]] = {"ternary": (-1, 0, 1)}
    for name, bits, low, step in re.findall(r"X\((\w+), (\d+), (-?\d+), (\d+)\)", header):
        count = len(FORMATS[name].levels)
        assert is_bit_stream(FORMATS[name]) and count <= 2 ** int(bits)
        found[name] = tuple(int(low) + int(step) * code for code in range(count))
    for name, levels in re.findall(r"#define BIT_(\w+)_LEVELS \{(.*)\}", header):
        found[name.lower()] = tuple(int(level) for level in levels.split(","))
    assert found == {name: fmt.levels for name, fmt in FORMATS.items()}
