"""Data by name: the embedded digits, parquet and image folders, the cache, and every error."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bitcore.errors import BitLabError
from bittrain import cache, data
from bittrain.data import KNOWN, load_dataset
from bittrain.decode import Decoder


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "L") -> Image.Image:
    """A random picture, width and height ``size``."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8))


def encode(image: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[int],
    columns: tuple[str, str] = ("image", "label"),
    names: list[str] | None = None,
) -> None:
    """A parquet file in the hub's layout."""
    cells = pa.array([None if b is None else {"bytes": b, "path": None} for b in images])
    table = pa.table({columns[0]: cells, columns[1]: pa.array(labels, pa.int64())})
    if names:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def parquet_folder(root: Path, **options: Any) -> Path:
    """Six training and three test pictures of three classes."""
    write_parquet(
        root / "train-00000-of-00001.parquet", [encode(picture(i)) for i in range(6)], [0, 1, 2] * 2, **options
    )
    write_parquet(
        root / "test-00000-of-00001.parquet", [encode(picture(9 + i)) for i in range(3)], [2, 1, 0], **options
    )
    return root


def image_folder(root: Path) -> Path:
    """Pictures in one folder a class."""
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                picture(10 * label + i, mode="RGB").save(root / split / name / f"{i}.png")
    return root


def test_digits_split_is_fixed_and_stratified() -> None:
    digits = load_dataset("digits")
    assert digits.shape == (1, 8, 8)
    assert len(digits.train) + len(digits.test) == 1797
    assert digits.classes == tuple("0123456789")
    share = torch.bincount(digits.test.labels) / torch.bincount(torch.cat([digits.train.labels, digits.test.labels]))
    assert ((share > 0.19) & (share <= 0.2)).all()
    again = load_dataset("digits")
    assert torch.equal(digits.test.images, again.test.images)
    rows = {bytes(i.numpy().tobytes()) for i in digits.train.images}
    assert not rows & {bytes(i.numpy().tobytes()) for i in digits.test.images}
    assert load_dataset("digits", 16, 3).shape == (3, 16, 16)
    assert int(digits.train.images.max()) == 255


def test_parquet_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_folder(tmp_path / "data" / "mnist")
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path / "data"))
    mnist = load_dataset("mnist")
    assert mnist.shape == (1, 10, 12)
    assert mnist.classes == ("0", "1", "2")
    assert torch.equal(mnist.train.images[4, 0], torch.from_numpy(np.array(picture(4))))
    assert mnist.test.labels.tolist() == [2, 1, 0]
    assert mnist.preprocessing().mean == KNOWN["mnist"].mean


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("Bild", "Klasse")])
def test_columns_are_found(tmp_path: Path, columns: tuple[str, str]) -> None:
    folder = parquet_folder(tmp_path / "x", columns=columns, names=["a", "b", "c", "d"])
    assert load_dataset(str(folder)).classes == ("a", "b", "c", "d")


def test_parquet_in_a_sub_folder(tmp_path: Path) -> None:
    parquet_folder(tmp_path / "x" / "data")
    assert len(load_dataset(str(tmp_path / "x")).train) == 6
    parquet_folder(tmp_path / "x" / "other")
    with pytest.raises(BitLabError, match=r"several datasets.*data.*other"):
        load_dataset(str(tmp_path / "x"))


def test_cifar100_labels_are_the_fine_ones(tmp_path: Path) -> None:
    images = pa.array([{"bytes": encode(picture(i)), "path": None} for i in range(2)])
    table = pa.table({"img": images, "coarse_label": [0, 1], "fine_label": [7, 3]})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    found = load_dataset(str(tmp_path))
    assert [found.classes[label] for label in found.train.labels] == ["7", "3"]


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("size", [None, 4, 5, 16])
def test_image_folder_and_resizing_equal_pillow(tmp_path: Path, size: int | None, channels: int | None) -> None:
    pets = load_dataset(str(image_folder(tmp_path / "pets")), size, channels)
    assert pets.classes == ("cat", "dog")
    assert pets.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    want = picture(11, mode="RGB")
    if channels == 1:
        want = want.convert("L")
    if size:
        want = want.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(want))
    pixels = pixels[None] if channels == 1 else pixels.permute(2, 0, 1)
    assert torch.equal(pets.train.images[4], pixels)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.5])
