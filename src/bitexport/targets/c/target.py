"""The C target: checks a graph, writes the export folder, runs it with the host's compiler."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import bitcore.kernels
from bitcore.errors import BitLabError
from bitcore.graph import Flatten, Graph, Linear, NormShift, Requantize, Threshold
from bitcore.graph.ops import Ints
from bitcore.graph.types import INT32
from bitexport.targets.base import Artifact, Problem, Target
from bitexport.targets.c.host import run_on_host
from bitexport.targets.c.readme import export_readme
from bitexport.targets.c.source import CSource

GRAPH_FILE = "graph.safetensors"
_RUNTIME = Path(bitcore.kernels.__file__).parent / "csrc" / "portable"
_SUPPORTED = (Linear, Requantize, Threshold, NormShift, Flatten)
_RESERVED = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long "
    "register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while "
    "main run".split()
)


class CTarget(Target):
    """C99 for hosts and microcontrollers: no malloc, no libc, no floating point.

    Compiled with ``-DBIT_NO_MULTIPLIER``, no multiplication is executed either.
    """

    name = "c"

    def check(self, graph: Graph) -> list[Problem]:
        """Returns what C cannot express yet."""
        problems = []
        types = {"input": graph.input.type, **{node.name: node.type for node in graph.nodes}}
        for node in graph.nodes:
            op, source = node.op, types[node.inputs[0]]
            if not isinstance(op, _SUPPORTED):
                problems.append(Problem(node.name, f"{op.kind} has no C yet; use fully connected layers"))
            elif isinstance(op, Linear) and source.storage == "int32":
                problems.append(Problem(node.name, "its input is wider than 8 bits; quantize it to 8 bits or fewer"))
            elif isinstance(op, NormShift) and (source.storage != "int32" or node.type.storage == "int32"):
                problems.append(Problem(node.name, "a dynamic range works on int32 accumulators and gives 8 bits"))
            elif isinstance(op, Threshold) and max(abs(int(op.thresholds.min())), int(op.thresholds.max())) > INT32[1]:
                problems.append(Problem(node.name, "a threshold leaves int32; use fewer inputs or smaller weights"))
        return problems

    def emit(self, graph: Graph, out: Path, name: str) -> Artifact:
        """Writes NAME.h, NAME.c, the runtime files they need, README.md and the graph itself.

        An earlier export in ``out`` is replaced; any other non-empty folder is refused.
        """
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in _RESERVED or name.lower().startswith("bit_"):
            raise BitLabError(f"'{name}' cannot name C functions; use letters, digits and _, such as 'digits'")
        self.require(graph)
        if out.exists() and not out.is_dir():
            raise BitLabError(f"'{out}' is a file; give a folder")
        if out.is_dir() and any(out.iterdir()) and not (out / GRAPH_FILE).is_file():
            raise BitLabError(f"'{out}' holds other files; give a new or empty folder")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
                fresh = Path(temporary) / "new"
                fresh.mkdir()
                self._write(graph, fresh, name)
                _replace(out, fresh, Path(temporary) / "old")
        except OSError as error:
            raise BitLabError(f"cannot write '{out}': {error.strerror or error}") from error
        return Artifact(out, name)

    def _write(self, graph: Graph, folder: Path, name: str) -> None:
        source = CSource(graph, name)
        (folder / f"{name}.c").write_text(source.source())
        (folder / f"{name}.h").write_text(source.header())
        for file in ("bit_runtime.h", "bit_formats.h", *sorted(source.runtime)):
            shutil.copyfile(_RUNTIME / file, folder / file)
        graph.save(folder / GRAPH_FILE)
        (folder / "README.md").write_text(export_readme(source))

    def run(self, artifact: Artifact, codes: Ints) -> Ints:
        """Compiles with the host's C compiler, warnings as errors, and runs every sample."""
        return run_on_host(artifact.folder, artifact.name, codes)


def _replace(out: Path, fresh: Path, old: Path) -> None:
    """Puts a folder in the place of another, which comes back if that fails."""
    if not out.exists():
        fresh.rename(out)
        return
    out.rename(old)
    try:
        fresh.rename(out)
    except OSError:
        old.rename(out)
        raise


def open_export(folder: Path) -> tuple[Artifact, Graph]:
    """Returns an export folder's artifact and graph.

    Raises:
        BitLabError: If it is no export folder.
    """
    headers = [p for p in folder.glob("*.h") if not p.name.startswith("bit_")]
    if not (folder / GRAPH_FILE).is_file() or len(headers) != 1:
        raise BitLabError(f"'{folder}' is no exported network; make one with: bitlab export CHECKPOINT --out FOLDER")
    return Artifact(folder, headers[0].stem), Graph.load(folder / GRAPH_FILE)
