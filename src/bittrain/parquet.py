"""A local folder of parquet files: found, opened and checked, the same for every way of loading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError
from bittrain.decode import Cell
from bittrain.folders import TEST_NAMES
from bittrain.tables import ROWS, Columns, Home, Reader, find_classes, find_columns

_LABELS = 1 << 16
"""Labels that are read at a time."""


@dataclass(frozen=True)
class ParquetFolder:
    """A folder's parquet files.

    Attributes:
        folder: The folder.
        files: Those of ``train`` and of ``test``.
        reader: Makes their values pictures and class numbers.
    """

    folder: Path
    files: dict[str, list[Path]]
    reader: Reader

    def cells(self, split: str) -> Iterator[Cell]:
        """All cells of a split, in order."""
        for path in self.files[split]:
            yield from self.reader.cells(_pieces(path, self.reader.columns.both, ROWS), str(path))

    def count(self, split: str) -> int:
        """The rows of a split, as the files' footers say."""
        return sum(_open(path).metadata.num_rows for path in self.files[split])


def open_parquet(folder: Path) -> ParquetFolder | None:
    """Opens the parquet files ``train-*.parquet`` and ``test-*.parquet`` of a folder; ``None`` where it has none.

    Raises:
        BitLabError: There is no test file, one is unreadable, or they differ in columns or class names.
    """
    files = {"train": _find(folder, ("train",)), "test": _find(folder, TEST_NAMES)}
    if not files["train"]:
        return None
    if not files["test"]:
        raise BitLabError(f"{folder}: there is no test-*.parquet beside the training files")
    columns = _columns(files["train"] + files["test"])
    labels = ((piece.column(0), str(path)) for path in files["train"] for piece in _labels(path, columns))
    classes = find_classes(columns, labels, str(folder))
    return ParquetFolder(folder, files, Reader(columns, classes, Home((folder,))))


def _columns(files: list[Path]) -> Columns:
    """The columns that all files share, with the class names that some may leave out."""
    found: Columns | None = None
    for path in files:
        columns = find_columns(_open(path).schema_arrow, str(path))
        found = found or columns
        if columns.both != found.both:
            raise BitLabError(f"{path}: the columns are {columns.both}, those of {files[0]} {found.both}; rename them")
        if columns.names and found.names and columns.names != found.names:
            raise BitLabError(f"{path}: the classes are others, or in another order, than in {files[0]}; rewrite it")
        found = replace(found, names=found.names or columns.names)
    assert found is not None
    return found


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The parquet files of the first split of ``names`` that exists, in the folder or the only one below that has any.

    Raises:
        BitLabError: Several folders below have such files (configurations of one dataset).
    """
    for name in names:
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"*/{name}-*.parquet"):
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                if len(parents := sorted({path.parent.name for path in found})) > 1:
                    raise BitLabError(
                        f"{folder} holds several datasets; name one: {', '.join(str(folder / p) for p in parents)}"
                    )
                return found
    return []


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _labels(path: Path, columns: Columns) -> Iterator[Any]:
    return _pieces(path, [columns.label], _LABELS)


def _pieces(path: Path, columns: list[str], rows: int) -> Iterator[Any]:
    """Columns of a parquet file, some rows at a time."""
    import pyarrow as pa

    try:
        yield from _open(path).iter_batches(rows, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> BitLabError:
    reason = " ".join(str(error).split())[:300]
    return BitLabError(f"{path}: unreadable parquet file ({reason}); fetch it again")
