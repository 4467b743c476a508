"""Names that a network may have in C: those that meet no keyword, no header of a compiler and no file beside it."""

from __future__ import annotations

from pathlib import Path

from bitcore.errors import BitLabError
from bitcore.naming import is_file_name, is_identifier, printable
from bitexport.targets.c.chips import MCU

_OURS = ("main", "run")  # what programs have of their own
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
            the firmware or a device of Windows, or too long for a file.
    """
    file = name.lower()
    if not is_identifier(name) or name in _OURS:
        why = "it is no identifier of C and C++"
    elif file.startswith("bit_"):
        why = "names that begin with bit_ are the runtime's"
    elif file in _HEADERS or "intrin" in file:
        why = f"{name}.h would hide the compiler's {file}.h"
    elif file in _PROGRAMS:
        why = f"the firmware has a file {file}"
    elif not is_file_name(name):
        why = "not every system has files of that name"
    else:
        return
    raise BitLabError(
        f"'{printable(name)}' cannot name C functions and files, {why}; use another name, such as 'digits'"
    )
