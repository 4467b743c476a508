"""The runtime's files, and how those of different versions of BitLab stay apart in one program.

All functions of the runtime have its version in their names, by macros in ``bit_version.h``: networks that one version
exported share their functions, and those of another version have others. The version is a digest of the files.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import bitcore.kernels

VERSION_HEADER = "bit_version.h"
_FILES = Path(bitcore.kernels.__file__).parent / "csrc" / "portable"
_FUNCTION = re.compile(r"^(?:(?:void|int|int32_t) |BIT_DEFINE_ADD\()(bit_\w+)\b", re.MULTILINE)


@cache
def runtime_version() -> str:
    """Returns the version of the runtime, a number in hexadecimal: another one for every change in its files."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def copy_runtime(files: Iterable[str], folder: Path) -> None:
    """Copies files of the runtime into an export's folder, the header of its version too."""
    for file in files:
        shutil.copyfile(_FILES / file, folder / file)
    (folder / VERSION_HEADER).write_text(_version_header())


def _sources() -> list[Path]:
    return sorted(path for path in _FILES.glob("*.[ch]") if path.name != VERSION_HEADER)


def _version_header() -> str:
    version = runtime_version()
    names = sorted({name for path in _sources() if path.suffix == ".c" for name in _FUNCTION.findall(path.read_text())})
    defines = "".join(f"#define {name} {name}_{version}\n" for name in names)
    return f"""\
/* The version of this runtime, which is part of the names of its functions: networks that were exported by different
 * versions of BitLab may be linked into one program, those of one version share them. */
#ifndef BIT_VERSION_H
#define BIT_VERSION_H

#define BIT_RUNTIME 0x{version}

{defines}
#endif
"""
