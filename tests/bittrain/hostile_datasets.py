"""Loads seeded random hostile datasets: ``python hostile_datasets.py FOLDER FIRST_SEED COUNT``.

Anything but `BitLabError`, or more than ten seconds for one, ends it with a traceback. Prints how many
were read and how many were refused.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import config
from PIL import Image

from bitcore.errors import BitLabError
from bittrain.bigdata import open_dataset

SECONDS = 10
NAMES = ["a", "b", "A", "x y", "\x1b[2J", "é", "e\u0301", ".hidden", "-", "a" * 200, os.fsdecode(b"\xff"), "0", "test"]


def picture(source: random.Random) -> bytes:
    """An encoded picture of any kind, sometimes damaged or a lie."""
    random_state = np.random.RandomState(source.randrange(1 << 30))
    width, height = source.choice([(1, 1), (4, 4), (5, 3), (64, 1), (1, 300)])
    mode = source.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
    grey = Image.fromarray(random_state.randint(0, 256, (height, width), dtype=np.uint8))
    image = grey.convert(mode) if mode != "P" else grey.convert("RGB").quantize(source.choice([2, 256]))
    kind = source.choice(["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "EPS", "PDF", "ICO"])
    exif = Image.Exif()
    exif[0x0112] = source.choice([0, 1, 6, 8, 9, 77])
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    except (OSError, ValueError, KeyError):
        grey.save(buffer, "PNG")
    code = bytearray(buffer.getvalue())
    damage = source.choice(["none", "none", "bits", "cut", "noise", "bomb", "empty"])
    if damage == "bits":
        for _ in range(source.randint(1, 8)):
            code[source.randrange(min(len(code), 400))] ^= 1 << source.randrange(8)
    elif damage == "cut":
        code = code[: source.randrange(len(code))]
    elif damage == "noise":
        code = bytearray(random_state.bytes(200))
    elif damage == "bomb":
        side = source.choice([9000, 50_000, 2**31 - 1])
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, source.choice([0, 2, 6]), 0, 0, 0)
        code = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)))
    elif damage == "empty":
        code = bytearray()
    return bytes(code)


def image_folder(source: random.Random, folder: Path) -> None:
    """Folders of classes with everything that a folder can hold."""
    good = source.random() < 0.3
    classes = source.sample(NAMES[:2] if good else NAMES, source.randint(1, 2))
    for split in source.choice([("train", "test"), ("train", "val"), ("train", "test"), ("train",)]):
        for name in classes:
            inside = folder / split / name
            inside.mkdir(parents=True, exist_ok=True)
            for i in range(source.randint(1, 4)):
                path = inside / f"{i}{source.choice(['.png', '.JPG', '', '.txt', '.jfif', '.tif'])}"
                what = (
                    "picture" if good else source.choice(["picture"] * 5 + ["pipe", "link", "loop", "folder", "deep"])
                )
                code = encoded_grey() if good else picture(source)
                if path.exists():
                    continue
                if what == "picture":
                    path.write_bytes(code)
                elif what == "pipe":
                    os.mkfifo(path)
                elif what == "link":
                    path.symlink_to(source.choice(["/dev/zero", "/etc/passwd", "nowhere", str(path)]))
                elif what == "loop":
                    path.symlink_to(folder)
                elif what == "folder":
                    path.mkdir()
                else:
                    deep = inside.joinpath(*("d" * 20))
                    deep.mkdir(parents=True, exist_ok=True)
                    (deep / "1.png").write_bytes(code)


def encoded_grey() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def labels(source: random.Random, count: int) -> Any:
    """A column of labels of any type."""
    make: list[Callable[[], Any]] = [
        lambda: pa.array([source.randrange(3) for _ in range(count)]),
        lambda: pa.array([source.choice([0, 1, 2_000_000_000, -1, 2**63 - 1]) for _ in range(count)]),
        lambda: pa.array([source.choice(["a", "b", "A", "", "\x1b", "x" * 999]) for _ in range(count)]),
        lambda: pa.array([source.choice(["a", "b"]) for _ in range(count)]).dictionary_encode(),
        lambda: pa.array([source.choice([0, None]) for _ in range(count)], pa.int8()),
        lambda: pa.array([source.choice([0.0, float("nan")]) for _ in range(count)]),
        lambda: pa.array([[1]] * count),
        lambda: pa.nulls(count),
        lambda: pa.array([True] * count),
    ]
    return source.choice([*make[:1] * 6, *make])()


def cell(source: random.Random) -> Any:
    """A struct of bytes and path."""
    path = source.choice([None, "x.png", "../x.png", "/etc/passwd", "/dev/zero", "a\0", "~/x", "", "https://x/y.png"])
    code = source.choice([encoded_grey(), encoded_grey(), picture(source), None])
    return {"bytes": code, "path": path}


def metadata(source: random.Random) -> dict[str, bytes]:
    """What the hub's library keeps beside a table."""
    names = source.choice([["a", "b", "c"], ["a", "a", "b"], [], "abc", [1, 2], {"a": 1}, ["\x1b"], ["x"] * 70_000])
    kinds = source.choice(["Image", "ClassLabel", "Audio", "Value", "Nothing", 3, None])
    features: Any = {"image": {"_type": kinds}, "label": {"names": names, "_type": "ClassLabel"}}
    features = source.choice([features, features, [features], {"image": [features]}, None, 3])
    content = json.dumps({"info": {"features": features}}).encode()
    return {"huggingface": source.choice([content, content, content, b"[" * 5000, b"\xff", content[:-3], b"9" * 5000])}


