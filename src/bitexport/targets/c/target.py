"""The C target: checks a graph, writes the export folder, runs it with the host's compiler."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError, unknown
from bitcore.graph import Graph
from bitcore.graph.ops import Ints
from bitexport.targets.base import GRAPH_FILE, Artifact, Problem, Sizes, Target
from bitexport.targets.c.chips import Chip
from bitexport.targets.c.firmware import DoesNotFitError, Size, measure_size, write_project
from bitexport.targets.c.host import run_on_host
from bitexport.targets.c.names import check_name
from bitexport.targets.c.readme import export_readme
from bitexport.targets.c.runtime import copy_runtime
from bitexport.targets.c.source import CSource
from bitexport.targets.c.support import problems_of
from bitexport.targets.manifest import MANIFEST_FILE, Manifest

OPTIMIZE = ("speed", "flash")
"""Which runtime: the fast one, or the compact one where it runs a layer."""


class CTarget(Target):
    """C99 for hosts and microcontrollers: no malloc, no libc, no floating point.

    Compiled with ``-DBIT_NO_MULTIPLIER``, no multiplication is executed either.

    Args:
        chip: The chip that must hold the network; ``None`` for any machine.
        optimize: One of `OPTIMIZE`; by default speed, and flash where that does not fit the chip.

    Raises:
        BitLabError: There is no such runtime.
    """

    name = "c"

    def __init__(self, chip: Chip | None = None, optimize: str | None = None) -> None:
        if optimize not in (None, *OPTIMIZE):
            raise unknown("runtime", optimize, OPTIMIZE)
        self.chip = chip
        self.optimize = optimize

    def check(self, graph: Graph) -> list[Problem]:
        """Returns what C cannot express: operations without C, formats and sizes beyond its integers."""
        return problems_of(graph)

    def emit(self, graph: Graph, out: Path, name: str) -> Artifact:
        """Writes NAME.h, NAME.c, the runtime files they need, README.md and the graph itself.

        An earlier export in ``out`` is replaced, and what else lies there stays; any other non-empty folder is refused.

        Raises:
            BitLabError: Also if the chip's compiler is missing, or the network exceeds the chip; by how many bytes.
        """
        check_name(name)
        self.require(graph)
        if out.exists() and not out.is_dir():
            raise BitLabError(f"'{out}' is a file; give a folder")
        if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
            raise BitLabError(f"'{out}' holds other files; give a new or empty folder")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
                fresh = Path(temporary) / "new"
                fresh.mkdir()
                self._write(graph, fresh, name)
                if out.is_dir() and any(out.iterdir()):
                    _keep_others(out, fresh)
                _replace(out, fresh, Path(temporary) / "old")
        except OSError as error:
            raise BitLabError(f"cannot write '{out}': {error.strerror or error}") from error
        return Artifact(out, name)

    def _write(self, graph: Graph, folder: Path, name: str) -> None:
        optimize = self.optimize or OPTIMIZE[0]
        source, size = self._fit(graph, name, optimize, folder)
        by_rows = sum(bool(layer.rows) for layer in source.plan.layers)
        for packed in (*range(1, by_rows + 1), None) if by_rows else ():
            if isinstance(size, DoesNotFitError):
                source, size = self._fit(graph, name, optimize, folder, packed=packed)
        if isinstance(size, DoesNotFitError) and self.optimize is None:
            optimize = OPTIMIZE[1]
            source, size = self._fit(graph, name, optimize, folder)
        other = None
        if source.rice and size is not None:  # what they really save, decoder and all
            plain, other = self._fit(graph, name, optimize, folder, rice=False)
            if _flash(other) <= _flash(size):
                source, size = plain, other
            else:
                source, size = self._fit(graph, name, optimize, folder)
        if isinstance(size, DoesNotFitError):
            raise size
        sources = (f"{name}.c", *sorted(source.runtime))
        graph.save(folder / GRAPH_FILE)
        (folder / "README.md").write_text(export_readme(source, self.chip, _flash(other) - _flash(size)), "utf-8")
        if self.chip is not None and self.chip.flash:
            write_project(self.chip, name, sources, folder / "firmware")
        files = sorted([*(path.name for path in folder.iterdir()), MANIFEST_FILE])
        target = self.chip.name if self.chip else self.name
        places = {place.name: (place.offset, place.offset + place.bytes) for place in source.plan.places}
        sizes = asdict(source.sizes())
        Manifest(name, target, tuple(files), sources, optimize, source.rice, sizes, places).save(folder)

    def _fit(
        self, graph: Graph, name: str, optimize: str, folder: Path, rice: bool = True, packed: int | None = 0
    ) -> tuple[CSource, Size | DoesNotFitError | None]:
        """Writes a network with one of the runtimes, in less RAM if it exceeds the chip's; returns its size."""
        measured = self.chip is not None and self.chip.flash > 0
        source = CSource(graph, name, compact=optimize == "flash", with_rice=rice if measured else None, packed=packed)
        size = self._size(source, folder)
        if isinstance(size, DoesNotFitError) and size.ram > 0:
            source = replace(source, limit=source.plan.arena - size.ram)
            if source.plan.arena <= (source.limit or 0):
                size = self._size(source, folder)
        return source, size

    def _size(self, source: CSource, folder: Path) -> Size | DoesNotFitError | None:
        """Writes a network with the runtime files it needs; compiles it for the chip and returns its size."""
        for path in folder.iterdir():
            path.unlink()
        name = source.name
        (folder / f"{name}.c").write_text(source.source(), "utf-8")
        (folder / f"{name}.h").write_text(source.header(), "utf-8")
        copy_runtime((*source.headers, *source.runtime), folder)
        if self.chip is None or not self.chip.flash:
            return None
        with tempfile.TemporaryDirectory(prefix="bitlab-") as temporary:
            sources = [folder / f"{name}.c", *(folder / file for file in sorted(source.runtime))]
            try:
                return measure_size(self.chip, name, folder, sources, Path(temporary))
            except DoesNotFitError as error:
                return error

    def describe(self, artifact: Artifact) -> Sizes:
        """Returns what the export says it takes."""
        manifest = Manifest.load(artifact.folder)
        sizes: dict[str, Any] = {field.name: manifest.size(field.name) for field in fields(Sizes)}
        return Sizes(**sizes)

    def run(self, artifact: Artifact, codes: Ints) -> Ints:
        """Compiles with the host's C compiler, warnings as errors, and runs every sample."""
        sources = Manifest.load(artifact.folder).sources
        if not sources:
            raise BitLabError(f"'{artifact.folder}' holds no C; verify it with --target engine, or export it for C")
        return run_on_host(artifact.folder, artifact.name, codes, sources=sources)


def _flash(size: Size | DoesNotFitError | None) -> float:
    """Bytes of flash; infinite where that was not measured, or is more than the chip has."""
    return size.flash if isinstance(size, Size) else math.inf


def _keep_others(out: Path, fresh: Path) -> None:
    """Copies what is not part of the earlier export."""
    written = Manifest.load(out).files
    for path in out.iterdir():
        if path.name not in written and not (fresh / path.name).exists():
            if path.is_dir():
                shutil.copytree(path, fresh / path.name, symlinks=True)
            else:
                shutil.copy2(path, fresh / path.name, follow_symlinks=False)


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
