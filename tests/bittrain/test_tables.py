"""Labels, classes and paths of tables: what they mean, however they are loaded, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bitcore.errors import BitLabError
from bittrain.bigdata import open_dataset
from bittrain.classes import MAX_CLASSES, Classes
from bittrain.data import ImageData, load_dataset
from bittrain.recipe import LOADING

from .test_pictures import encode

PNG = [encode(Image.fromarray(np.full((2, 2), 10 * i, np.uint8))) for i in range(8)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def write(root: Path, split: str, labels: Any, names: Any = None, images: list[Any] | None = None) -> None:
    """A parquet file; the i-th picture is grey of 10 i."""
    root.mkdir(parents=True, exist_ok=True)
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels)
    cells = images or [{"bytes": PNG[i % 8], "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({"image": cells, "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, root / f"{split}-0.parquet")


def everywhere(folder: Path) -> list[ImageData[Any]]:
    """The dataset by every loading, and from the cache."""
    return [load_dataset(str(folder)), *(open_dataset(str(folder), loading=way, workers=0) for way in LOADING)]


def labels_of(found: ImageData[Any], split: str, count: int) -> list[int]:
    """Labels in the order of the pictures (streams are shuffled)."""
    images, labels = next(iter(found.split(split).read([torch.arange(count)], 0, 0)))
    order = images[:, 0, 0, 0].argsort()
    return labels[order].tolist()


@pytest.mark.parametrize(
    ("train", "test", "classes", "numbers"),
    [
        ([0, 1, 2], [2], ("0", "1", "2"), [0, 1, 2]),
        ([1, 2, 3], [3], ("1", "2", "3"), [0, 1, 2]),
        ([2_000_000_000, 5, 7], [7], ("5", "7", "2000000000"), [2, 0, 1]),
        (pa.array([10, 9, 200], pa.uint8()), [9], ("9", "10", "200"), [1, 0, 2]),
        (["dog", "cat", "dog"], ["cat"], ("cat", "dog"), [1, 0, 1]),
        (pa.array(["b", "a", "b"], pa.large_string()), ["a"], ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a"], ("a", "b"), [1, 0, 1]),
    ],
)
def test_classes_are_the_labels_that_occur(
    tmp_path: Path, train: Any, test: Any, classes: tuple[str, ...], numbers: list[int]
) -> None:
    write(tmp_path, "train", train)
    write(tmp_path, "test", test if isinstance(train, list) else pa.array(test).cast(train.type))
    for found in everywhere(tmp_path):
        assert found.classes == classes
        assert labels_of(found, "train", 3) == numbers
        assert found.classes[labels_of(found, "test", 1)[0]] == str(test[0])


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        ([0, None], [0], None, r"train-0.parquet, row 1: no label in column label; label or remove the row"),
        ([0, 1, -1], [0], None, r"train-0.parquet, row 2: no label in column label; label or remove the row"),
        (["a", ""], ["a"], None, r"train-0.parquet, row 1: no label in column label; label or remove the row"),
        ([0, None], [0], ["a", "b"], r"row \d.*: no label; label or remove the row"),
        ([1, 2], [2], ["a", "b"], r"row \d.*: label 2 is out of range 0 to 1 .2 classes.; class numbers begin at 0"),
        ([0, -1], [0], ["a", "b"], r"row \d.*: label -1 is out of range 0 to 1"),
        ([0, 1], [2], None, r"row 0.*: label 2 occurs in no training row"),
        (["a", "b"], ["c"], None, r"row 0.*: label 'c' occurs in no training row"),
        (["Cat", "cat"], ["cat"], None, r"classes 'Cat' and 'cat' differ in case only; rename or merge them"),
        (["a", "a\x1b[2J"], ["a"], None, r"'a\\x1b\[2J' is no printable class name; rename the class"),
        ([0, 1], [0], ["a", "a"], r"two classes are called 'a'; rename one"),
        ([0, 1], [0], ["a", ""], r"'' is no printable class name"),
        ([0, 1], [0], ["a", 3], r"the class names of column label are no list of texts"),
        ([0, 1], [0], {"a": 1}, r"the class names of column label are no list of texts"),
        ([0.0, 1.0], [0.0], None, r"column label holds double, not class numbers or names"),
        ([[0], [1]], [[0]], None, r"column label holds list<.*>, not class numbers or names"),
        (["a", "b"], ["a"], ["a", "b"], r"column label holds string, not class numbers or names"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, train: Any, test: Any, names: Any, message: str) -> None:
    write(tmp_path, "train", train, names)
    write(tmp_path, "test", test, names)

    def read(way: str) -> None:
        found = open_dataset(str(tmp_path), loading=way, workers=0)
        for split, count in (("train", len(train)), ("test", len(test))):
            labels_of(found, split, count)

    for way in LOADING:
        with pytest.raises(BitLabError, match=message):
            read(way)


def test_class_names_in_another_order_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1], ["a", "b"])
    write(tmp_path, "test", [0, 1], ["b", "a"])
    for way in LOADING:
        with pytest.raises(BitLabError, match=r"test-0.parquet: the classes are others, or in another order"):
            open_dataset(str(tmp_path), loading=way)
    write(tmp_path, "test", [1, 0])  # without names: those of the training file
    for found in everywhere(tmp_path):
        assert found.classes == ("a", "b")
        assert labels_of(found, "test", 2) == [1, 0]


def test_so_many_classes_are_none() -> None:
    Classes.occurring(range(MAX_CLASSES), "x")
    with pytest.raises(BitLabError, match=f"more than {MAX_CLASSES} different labels"):
        Classes.occurring(range(MAX_CLASSES + 1), "x")


@pytest.mark.parametrize(
    "metadata", [b"", b"[]", b"null", b'{"info": []}', b'{"info": {"features": [1]}}', b"[" * 9000]
)
def test_metadata_that_means_nothing_is_passed_over(tmp_path: Path, metadata: bytes) -> None:
    for split in ("train", "test"):
        table = pa.table({"image": [{"bytes": PNG[1]}], "label": [0]}).replace_schema_metadata(
            {"huggingface": metadata}
        )
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert load_dataset(str(tmp_path)).classes == ("0",)


def secret(tmp_path: Path) -> Path:
    """A picture of the user's, beside the dataset."""
    file = tmp_path / "secret.png"
    file.write_bytes(PNG[3])
    return file


