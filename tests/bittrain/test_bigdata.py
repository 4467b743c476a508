"""Data that stays on the disk or comes as a stream: the same batches as from memory, exact resuming, clear errors."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bitcore.errors import BitLabError
from bittrain.augment import Augment
from bittrain.bigdata import StreamRows, first, open_dataset
from bittrain.evaluate import evaluate
from bittrain.fit import fit, prepare, restore
from bittrain.loader import TrainLoader
from bittrain.prefetch import prefetch
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe

from .test_data import encode, image_folder, picture


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits for its threads after each pass over a stream."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def parquet(
    root: Path,
    count: int = 40,
    labels: list[int] | None = None,
    broken: int | None = None,
    size: tuple[int, int] = (8, 8),
) -> Path:
    """Three training files and a test file, with class names."""
    root.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    labels = labels or [i % 3 for i in range(count)]
    cells = [{"bytes": b"x" if i == broken else encode(picture(i, size)), "path": None} for i in range(count)]
    table = pa.table({"image": cells, "label": labels}).replace_schema_metadata(metadata)
    for part in range(3):
        start, end = part * count // 3, (part + 1) * count // 3
        pq.write_table(table.slice(start, end - start), root / f"train-0000{part}-of-00003.parquet")
    pq.write_table(table.slice(0, 9), root / "test-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "folders"])
def test_from_the_disk_as_from_memory(tmp_path: Path, kind: str, workers: int) -> None:
    folder = str(parquet(tmp_path / "x") if kind == "parquet" else image_folder(tmp_path / "x"))
    memory, disk = open_dataset(folder, 8), open_dataset(folder, 8, loading="disk", workers=workers)
    assert (disk.classes, disk.shape) == (memory.classes, memory.shape)
    assert len(disk.train) == len(memory.train)
    assert torch.equal(disk.train.sample(), memory.train.sample())
    preprocessing = Preprocessing.create("none", (8, 8), memory.shape[0])
    augment = Augment(["flip"], (8, 8))
    chunk = TrainLoader(memory.train, preprocessing, 2, 5, augment, probability=0.5)
    chunk._chunk = 1
    other = TrainLoader(disk.train, preprocessing, 2, 5, augment, probability=0.5)
    for (a, b), (c, d) in zip(chunk.epoch(1, 1), other.epoch(1, 1), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    taken = disk.test.take(torch.tensor([2, 0]))
    assert torch.equal(next(taken.read([torch.tensor([1, 0])], 0, 0))[0], memory.test.sample()[[0, 2]])


def test_streams_are_shuffled_shared_and_continued(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "x"))
    everything = {image.numpy().tobytes() for image in open_dataset(folder).train.sample()}
    data = open_dataset(folder, loading="stream", workers=1)
    stream = data.train
    assert isinstance(stream, StreamRows)

    def rows(epoch: int, start: int = 0, rank: int = 0, processes: int = 1) -> list[bytes]:
        train = replace(stream, rank=rank, processes=processes)
        batches = [torch.zeros(2)] * (len(train) // 2 // processes - start)
        return [image.numpy().tobytes() for images, _ in train.read(batches, epoch, start) for image in images]

    one, two = rows(0), rows(1)
    assert set(one) == set(two) == everything
    assert one != two
    assert one == rows(0)
    assert rows(0, 7) == one[14:]
    halves = [rows(0, rank=rank, processes=2) for rank in range(2)]
    assert not set(halves[0]) & set(halves[1])
    assert len(data.test) == 9
    endless = data.test.read([torch.zeros(3)] * 4, 0, 0)  # a stream that ends too early starts again
    images = [image for image, _ in endless]
    assert torch.equal(images[0], images[3])
    with pytest.raises(BitLabError, match="holds no images for process 999"):  # rather than wait for ever
        next(replace(stream, processes=1000, rank=999).read([torch.zeros(2)], 0, 0))
    wanted = Recipe(dataset=folder, loading="stream", max_train_samples=1000, max_test_samples=1000)
    prepared = prepare(wanted)
    assert (len(prepared.train), len(prepared.watched)) == (len(stream), 9)


@pytest.mark.parametrize("loading", ["disk", "stream"])
def test_training(tmp_path: Path, loading: str) -> None:
    recipe = Recipe(
        dataset=str(parquet(tmp_path / "x")),
        loading=loading,
        model_options={"hidden_dims": [8]},
        image_size=6,
        augment=("resized-crop", "flip"),
        augment_size=8,
        epochs=2,
        batch_size=8,
        max_train_samples=30 if loading == "disk" else None,
        device="cpu",
        tensorboard=False,
        plots=False,
    )
    run = fit(recipe, tmp_path / "run", progress=False)
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    with pytest.raises(BitLabError, match="augment_copies needs loading memory"):
        fit(recipe.replace(augment_copies=1), tmp_path / "other", progress=False)
    if loading == "stream":
        with pytest.raises(BitLabError, match="validation holds images out, which a stream cannot"):
            fit(recipe.replace(validation=0.5), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("loading", ["memory", "disk", "stream"])
def test_the_middle_of_pictures(tmp_path: Path, loading: str) -> None:
    """Measured, held out and not augmented: the middle. Augmented: the whole centre, larger. The model remembers it."""
    folder = tmp_path / "x"
    parquet(folder, size=(12, 9))
    recipe = Recipe(
        dataset=str(folder),
        loading=loading,
        model_options={"hidden_dims": [8]},
        image_size=6,
        center_crop=0.75,
        validation=0.0 if loading == "stream" else 0.25,
        epochs=1,
        batch_size=8,
        device="cpu",
        tensorboard=False,
        plots=False,
    )
    middle = open_dataset(str(folder), 6, center_crop=0.75)
    whole = open_dataset(str(folder), 8, center_crop=1.0)
    assert not torch.equal(middle.test.sample(), open_dataset(str(folder), 6).test.sample())

    def pixels(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    plain = prepare(recipe)
    assert pixels(plain.watched.sample()) <= pixels((middle.test if loading == "stream" else middle.train).sample())
    assert pixels(plain.train.sample()) <= pixels(middle.train.sample())
    augmented = prepare(recipe.replace(augment=["resized-crop"], augment_size=8))
    assert torch.equal(augmented.watched.sample(), plain.watched.sample())
    assert pixels(augmented.source.sample()) <= pixels(whole.train.sample())
    assert augmented.preprocessing == plain.preprocessing
    run = fit(recipe.replace(augment=["resized-crop"], augment_size=8, validation=0), tmp_path / "run", progress=False)
    model, extra = restore(run / "checkpoints" / "last.ckpt")
    preprocessing = Preprocessing.from_dict(extra["preprocessing"])
    assert preprocessing.center_crop == 0.75
    found = evaluate(model, str(folder), preprocessing, loading=loading)
    assert f"{found['accuracy']:.6f}" == (run / "metrics.csv").read_text().splitlines()[1].split(",")[5]


@pytest.mark.parametrize("loading", ["disk", "stream"])
def test_errors_name_the_row(tmp_path: Path, loading: str) -> None:
    recipe = Recipe(dataset=str(parquet(tmp_path / "x", broken=5)), loading=loading, batch_size=8, device="cpu")
    with pytest.raises(BitLabError, match=r"x \(train\), row \d+.*: unreadable image"):
        fit(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    labelled = parquet(tmp_path / "y", labels=[0] * 20 + [7] * 20)
    with pytest.raises(BitLabError, match=r"y \(train\), row \d+.*: label 7 is out of range 0 to 2"):
        fit(recipe.replace(dataset=str(labelled)), tmp_path / "run2", progress=False)


def test_folders_are_no_stream_and_empty_ones_no_class(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "x")
    with pytest.raises(BitLabError, match="holds image folders, which are no stream; use loading disk"):
        open_dataset(str(folder), loading="stream")
    (folder / "train" / "cow").mkdir()
    with pytest.raises(BitLabError, match="train/cow: the class folder holds no images"):
        open_dataset(str(folder), loading="disk")


def test_streams_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = {"img": [{"bytes": encode(picture(i)), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    table = datasets.Dataset.from_dict(cells, features=features)
    asked: list[Any] = []

    def fake(path: str, config: str | None, streaming: bool = False) -> Any:
        asked.append((path, streaming))
        return {"train": table.to_iterable_dataset(), "test": table.to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.delenv("BITLAB_DATA", raising=False)
    data = open_dataset("someone/things", 6, loading="stream", workers=1)
    assert asked == [("someone/things", True)]
    assert data.shape == (1, 6, 6)
    assert data.classes == ("a", "b")
    with pytest.raises(BitLabError, match="does not say how many images it has; set max_train_samples"):
        len(data.train)
    with pytest.raises(BitLabError, match="does not say how many images it has; set max_test_samples"):
        len(data.test)
    assert len(data.train.take(torch.arange(3))) == len(first(data.test, 3)) == 3
    prepared = prepare(Recipe(dataset="someone/things", loading="stream", max_train_samples=4, max_test_samples=2))
    assert (len(prepared.train), len(prepared.watched)) == (4, 2)


def test_prefetch_keeps_the_order_stops_and_raises() -> None:
    assert list(prefetch(range(50), lambda x: x * x, 3)) == [x * x for x in range(50)]
    taken: list[int] = []

    def jobs() -> Any:
        for job in range(10**9):
            taken.append(job)
            yield job

    results = prefetch(jobs(), str, 2)
    assert list(islice(results, 3)) == ["0", "1", "2"]
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    count = len(taken)
    assert count < 100
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0], lambda x: 1 // x, 1))

    def failing() -> Any:
        yield 1
        raise BitLabError("the source broke")

    with pytest.raises(BitLabError, match="the source broke"):
        list(prefetch(failing(), str, 1))
    assert len(taken) == count