def parquet_folder(source: random.Random, folder: Path) -> None:
    """Parquet files of any columns, sometimes damaged."""
    good = source.random() < 0.3
    for split in source.choice([("train", "test"), ("train", "validation"), ("train", "test"), ("train",)]):
        count = source.randint(1, 6)
        cells: Any = [{"bytes": encoded_grey(), "path": None} for _ in range(count)]
        column, label = "image", pa.array([i % 2 for i in range(count)])
        if not good:
            cells = [cell(source) for _ in range(count)]
            cells = source.choice([cells] * 4 + [[c["bytes"] for c in cells], [c["path"] for c in cells], [1] * count])
            column = source.choice(["image"] * 6 + ["img", "label", "picture", "nothing"])
            label = labels(source, count)
        table = pa.Table.from_arrays([pa.array(cells), label], [column, "label"])
        if not good and source.random() < 0.5:
            table = table.replace_schema_metadata(metadata(source))
        path = folder / f"{split}-0.parquet"
        pq.write_table(table, path)
        if not good and source.random() < 0.3:
            code = bytearray(path.read_bytes())
            for _ in range(source.randint(1, 20)):
                code[source.randrange(len(code))] ^= 1 << source.randrange(8)
            path.write_bytes(code)


def main(root: Path, first: int, count: int) -> None:
    """Loads the datasets."""
    os.environ["BITLAB_CACHE"] = str(root / "cache")
    config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    warnings.filterwarnings("ignore", category=UserWarning)  # what is passed over
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    found = {"read": 0, "refused": 0}
    for seed in range(first, first + count):
        source = random.Random(seed)
        folder = root / str(seed)
        folder.mkdir()
        source.choice([image_folder, parquet_folder])(source, folder)
        loading = source.choice(["memory", "memory", "disk", "stream"])
        options = source.choice([(None, None, 0.0), (4, None, 0.0), (8, 3, 0.875), (4, 1, 1.0)])
        signal.alarm(SECONDS)
        try:
            data = open_dataset(str(folder), *options[:2], loading, 0, center_crop=options[2])
            assert data.test.sample().shape[1:] == data.shape
            found["read"] += 1
        except BitLabError as error:
            found["refused"] += len(str(error)) < 3000
        except BaseException:
            print(f"seed {seed}, loading {loading}", file=sys.stderr)
            raise
        finally:
            signal.alarm(0)
        shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
