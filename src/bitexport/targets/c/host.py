"""Builds an exported network with the host's C compiler and runs it on many samples."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitcore.errors import BitLabError
from bitcore.graph.ops import Ints

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
_MAIN = """\
#include <stdio.h>

#include "{name}.h"

int main(void) {{
    static int8_t input[{upper}_INPUT_SIZE];
    static int32_t output[{upper}_OUTPUT_SIZE];
    while (fread(input, 1, sizeof input, stdin) == sizeof input) {{
        {name}_run(input, output);
        if (fwrite(output, 1, sizeof output, stdout) != sizeof output) {{
            return 1;
        }}
    }}
    return 0;
}}
"""


def find_compiler() -> list[str]:
    """Returns the host's C compiler: ``$CC``, or cc, gcc or clang.

    Raises:
        BitLabError: If there is none.
    """
    wanted = shlex.split(os.environ.get("CC", ""))
    if wanted:
        if shutil.which(wanted[0]) is None:
            raise BitLabError(f"the C compiler '{wanted[0]}' of $CC is not installed")
        return wanted
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BitLabError("no C compiler found; install one (Debian: apt-get install gcc libc6-dev) or set CC")


def input_bytes(codes: Ints) -> bytes:
    """Returns the bytes of samples ``[batch, channels, ...]`` as C takes them: channels last."""
    last = np.moveaxis(codes, 1, -1) if codes.ndim > 1 else codes
    return last.astype(np.int16).astype(np.uint8).tobytes()  # int8 and uint8 have the same bytes


def run_on_host(
    folder: Path, name: str, codes: Ints, flags: tuple[str, ...] = ("-O2",), sources: Sequence[str] = ()
) -> Ints:
    """Compiles C files of a folder, without a single warning, and runs the network on integer inputs.

    Args:
        folder: An exported network.
        name: Its name.
        codes: int64 ``[batch, *shape]``.
        flags: More compiler flags, such as ``-fsanitize=address,undefined``.
        sources: Names of the C files; all there are if none is given.

    Returns:
        The scores, int64 ``[batch, outputs]``.

    Raises:
        BitLabError: If there is no compiler, the code does not compile, or the program fails.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="bitlab-") as temporary:
        main, program = Path(temporary) / "main.c", Path(temporary) / "network"
        main.write_text(_MAIN.format(name=name, upper=name.upper()))
        files = [str(folder / file) for file in sources] or [str(path) for path in sorted(folder.glob("*.c"))]
        command = [*compiler, *STRICT, *flags, f"-I{folder}", *files, str(main), "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise BitLabError(f"'{folder}' does not compile with {compiler[0]}:\n{built.stderr.strip()}")
        data = input_bytes(codes)
        result = subprocess.run([str(program)], input=data, capture_output=True, check=False)
    if result.returncode:
        raise BitLabError(f"the network built from '{folder}' failed: {result.stderr.decode(errors='replace').strip()}")
    outputs = np.frombuffer(result.stdout, dtype="=i4").astype(np.int64)
    if len(codes) and outputs.size % len(codes):
        raise BitLabError(f"the network built from '{folder}' wrote {outputs.size} scores for {len(codes)} samples")
    return outputs.reshape(len(codes), -1)
