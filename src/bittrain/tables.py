"""Tables of encoded pictures and labels, in parquet files and on the hub. Every error names the row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcore.errors import BitLabError
from bittrain.classes import Classes, check_count
from bittrain.decode import Cell

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "picture", "images")
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target")
ROWS = 128
"""Rows that are read at a time: few, because a small file can hold large cells that repeat."""


@dataclass(frozen=True)
class Columns:
    """Where a table keeps its images and labels.

    Attributes:
        image: The image column's name.
        label: The label column's name.
        names: The class names, where the table knows them; labels are then their numbers.
    """

    image: str
    label: str
    names: tuple[str, ...] | None

    @property
    def both(self) -> list[str]:
        """The names of the two columns."""
        return [self.image, self.label]


@dataclass(frozen=True)
class Home:
    """Where the files lie that cells name; nothing outside is opened.

    Attributes:
        folders: The dataset's folder; of a hub dataset, the folders that the library keeps its files in.
        absolute: Whether paths are absolute, as the library makes them, or relative to the folder.
    """

    folders: tuple[Path, ...]
    absolute: bool = False

    def find(self, name: str, where: str) -> Path:
        """The file that a cell names.

        Raises:
            BitLabError: It lies elsewhere.
        """
        path = Path(name)
        if "\0" not in name and ".." not in path.parts and path.is_absolute() == self.absolute:
            for folder in self.folders:
                found = (folder / path).resolve()
                if found.is_relative_to(folder.resolve()):
                    return found
        raise BitLabError(
            f"{where}: the image's path {name[:200]!r} is none below the dataset's folder, and no other is opened; "
            "move the file there and give its relative path, or put the encoded image into the table"
        )


@dataclass(frozen=True)
class Reader:
    """Makes a table's values what they mean.

    Attributes:
        columns: Where the values stand.
        classes: What labels mean.
        home: Where the files lie that cells name.
    """

    columns: Columns
    classes: Classes
    home: Home

    def cell(self, image: Any, label: Any, where: str) -> Cell:
        """The encoded picture (bytes, a path, or a mapping of both), the class number, the place.

        Raises:
            BitLabError: There is no picture or no valid label.
        """
        number = self.classes.number(label, where)
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str) and image:
            image = self.home.find(image, where)
        if not isinstance(image, bytes | Path):
            raise BitLabError(f"{where}: no image; give the row one or remove it")
        return image, number, where

    def cells(self, tables: Iterable[pa.Table], where: str) -> Iterator[Cell]:
        """The cells of a table that comes in pieces."""
        row = 0
        for table in tables:
            for image, label in zip(*(table.column(name).to_pylist() for name in self.columns.both), strict=True):
                yield self.cell(image, label, f"{where}, row {row}")
                row += 1


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Finds the image and the label column of a table in the hub's layout, whatever they are called.

    Raises:
        BitLabError: There is none of one kind, or labels are neither whole numbers nor texts.
    """
    features = _features(schema)
    images = [name for name in schema.names if _feature(features, name).get("_type") == "Image"]
    images += [name for name in IMAGE_COLUMNS if name in schema.names and _holds_image(schema.field(name).type)]
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    labels += [name for name in schema.names if _feature(features, name).get("_type") == "ClassLabel"]
    for kind, found in (("image", images), ("label", labels)):
        if not found:
            raise BitLabError(f"{where}: no {kind} column among {', '.join(schema.names)[:1000]}")
        if schema.names.count(found[0]) > 1:
            raise BitLabError(f"{where}: several columns are called {found[0]}; rename all but one")
    image, label = schema.field(images[0]), schema.field(labels[0])
    if not _holds_image(image.type) and not _is_text(image.type):
        raise BitLabError(f"{where}: column {image.name} holds {image.type}, not images")
    names = _feature(features, label.name).get("names") or None
    if not _is_whole(label.type) and (names or not _is_text(label.type)):
        raise BitLabError(f"{where}: column {label.name} holds {label.type}, not class numbers or names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BitLabError(f"{where}: the class names of column {label.name} are no list of texts; correct its metadata")
    return Columns(image.name, label.name, tuple(names) if names else None)


def find_classes(columns: Columns, labels: Iterable[tuple[pa.Array, str]], where: str) -> Classes:
    """The classes that a table names, else the labels that occur in its training rows.

    Args:
        columns: Of the table.
        labels: Training labels in order, piece by piece, each with the name of its file; read only where needed.
        where: The dataset, for errors.

    Raises:
        BitLabError: A row without a label, or as `Classes`.
    """
    if columns.names is not None:
        return Classes.named(columns.names, where)
    values: set[int | str] = set()
    current, row = "", 0
    for array, name in labels:
        row = row if name == current else 0
        current = name
        different = array.unique().to_pylist()
        if any(map(_is_missing, different)):
            row += next(i for i, label in enumerate(array.to_pylist()) if _is_missing(label))
            raise BitLabError(f"{name}, row {row}: no label in column {columns.label}; label or remove the row")
        values.update(different)
        check_count(len(values), where)
        row += len(array)
    return Classes.occurring(values, where)


def _is_missing(label: int | str | None) -> bool:
    """Whether a label says that there is none: nothing, no text, or a negative number."""
    return label is None or label == "" or (isinstance(label, int) and label < 0)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The column types that Hugging Face datasets keeps in a table's metadata, or nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _feature(features: dict[str, Any], name: str) -> dict[str, Any]:
    """What is known about a column's type; of nested ones, nothing."""
    feature = features.get(name)
    return feature if isinstance(feature, dict) else {}


def _holds_image(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded pictures."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_whole(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind)
