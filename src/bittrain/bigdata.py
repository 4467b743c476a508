"""Data that does not fit in memory: pictures decoded by worker threads at every use, from the disk or from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bitcore.errors import BitLabError
from bittrain.cache import cache_dir
from bittrain.classes import Classes
from bittrain.data import ImageData, Rows, load_dataset, local_folder
from bittrain.decode import Cell, Decoder, View
from bittrain.folders import image_folders
from bittrain.hub import fetch_hub, hub_name, hub_reader, reason_of
from bittrain.parquet import ParquetFolder, open_parquet
from bittrain.prefetch import prefetch
from bittrain.seeds import derive
from bittrain.tables import ROWS, Reader, find_columns

_SAMPLE = 1024
"""Images that statistics are taken from."""
_SHUFFLED = 10_000
"""Rows that a stream is shuffled among (its shards are shuffled too)."""


def open_dataset(
    name: str,
    image_size: int | None = None,
    channels: int | None = None,
    loading: str = "memory",
    workers: int = 2,
    seed: int = 0,
    part: tuple[int, int] = (0, 1),
    center_crop: float = 0.0,
) -> ImageData[Rows]:
    """Opens a dataset by name (see `load_dataset`), wherever its images stay.

    Args:
        name: As in `load_dataset`.
        image_size: Likewise.
        channels: Likewise.
        loading: ``memory`` (decoded once, cached), ``disk`` (the encoded pictures stay on the disk; those of parquet
            files are copied into an Arrow file in the cache folder, which is read in any order) or ``stream`` (read
            from the hub or from parquet files from beginning to end, shuffled in a window, never stored).
        workers: Threads that decode; 0 decodes in between the steps.
        seed: Of a stream's order.
        part: This process and how many there are: streams are divided among them.
        center_crop: As in `load_dataset`.

    Raises:
        BitLabError: As in `load_dataset`; with ``stream`` also an image folder.
    """
    if loading == "memory" or name == "digits":
        return load_dataset(name, image_size, channels, center_crop)
    decoder = View(image_size, channels, center_crop).decoder()
    classes, splits = _open_streams(name) if loading == "stream" else _open_cells(name)
    rows: dict[str, Any] = {}
    for split, source in splits.items():
        if isinstance(source, _Stream):
            rows[split] = StreamRows(source, decoder, workers, seed, *part)
        else:
            rows[split] = DiskRows(source, decoder, workers)
    rows["train"].sample(1)  # tells the decoder what images look like
    return ImageData(name, classes.names, rows["train"], rows["test"])


def at_size(rows: Rows, size: int, center_crop: float) -> Rows:
    """The same pictures, brought to another height and width, of those that are not in memory."""
    assert isinstance(rows, DiskRows | StreamRows)
    return replace(rows, decoder=replace(rows.decoder, size=(size, size), center_crop=center_crop))


def first(rows: Rows, count: int) -> Rows:
    """The first rows, at most so many; exactly so many of a stream that does not say how many it has."""
    endless = isinstance(rows, StreamRows) and rows.stream.count is None
    return rows.take(torch.arange(count if endless else min(count, len(rows))))


@dataclass(frozen=True)
class DiskRows:
    """Pictures on the disk, in any order.

    Attributes:
        cells: Gives the cells of some rows.
        decoder: What all pictures are brought to.
        workers: Threads.
        indices: Which rows of ``cells``, in which order; ``None`` for all.
    """

    cells: Cells
    decoder: Decoder
    workers: int
    indices: Tensor | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.cells) if self.indices is None else len(self.indices)

    def take(self, indices: Tensor) -> DiskRows:
        """The rows ``indices``, in their order."""
        return replace(self, indices=indices if self.indices is None else self.indices[indices])

    def read(self, batches: Sequence[Tensor], epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `bittrain.data.Rows`."""
        return prefetch(batches, self._fetch, self.workers)

    def sample(self, count: int | None = None) -> Tensor:
        """At most so many images, evenly spaced."""
        step = max(1, len(self) // (count or _SAMPLE))
        return self._fetch(torch.arange(0, len(self), step)[: count or _SAMPLE])[0]

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows if self.indices is None else self.indices[rows]
        return self.decoder.stack(self.cells(rows.tolist()))


@dataclass(frozen=True)
class StreamRows:
    """Pictures that come one after the other; which rows are asked for does not matter, only how many.

    Attributes:
        stream: What they come from.
        decoder: What all pictures are brought to.
        workers: Threads.
        seed: Of the order.
        rank: This process.
        processes: How many share the stream.
        count: Rows of a pass; ``None`` for those that the stream says it has.
    """

    stream: _Stream
    decoder: Decoder
    workers: int
    seed: int
    rank: int = 0
    processes: int = 1
    count: int | None = None

    def __len__(self) -> int:
        """The number of images.

        Raises:
            BitLabError: Nothing says how many there are.
        """
        count = self.count or self.stream.count
        if count is None:
            option = "max_train_samples" if self.stream.shuffled else "max_test_samples"
            raise BitLabError(f"{self.stream.where} does not say how many images it has; set {option} to it")
        return count

    def take(self, indices: Tensor) -> StreamRows:
        """The first so many rows of every pass."""
        return replace(self, count=len(indices))

    def read(self, batches: Sequence[Tensor], epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `bittrain.data.Rows`; a stream that ends too early starts again."""
        from datasets.distributed import split_dataset_by_node

        stream = self.stream.rows
        if self.processes > 1:
            stream = split_dataset_by_node(stream, self.rank, self.processes)
        if self.stream.shuffled:
            stream = stream.shuffle(seed=derive(self.seed, "order", epoch) % 2**32, buffer_size=_SHUFFLED)
        sizes = [len(rows) for rows in batches]
        skipped = start * (sizes[0] if sizes else 0)

        def cells() -> Iterator[Cell]:
            yield from self.stream.cells(stream.skip(skipped))
            while True:
                again = self.stream.cells(stream)
                if (cell := next(again, None)) is None:
                    raise BitLabError(f"{self.stream.where} holds no images for process {self.rank}")
                yield cell
                yield from again

        endless = cells()
        pieces = (list(islice(endless, size)) for size in sizes)
        return prefetch(pieces, self.decoder.stack, self.workers)

    def sample(self, count: int | None = None) -> Tensor:
        """The first images."""
        rows = islice(self.stream.cells(self.stream.rows), count or _SAMPLE)
        return self.decoder.stack(rows)[0]


class Cells:
    """The cells of a table, or of image folders, in any order."""

    def __init__(self, count: int, read: Callable[[list[int]], list[Cell]]) -> None:
        """Takes the number of rows, and a function from row numbers to cells."""
        self._count, self._read = count, read

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    def __call__(self, rows: list[int]) -> list[Cell]:
        """Returns the cells of some rows."""
        return self._read(rows)


@dataclass(frozen=True)
class _Stream:
    """A stream of the ``datasets`` library."""

    rows: Any
    reader: Reader
    where: str
    count: int | None
    shuffled: bool

    def cells(self, rows: Any) -> Iterator[Cell]:
        image, label = self.reader.columns.both
        try:
            for i, row in enumerate(rows):
                yield self.reader.cell(row[image], row[label], f"{self.where}, row {i} of the stream")
        except BitLabError:
            raise
        except Exception as error:  # the library raises many kinds, most of them undocumented
            raise BitLabError(f"{self.where}: the stream cannot be read ({reason_of(error)}); fetch it again") from None


def _open_cells(name: str) -> tuple[Classes, dict[str, Cells]]:
    """Classes, and train and test cells, of an image folder or of a table in a memory-mapped Arrow file."""
    folder = local_folder(name)
    if folder is None:
        tables = fetch_hub(hub := hub_name(name))
        reader = hub_reader(hub, tables)
    elif (parquet := open_parquet(folder)) is not None:
        tables, reader = _tables(parquet), parquet.reader
    else:
        classes, pictures = image_folders(folder)
        return classes, {split: _folder_cells(cells) for split, cells in pictures.items()}
    cells = {split: _table_cells(table, reader, f"{name} ({split})") for split, table in tables.items()}
    return reader.classes, cells


def _folder_cells(pictures: list[Cell]) -> Cells:
    return Cells(len(pictures), lambda rows: [pictures[i] for i in rows])


def _table_cells(table: Any, reader: Reader, where: str) -> Cells:
    columns = reader.columns
    rows_of = table.select_columns(columns.both).with_format("arrow")

    def read(rows: list[int]) -> list[Cell]:
        piece = rows_of[rows]
        values = zip(rows, *(piece.column(name).to_pylist() for name in columns.both), strict=True)
        return [reader.cell(image, label, f"{where}, row {i}") for i, image, label in values]

    return Cells(len(table), read)


def _tables(parquet: ParquetFolder, streaming: bool = False) -> dict[str, Any]:
    """The tables of a folder's parquet files, with the two columns alone."""
    import datasets

    try:
        with _quiet():
            tables: Any = datasets.load_dataset(
                "parquet",
                data_files={split: [str(p) for p in paths] for split, paths in parquet.files.items()},
                cache_dir=str(cache_dir() / "arrow"),
                streaming=streaming,
                columns=parquet.reader.columns.both,
                batch_size=ROWS,
            )
    except Exception as error:  # the library raises many kinds, most of them undocumented
        reason = reason_of(error.__cause__ or error)
        raise BitLabError(f"{parquet.folder}: its parquet files cannot be read ({reason}); fetch them again") from None
    return {split: tables[split] for split in parquet.files}


def _open_streams(name: str) -> tuple[Classes, dict[str, _Stream]]:
    """Classes, and train and test streams, of a hub name or of local parquet files."""
    folder = local_folder(name)
    if folder is None:
        tables = fetch_hub(hub := hub_name(name), streaming=True)
        for split, table in tables.items():
            if table.features is None:
                raise BitLabError(f"{name} ({split}) does not say what its columns are; use loading disk")
            if find_columns(table.features.arrow_schema, f"{name} ({split})").names is None:
                raise BitLabError(f"{name} has no class names, and a stream cannot be counted; use loading disk")
        reader = hub_reader(hub, tables)
        counts = {split: (table.info.splits or {}).get(split) for split, table in tables.items()}
        counts = {split: getattr(count, "num_examples", count) for split, count in counts.items()}
    elif (parquet := open_parquet(folder)) is not None:
        tables, reader = _tables(parquet, streaming=True), parquet.reader
        counts = {split: parquet.count(split) for split in tables}
    else:
        raise BitLabError(f"{folder} holds image folders, which are no stream; use loading disk")
    streams: dict[str, _Stream] = {}
    for split, table in tables.items():
        rows = _undecoded(table, reader).select_columns(reader.columns.both)
        streams[split] = _Stream(rows, reader, f"{name} ({split})", counts[split], split == "train")
    return reader.classes, streams


def _undecoded(table: Any, reader: Reader) -> Any:
    """The stream without the library's own decoding of images."""
    import datasets

    image = reader.columns.image
    if isinstance(table.features[image], datasets.Image):
        return table.cast_column(image, datasets.Image(decode=False))
    return table


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the library's progress bars."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
