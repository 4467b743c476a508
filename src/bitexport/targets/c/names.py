"""Names that a network may have in C: those that meet no keyword, no header of a compiler and no file beside it."""

from __future__ import annotations

import re
from pathlib import Path

from bitcore.errors import BitLabError
from bitexport.targets.c.chips import MCU

_KEYWORDS = frozenset(
    # C, up to C23
    "alignas alignof auto bool break case char const constexpr continue default do double else enum extern false float "
    "for goto if inline int long nullptr register restrict return short signed sizeof static static_assert struct "
    "switch thread_local true typedef typeof typeof_unqual union unsigned void volatile while "
    # C++
    "and and_eq asm bitand bitor catch char8_t char16_t char32_t class co_await co_return co_yield compl concept "
    "const_cast consteval constinit decltype delete dynamic_cast explicit export friend mutable namespace new noexcept "
    "not not_eq operator or or_eq private protected public reinterpret_cast requires static_cast template this throw "
    "try typeid typename using virtual wchar_t xor xor_eq "
    # what programs have of their own
    "main run".split()
)
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))])
_HEADERS = frozenset(
    word
    for line in (Path(__file__).parent / "headers.txt").read_text().splitlines()
    if not line.startswith("#")
    for word in line.split()
)
_PROGRAMS = frozenset(path.stem for path in MCU.rglob("*.[chS]")) | {"images"}  # images.h: what an AVR's probe runs on


def check_name(name: str) -> None:
    """Refuses a name that C functions or files cannot have.

    Files are compared without regard to case, as some file systems do.

    Raises:
        BitLabError: It is no C identifier, a keyword of C or C++, or the name of a header, a runtime file, a file of
            the firmware or a device of Windows.
    """
    file = name.lower()
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in _KEYWORDS:
        why = "it is no identifier of C and C++"
    elif file.startswith("bit_"):
        why = "names that begin with bit_ are the runtime's"
    elif file in _HEADERS or "intrin" in file:
        why = f"{name}.h would hide the compiler's {file}.h"
    elif file in _PROGRAMS:
        why = f"the firmware has a file {file}"
    elif file in _DEVICES:
        why = "Windows has no such files"
    else:
        return
    raise BitLabError(f"'{name}' cannot name C functions and files, {why}; use another name, such as 'digits'")
