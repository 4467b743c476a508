"""Image folders: ``train/CLASS/`` and ``test/CLASS/`` with pictures at any depth. What is passed over is said."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from bitcore.errors import BitLabError
from bittrain.classes import Classes, check_case
from bittrain.decode import Cell
from bittrain.pixels import is_picture, picture_suffixes

TEST_NAMES = ("test", "validation", "valid", "val")
"""What the split that a model is measured on may be called, best first."""
_SHOWN = 5


def image_folders(folder: Path) -> tuple[Classes, dict[str, list[Cell]]]:
    """Lists ``train/CLASS/`` and ``test/CLASS/`` below a folder, sorted, and warns of files that are not read.

    Returns:
        The classes, and the pictures of ``train`` and ``test``.

    Raises:
        BitLabError: A folder is missing, has no class folders, a class folder is empty, or a test class is none of
            the training classes.
    """
    try:
        return _list(folder)
    except OSError as error:
        raise BitLabError(f"{error.filename or folder}: cannot be read ({error.strerror}); give the right to") from None


def _list(folder: Path) -> tuple[Classes, dict[str, list[Cell]]]:
    if not (folder / "train").is_dir():
        raise BitLabError(f"{folder}: found neither train-*.parquet files nor a folder train/ with one folder a class")
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if test is None:
        raise BitLabError(f"{folder}: there is no folder test/ beside train/")
    names = _class_folders(folder / "train")
    if not names:
        raise BitLabError(f"{folder / 'train'}: no class folders; put the images into one folder a class")
    classes = Classes.named(names, str(folder / "train"))
    check_case(names, str(folder / "train"))
    for name in _class_folders(test):
        if name not in names:
            raise BitLabError(f"{test / name}: the training images have no class {name!r}")
    return classes, {"train": _pictures(folder / "train", names), "test": _pictures(test, names)}


def _class_folders(folder: Path) -> list[str]:
    """The sub-folders of an image folder, sorted: its classes."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path, classes: list[str]) -> list[Cell]:
    """The pictures of one split."""
    pictures: list[Cell] = []
    skipped = [str(p) for p in folder.iterdir() if not p.is_dir() or p.name.startswith(".")]
    absent = [name for name in classes if not (folder / name).is_dir()]
    for number, name in enumerate(classes):
        if name in absent:
            continue
        files: list[str] = []
        for path, read in _walk(folder / name):
            (files if read else skipped).append(path)
        if not files:
            raise BitLabError(f"{folder / name}: the class folder holds no images; fill or remove it")
        pictures += [(Path(file), number, file) for file in sorted(files)]
    _warn(folder, "not read, as no pictures of a class", sorted(skipped))
    _warn(folder, "without a class folder, and so never measured", absent)
    return pictures


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Everything below a folder but folders, and whether it is a picture; links to folders are not followed."""
    waiting = [str(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            hidden = entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False) and not hidden:
                waiting.append(entry.path)
            else:
                yield entry.path, not hidden and entry.is_file() and _looks_like_picture(entry.path)


def _looks_like_picture(path: str) -> bool:
    """Whether a regular file is to be read: by its suffix, and without one by its content."""
    suffix = Path(path).suffix.lower()
    return suffix in picture_suffixes() if suffix else is_picture(Path(path))


def _warn(folder: Path, what: str, names: list[str]) -> None:
    if names:
        first = ", ".join(repr(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        warnings.warn(f"{folder}: {len(names)} {what}: {first}", UserWarning, stacklevel=2)