@pytest.mark.parametrize("size", [(60, 40), (41, 64), (50, 50)])
def test_center_crop(tmp_path: Path, size: tuple[int, int], crop: float) -> None:
    """The whole picture keeps its proportions, the shorter side is 28 / crop pixels; then the middle is cut out."""
    folder = image_folder(tmp_path / "pets")
    want = picture(3, size, "RGB")
    want.save(folder / "train" / "cat" / "0.png")
    shorter = round(28 / crop)
    width, height = (int(shorter * side / min(size)) for side in size)
    pixels = np.array(want.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 28) / 2), round((width - 28) / 2)
    pixels = pixels[top : top + 28, left : left + 28].transpose(2, 0, 1)
    assert torch.equal(load_dataset(str(folder), 28, None, crop).train.images[0], torch.from_numpy(pixels.copy()))
    assert load_dataset("digits", 7, None, crop).shape == (1, 7, 7)
    with pytest.raises(BitLabError, match="center_crop needs an image_size"):
        load_dataset(str(folder), None, None, crop)


def test_cache_is_used_and_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parquet_folder(tmp_path / "x")
    first = load_dataset(str(folder), 8)
    entries = list((tmp_path / "cache" / "data").iterdir())
    assert len(entries) == 1
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda *a: pytest.fail("decoded again"))
    again = load_dataset(str(folder), 8)
    assert torch.equal(first.train.images, again.train.images)
    assert first.classes == again.classes
    monkeypatch.setattr(data, "_decode", decode)
    entries[0].write_bytes(entries[0].read_bytes()[:-5])
    assert torch.equal(load_dataset(str(folder), 8).train.images, first.train.images)  # damaged: rebuilt
    write_parquet(folder / "train-00000-of-00001.parquet", [encode(picture(50 + i)) for i in range(4)], [2, 1, 0, 2])
    assert len(load_dataset(str(folder), 8).train) == 4
    monkeypatch.setenv("BITLAB_CACHE", str(folder / "test-00000-of-00001.parquet"))  # not a folder: only slower
    assert len(load_dataset(str(folder), 8).train) == 4
    assert not list(cache.cache_dir().parent.glob("*.part"))


def test_hub_names_go_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": encode(picture(i)), "path": None} for i in range(4)], "y": [0, 1, 1, 0]}
    split = datasets.Dataset.from_dict(rows, features=features)
    asked: list[Any] = []

    def fake(path: str, config: str | None) -> Any:
        asked.append((path, config))
        return datasets.DatasetDict({"train": split, "validation": split})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.delenv("BITLAB_DATA", raising=False)
    got = load_dataset("someone/things:small", 6)
    assert asked == [("someone/things", "small")]
    assert got.shape == (1, 6, 6)
    assert got.classes == ("a", "b")
    assert got.test.labels.tolist() == [0, 1, 1, 0]

    def offline(path: str, config: str | None) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(BitLabError, match=r"ylecun/mnist cannot be fetched.*no route.*BITLAB_DATA"):
        load_dataset("mnist")


def test_unknown_names() -> None:
    with pytest.raises(BitLabError, match="unknown dataset 'mnits'; did you mean 'mnist'"):
        load_dataset("mnits")
    with pytest.raises(BitLabError, match=r"no folder ./nowhere"):
        load_dataset("./nowhere")
    with pytest.raises(BitLabError, match="unknown split 'tset'; did you mean 'test'"):
        load_dataset("digits").split("tset")


