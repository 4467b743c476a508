"""Names from outside in what BitLab writes: one function for each place that a name can stand in.

What a model, graph or export folder calls its layers, classes and data is somebody else's choice. None of it may end a
comment, leave a folder, move the cursor of a terminal or become a second column of a table.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_SHOWN = 80
"""Letters that are shown of a name."""
_LONGEST_IDENTIFIER = 60  # compilers may tell identifiers apart by 63 letters alone (C99, 5.2.4.1)
_LONGEST_FILE = 200  # bytes; file systems take 255, and names get endings
_KEYWORDS = frozenset(
    # C, up to C23
    "alignas alignof auto bool break case char const constexpr continue default do double else enum extern false float "
    "for goto if inline int long nullptr register restrict return short signed sizeof static static_assert struct "
    "switch thread_local true typedef typeof typeof_unqual union unsigned void volatile while "
    # C++
    "and and_eq asm bitand bitor catch char8_t char16_t char32_t class co_await co_return co_yield compl concept "
    "const_cast consteval constinit decltype delete dynamic_cast explicit export friend mutable namespace new noexcept "
    "not not_eq operator or or_eq private protected public reinterpret_cast requires static_cast template this throw "
    "try typeid typename using virtual wchar_t xor xor_eq".split()
)
# Of Markdown and HTML: all but a few; "_" where words end, as it stresses them; ":" of links.
_MARKS = re.compile(r"\b_+|_+\b|:(?=//)|(?![\w.,:;()+/%=?-])[!-~]")
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))])


def is_identifier(text: object) -> bool:
    """Whether a text is an identifier of C, and of C++, Make and Graphviz as well."""
    return isinstance(text, str) and bool(re.fullmatch(r"[A-Za-z]\w*", text, re.ASCII)) and text not in _KEYWORDS


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Returns an identifier for each name (`is_identifier`), distinct from all others.

    None begins with ``bit_``, as the runtime's do.
    """
    found: dict[str, str] = {}
    free = _Free("_")
    for name in names:
        base = re.sub(r"\W", "_", name[:_LONGEST_IDENTIFIER], flags=re.ASCII)
        if not is_identifier(base) or base.lower().startswith("bit_"):
            base = f"layer_{base}"
        found[name] = free.take(base)
    return found


def plain_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Returns for each name one that is `plain`, distinct from all others, and from those that are ``taken``."""
    free = _Free(".", taken)
    return {name: free.take(plain(name)) for name in names}


def plain(name: str) -> str:
    """A name of letters and digits of any script, ``_``, ``.`` and ``-`` alone, not too long to show.

    It means nothing in a comment, whether of C, Make, YAML or TOML: it neither ends one nor continues its line.
    """
    return re.sub(r"[^\w.-]", "_", name[:_SHOWN]) or "_"


class _Free:
    """Gives out names, each once; what is taken is numbered, from 2 on."""

    def __init__(self, joint: str, taken: Iterable[str] = ()) -> None:
        self._joint = joint
        self._taken = set(taken)
        self._numbers: Counter[str] = Counter()

    def take(self, base: str) -> str:
        name = base
        while name in self._taken:
            self._numbers[base] += 1
            name = f"{base}{self._joint}{self._numbers[base] + 1}"
        self._taken.add(name)
        return name


def printable(text: object, longest: int = _SHOWN) -> str:
    """A text as one line for a terminal: escape sequences, controls, overrides of direction and line ends are spelt.

    Nothing in it moves a cursor or changes a colour; markup is shown as it is, see `bitlab.console`.
    """
    return _cut("".join(c if c.isprintable() else _spelt(c) for c in str(text)[: longest + 1]), longest)


def cell(text: object, longest: int = _SHOWN) -> str:
    """A text in Markdown or HTML, such as in a cell of a table: shown as it is, without tags, links or columns.

    Underscores inside of words stay, as they mean nothing there.
    """
    return _MARKS.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), printable(text, longest))


def is_file_name(text: object) -> bool:
    """Whether a text names a file or folder in any folder, and leads nowhere else on any system."""
    if not isinstance(text, str) or not text or not is_clean(text) or re.search(r"[/\\]|^[A-Za-z]:", text):
        return False
    reserved = text.partition(".")[0].strip().lower() in _DEVICES
    return text.strip(" .") == text and not reserved and len(text.encode()) <= _LONGEST_FILE


def is_clean(text: str) -> bool:
    """Whether a text can be kept anywhere: no control characters, no bytes that are no Unicode."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def shown(value: object) -> str:
    """A value from outside as short, printable text for errors."""
    try:
        return _cut(ascii(value))
    except (ValueError, RecursionError):
        return "a value that is too large to show"


def _spelt(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _cut(text: str, longest: int = _SHOWN) -> str:
    return text if len(text) <= longest else text[:longest] + "…"