@pytest.mark.parametrize("kind", ["absolute", "above", "inside out", "link", "linked folder", "nul", "home", "url"])
@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("way", LOADING)
def test_no_file_outside_the_dataset_is_opened(tmp_path: Path, way: str, struct: bool, kind: str) -> None:
    file, folder = secret(tmp_path), tmp_path / "x"
    folder.mkdir()
    (folder / "link.png").symlink_to(file)
    (folder / "linked").symlink_to(tmp_path)
    path = {
        "absolute": str(file),
        "above": "../secret.png",
        "inside out": "a/../../secret.png",
        "link": "link.png",
        "linked folder": "linked/secret.png",
        "nul": "link.png\0",
        "home": "~/secret.png",
        "url": f"file://{file}",
    }[kind]
    cell = {"bytes": None, "path": path} if struct else path
    for split in ("train", "test"):
        write(folder, split, [0], ["a"], [cell])
    message = r"is none below the dataset's folder|no regular file"
    with pytest.raises(BitLabError, match=message) as caught:
        open_dataset(str(folder), loading=way, workers=0)
    assert ("no regular file" in str(caught.value)) == (kind in ("home", "url"))  # looked for inside


def test_files_beside_the_tables_are_read_and_not_cached(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(PNG[i])
    cells = [{"bytes": None, "path": f"pictures/{i}.png"} for i in range(2)]
    write(tmp_path, "train", [0, 1], images=cells)
    write(tmp_path, "test", [1], images=cells[1:])
    for found in everywhere(tmp_path):
        assert labels_of(found, "train", 2) == [0, 1]
        assert int(found.test.sample(1)[0, 0, 0, 0]) == 10
    (tmp_path / "pictures" / "1.png").write_bytes(PNG[5])
    assert int(load_dataset(str(tmp_path)).test.images[0, 0, 0, 0]) == 50
    (tmp_path / "pictures" / "1.png").unlink()
    os.mkfifo(tmp_path / "pictures" / "1.png")
    with pytest.raises(BitLabError, match=r"row 1: unreadable image .no regular file."):
        load_dataset(str(tmp_path))