@pytest.mark.parametrize("broken", [b"", b"no picture", encode(picture(0))[:-40]])
def test_corrupted_image_names_the_row(tmp_path: Path, broken: bytes) -> None:
    folder = parquet_folder(tmp_path)
    images: list[bytes | None] = [encode(picture(i)) for i in range(5)]
    images[3] = broken
    write_parquet(folder / "train-00000-of-00001.parquet", images, [0] * 5)
    with pytest.raises(BitLabError, match=r"train-00000-of-00001.parquet, row 3: (unreadable|no) image"):
        load_dataset(str(folder))
    assert not (tmp_path / "cache").exists()


def test_corrupted_image_file_is_named(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "test" / "dog" / "1.png").write_bytes(b"x")
    with pytest.raises(BitLabError, match=r"test/dog/1.png: unreadable image"):
        load_dataset(str(folder))


@pytest.mark.parametrize(("labels", "row", "label"), [([0, 1, -1], 2, -1), ([7, 0, 1], 0, 7)])
@pytest.mark.parametrize("named", [False, True])
def test_labels_out_of_range(tmp_path: Path, named: bool, labels: list[int], row: int, label: int) -> None:
    names = ["a", "b", "c"] if named else None
    folder = parquet_folder(tmp_path, names=names)
    write_parquet(folder / "test-00000-of-00001.parquet", [encode(picture(i)) for i in range(3)], labels, names=names)
    reason = "is out of range 0 to 2" if named else "occurs in no training row"
    with pytest.raises(BitLabError, match=rf"test-\S*parquet, row {row}: label {label} {reason}"):
        load_dataset(str(folder))


def test_image_folder_errors(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "train" / "cow").mkdir()
    with pytest.raises(BitLabError, match="train/cow: the class folder holds no images"):
        load_dataset(str(folder))
    (folder / "train" / "cow").rmdir()
    (folder / "test" / "emu").mkdir()
    with pytest.raises(BitLabError, match="test/emu: the training images have no class 'emu'"):
        load_dataset(str(folder))
    with pytest.raises(BitLabError, match=r"neither train-.*parquet files nor a folder train/"):
        load_dataset(str(folder / "test"))


def test_mixed_sizes_need_image_size(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    picture(0, (7, 7), "RGB").save(folder / "train" / "dog" / "2.png")
    with pytest.raises(BitLabError, match=r"train/dog/2.png: the image is 7x7, the first one 10x12; set image_size"):
        load_dataset(str(folder))
    assert load_dataset(str(folder), 6).shape == (3, 6, 6)


def test_tables_without_the_columns(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / f"{split}.parquet")
    with pytest.raises(BitLabError, match="no image column among text, label"):
        load_dataset(str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BitLabError, match=r"train.parquet: unreadable parquet file"):
        load_dataset(str(tmp_path))


def test_sixteen_bit_pictures_are_scaled(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    values = (np.arange(120, dtype=np.uint16) * 500).reshape(10, 12)
    Image.fromarray(values).save(folder / "train" / "cat" / "0.png")
    assert load_dataset(str(folder), channels=1).train.images[0, 0].tolist() == (values >> 8).tolist()


def test_statistics_are_those_of_the_pixels() -> None:
    digits = load_dataset("digits")
    preprocessing = digits.preprocessing()
    x = preprocessing(digits.train.images)
    assert x.mean().abs() < 1e-5
    assert (x.std(correction=0) - 1).abs() < 1e-5


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_data(data_dir: Path, name: str) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name} in BITLAB_DATA")
    train = sorted((data_dir / name).glob("test-*.parquet"))[0]
    row = pq.ParquetFile(train).read_row_group(0).slice(7, 1).to_pylist()[0]
    decoder = Decoder((16, 16))
    got = decoder(row["image"]["bytes"], "row 7")
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        want = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    assert got.shape[0] == (1 if name == "mnist" else 3)
    assert np.array_equal(got if name == "cifar10" else got[0], want.transpose(2, 0, 1) if name == "cifar10" else want)
