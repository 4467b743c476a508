"""Each function for names, by what the place that it is for would make of them."""

import re

import pytest

from bitcore.errors import unknown
from bitcore.naming import (
    cell,
    identifiers,
    is_file_name,
    is_identifier,
    plain,
    plain_names,
    printable,
    shown,
)
from hostile_names import HOSTILE, obeyed


def test_identifiers_are_identifiers_and_never_the_same() -> None:
    found = identifiers(HOSTILE)
    assert list(found) == list(HOSTILE) and len(set(found.values())) == len(HOSTILE)
    for identifier in found.values():
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,70}", identifier) and is_identifier(identifier)
        assert not identifier.lower().startswith("bit_")


def test_ordinary_identifiers_stay() -> None:
    assert identifiers(["conv1", "a.b", "a_b", "0", "float"]) == {
        "conv1": "conv1",
        "a.b": "a_b",
        "a_b": "a_b_2",
        "0": "layer_0",
        "float": "layer_float",
    }
    assert identifiers(["a.b", "a_b_2", "a_b"])["a_b"] == "a_b_3"


def test_ten_thousand_names_that_begin_alike_take_no_time() -> None:
    names = [f"{'x' * 100}{i}" for i in range(10_000)]
    assert len(set(identifiers(names).values())) == len(set(plain_names(names).values())) == len(names)


def test_plain_names_mean_nothing_anywhere() -> None:
    found = plain_names(HOSTILE, taken=("input", "output"))
    assert len(set(found.values()) | {"input", "output"}) == len(HOSTILE) + 2
    assert all(re.fullmatch(r"[\w.-]{1,90}", name) for name in found.values())
    ordinary = ["layers.0", "Conv", "conv", "conv.input", "last-1", "日本"]
    assert plain_names(ordinary) == dict(zip(ordinary, ordinary, strict=True))
    assert plain("") == "_"


@pytest.mark.parametrize("name", HOSTILE)
def test_printable_is_a_line_that_no_terminal_obeys(name: str) -> None:
    text = printable(name)
    assert "\n" not in text and not obeyed(text) and len(text) <= 81
    assert len(printable(name, 5)) <= 6
    assert shown(name).removesuffix("…").isascii() and len(shown(name)) <= 81


def test_printable_shows_what_is_harmless() -> None:
    assert printable("größe × 日本 [red] 'x'") == "größe × 日本 [red] 'x'"
    assert printable("a\x1b[1m\u202e\n") == r"a\x1b[1m\u202e\n"
    assert printable("x" * 80) == "x" * 80 and printable("x" * 81) == "x" * 80 + "…"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_has_no_marks_of_markdown_and_html(name: str) -> None:
    text = cell(name)
    assert not re.search(r"[|`<>\[\]*\\!\"'{}$~@^\n]|&(?!#\d+;)|://", text) and not obeyed(text)
    assert not re.search(r"\b_|_\b", text)
    rendered = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), text)
    assert rendered == printable(name)


def test_ordinary_cells_stay() -> None:
    for text in ("layers.0.conv_1", "x = (pixel / 255 - 0.13) / 0.3", "ternary, 4bitsym (mcu) + 99 %", "größe–×"):
        assert cell(text) == text


def test_file_names_lead_nowhere() -> None:
    good = [name for name in HOSTILE if is_file_name(name)]
    for name in good:
        assert (
            not re.search(r"[/\\\x00-\x1f]|^[A-Za-z]:", name) and name.strip(" .") == name and len(name.encode()) <= 200
        )
    refused = {
        "..",
        ".",
        "../../evil",
        "/etc/passwd",
        "C:\\evil",
        "con",
        "nul.txt",
        "a\x00b",
        "\udc80",
        "x" * 10_000,
        " ",
    }
    assert not refused & set(good) and {"a", "main", "a.b", "日本", "__init__"} <= {*good, "日本"}
    for bad in ("", "x" * 201, "a ", "a.", " a", ".a", None, 3, "NUL", "com1.txt", "c:x"):
        assert not is_file_name(bad)
    assert (
        is_file_name("x" * 200)
        and is_file_name("mnist-mlp.v2 (1)")
        and is_file_name("日本")
        and is_file_name("ümläut: yes")
    )


def test_errors_of_unknown_names_are_short_lines() -> None:
    for name in HOSTILE:
        message = str(unknown("dataset", name, ["mnist"]))
        assert not obeyed(message) and "\n" not in message and len(message) < 1000
