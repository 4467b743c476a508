"""What an export folder says about itself: which target made it, of which files it consists, what it takes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bitcore.container import parse_json
from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitcore.graph import Graph
from bitcore.naming import is_file_name, is_identifier
from bitexport.targets.base import GRAPH_FILE, Artifact

MANIFEST_FILE = "export.json"


@dataclass(frozen=True)
class Manifest:
    """What an export wrote, kept in ``export.json``.

    Attributes:
        name: The network's name.
        target: The target that made it: "c", a chip or "engine".
        files: All files.
        sources: The C files to compile.
        optimize: Which runtime C has, one of `bitexport.targets.OPTIMIZE`.
        rice: Layers whose weights are Rice codes: their bytes, and those of codes of a fixed size.
        sizes: The fields of `bitexport.targets.Sizes`, for C; empty where an earlier version made it.
        places: Where results lie in C's arena, as first byte and the one behind the last; of the input, too.
    """

    name: str
    target: str
    files: tuple[str, ...]
    sources: tuple[str, ...] = ()
    optimize: str = "speed"
    rice: dict[str, tuple[int, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes it to an export folder."""
        write_atomically(folder / MANIFEST_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads a folder's manifest.

        Raises:
            BitLabError: If it is no export folder.
        """
        if (folder / GRAPH_FILE).is_file() and not (folder / MANIFEST_FILE).exists():
            return cls("network", "engine", (GRAPH_FILE,))  # as earlier versions exported for the engine
        try:
            return cls._of(parse_json((folder / MANIFEST_FILE).read_bytes(), f"'{folder / MANIFEST_FILE}'"))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BitLabError(
                f"'{folder}' is no exported network; make one with: bitlab export CHECKPOINT --out FOLDER"
            ) from error

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Manifest:
        """Builds it from plain values; what another version wrote beside them is passed over."""
        known = {field.name for field in fields(cls)}
        lists = {key: tuple(values.get(key, ())) for key in ("files", "sources")}
        given: dict[str, Any] = {key: value for key, value in values.items() if key in known} | lists
        manifest = cls(**given)
        if not is_identifier(manifest.name):
            raise ValueError("it has no name")
        if not all(map(is_file_name, (manifest.target, manifest.optimize))):
            raise ValueError("it has a target or a runtime that is no name")
        if not all(map(is_file_name, (*manifest.files, *manifest.sources))):
            raise ValueError("it names files in other folders")
        manifest._check_numbers()
        return manifest

    def _check_numbers(self) -> None:
        """Raises where what it says about its files is nothing that an export writes."""
        if not set(self.sources) <= set(self.files):
            raise ValueError("it has sources that are no files of it")
        for name, pair in (*self.rice.items(), *self.places.items()):
            first, second = pair
            if not (isinstance(name, str) and all(_is_count(number) for number in (first, second))):
                raise ValueError(f"its '{name}' is no pair of counts")
        if any(first > second for first, second in self.places.values()):
            raise ValueError("a place ends before it begins")
        if not all(map(_is_count, self.sizes.values())):
            raise ValueError("it has sizes that are no counts")

    def size(self, what: str) -> int:
        """Returns one of its sizes.

        Raises:
            BitLabError: An earlier version, which did not write sizes, made the export.
        """
        return self._written(self.sizes, what)

    def place(self, name: str) -> tuple[int, int]:
        """Returns where in the arena a result, "input" or "output" begins and ends; raises as `size`."""
        begin, end = self._written(self.places, name)
        return begin, end

    def _written(self, values: dict[str, Any], key: str) -> Any:
        if key not in values:
            raise BitLabError(f"an earlier version exported '{self.name}' and did not write its sizes; export it again")
        return values[key]


def _is_count(number: object) -> bool:
    """Whether it is a number of bytes (or a truth value, which counts as one)."""
    return isinstance(number, int) and 0 <= number < 2**63


def open_export(folder: Path) -> tuple[Artifact, Graph]:
    """Returns an export folder's artifact and graph.

    Raises:
        BitLabError: If it is no export folder.
    """
    manifest = Manifest.load(folder)
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in manifest.files if name not in there]
    if missing:
        raise BitLabError(f"'{folder}' is no exported network any more, {missing[0]} is missing; export it again")
    return Artifact(folder, manifest.name), Graph.load(folder / GRAPH_FILE)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, of any target."""
    return folder.is_dir() and ((folder / MANIFEST_FILE).is_file() or (folder / GRAPH_FILE).is_file())
